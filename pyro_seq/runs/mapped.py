"""Keep on the disk what takes long to make of large data, as arrays that are mapped when used.

Mapped arrays take no memory of a process that the system could not have back, several processes
share them, and the next start finds them there. An entry of the cache is a folder:

    *.npy       arrays `[n]`, as NumPy writes them; none is ever unpickled
    seal.json   which files these are: inode, size, and times of the last changes, in nanoseconds

It is written beside, flushed and renamed, so that it is there whole or not at all, and is never
changed. Its seal fits on no copy: an entry that came with files from elsewhere, or was cut or
written to since, is not believed, and is made anew. Processes that want the same entry wait for the
one that makes it. Entries, and the whole folder, may be deleted at any time: maps stay until their
processes end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pyro_seq._progress import Progress
from pyro_seq.runs.plain_files import open_plain
from pyro_seq.runs.writing import clear_left, own_folder

FOLDER = ".pyroseq-data"  # beside the run folders
SEAL = "seal.json"
MOST_SEAL_BYTES = 2**16
VERSION = 1  # raised whenever what is kept is made or laid out otherwise
MOST_BYTES = 2**36  # of all entries but those in use; and at most half of what the disk has free
WORTH_KEEPING = 2**24  # bytes of data: less is read again as fast
SETTLED = 2.0  # seconds after which a file's next change shows in its times, whatever their steps

Arrays = dict[str, NDArray[Any]]


class Columns:
    """Arrays `[n]` of an entry that is made, each written as it grows."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack = folder, contextlib.ExitStack()
        self._files: dict[str, tuple[IO[bytes], np.dtype[Any]]] = {}
        self._rows: dict[str, int] = {}

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Append entries to an array, which the first ones begin and give their type."""
        if name not in self._files:
            path = self._folder / f"{name}.npy"
            self._files[name] = self._stack.enter_context(path.open("xb")), values.dtype
            self._rows[name] = 0
            self._write_header(name)
        file, dtype = self._files[name]
        file.write(np.ascontiguousarray(values, dtype).data)
        self._rows[name] += len(values)

    def _write_header(self, name: str) -> None:
        # NumPy leaves room in it for the number of entries to grow
        file, dtype = self._files[name]
        header = {"descr": dtype.str, "fortran_order": False, "shape": (self._rows[name],)}
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header)

    def close(self, *, whole: bool) -> None:
        """Close the files, complete and flushed to the disk if they are `whole`."""
        with self._stack:
            for name, (file, _) in self._files.items() if whole else ():
                self._write_header(name)
                file.flush()
                os.fsync(file.fileno())


class MappedCache:
    """Arrays by what they are made from, kept in a folder; without a folder nothing is kept.

    Nothing that is wrong with the folder is an error: a line says so, once, and data is then held
    in memory.

    Args:
        folder: where entries are kept.
        progress: where lines are said.
    """

    def __init__(self, folder: Path | None = None, progress: Progress | None = None) -> None:
        self.folder, self.progress = folder, progress or Progress(quiet=True)
        self._used: set[str] = set()

    @classmethod
    def beside(cls, run_dir: Path, progress: Progress | None = None) -> MappedCache:
        """Return the cache in a folder beside the run folder."""
        return cls(run_dir.absolute().parent / FOLDER, progress)

    def kept(
        self, key: str, make: Callable[[Columns], object], *, what: str, size: int
    ) -> Arrays | None:
        """Return the arrays of an entry, mapped; `None` if nothing can be kept.

        Args:
            key: all that the arrays depend on, in words.
            make: adds them to the columns of a new entry.
            what: the data's name, for messages.
            size: about how many bytes they take.
        """
        if self.folder is None:
            return None
        entry = self.folder / hashlib.sha256(f"{VERSION} {key}".encode()).hexdigest()
        try:
            found = _opened(entry)
            if found is None:
                self._check_folder(self.folder)
                with _turn(entry):
                    found = _opened(entry) or self._made(entry, make, what, size)
        except OSError as error:
            self.progress.say(
                f"nothing can be kept in {self.folder} ({error.strerror or error}): held in "
                f"memory, and read anew at each start, is {what}"
            )
            self.folder = None
            return None
        self._used.add(entry.name)
        with contextlib.suppress(OSError):  # a cache of somebody else's
            os.utime(entry / SEAL)
        return found

    def _check_folder(self, folder: Path) -> None:
        if folder.is_symlink():  # which could have any other folder written to
            raise OSError(errno.ELOOP, "it is a symbolic link", str(folder))
        folder.mkdir(parents=True, exist_ok=True)

    def _made(
        self, entry: Path, make: Callable[[Columns], object], what: str, size: int
    ) -> Arrays | None:
        """Make an entry, whole or not at all."""
        clear_left(entry.parent)
        self._make_room(entry.parent, size)
        with own_folder(entry.parent) as temporary:
            if self.progress.due():
                self.progress.show(f"reading {what} once, to be kept in {entry.parent}")
            folder = temporary / entry.name
            folder.mkdir()
            columns, whole = Columns(folder), False
            try:
                make(columns)
                whole = True
            finally:
                columns.close(whole=whole)
            seal = {path.stem: stamp_of(path.stat()) for path in folder.glob("*.npy")}
            (folder / SEAL).write_text(json.dumps(seal))
            shutil.rmtree(entry, ignore_errors=True)  # one that is not believed
            os.rename(folder, entry)
        found = _opened(entry)
        if found is None:
            raise OSError(errno.EIO, "what was written there is gone", str(entry))
        return found

    def _make_room(self, folder: Path, size: int) -> None:
        """Remove the entries that were not used for longest where there would be too much."""
        kept = []
        for seal in folder.glob(f"*/{SEAL}"):
            with contextlib.suppress(OSError):  # others remove too
                taken = sum(path.stat().st_size for path in seal.parent.iterdir())
                kept.append((seal.stat().st_mtime, taken, seal.parent))
        total = sum(taken for _, taken, _ in kept)
        most = min(MOST_BYTES, (total + shutil.disk_usage(folder).free) // 2)
        for _, taken, entry in sorted(kept):
            if total + size > most and entry.name not in self._used:
                shutil.rmtree(entry, ignore_errors=True)
                total -= taken


def stamp_of(status: os.stat_result) -> list[int]:
    """Return what a file is known by while it is not changed; no program can set all of it."""
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def is_settled(status: os.stat_result) -> bool:
    """Tell whether a file's last change lies so far back that the next one changes its stamp."""
    return time.time() - max(status.st_mtime, status.st_ctime) > SETTLED


@contextlib.contextmanager
def _turn(entry: Path) -> Iterator[None]:
    """Wait until no other process makes the entry."""
    path = entry.with_suffix(".lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        path.unlink(missing_ok=True)  # who still waits for it finds the entry
        os.close(descriptor)


def _opened(entry: Path) -> Arrays | None:
    """Map the arrays of an entry; `None` if it is missing, or not as it was made."""
    try:
        with open_plain(entry / SEAL) as file:
            seal = json.loads(file.read(MOST_SEAL_BYTES))
        return {name: _mapped(entry, name, stamp) for name, stamp in seal.items()} or None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _mapped(entry: Path, name: str, stamp: object) -> NDArray[Any]:
    if not name.isidentifier():
        raise ValueError("it is no array's name")
    with open_plain(entry / f"{name}.npy") as file:
        if stamp_of(os.fstat(file.fileno())) != stamp:
            raise ValueError("it is another file than the one that was made")
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it is written in another way")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if len(shape) != 1 or fortran or dtype.hasobject:
            raise ValueError("it is no plain array")
        mapped = np.memmap(file, dtype, "r", file.tell(), shape)
    return mapped.view(np.ndarray)
