"""Write files whole or not at all, beside other processes that do the same.

A file is written in a temporary folder beside it, flushed to the disk and renamed. The process that
writes locks the temporary folder; a folder without a lock was left by a killed process, and may be
removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors

from pyro_seq.errors import UserError
from pyro_seq.runs.plain_files import what_it_is

WRITING = ".writing-"
ATTEMPTS = 100  # to make a folder that nobody else clears away


@contextlib.contextmanager
def replacing(
    path: Path, *, follow: bool = True, still: Callable[[], object] | None = None
) -> Iterator[Path]:
    """Yield a temporary path to write to, which then replaces `path`, whole and flushed to disk.

    After an error `path` is as it was.

    Args:
        path: the file.
        follow: whether a link is followed, and what it points to replaced; otherwise a link is
            refused.
        still: raises `UserError` where the file is not to be written after all, also if that shows
            only once all is ready.

    Raises `UserError` if anything cannot be written, and for what is neither a file nor missing.
    """
    path = Path(os.path.realpath(path)) if follow else path
    _check_replaceable(path)
    untouched = "; what was there before is untouched" if path.exists() else ""
    try:
        if still is not None:
            still()
        with own_folder(path.parent) as folder:
            temporary = folder / path.name
            temporary.touch()
            # as the user's umask has it; safetensors would keep its files to their owner
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)
            _flush(temporary)
            _check_replaceable(path)
            if still is not None:
                still()
            os.replace(temporary, path)
            _flush(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}{untouched}") from error
    except safetensors.SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        raise UserError(
            f"cannot write {path}: {os.strerror(int(number[1])) if number else error}{untouched}"
        ) from error


def _check_replaceable(path: Path) -> None:
    """Raise `UserError` unless there is a plain file or nothing.

    Root could put a file in the place of a device.
    """
    try:
        what = what_it_is(path.lstat().st_mode)
    except OSError:
        return  # what else is wrong is said when it is written
    if what is not None:
        raise UserError(f"cannot write {path}: it is {what}")


@contextlib.contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """Make a new folder in another one, locked until it is removed in the end."""
    for _ in range(ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=WRITING, dir=parent))
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            if stack.enter_context(held(folder)):  # else one that clears away has come first
                stack.callback(shutil.rmtree, folder, ignore_errors=True)  # while it is held
                yield folder
                return
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(parent))


@contextlib.contextmanager
def held(folder: Path, *, without_locks: bool = True) -> Iterator[bool]:
    """Lock a folder inside, and yield whether the lock was taken.

    It is not while another process holds it, or once the folder is gone.

    On a file system without locks the answer is `without_locks`. Raises `OSError` for a path that
    is no folder or cannot be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = is_same(folder, descriptor)
        except BlockingIOError:
            mine = False
        except OSError:  # a file system without locks
            mine = without_locks
        yield mine
    finally:
        os.close(descriptor)


def is_same(path: Path, descriptor: int) -> bool:
    """Tell whether an opened file still lies at a path, neither removed nor replaced."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError:
        return False


def clear_left(folder: Path) -> None:
    """Remove files that killed processes were writing in a folder.

    What a living process writes, here or below, stays.
    """
    for left in sorted(folder.glob(f"{WRITING}*")):
        with contextlib.suppress(OSError), held(left, without_locks=False) as nobodys:
            if nobodys:
                shutil.rmtree(left, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; raise `UserError` if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: cannot make the folder ({error.strerror or error})"
        ) from None


@contextlib.contextmanager
def new_folder(folder: Path, option: str) -> Iterator[None]:
    """Lock a new or empty folder for this process; remove it if it stays empty and is new.

    Raises `UserError`, which names the option, for one that holds files or that another process
    writes to.
    """
    was_there = os.path.lexists(folder)
    if was_there and not folder.is_dir():
        raise UserError(
            f"{option} {folder} is a file: choose another, so that nothing is overwritten"
        )
    check_writable(folder, option)
    try:
        with held(Path(os.path.realpath(folder))) as mine:
            if not mine:
                raise UserError(
                    f"{option} {folder} is being written to by another process: choose another"
                )
            if os.listdir(folder):
                raise UserError(
                    f"{option} {folder} holds files already: choose another, so that nothing is "
                    "overwritten"
                )
            yield
    finally:
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which fails, as it should, for one that holds something


@contextlib.contextmanager
def whole_folder(folder: Path, option: str) -> Iterator[Path]:
    """Yield a temporary folder to write to, which then becomes `folder`, whole or not at all.

    Raises `UserError`, which names the option, for a path where there is anything already, and if
    it cannot be written.
    """
    path = folder.absolute()
    if os.path.lexists(path):
        raise UserError(
            f"{option} {folder} is there already: choose another, so that nothing is overwritten"
        )
    make_folder(path.parent)
    try:
        with own_folder(path.parent) as own:
            temporary = own / path.name
            temporary.mkdir()
            yield temporary
            for where, _, files in os.walk(temporary):
                for name in files:
                    _flush(Path(where) / name)
            os.rename(temporary, path)  # fails where something has come in between
            _flush(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {option} {folder}: {error.strerror or error}") from None


def check_writable(folder: Path, option: str) -> None:
    """Make a folder if need be; raise `UserError` if nothing can be written there.

    The message names the option.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(prefix=WRITING, dir=folder))
    except OSError as error:
        raise UserError(f"cannot write to {option} {folder}: {error.strerror}") from None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
