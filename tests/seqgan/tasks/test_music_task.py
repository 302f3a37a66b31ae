"""The task of music: what is read and held out, files that are none, figures that mean something,
and files that are written.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.music.data.cache import TuneCache
from pyro_seq.music.data.midi_reader import read_tune
from pyro_seq.music.data.midi_reader import roll_of as tune_roll
from pyro_seq.music.data.midi_writer import to_midi
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.data.sources import DEMO, REMARKS
from pyro_seq.seqgan.program import seqgan_program
from pyro_seq.seqgan.tasks import music_task
from pyro_seq.seqgan.tasks.base import Rendering, Sequences, Task
from pyro_seq.seqgan.tasks.melodies import NUM_SYMBOLS, REST, melody, roll_of
from pyro_seq.seqgan.tasks.music_task import COMPARED, MelodyRendering, MusicTask, read_music_task

pytestmark = pytest.mark.usefixtures("sketched")

TIMING = Timing(rate=2.5)


def write_melody(path: Path, line: Tensor, timing: Timing = TIMING) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    to_midi(roll_of(line), timing).write(str(path))
    return path


@pytest.fixture(scope="module")
def lines() -> list[Tensor]:
    """Ten melodies of 20 to 29 symbols, each over keys of its own."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(8 * i, 8 * i + 8, (20 + i,), generator=generator) for i in range(10)]


@pytest.fixture(scope="module")
def tunes(tmp_path_factory: pytest.TempPathFactory, lines: list[Tensor]) -> Path:
    folder = tmp_path_factory.mktemp("tunes")
    for i, line in enumerate(lines):
        write_melody(folder / f"{i}.mid", line)
    return folder


def cut(lines: list[Tensor], length: int) -> list[list[int]]:
    return [
        line[i : i + length].tolist()
        for line in lines
        for i in range(0, len(line) - length + 1, length)
    ]


# reading


def test_files_of_each_kind_are_read_as_they_were_written(tunes: Path, lines: list[Tensor]) -> None:
    task = read_music_task(
        [tunes / "[0-5].mid"],
        [tunes / "6.mid", tunes / "7.mid"],
        [str(tunes / "[89].mid")],
        length=8,
    )
    for name, wanted in {"train": lines[:6], "valid": lines[6:8], "test": lines[8:]}.items():
        found = getattr(task.sequences, name)
        assert found.dtype == torch.long and found.tolist() == cut(wanted, 8)
    assert (task.first, task.units, task.criterion, task.higher, task.rendering.num_symbols) == (
        None,
        "notes",
        "bleu_4",
        True,
        NUM_SYMBOLS,
    )
    contract: tuple[Task, Rendering] = task, task.rendering
    contract[0].sequences.check(contract[1].num_symbols)


