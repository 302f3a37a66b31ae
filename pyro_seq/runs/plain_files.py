"""Open plain files only: a run folder from elsewhere may hold links, devices, pipes, sockets.

A link would redirect writing out of the folder; a pipe or a device may be read for ever. So a
folder is checked once when it is opened (`check_plain`), and each file is opened without following
a link or waiting for another process (`open_plain`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from pyro_seq.errors import UserError

NAMES = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


def what_it_is(mode: int) -> str | None:
    """Say what a status's mode is that no plain file is (`a pipe`); `None` for a plain file."""
    return None if stat.S_ISREG(mode) else NAMES.get(stat.S_IFMT(mode), "no file")


def check_plain(folder: Path, below: Iterable[str] = (), *, to: str = "read") -> None:
    """Raise `UserError` unless a folder holds plain files and folders only.

    Of the folders inside, those of the names `below` are looked into.

    `to` says what for. Other folders inside are not the run's own, and are not entered. The folder
    itself may be a link, since the user has named it.
    """
    own, waiting = set(below), [(folder, True)]
    try:
        while waiting:
            where, outermost = waiting.pop()
            with os.scandir(where) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if not outermost or entry.name in own:
                            waiting.append((Path(entry.path), False))
                    elif not entry.is_file(follow_symlinks=False):
                        _refuse(
                            Path(entry.path),
                            (
                                f"cannot {to} the run folder {folder}: "
                                f"{Path(entry.path).relative_to(folder)}"
                            ),
                        )
    except FileNotFoundError as error:
        if error.filename == str(folder) or not os.path.lexists(folder):
            # there is nothing in what is not there; and what another process has just removed is
            # not there either
            return
    except OSError as error:
        raise UserError(
            f"cannot {to} the run folder {folder}: {error.filename or folder}: {error.strerror}"
        ) from None


def _refuse(path: Path, where: str) -> None:
    """Raise `UserError` for what is neither a file nor a folder, unless it is gone by now.

    The message begins with where it lies.
    """
    try:
        what = what_it_is(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if what is not None and what != NAMES[stat.S_IFDIR]:
        raise UserError(f"{where} is {what}; remove it")


def open_no_link(path: str, flags: int) -> int:
    """Open plain files alone, and wait for nobody: an opener for `open`.

    What a folder from elsewhere holds may be anything.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO) or not os.path.lexists(path):
            raise
        what = what_it_is(os.lstat(path).st_mode) or "no plain file"
        raise OSError(error.errno, f"{os.path.basename(path)} is {what}; remove it", path) from None
    opened = what_it_is(os.fstat(descriptor).st_mode)
    if opened is None:
        return descriptor
    os.close(descriptor)
    number = errno.EISDIR if opened == NAMES[stat.S_IFDIR] else errno.EINVAL
    why = (
        os.strerror(number)
        if number == errno.EISDIR
        else f"{os.path.basename(path)} is {opened}; remove it"
    )
    raise OSError(number, why, path)


def open_plain(path: str | Path) -> BinaryIO:
    """Open a plain file to read; raise `OSError`, which says what the path is, for others."""
    return open(path, "rb", opener=open_no_link)
