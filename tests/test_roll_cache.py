"""Rolls of many files: bad ones are passed over, parsing is done once, and nothing in a cache is believed unseen."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from pyro_seq.domains import roll_cache, tune_bundles
from pyro_seq.domains.demo_tunes import demo_tunes, write_demo_tunes
from pyro_seq.domains.midi_files import read_tune, roll_of, to_common_key
from pyro_seq.domains.piano_rolls import Timing
from pyro_seq.domains.roll_cache import Rolls, TuneCache, read_rolls
from pyro_seq.domains.tune_bundles import Bundle
from pyro_seq.errors import UserError
from pyro_seq.monitoring import Progress

GRID = Timing(grid=4)


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_demo_tunes(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def files(demo_files: list[Path], tmp_path: Path) -> list[Path]:
    """Five tunes, and among them an empty file and one that is cut short."""
    folder = tmp_path / "midi"
    folder.mkdir()
    tunes = [Path(shutil.copy(path, folder)) for path in demo_files[:5]]
    (folder / "empty.mid").touch()
    (folder / "short.mid").write_bytes(tunes[0].read_bytes()[:-5])
    return [*tunes[:2], folder / "empty.mid", *tunes[2:], folder / "short.mid"]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each file that is parsed."""
    calls: list[int] = []
    parse = roll_cache.tune_of

    def counting(data: bytes) -> Any:
        calls.append(len(data))
        return parse(data)

    monkeypatch.setattr(roll_cache, "tune_of", counting)
    return calls


def same(a: Rolls, b: Rolls) -> bool:
    equal = all(torch.equal(x, y) for x, y in zip(a.pieces, b.pieces, strict=True))
    return equal and (a.paths, a.skipped, a.tempo) == (b.paths, b.skipped, b.tempo)


def test_what_is_read_and_what_is_skipped(files: list[Path]) -> None:
    rolls = read_rolls(files, GRID)
    assert rolls.paths == [*files[:2], *files[3:6]]
    assert rolls.skipped == [(files[2], "it is empty"), (files[6], "it is cut short: it ends within track 3 of 3")]
    assert all(torch.equal(roll, roll_of(tune, GRID)) for roll, tune in zip(rolls.pieces, demo_tunes(), strict=False))
    assert rolls.tempo == 120  # of 96, 100, 120, 120, 128
    moved = read_rolls(files, Timing(rate=20), keys=128, common_key=True)
    expected = [to_common_key(roll_of(read_tune(path), Timing(rate=20), 128)) for path in moved.paths]
    assert all(torch.equal(roll, other) for roll, other in zip(moved.pieces, expected, strict=True))


