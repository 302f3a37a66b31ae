"""Arrays that are kept on the disk: made once, whole or not at all; nothing else is believed."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.runs import mapped
from pyro_seq.runs.mapped import SEAL, Columns, MappedCache, stamp_of

NUMBERS = np.arange(1_000, dtype=np.int64)


class Maker:
    """Makes an entry, and counts how often."""

    def __init__(self, after: Callable[[], object] = lambda: None) -> None:
        self.calls, self.after = 0, after

    def __call__(self, columns: Columns) -> None:
        self.calls += 1
        for part in np.array_split(NUMBERS, 7):
            columns.add("numbers", part)
            columns.add("letters", part.astype(np.uint8))
        columns.add("none", np.zeros(0, np.int32))
        self.after()


def kept(cache: MappedCache, make: Maker, key: str = "k", size: int = 0) -> Any:
    return cache.kept(key, make, what="the data", size=size)


def is_made(found: Any) -> bool:
    return (
        np.array_equal(found["numbers"], NUMBERS)
        and np.array_equal(found["letters"], NUMBERS.astype(np.uint8))
        and found["letters"].dtype == np.uint8
        and found["none"].shape == (0,)
    )


def test_an_entry_is_made_once_and_mapped(tmp_path: Path) -> None:
    make = Maker()
    first = kept(MappedCache(tmp_path / "new" / "cache"), make)
    again = kept(MappedCache(tmp_path / "new" / "cache"), make)
    assert is_made(first) and is_made(again) and make.calls == 1
    assert not again["numbers"].flags.writeable and not again["numbers"].flags.owndata
    kept(MappedCache(tmp_path / "new" / "cache"), make, "another")
    assert make.calls == 2
    assert len(os.listdir(tmp_path / "new" / "cache")) == 2  # no lock, and nothing half written
    shutil.rmtree(tmp_path / "new")
    assert is_made(again)  # maps stay
    assert kept(MappedCache(), make) is None and make.calls == 2


def entry_of(folder: Path) -> Path:
    (entry,) = folder.iterdir()
    return entry


def cut(entry: Path) -> None:
    os.truncate(entry / "numbers.npy", 500)


def written_to(entry: Path) -> None:
    with open(entry / "numbers.npy", "r+b") as file:
        file.seek(200)
        file.write(b"\1")


def copied(entry: Path) -> None:
    shutil.copytree(entry, entry.with_name("other"))
    shutil.rmtree(entry)
    entry.with_name("other").rename(entry)


def without_a_file(entry: Path) -> None:
    (entry / "letters.npy").unlink()


def linked(entry: Path) -> None:
    path = entry / "numbers.npy"
    path.rename(entry.parent.parent / "elsewhere.npy")
    path.symlink_to(entry.parent.parent / "elsewhere.npy")


def sealed_anew(entry: Path, name: str = "numbers") -> None:
    seal = json.loads((entry / SEAL).read_text())
    seal[name] = stamp_of((entry / f"{name}.npy").stat())
    (entry / SEAL).write_text(json.dumps(seal))


def pickled(entry: Path) -> None:
    np.save(entry / "numbers.npy", np.array([{}] * 10, object), allow_pickle=True)
    sealed_anew(entry)


def of_two_dimensions(entry: Path) -> None:
    np.save(entry / "numbers.npy", np.zeros((3, 3)))
    sealed_anew(entry)


def longer_by_its_header(entry: Path) -> None:
    path = entry / "numbers.npy"
    path.write_bytes(path.read_bytes().replace(b"(1000,)", b"(1009,)"))
    sealed_anew(entry)


def outside(entry: Path) -> None:
    np.save(entry.parent / "x.npy", NUMBERS)
    sealed_anew(entry, "../x")


def no_json(entry: Path) -> None:
    (entry / SEAL).write_text("[" * 10_000)


SPOILT = [cut, written_to, copied, without_a_file, linked, pickled, of_two_dimensions,
          longer_by_its_header, outside, no_json]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: str(spoil.__name__))
def test_what_was_not_made_here_is_made_anew(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    make = Maker()
    kept(MappedCache(tmp_path / "cache"), make)
    entry = entry_of(tmp_path / "cache")
    spoil(entry)
    assert is_made(kept(MappedCache(tmp_path / "cache"), make)) and make.calls == 2
    assert is_made(kept(MappedCache(tmp_path / "cache"), make)) and make.calls == 2


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_did_not_come_to_an_end(
    tmp_path: Path, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        kept(MappedCache(tmp_path), Maker(fail))
    assert not os.listdir(tmp_path)
    (tmp_path / ".writing-killed").mkdir()  # without a lock
    assert is_made(kept(MappedCache(tmp_path), Maker()))
    assert len(os.listdir(tmp_path)) == 1


def nowhere(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "cache"


def behind_a_link(folder: Path) -> Path:
    (folder / "real").mkdir()
    (folder / "link").symlink_to(folder / "real")
    return folder / "link"


@pytest.mark.parametrize("place", [nowhere, behind_a_link])
def test_a_folder_that_keeps_nothing_is_said_once(
    tmp_path: Path, place: Callable[[Path], Path]
) -> None:
    stream, make = io.StringIO(), Maker()
    cache = MappedCache(place(tmp_path), Progress(stream=stream))
    assert kept(cache, make) is None and kept(cache, make, "other") is None and not make.calls
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("nothing can be kept in ") and line.endswith(" is the data")


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    stream = io.StringIO()
    assert kept(MappedCache(tmp_path, Progress(stream=stream)), Maker(full)) is None
    assert "(No space left on device)" in stream.getvalue() and not os.listdir(tmp_path)


def test_what_was_not_used_for_longest_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "MOST_BYTES", 30_000)  # of entries of 9,500
    now = time.time()
    for i, key in enumerate("abc"):
        before = {*tmp_path.iterdir()}
        kept(MappedCache(tmp_path), Maker(), key, 9_500)
        (entry,) = {*tmp_path.iterdir()} - before
        os.utime(entry / SEAL, (now - 100 + i, now - 100 + i))
    reading, make = MappedCache(tmp_path), Maker()
    kept(reading, make, "a")  # is used, and so not the oldest any longer
    kept(reading, make, "d", 9_500)
    assert make.calls == 1 and len(os.listdir(tmp_path)) == 3
    kept(MappedCache(tmp_path), make, "a")
    kept(MappedCache(tmp_path), make, "c")
    assert make.calls == 1
    kept(MappedCache(tmp_path), make, "b")
    assert make.calls == 2
    # what this process uses stays, however much it is
    several = MappedCache(tmp_path)
    for key in "uvwxy":
        kept(several, Maker(), key, 9_500)
    assert len(os.listdir(tmp_path)) >= 5


def test_processes_wait_for_the_one_that_makes_an_entry(tmp_path: Path) -> None:
    """Locks are of open files, so that threads wait for one another as processes do."""
    make, found = Maker(lambda: time.sleep(0.1)), []
    threads = [
        threading.Thread(target=lambda: found.append(kept(MappedCache(tmp_path), make)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make.calls == 1 and len(found) == 4 and all(map(is_made, found))
    assert len(os.listdir(tmp_path)) == 1
