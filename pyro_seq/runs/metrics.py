"""The metrics file of a run: one JSON line a measurement, cut to a checkpoint on resumption."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from pyro_seq.errors import UserError
from pyro_seq.runs.plain_files import open_no_link, open_plain
from pyro_seq.runs.writing import replacing

CHUNK = 2**20
MOST_READ = 2**26  # bytes of a metrics file: lines of ten million steps
LONGEST_LINE = 2**16


class AppendedFile:
    """An unbuffered file that grows, so that a full disk is noticed by the write that meets it."""

    def __init__(self, path: Path, size: int = 0) -> None:
        """Open the file, cut back to its first `size` bytes.

        Raises `UserError` if it has fewer, is a link or cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            there = os.path.lexists(path)
            if (path.lstat().st_size if there else 0) < size and not path.is_symlink():
                raise UserError(
                    f"{path} is shorter than the run's checkpoint says: it was changed since"
                )
            if there and path.lstat().st_nlink > 1:
                _copy_of_its_own(path, size)
            self._file = open(path, "r+b" if there else "x+b", buffering=0, opener=open_no_link)  # noqa: SIM115 (closed by close)
            self._file.truncate(size)
            self._file.seek(size)
        except OSError as error:
            raise self._cannot(error) from None

    def append(self, data: bytes) -> None:
        """Write all of it."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            raise self._cannot(error) from None

    def flush(self) -> int:
        """Bring everything to the disk, and return the size of the file."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._cannot(error) from None
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _cannot(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self.path}: {error.strerror or error}")


def _copy_of_its_own(path: Path, size: int) -> None:
    """Replace a file by a copy of its first `size` bytes.

    A second name of the same file would be written to through it.
    """
    with (
        replacing(path, follow=False) as temporary,
        open_plain(path) as file,
        open(temporary, "wb") as copy,
    ):
        while size and (chunk := file.read(min(size, CHUNK))):
            copy.write(chunk)
            size -= len(chunk)


class MetricsFile(AppendedFile):
    """Write JSON lines that a resumed run continues as if it had never been interrupted.

    What was written after the last checkpoint, beyond the file's first `size` bytes, is written
    again.

    It holds only what the seed determines, no times: equal runs write equal bytes.
    """

    def write(self, **figures: object) -> None:
        """Write one line; a figure that is not finite is null, as JSON has no word for it."""
        finite = {
            name: None if isinstance(value, float) and not abs(value) < float("inf") else value
            for name, value in figures.items()
        }
        self.append((json.dumps(finite) + "\n").encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file; no lines if it cannot be read.

    Lines that are damaged (as one cut off by a kill) are left out.

    Raises `UserError` for a file that is larger than any training makes it.
    """
    try:
        with open_plain(path) as file:
            data = file.read(MOST_READ + 1)
    except OSError:
        return []
    if len(data) > MOST_READ:
        raise UserError(
            f"{path} is larger than the {MOST_READ // 2**20} MiB that are read of it: no training "
            "writes so much"
        )
    found = []
    for line in data.split(b"\n"):
        if len(line) <= LONGEST_LINE:
            with contextlib.suppress(ValueError, RecursionError):
                found.append(json.loads(line))
    return [
        entry
        for entry in found
        if isinstance(entry, dict) and all(map(_may_be_measured, entry.values()))
    ]


def _may_be_measured(value: object) -> bool:
    """Tell whether a metrics line may hold a value: `None`, a word, a number in a float's range."""
    if isinstance(value, (int, float)):
        return abs(value) <= sys.float_info.max  # false for what is not a number
    return value is None or isinstance(value, str)