@pytest.mark.parametrize(
    ("fractions", "counts"),
    [((0.1, 0.1), (8, 1, 1)), ((0.3, 0.2), (5, 3, 2)), ((0.01, 0.98), (1, 1, 8))],
)
def test_whole_tunes_are_held_out(
    tunes: Path, lines: list[Tensor], fractions: tuple[float, float], counts: tuple[int, ...]
) -> None:
    parts = read_music_task(
        [tunes], length=5, valid_fraction=fractions[0], test_fraction=fractions[1]
    ).sequences
    tunes_of = [
        {int(window[0]) // 8 for window in part} for part in (parts.train, parts.valid, parts.test)
    ]
    assert tuple(map(len, tunes_of)) == counts
    assert set.union(*tunes_of) == set(range(10)) and sum(map(len, tunes_of)) == 10  # none in two
    assert sum(map(len, (parts.train, parts.valid, parts.test))) == len(cut(lines, 5))


def test_only_what_has_no_files_of_its_own_is_held_out(tunes: Path, lines: list[Tensor]) -> None:
    # which is not needed
    task = read_music_task(
        [tunes / "[0-8].mid"], test_patterns=[tunes / "9.mid"], length=5, test_fraction=7.0
    )
    assert task.sequences.test.tolist() == cut(lines[9:], 5)
    assert len({int(window[0]) // 8 for window in task.sequences.train}) == 8
    assert len({int(window[0]) // 8 for window in task.sequences.valid}) == 1


def test_what_sounds_at_each_moment_is_read_however_short_its_neighbours_are(
    tmp_path: Path,
) -> None:
    """Notes of a tenth of a second, a higher one between any two that are looked at, over a chord,
    after half a bar of silence.
    """
    line = torch.randint(40, 50, (36,), generator=torch.Generator().manual_seed(0))
    roll = roll_of(torch.stack([line, line + 20, line + 21, line + 22], 1).flatten())
    roll[:, :3] = 1
    roll = torch.cat([torch.zeros(7, 88, dtype=torch.uint8), roll])
    to_midi(roll, Timing(rate=10)).write(str(tmp_path / "a.mid"))
    for name in "bcd":
        write_melody(tmp_path / f"{name}.mid", line)
    task = read_music_task(
        [tmp_path / "a.mid"], [tmp_path / "b.mid"], [tmp_path / "c.mid"], length=12
    )
    assert torch.equal(task.sequences.train, line.view(3, 12)) and torch.equal(
        task.sequences.valid, line.view(3, 12)
    )


@pytest.mark.parametrize("seconds", [0.01, 0.07, 0.25, 1.0, 10.0])
def test_any_length_of_a_step(tmp_path: Path, lines: list[Tensor], seconds: float) -> None:
    for i, line in enumerate(lines[:3]):
        write_melody(tmp_path / f"{i}.mid", line, Timing(rate=1 / seconds))
    task = read_music_task(
        [tmp_path / "0.mid"], [tmp_path / "1.mid"], [tmp_path / "2.mid"], seconds=seconds, length=10
    )
    assert task.sequences.train.tolist() == cut(
        lines[:1], 10
    ) and task.rendering == MelodyRendering(seconds)


def test_the_tunes_that_come_along() -> None:
    task = read_music_task(demo=True)
    sizes = [
        len(part) for part in (task.sequences.train, task.sequences.valid, task.sequences.test)
    ]
    assert sizes[0] >= 10 and min(sizes) >= 1 and task.sequences.train.shape[1] == 30
    assert torch.equal(task.sequences.train, read_music_task(demo=True).sequences.train)
    with pytest.raises(
        UserError,
        match=r"the package's own tunes take the place of files, and x\.mid is named to test on",
    ):
        read_music_task(test_patterns=["x.mid"], demo=True)


def test_what_is_left_out_is_said_and_what_was_parsed_is_kept(tunes: Path, tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "bad.mid").write_bytes(b"MThd and no")
    said = io.StringIO()
    shown = Progress(stream=said, interval=1e9)
    patterns = [tunes, tmp_path / "music"]
    options = {"length": 22, "valid_fraction": 0.2, "test_fraction": 0.2}
    task = read_music_task(patterns, **options, cache=TuneCache(tmp_path / "cache"), progress=shown)
    reasons = {str(tmp_path / "music" / "bad.mid"): "it is cut short: it ends within its header"}
    assert task.documents == {REMARKS: {"skipped": reasons, "mended": {}}}
    assert "skipped 1 of 11 files" in said.getvalue() and "bad.mid" in said.getvalue()
    assert "windows of 22 notes of 0.4 seconds (8.8 s) to train on, 0 % rests" in said.getvalue()
    assert "2 tunes are shorter and left out" in said.getvalue()
    assert list((tmp_path / "cache").iterdir())


def test_a_run_keeps_what_was_skipped_and_nothing_stays_of_one_that_is_refused(
    tunes: Path, tmp_path: Path, tiny_seqgan: dict[str, Any]
) -> None:
    (tmp_path / "bad.mid").write_bytes(b"MThd")
    data = {"train_files": [str(tunes), str(tmp_path / "bad.mid")]}
    settings = seqgan_program.settings(tiny_seqgan | {"task.kind": "music"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="none of the"):
        seqgan_program.start(
            tmp_path / "new" / "run",
            replace(settings, task=replace(settings.task, seconds=9.0)),
            data,
            seed=0,
            quiet=True,
        )
    assert sorted(tmp_path.rglob("*")) == before
    seqgan_program.start(tmp_path / "run", settings, data, seed=0, quiet=True)
    kept = json.loads((tmp_path / "run" / REMARKS).read_text())
    assert kept["skipped"] == {
        str(tmp_path / "bad.mid"): "it is cut short: it ends within its header"
    }


# bad input


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no MIDI files are named to train on"):
        read_music_task()
    with pytest.raises(UserError, match=r"no MIDI files in folder .*"):
        read_music_task([tmp_path])
    with pytest.raises(UserError, match="no such file or folder"):
        read_music_task([tmp_path / "a.mid"])
    (tmp_path / "a.mid").write_text("words")
    with pytest.raises(UserError, match=r"the only file could not be read, .*a\.mid"):
        read_music_task([tmp_path])


def test_tunes_that_are_all_too_short(tunes: Path) -> None:
    wanted = (
        r"none of the 1 tunes to validate on lasts 25 notes of 0.4 seconds \(10 s\): the "
        r"longest has 20"
    )
    with pytest.raises(UserError, match=wanted):
        read_music_task([tunes / "[1-8].mid"], [tunes / "0.mid"], [tunes / "9.mid"], length=25)
    with pytest.raises(UserError, match="none of the 8 tunes to train on lasts 1000 notes"):
        read_music_task([tunes], length=1000)


def test_tunes_that_are_too_few(tunes: Path) -> None:
    with pytest.raises(
        UserError, match="2 tunes are too few to hold some out to test on and to validate on"
    ):
        read_music_task([tunes / "0.mid", tunes / "1.mid"], length=5)
    with pytest.raises(
        UserError, match="1 tunes are too few to hold some out to test on: name other files"
    ):
        read_music_task([tunes / "0.mid"], [tunes / "1.mid"], length=5)
    assert len(read_music_task([tunes / "[0-2].mid"], length=20).sequences.train) == 1


def test_a_file_of_two_kinds(tunes: Path, tmp_path: Path) -> None:
    (tmp_path / "link.mid").symlink_to(tunes / "3.mid")
    for again in (tunes / "3.mid", tunes / ".." / tunes.name / "3.mid", tmp_path):
        with pytest.raises(
            UserError,
            match=(
                r"\.mid is named to train on and to test on: what is judged by must not be "
                r"learnt from"
            ),
        ):
            read_music_task([tunes], test_patterns=[again], length=5)


def test_arrays_do_not_say_how_long_a_frame_lasts(tmp_path: Path) -> None:
    np.savez(tmp_path / "rolls.npz", frames=np.zeros((4, 128)))
    with pytest.raises(
        UserError, match=r"rolls\.npz holds rolls that do not say how long a frame lasts"
    ):
        read_music_task([tmp_path / "rolls.npz"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0.0}, "a step of a melody lasts 0.01 to 10 seconds, not 0"),
        ({"seconds": float("nan")}, "not nan"),
        ({"seconds": float("inf")}, "not inf"),
        ({"length": 3}, "a window has at least 4 notes, which BLEU-4 counts, not 3"),
        (
            {"valid_fraction": 0.0},
            r"the fraction held out to validate on must lie in \(0, 1\), got 0.0",
        ),
        ({"test_fraction": float("nan")}, "held out to test on must lie"),
        (
            {"test_fraction": 0.5, "valid_fraction": 0.6},
            r"the fractions held out leave nothing to train on: 0.5 \+ 0.6",
        ),
    ],
    ids=str,
)
def test_settings_that_cannot_be(tunes: Path, options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_music_task([tunes], **({"length": 5} | options))  # type: ignore[arg-type]


# figures


def windows_of(lines: list[Tensor], length: int) -> Tensor:
    return torch.tensor(cut(lines, length))


def test_figures_of_a_copy_and_of_noise(lines: list[Tensor]) -> None:
    real = windows_of(lines, 10)
    task = MusicTask(Sequences(real, real, real), MelodyRendering())
    copied, noise = task.judge(real, real), task.judge(torch.randint(NUM_SYMBOLS, (40, 10)), real)
    assert list(copied) == [
        "bleu_2",
        "bleu_3",
        "bleu_4",
        "self_bleu_2",
        "self_bleu_3",
        "self_bleu_4",
        "mse_pitch",
    ]
    assert task.criterion in copied
    assert copied["bleu_4"] == copied["bleu_2"] == (1.0, 0.0) and copied["mse_pitch"] == (0.0, 0.0)
    assert noise["bleu_4"].value < 0.2 and noise["mse_pitch"].value > 9
    alike = task.judge(real[:1].expand(5, -1), real)
    # no variety at all, and BLEU does not mind
    assert alike["self_bleu_4"].value == 1.0 and alike["bleu_4"].value == 1.0


def test_no_more_than_so_many_are_compared() -> None:
    generator = torch.Generator().manual_seed(0)
    many = torch.randint(20, 70, (3 * COMPARED + 1, 4), generator=generator)
    task = MusicTask(Sequences(many, many, many), MelodyRendering())
    third = many[torch.arange(COMPARED) * len(many) // COMPARED]
    assert (
        len(third.unique(dim=0)) > 0.99 * COMPARED
        and int((many == third[-1]).all(1).nonzero()[-1]) > 2.99 * COMPARED
    )
    assert task.judge(many, many) == task.judge(third, third)


# rendering


def test_a_melody_in_words() -> None:
    assert MelodyRendering().text(torch.tensor([39, 39, 43, REST, 46])) == "C4 C4 E4 · G4"


def test_files_are_read_back_as_what_was_written(tmp_path: Path) -> None:
    sequences = torch.randint(NUM_SYMBOLS, (6, 30), generator=torch.Generator().manual_seed(2))
    sequences[0, 3:9], sequences[1, :], sequences[2, -4:], sequences[3, :2] = 40, 40, REST, REST
    for seconds in (0.4, 0.3):
        paths = MelodyRendering(seconds).write(sequences, tmp_path / "new" / str(seconds))
        assert [path.name for path in paths] == [f"melody-00{i}.mid" for i in range(1, 7)] + [
            "melodies.png"
        ]
        for path, symbols in zip(paths[:6], sequences, strict=True):
            assert torch.equal(
                melody(tune_roll(read_tune(path), Timing(rate=1 / seconds))), symbols
            )
    tune = read_tune(paths[1])
    assert len(tune.pitches) == 1 and tune.length == pytest.approx(9.0)  # one note that is held


def test_many_files_and_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MelodyRendering().write(torch.zeros(0, 30, dtype=torch.long), tmp_path / "none") == []
    assert (tmp_path / "none").is_dir()
    written = MelodyRendering().write(torch.full((2, 4), REST), tmp_path)  # no melody, but MIDI
    # nothing else is left behind
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "none", *written])
    with pytest.raises(UserError, match="it has no notes"):
        read_tune(written[0])
    monkeypatch.setattr(
        MelodyRendering, "_rendered", lambda self, symbols: SimpleNamespace(midi=lambda: b"")
    )
    monkeypatch.setattr(music_task, "_write", lambda path, data: path)
    many = MelodyRendering().write(torch.full((1000, 4), 40), tmp_path)
    assert [path.name for path in many[::999]] == ["melody-0001.mid", "melody-1000.mid"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*taken"):
        MelodyRendering().write(torch.zeros(1, 5, dtype=torch.long), tmp_path / "taken")
    with pytest.raises(UserError, match="a melody's symbols are 0 to 88"):
        MelodyRendering().write(torch.full((1, 5), 89), tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())


def test_json_there_and_back() -> None:
    made = MelodyRendering(0.25)
    assert (
        MelodyRendering.from_json(json.loads(json.dumps(made.to_json())), Path("task.json")) == made
    )
    for damaged in (
        {},
        {"seconds": "0.4"},
        {"seconds": True},
        {"seconds": -1},
        {"seconds": float("nan")},
        [],
        None,
    ):
        with pytest.raises(UserError, match=r"task\.json is damaged: it does not say how long"):
            MelodyRendering.from_json(damaged, Path("task.json"))


# real data


@pytest.fixture(scope="module")
def folk_tunes(data_dir: Path) -> MusicTask:
    folder = data_dir / "midi" / "nottingham"
    if not folder.is_dir():
        pytest.skip("needs the Nottingham tunes")
    return read_music_task([folder / "test"], test_fraction=0.5)


def test_folk_tunes_are_melodies(folk_tunes: MusicTask) -> None:
    """Within two octaves and a half or so, moving by small steps, and without rests, since the
    accompaniment goes on.
    """
    lines = torch.cat(
        [folk_tunes.sequences.train, folk_tunes.sequences.valid, folk_tunes.sequences.test]
    )
    assert len(lines) > 400 and float((lines == REST).double().mean()) < 1e-3
    steps = (lines[:, 1:] - lines[:, :-1]).abs()
    assert (
        int(lines.double().median()) in range(45, 60) and float((steps <= 5).double().mean()) > 0.85
    )


def test_folk_tunes_are_nearer_to_others_than_noise_is(folk_tunes: MusicTask) -> None:
    parts = folk_tunes.sequences
    real = folk_tunes.judge(parts.test, parts.train)
    shuffled = parts.test[:, torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    noise = folk_tunes.judge(shuffled, parts.train)
    for name, sign in {"bleu_2": 1, "bleu_3": 1, "bleu_4": 1, "mse_pitch": -1}.items():
        (a, a_error), (b, b_error) = real[name], noise[name]
        assert (
            a_error is not None
            and b_error is not None
            and sign * (a - b) > 4 * (a_error**2 + b_error**2) ** 0.5
        ), name


def test_demo_tunes_as_files_are_the_same() -> None:
    found, made = read_music_task([DEMO]).sequences, read_music_task(demo=True).sequences
    assert all(
        torch.equal(getattr(found, name), getattr(made, name))
        for name in ("train", "valid", "test")
    )
