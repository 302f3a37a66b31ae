"""Share files among processes that know nothing of each other."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from pathlib import Path
from types import TracebackType

from pyro_seq.errors import UserError
from pyro_seq.runs.plain_files import open_no_link

LOCK = ".lock"


class Claims:
    """What this process works on: each claim is the lock of one byte of a file in a folder.

    The byte is chosen by the name of what is claimed, so that processes agree on it that are given
    different lists. The system takes a process's locks back when it ends, however it ends, also on
    another machine where the folder's file system has locks across machines (NFS); the file itself
    stays empty, and stays.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        try:
            self._file = open(path, "ab", opener=open_no_link)  # noqa: SIM115 (closed in __exit__)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def take(self, name: str, *, without_locks: bool) -> bool:
        """Claim a name; tell whether no other process has it.

        On a file system without locks the answer is `without_locks`.
        """
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(name), os.SEEK_SET)
        except OSError as error:
            return without_locks and error.errno not in (errno.EAGAIN, errno.EACCES)
        return True

    def release(self, name: str) -> None:
        """Give a claim back."""
        with contextlib.suppress(OSError):  # of a file system without locks
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(name), os.SEEK_SET)


def _place(name: str) -> int:
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:7], "big")
