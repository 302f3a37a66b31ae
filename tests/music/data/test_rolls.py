"""Rolls of many files: bad ones are passed over, parsing is done once, and nothing in a cache is
believed unseen.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.music.data import cache as tune_cache
from pyro_seq.music.data import rolls as roll_cache
from pyro_seq.music.data.cache import SUFFIX, VERSION, TuneCache
from pyro_seq.music.data.midi_reader import (
    Contents,
    read_contents,
    read_tune,
    roll_of,
    to_common_key,
)
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.data.rolls import Rolls, read_rolls
from pyro_seq.music.data.sources import DEMO

GRID = Timing(grid=4)


@pytest.fixture(scope="session")
def demo_files() -> list[Path]:
    return sorted(DEMO.iterdir())


@pytest.fixture
def files(demo_files: list[Path], tmp_path: Path) -> list[Path]:
    """Five tunes, and among them an empty file and one that is cut short in its header."""
    folder = tmp_path / "midi"
    folder.mkdir()
    tunes = [Path(shutil.copy(path, folder)) for path in demo_files[:5]]
    (folder / "empty.mid").touch()
    (folder / "short.mid").write_bytes(tunes[0].read_bytes()[:9])
    return [*tunes[:2], folder / "empty.mid", *tunes[2:], folder / "short.mid"]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each file that is parsed."""
    calls: list[int] = []
    parse = roll_cache.contents_of

    def counting(data: bytes) -> Any:
        calls.append(len(data))
        return parse(data)

    monkeypatch.setattr(roll_cache, "contents_of", counting)
    return calls


def same(a: Rolls, b: Rolls) -> bool:
    equal = all(torch.equal(x, y) for x, y in zip(a.pieces, b.pieces, strict=True))
    return equal and (a.names, a.skipped, a.mended, a.tempo) == (
        b.names,
        b.skipped,
        b.mended,
        b.tempo,
    )


def test_what_is_read_and_what_is_skipped(files: list[Path]) -> None:
    rolls = read_rolls(files, GRID)
    assert rolls.paths == [*files[:2], *files[3:6]]
    assert rolls.skipped == [
        (files[2], "it is empty"),
        (files[6], "it is cut short: it ends within its header"),
    ]
    assert all(
        torch.equal(roll, roll_of(read_tune(path), GRID))
        for roll, path in zip(rolls.pieces, rolls.paths, strict=True)
    )
    assert rolls.tempo == 120  # of 96, 100, 120, 120, 128
    moved = read_rolls(files, Timing(rate=20), keys=128, common_key=True)
    expected = [
        to_common_key(roll_of(read_tune(path), Timing(rate=20), 128)) for path in moved.paths
    ]
    assert all(torch.equal(roll, other) for roll, other in zip(moved.pieces, expected, strict=True))


def test_no_file_that_can_be_read(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^none of 3 files could be read; the first, .*empty.mid: it is empty$"
    ):
        read_rolls([files[2], files[6], tmp_path / "missing.mid"], GRID)
    with pytest.raises(
        UserError, match=r"^the only file could not be read, .*empty.mid: it is empty$"
    ):
        read_rolls([files[2]], GRID)
    with pytest.raises(UserError, match="there are no MIDI files to read"):
        read_rolls([], GRID)


def test_files_are_parsed_once(files: list[Path], tmp_path: Path, parsed: list[int]) -> None:
    folder = tmp_path / "some" / "cache"
    cache = TuneCache(folder)
    first = read_rolls(files, GRID, cache=cache)
    assert len(parsed) == 7  # the bad ones too
    assert same(read_rolls(files, GRID, cache=TuneCache(folder)), first) and len(parsed) == 7
    # of notes any roll is made
    other = read_rolls(files[::-1], Timing(rate=10), keys=128, common_key=True, cache=cache)
    assert (
        same(other, read_rolls(files[::-1], Timing(rate=10), keys=128, common_key=True))
        and len(parsed) == 14
    )
    files[0].write_bytes(files[1].read_bytes())  # known by another name
    assert (
        same(read_rolls(files, GRID, cache=cache), read_rolls(files, GRID))
        and len(parsed) == 14 + 7
    )
    (tmp_path / "moved.mid").write_bytes(files[1].read_bytes() + b" ")
    read_rolls([*files, tmp_path / "moved.mid"], GRID, cache=cache)
    assert len(parsed) == 22 and len(list(folder.iterdir())) == 8


