"""Pieces as notes: stretches are those of whole rolls, and what is kept is what files hold."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_seq._progress import Progress
from pyro_seq.music import program as music_runs
from pyro_seq.music.data import notes as noted
from pyro_seq.music.data import rolls as roll_files
from pyro_seq.music.data.cache import TuneCache
from pyro_seq.music.data.midi_reader import UnreadableFile, read_contents, roll_of, to_common_key
from pyro_seq.music.data.notes import NotedPiece
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.data.rolls import Rolls, read_notes, read_rolls
from pyro_seq.music.data.sources import DEMO
from pyro_seq.music.model.training import music_settings
from pyro_seq.music.program import music_program
from pyro_seq.programs.program import ContentsDiffer
from pyro_seq.runs import mapped
from pyro_seq.runs.mapped import FOLDER, MappedCache
from pyro_seq.train.minibatches import PieceBatches

GRID = Timing(grid=4)
SEQUENCES = b"MThd\0\0\0\6\0\2\0\2\0\x60" + 2 * (
    b"MTrk\0\0\0\x0b" + b"\0\x90\x3c\x40\x60\x3c\0\0\x90\x40\x40"
)
FRAMES = b"MThd\0\0\0\6\0\1\0\1\xe2\x28" + b"MTrk\0\0\0\7" + b"\0\x90\x3c\x40\x60\x3c\0"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three tunes, a file of two pieces, one without beats, and an empty one."""
    folder = tmp_path / "midi"
    folder.mkdir()
    made = [Path(shutil.copy(path, folder)) for path in sorted(DEMO.iterdir())[:3]]
    for name, data in (("empty", b""), ("frames", FRAMES), ("two", SEQUENCES)):
        (folder / f"{name}.mid").write_bytes(data)
        made.insert(1, folder / f"{name}.mid")
    return made


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any files are worth keeping, and have not been changed for long."""
    monkeypatch.setattr(noted, "WORTH_KEEPING", 1)
    monkeypatch.setattr(mapped, "SETTLED", -1.0)


def read(
    files: list[Path], cache: MappedCache, timing: Timing = GRID, **more: Any
) -> Rolls[NotedPiece]:
    return read_notes(files, timing, cache=TuneCache(), mapped=cache, **more)


@pytest.mark.parametrize("common_key", [False, True])
@pytest.mark.parametrize("timing", [GRID, Timing(rate=7.3)], ids=["grid", "rate"])
def test_stretches_are_those_of_the_whole_roll(timing: Timing, common_key: bool) -> None:
    paths, random = sorted(DEMO.iterdir())[:3], np.random.default_rng(0)
    found = read(paths, MappedCache(), timing, keys=88, common_key=common_key)
    for path, piece in zip(paths, found.pieces, strict=True):
        whole = roll_of(read_contents(path).tunes[0], timing)
        whole = to_common_key(whole) if common_key else whole
        assert len(piece) == len(whole) and torch.equal(piece[:], whole)
        for _ in range(20):
            start, stop = random.integers(-5, len(whole) + 5, 2).tolist()
            assert torch.equal(piece[start:stop], whole[start:stop])
        assert piece[5:5].shape == (0, 88) and torch.equal(piece[3:40:4], whole[3:40:4])


def test_notes_that_overlap_and_leave_the_keyboard_are_laid_out_alike() -> None:
    """Notes at random, on all of MIDI's pitches, among them some as long as the piece."""
    random = np.random.default_rng(3)
    starts = np.sort(random.uniform(0, 20, 300))
    ends = np.where(random.random(300) < 0.1, 30.0, starts + random.uniform(0, 1, 300) + 1e-3)
    pitches = random.integers(0, 128, 300).astype(np.uint8)
    tune = noted.Tune(pitches, starts, ends, starts, ends, 31.0, 31.0, 60.0)
    for keys in (88, 128):
        whole = roll_of(tune, Timing(rate=11), keys)
        slow = torch.zeros_like(whole)
        for pitch, start, end in zip(pitches.tolist(), starts, ends, strict=True):
            key, first = pitch - (21 if keys == 88 else 0), int(np.floor(start * 11 + 0.5))
            if 0 <= key < keys:
                slow[first : max(first + 1, int(np.floor(end * 11 + 0.5))), key] = 1
        assert torch.equal(whole, slow)
        for begin in range(0, 340, 17):
            part = roll_of(tune, Timing(rate=11), keys, begin=begin, stop=begin + 23)
            assert torch.equal(part, whole[begin : begin + 23])


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("common_key", [False, True])
def test_what_is_kept_is_what_files_hold(
    files: list[Path], tmp_path: Path, common_key: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = read_rolls(files, GRID, common_key=common_key)
    assert [path.stem for path, _ in plain.skipped] == ["frames", "empty"]
    for start in range(2):
        stream = io.StringIO()
        found = read(
            files,
            MappedCache(tmp_path / "cache"),
            common_key=common_key,
            progress=Progress(stream=stream),
            name_all=True,
        )
        assert found.key and len(found.pieces) == 5
        for name in ("paths", "names", "skipped", "mended", "tempo"):
            assert getattr(found, name) == getattr(plain, name), name
        assert all(torch.equal(a[:], b) for a, b in zip(found.pieces, plain.pieces, strict=True))
        assert "skipped 2 of 6 files" in stream.getvalue()
        if not start:
            monkeypatch.setattr(roll_files, "midi_bytes", lambda path: pytest.fail("read again"))
    # other rolls of the same notes
    assert len(read(files, MappedCache(tmp_path / "cache"), Timing(rate=3)).pieces) == 6


@pytest.mark.usefixtures("many")
def test_a_file_that_changes_is_read_again(files: list[Path], tmp_path: Path) -> None:
    first = read(files, MappedCache(tmp_path / "cache"))
    files[0].write_bytes(files[-1].read_bytes())
    found = read(files, MappedCache(tmp_path / "cache"))
    assert found.key != first.key and torch.equal(found.pieces[0][:], found.pieces[-1][:])
    files[0].unlink()
    skipped = read(files, MappedCache(tmp_path / "cache")).skipped
    assert (files[0], "there is no such file") in skipped


@pytest.mark.usefixtures("many")
def test_what_may_be_readable_the_next_time_is_not_kept(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> bytes:
        if path == files[0]:
            raise UnreadableFile("it cannot be read: Input/output error")
        return path.read_bytes()

    stream = io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr(roll_files, "midi_bytes", broken)
        cache = MappedCache(tmp_path / "cache", Progress(stream=stream))
        found = read(files, cache)
    assert not found.key and found.skipped[0][0] == files[0]
    assert "Input/output error" in stream.getvalue() and not os.listdir(tmp_path / "cache")
    assert len(read(files, MappedCache(tmp_path / "cache")).skipped) == len(found.skipped) - 1


def test_minibatches_of_notes_are_those_of_rolls() -> None:
    found = read(sorted(DEMO.iterdir())[:4], MappedCache())
    options: dict[str, Any] = {"batch_size": 3, "window": 20, "transpose": 2, "seed": 1}
    of_notes = PieceBatches(found.pieces, **options)
    of_rolls = PieceBatches([piece[:] for piece in found.pieces], **options)
    for _ in range(12):
        (a, _), (b, _) = of_notes.draw(), of_rolls.draw()
        assert torch.equal(a.values, b.values) and torch.equal(a.lengths, b.lengths)


@pytest.mark.usefixtures("sketched")
def test_runs_are_equal_byte_by_byte(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rolls in memory and of mapped notes; and other files are refused by their contents."""
    settings = music_settings(
        {
            "rolls.grid": 2,
            "rolls.window": 16,
            "rolls.batch_size": 3,
            "rolls.transpose": 3,
            "rolls.common_key": True,
            "model.hidden_size": 6,
            "training.num_steps": 4,
            "training.valid_every": 2,
            "training.sample_every": 0,
            "training.precision": "float32",
        }
    )
    source = {"train_files": tuple(map(str, files)), "valid_fraction": 0.4}
    music_program.start(tmp_path / "plain" / "run", settings, source, seed=3, quiet=True)
    assert not (tmp_path / "plain" / FOLDER).exists()
    monkeypatch.setattr(noted, "WORTH_KEEPING", 1)
    monkeypatch.setattr(mapped, "SETTLED", -1.0)
    monkeypatch.setattr(music_runs, "HELD", 0)
    run = tmp_path / "kept" / "run"
    music_program.start(run, settings, source, seed=3, quiet=True)
    for name in ("best.safetensors", "metrics.jsonl", "pieces.json", "music.json"):
        assert (run / name).read_bytes() == (tmp_path / "plain" / "run" / name).read_bytes(), name
    with monkeypatch.context() as patched:
        for name in ("fingerprint", "key_counts"):
            patched.setattr(music_runs, name, lambda *_: pytest.fail("all rolls are looked at"))
        music_program.resume(run, {"training.num_steps": 5}, quiet=True)
    assert len(music_program.pieces_of(run, settings).valid) == 2
    files[0].write_bytes(files[-1].read_bytes())
    with pytest.raises(ContentsDiffer, match="their contents differ"):
        music_program.resume(run, {"training.num_steps": 6}, quiet=True)