def test_no_file_that_can_be_read(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^none of 3 files could be read; the first, .*empty.mid: it is empty$"):
        read_rolls([files[2], files[6], tmp_path / "missing.mid"], GRID)
    with pytest.raises(UserError, match=r"^the only file could not be read, .*empty.mid: it is empty$"):
        read_rolls([files[2]], GRID)
    with pytest.raises(UserError, match="there are no MIDI files to read"):
        read_rolls([], GRID)


def test_files_are_parsed_once(files: list[Path], tmp_path: Path, parsed: list[int]) -> None:
    cache = tmp_path / "some" / "cache"
    first = read_rolls(files, GRID, cache=cache)
    assert len(parsed) == 7  # the bad ones too
    assert same(read_rolls(files, GRID, cache=cache), first) and len(parsed) == 7
    other = read_rolls(files[::-1], Timing(rate=10), keys=128, common_key=True, cache=cache)  # of notes any roll is made
    assert same(other, read_rolls(files[::-1], Timing(rate=10), keys=128, common_key=True)) and len(parsed) == 14
    files[0].write_bytes(files[1].read_bytes())  # known by another name
    assert same(read_rolls(files, GRID, cache=cache), read_rolls(files, GRID)) and len(parsed) == 14 + 6  # the same bytes once a call
    (tmp_path / "moved.mid").write_bytes(files[1].read_bytes() + b" ")
    read_rolls([*files, tmp_path / "moved.mid"], GRID, cache=cache)
    assert len(parsed) == 21 and len(list(cache.iterdir())) == 2


def test_what_the_cache_keeps_is_exact(demo_files: list[Path], tmp_path: Path) -> None:
    tunes = [read_tune(path) for path in demo_files]
    Bundle.of({bytes([i] * 32): tune for i, tune in enumerate(tunes)} | {bytes([99] * 32): "no music"}).write(tmp_path)
    cache = TuneCache(tmp_path)
    for i, tune in enumerate(tunes):
        found = cache.get(bytes([i] * 32))
        assert isinstance(found, type(tune))
        for name, value in vars(tune).items():
            np.testing.assert_array_equal(getattr(found, name), value)
            assert np.asarray(getattr(found, name)).dtype == np.asarray(value).dtype
    assert cache.get(bytes([99] * 32)) == "no music" and cache.get(bytes(32 * [50])) is None


def test_side_by_side(files: list[Path], tmp_path: Path, parsed: list[int]) -> None:
    """Two that write at once lose nothing of each other's, and the same files make the same bundle."""
    caches = [TuneCache(tmp_path / "cache") for _ in range(3)]
    for cache, found in zip(caches, ([0, 1], [2], [1, 0]), strict=True):
        for i in found:
            cache.put(bytes([i] * 32), f"reason {i}")
    for cache in caches:
        cache.save()
    later = TuneCache(tmp_path / "cache")
    assert [later.get(bytes([i] * 32)) for i in range(3)] == ["reason 0", "reason 1", "reason 2"]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_long_parsing_is_kept_on_the_way(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parsed: list[int]) -> None:
    monkeypatch.setattr(roll_cache, "BUNDLE_NOTES", 200)
    read_rolls(files, GRID, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3
    read_rolls(files, GRID, cache=tmp_path / "cache")
    assert len(parsed) == 7


def test_an_interrupted_parsing_is_kept(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parsed: list[int]) -> None:
    def interrupted(*_: object) -> None:
        if len(parsed) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(roll_cache, "roll_of", interrupted)
        read_rolls(files, GRID, cache=tmp_path / "cache")
    read_rolls(files, GRID, cache=tmp_path / "cache")
    assert len(parsed) == 7


def bundle_in(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def test_damaged_bundles_are_written_anew(files: list[Path], tmp_path: Path, parsed: list[int]) -> None:
    cache = tmp_path / "cache"
    first = read_rolls(files, GRID, cache=cache)
    whole = bundle_in(cache).read_bytes()
    chance = np.random.default_rng(0)
    damaged = [b"", b"junk", whole[: len(whole) // 2], b"\xff" * 16 + whole[16:], whole[:-1]]
    for offset in chance.integers(0, len(whole), 60).tolist():
        damaged.append(whole[:offset] + bytes([whole[offset] ^ 1 << int(chance.integers(8))]) + whole[offset + 1 :])
    for data in damaged:
        parsed.clear()
        bundle_in(cache).write_bytes(data)
        assert same(read_rolls(files, GRID, cache=cache), first)
        assert bundle_in(cache).read_bytes() in (whole, data)  # put right, unless the damage was in a space between
        assert parsed or bundle_in(cache).read_bytes() == data
    assert len(parsed) in (0, 7)


def tampered(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A bundle that is whole, and says what no file could."""

    def write(path: Path) -> None:
        tensors = {name: array.copy() for name, array in safetensors.numpy.load_file(path).items()}
        change(tensors)
        tensors["checksum"] = np.array([tune_bundles._checksum(tensors)])
        safetensors.numpy.save_file(tensors, path)

    return write


def put(name: str, index: Any, value: float) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors[name].__setitem__(index, value)


def replaced(name: str, value: np.ndarray) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.__setitem__(name, value)


def reasons(text: bytes) -> Callable[[dict[str, Any]], None]:
    return replaced("reasons", np.frombuffer(text, dtype=np.uint8))


@pytest.mark.parametrize(
    "change",
    [
        put("pitches", 0, 200),
        put("starts", 0, -1),
        put("starts", 0, np.nan),
        put("note_ends", 0, 1e300),
        put("note_ends", slice(None), 0),
        put("end_beats", 0, np.inf),
        put("ends", (0, 0), 1e9),
        put("ends", (slice(None), 1), 1e9),
        put("ends", (slice(None), 2), np.nan),
        put("counts", 0, -1),
        put("counts", 0, 2**62),
        replaced("counts", np.zeros(0, np.int64)),
        replaced("ends", np.zeros((7, 2))),
        replaced("starts", np.zeros(4)),
        replaced("pitches", np.zeros((4, 4), np.uint8)),
        replaced("start_beats", np.zeros(4, np.float32)),
        replaced("keys", np.zeros((7, 31), np.uint8)),
        reasons(b"[1, 2]"),
        reasons(b'["only one"]'),
        reasons(b'["\\u001b[2J", "clears the screen"]'),
        reasons(b"[" * 100_000),
        reasons(b"\xff"),
        lambda tensors: tensors.pop("reasons"),
    ],
)
def test_hostile_bundles_are_not_believed(files: list[Path], tmp_path: Path, parsed: list[int], change: Any) -> None:
    cache = tmp_path / "cache"
    first = read_rolls(files, GRID, cache=cache)
    whole = bundle_in(cache).read_bytes()
    tampered(lambda tensors: None)(bundle_in(cache))
    assert bundle_in(cache).read_bytes() == whole
    try:
        tampered(change)(bundle_in(cache))
    except KeyError:  # a tensor that the checksum needs is missing
        safetensors.numpy.save_file({"keys": np.zeros((7, 32), np.uint8)}, bundle_in(cache))
    parsed.clear()
    assert same(read_rolls(files, GRID, cache=cache), first) and len(parsed) == 7
    assert whole in [path.read_bytes() for path in cache.iterdir()]


def test_a_cache_that_cannot_be_used(
    files: list[Path], tmp_path: Path, parsed: list[int], file_size_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    expected = read_rolls(files, GRID)
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("a" * 300)):
        assert same(read_rolls(files, GRID, cache=cache), expected)
    with file_size_limit(1_000):
        assert same(read_rolls(files, GRID, cache=tmp_path / "full"), expected)
    assert list((tmp_path / "full").iterdir()) == []
    shutil.rmtree(tmp_path / "full")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / f"{tune_bundles.PREFIX}x{tune_bundles.SUFFIX}").mkdir()  # a folder where a bundle would be
    assert same(read_rolls(files, GRID, cache=tmp_path / "full"), expected)


def test_what_could_not_be_opened_is_tried_again(files: list[Path], tmp_path: Path) -> None:
    missing = tmp_path / "late.mid"
    assert read_rolls([files[0], missing], GRID, cache=tmp_path / "cache").skipped == [(missing, "there is no such file")]
    shutil.copy(files[1], missing)
    assert not read_rolls([files[0], missing], GRID, cache=tmp_path / "cache").skipped


def test_progress(files: list[Path], tmp_path: Path) -> None:
    def shown(*paths: Path) -> list[str]:
        stream = io.StringIO()
        read_rolls(paths, GRID, cache=tmp_path / "cache", progress=Progress(interval=0.0, stream=stream))
        return stream.getvalue().splitlines()

    bad = files[2]
    *parsing, last = shown(*files)
    assert parsing == [f"{i}/7 files" for i in range(7)]
    assert last == f"skipped 2 of 7 files: {bad}: it is empty; {files[6]}: it is cut short: it ends within track 3 of 3"
    assert shown(files[0], *[bad] * 5) == [f"skipped 5 of 6 files: {'; '.join([f'{bad}: it is empty'] * 3)}; and 2 more"]
    assert shown(files[0]) == []