SEQUENCES = b"MThd\0\0\0\6\0\2\0\2\0\x60" + 2 * (
    b"MTrk\0\0\0\x0b" + b"\0\x90\x3c\x40\x60\x3c\0\0\x90\x40\x40"
)
FRAMES = b"MThd\0\0\0\6\0\1\0\1\xe2\x28" + b"MTrk\0\0\0\7" + b"\0\x90\x3c\x40\x60\x3c\0"


def test_what_the_cache_keeps_is_exact(demo_files: list[Path], tmp_path: Path) -> None:
    cache = TuneCache(tmp_path / "cache")
    (tmp_path / "two.mid").write_bytes(SEQUENCES)
    (tmp_path / "frames.mid").write_bytes(FRAMES)
    held = [
        read_contents(path)
        for path in (*demo_files[:3], tmp_path / "two.mid", tmp_path / "frames.mid")
    ]
    assert (
        len(held[3].tunes) == 2
        and "never ended" in held[3].mended
        and not held[4].tunes[0].has_beats
    )
    for i, contents in enumerate(held):
        cache.put(str(i), contents)
    cache.put("99", "no music")
    for i, contents in enumerate(held):
        found = cache.get(str(i))
        assert isinstance(found, Contents) and found.mended == contents.mended
        for tune, other in zip(found.tunes, contents.tunes, strict=True):
            for name, value in vars(other).items():
                np.testing.assert_array_equal(getattr(tune, name), value)
                assert np.asarray(getattr(tune, name)).dtype == np.asarray(value).dtype
    assert cache.get("99") == "no music" and cache.get("50") is None


def test_the_pieces_of_a_file_are_named(tmp_path: Path, demo_files: list[Path]) -> None:
    (tmp_path / "two.mid").write_bytes(SEQUENCES)
    stream = io.StringIO()
    rolls = read_rolls(
        [demo_files[0], tmp_path / "two.mid"], GRID, progress=Progress(interval=0.0, stream=stream)
    )
    two = tmp_path / "two.mid"
    assert rolls.names == [
        str(demo_files[0]),
        f"{two}, piece 1",
        f"{two}, piece 2",
    ] and rolls.paths[1:] == [two, two]
    assert (
        f"mended 1 of 2 files: {two}: notes that are never ended, left out (2)"
        in stream.getvalue().splitlines()
    )


def test_frames_of_seconds_have_no_beats(tmp_path: Path, demo_files: list[Path]) -> None:
    (tmp_path / "frames.mid").write_bytes(FRAMES)
    ((path, reason),) = read_rolls([tmp_path / "frames.mid", demo_files[0]], GRID).skipped
    assert (
        path == tmp_path / "frames.mid"
        and "its times are SMPTE frames, not beats" in reason
        and "--rate" in reason
    )
    rolls = read_rolls([tmp_path / "frames.mid"], Timing(rate=100))
    assert len(rolls.pieces[0]) == round(100 * 96 / (40 * 30)) and rolls.tempo == 120


def test_side_by_side(tmp_path: Path) -> None:
    """What two write at once is there whole, and neither is in the other's way."""
    caches = [TuneCache(tmp_path / "cache") for _ in range(3)]
    for cache, found in zip(caches, ([0, 1], [2], [1, 0]), strict=True):
        for i in found:
            cache.put(str(i), f"reason {i}")
    assert [TuneCache(tmp_path / "cache").get(str(i)) for i in range(3)] == [
        "reason 0",
        "reason 1",
        "reason 2",
    ]
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_an_interrupted_parsing_is_kept(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parsed: list[int]
) -> None:
    read = roll_cache.midi_bytes

    def interrupted(path: Path) -> bytes:
        if len(parsed) == 4:
            raise KeyboardInterrupt
        return read(path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(roll_cache, "midi_bytes", interrupted)
        read_rolls(files, GRID, cache=TuneCache(tmp_path / "cache"))
    read_rolls(files, GRID, cache=TuneCache(tmp_path / "cache"))
    assert len(parsed) == 7


def test_nothing_is_left_of_what_was_refused(tmp_path: Path) -> None:
    there = TuneCache(tmp_path / "there")
    there.put("1", "one")
    for folder in (tmp_path / "there", tmp_path / "new" / "deep" / "cache"):
        cache = TuneCache(folder)
        with pytest.raises(UserError, match="no"), cache.nothing_left_if_refused():
            cache.put("1", "one")
            cache.put("2", "two")
            assert cache.get("2") == "two"
            raise UserError("no")
    assert (
        [path.name for path in tmp_path.iterdir()] == ["there"]
        and there.get("1") == "one"
        and there.get("2") is None
    )


def file_in(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def test_damaged_files_are_written_anew(
    demo_files: list[Path], tmp_path: Path, parsed: list[int]
) -> None:
    folder = tmp_path / "cache"
    first = read_rolls(demo_files[:1], GRID, cache=TuneCache(folder))
    whole = file_in(folder).read_bytes()
    chance = np.random.default_rng(0)
    damaged = [b"", b"junk", whole[: len(whole) // 2], b"\xff" * 16 + whole[16:], whole[:-1]]
    for offset in chance.integers(0, len(whole), 60).tolist():
        damaged.append(
            whole[:offset]
            + bytes([whole[offset] ^ 1 << int(chance.integers(8))])
            + whole[offset + 1 :]
        )
    for data in damaged:
        parsed.clear()
        file_in(folder).write_bytes(data)
        assert same(read_rolls(demo_files[:1], GRID, cache=TuneCache(folder)), first)
        assert parsed and file_in(folder).read_bytes() == whole


def tampered(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A file that is whole, and says what no file could."""

    def write(path: Path) -> None:
        tensors = safetensors.numpy.load(path.read_bytes()[4:])
        tensors = {name: array.copy() for name, array in tensors.items()}
        change(tensors)
        path.write_bytes(tune_cache._checked(safetensors.numpy.save(tensors)))

    return write


def put(name: str, index: Any, value: float) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors[name].__setitem__(index, value)


def replaced(name: str, value: np.ndarray) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.__setitem__(name, value)


def words(text: bytes) -> Callable[[dict[str, Any]], None]:
    return replaced("words", np.frombuffer(text, dtype=np.uint8))


@pytest.mark.parametrize(
    "change",
    [
        put("notes", (0, 0), 200),
        put("notes", (0, 0), 60.5),
        put("notes", (0, 1), -1),
        put("notes", (0, 1), np.nan),
        put("notes", (0, 2), 1e300),
        put("notes", (slice(None), 2), 0),
        put("notes", (0, 4), np.inf),
        put("pieces", (0, 1), 1e9),
        put("pieces", (0, 2), 1e9),
        put("pieces", (0, 3), np.nan),
        put("pieces", (0, 0), -1),
        put("pieces", (0, 0), np.nan),
        put("pieces", (0, 0), 2.0**62),
        replaced("pieces", np.zeros((0, 4))),
        replaced("pieces", np.zeros((1, 3))),
        replaced("pieces", np.zeros(4)),
        replaced("notes", np.zeros((4, 4))),
        replaced("notes", np.zeros((4, 5), np.float32)),
        words(b"[1, 2]"),
        words(b'["only one"]'),
        words(b'["", "\\u001b[2J"]'),
        words(b'["no music", ""]'),
        words(b"[" * 100_000),
        words(b"[" * 3_000_000),
        words(b"\xff"),
        lambda tensors: tensors.pop("words"),
    ],
)
def test_hostile_files_are_not_believed(
    demo_files: list[Path], tmp_path: Path, parsed: list[int], change: Any
) -> None:
    folder = tmp_path / "cache"
    first = read_rolls(demo_files[:1], GRID, cache=TuneCache(folder))
    whole = file_in(folder).read_bytes()
    tampered(lambda tensors: None)(file_in(folder))
    assert file_in(folder).read_bytes() == whole
    tampered(change)(file_in(folder))
    parsed.clear()
    assert (
        same(read_rolls(demo_files[:1], GRID, cache=TuneCache(folder)), first) and len(parsed) == 1
    )
    assert file_in(folder).read_bytes() == whole


def test_a_cache_that_cannot_be_used(
    files: list[Path],
    tmp_path: Path,
    parsed: list[int],
    file_size_limit: Callable[[int], AbstractContextManager[None]],
) -> None:
    expected = read_rolls(files, GRID)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("a" * 300)):
        assert same(read_rolls(files, GRID, cache=TuneCache(folder)), expected)
    with file_size_limit(1_000):
        assert same(read_rolls(files, GRID, cache=TuneCache(tmp_path / "full")), expected)
    # the reasons alone
    assert all(path.stat().st_size < 1_000 for path in (tmp_path / "full").iterdir())


def test_what_is_no_file_in_a_cache(files: list[Path], tmp_path: Path) -> None:
    """Links out of it, pipes and folders: neither written through, nor waited for."""
    expected = read_rolls(files, GRID)
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    elsewhere.mkdir()
    read_rolls(files, GRID, cache=TuneCache(cache))
    names = sorted(path.name for path in cache.iterdir())
    assert all(name.startswith(f"{VERSION}-") and name.endswith(SUFFIX) for name in names)
    shutil.rmtree(cache)
    cache.mkdir()
    (cache / names[0]).symlink_to(elsewhere / "new")
    os.mkfifo(cache / names[1])
    (cache / names[2]).mkdir()
    (cache / names[3]).symlink_to("/dev/zero")
    assert same(read_rolls(files, GRID, cache=TuneCache(cache)), expected)
    (tmp_path / "link").symlink_to(elsewhere)
    assert same(read_rolls(files, GRID, cache=TuneCache(tmp_path / "link")), expected)
    assert not list(elsewhere.iterdir())


def test_what_could_not_be_opened_is_tried_again(files: list[Path], tmp_path: Path) -> None:
    missing = tmp_path / "late.mid"
    assert read_rolls([files[0], missing], GRID, cache=TuneCache(tmp_path / "cache")).skipped == [
        (missing, "there is no such file")
    ]
    shutil.copy(files[1], missing)
    assert not read_rolls([files[0], missing], GRID, cache=TuneCache(tmp_path / "cache")).skipped


def test_progress(files: list[Path], tmp_path: Path) -> None:
    def shown(*paths: Path) -> list[str]:
        stream = io.StringIO()
        read_rolls(
            paths,
            GRID,
            cache=TuneCache(tmp_path / "cache"),
            progress=Progress(interval=0.0, stream=stream),
        )
        return stream.getvalue().splitlines()

    bad = files[2]
    *parsing, last = shown(*files)
    assert parsing == [f"{i}/7 files" for i in range(7)]
    assert last == (
        f"skipped 2 of 7 files: {bad}: it is empty; {files[6]}: it is cut short: it ends "
        "within "
        "its header"
    )
    assert shown(files[0], *[bad] * 5) == [
        f"skipped 5 of 6 files: {'; '.join([f'{bad}: it is empty'] * 3)}; and 2 more"
    ]
    assert shown(files[0]) == []


def test_all_files_can_be_named(files: list[Path]) -> None:
    stream = io.StringIO()
    read_rolls([files[0], *[files[2]] * 5], GRID, progress=Progress(stream=stream), name_all=True)
    assert stream.getvalue().count("it is empty") == 5 and "more" not in stream.getvalue()
