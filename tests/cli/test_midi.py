"""The music program as a person uses it: train, evaluate, generate, report; results on stdout,
everything else on stderr.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mido
import numpy as np
import PIL.Image
import pytest
import torch

from pyro_seq.music.data.midi_reader import read_tune, roll_of
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.data.sources import DEMO

pytestmark = pytest.mark.usefixtures("sketched")

TINY = [
    "rolls.window=16",
    "rolls.batch_size=3",
    "model.hidden_size=6",
    "training.valid_every=2",
    "training.log_every=2",
]
TINY += ["training.num_steps=4", "training.sample_every=4", "training.precision=float32"]
WORDS = [word for setting in TINY for word in ("--set", setting)]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def tunes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(DEMO, tmp_path_factory.mktemp("tunes"), dirs_exist_ok=True)


@pytest.fixture(scope="module", params=["bernoulli", "nade", "beta"])
def run(
    pyroseq: Callable[..., int],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run of four steps with each emission, on the package's own tunes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / request.param
    words = ["--set", f"frames.emission={request.param}", "--set", "frames.hidden_size=4"]
    assert (
        pyroseq(
            "midi",
            "train",
            "--quiet",
            "--demo",
            "--preset",
            "default",
            "--grid",
            4,
            "--run-dir",
            folder,
            *WORDS,
            *words,
        )
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def notes(pyroseq: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a beat grid, 8 frames a second."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("notes") / "run"
    assert (
        pyroseq(
            "midi",
            "train",
            "--quiet",
            "--demo",
            "--preset",
            "default",
            "--rate",
            8,
            "--run-dir",
            folder,
            *WORDS,
        )
        == 0
    )
    return folder


# train


def test_training_shows_progress_on_stderr_and_nothing_on_stdout(
    pyroseq: Callable[..., int], tunes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        pyroseq(
            "midi",
            "train",
            "--train-files",
            tunes,
            "--grid",
            4,
            "--run-dir",
            tmp_path / "run",
            *WORDS,
        )
        == 0
    )
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.endswith(" files")]
    assert out == ""
    sizes = (
        r"[\d,]+ frames of 11 pieces to train on, [\d,]+ frames of 1 pieces to validate on; "
        r"rnn with [\d,]+ parameters"
    )
    assert re.fullmatch(sizes, lines[0]), lines[0]
    assert "bits/frame" in lines[1] and "frames/s" in lines[1]
    assert (
        lines[-1]
        == f"next: pyroseq midi generate --run-dir {tmp_path}/run --out-dir {tmp_path}/run/samples"
    )


def test_tensorboard_has_rolls_and_sounds(notes: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(notes / "tensorboard")).Reload()
    assert set(read.Tags()["images"]) == {"observed/roll", "generated/roll"}
    assert set(read.Tags()["audio"]) == {"observed/sound", "generated/sound"}


def test_print_config_is_a_config_that_can_be_used(
    pyroseq: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyroseq("midi", "train", "--print-config", "--model", "srnn", "--rate", 10, *WORDS) == 0
    shown = capsys.readouterr().out
    assert 'model.name = "srnn"' in shown and "rolls.rate = 10.0" in shown
    (tmp_path / "c.toml").write_text(shown)
    # in place of the preset's beat grid
    assert pyroseq("midi", "train", "--print-config", "--demo", "--rate", 12) == 0
    assert {"rolls.rate = 12.0", "rolls.grid = 0"} <= {
        line.partition("  #")[0].strip() for line in capsys.readouterr().out.splitlines()
    }
    assert pyroseq("midi", "train", "--print-config", "--config", tmp_path / "c.toml") == 0
    assert capsys.readouterr().out == shown


def test_a_run_goes_on(
    pyroseq: Callable[..., int],
    tunes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Refused,
) -> None:
    folder = tmp_path / "run"
    assert (
        pyroseq(
            "midi",
            "train",
            "--quiet",
            "--train-files",
            f"{tunes}/*.mid",
            "--run-dir",
            folder,
            *WORDS,
        )
        == 0
    )
    assert pyroseq("midi", "train", "--resume", "--num-steps", 6, "--run-dir", folder) == 0
    assert "done after 6 steps" in capsys.readouterr().err
    said = refused("midi", "train", "--resume", "--rate", 5, "--run-dir", folder)
    assert said == (
        f"--rate: the run in {folder} was begun with rolls.rate = 32.0, not 5.0; only --num-steps "
        "and --max-minutes may change"
    )


# evaluate


@pytest.mark.one_in(2)
def test_evaluation_says_what_it_is_beside_the_markov_model(
    pyroseq: Callable[..., int], run: Path, tunes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyroseq("midi", "evaluate", "--run-dir", run, "--eval-files", tunes, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pieces"], found["method"], found["skipped"]) == (12, "exact", 0)
    assert found["nats_per_frame"] == pytest.approx(-found["log_likelihood"] / found["frames"])
    assert (found["markov_nats_per_frame"] is None) == (run.name == "beta")
    assert pyroseq("midi", "evaluate", "--run-dir", run, "--eval-files", tunes) == 0
    out = capsys.readouterr().out
    assert f"nats per frame        {found['nats_per_frame']:.4f}" in out
    assert ("for comparison" in out) != ("density of scores" in out)


def test_evaluation_names_all_files_that_were_skipped_or_mended(
    pyroseq: Callable[..., int],
    notes: Path,
    tunes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = sorted(tunes.glob("*.mid"))[0].read_bytes()
    (tmp_path / "good.mid").write_bytes(one)
    (tmp_path / "odd.kar").write_bytes(one[:10] + b"\0\x09" + one[12:])
    for i in range(5):
        (tmp_path / f"bad-{i}.mid").write_bytes(b"MThd" + bytes(i))
    assert pyroseq("midi", "evaluate", "--run-dir", notes, "--eval-files", tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pieces"], found["skipped"]) == (2, 5)
    assert found["skipped_files"] == {
        str(tmp_path / f"bad-{i}.mid"): "it is cut short: it ends within its header"
        for i in range(5)
    }
    assert found["mended_files"] == {
        str(tmp_path / "odd.kar"): "a number of tracks that is wrong, all read (1)"
    }
    assert pyroseq("midi", "evaluate", "--run-dir", notes, "--eval-files", tmp_path) == 0
    assert "2 (5 files could not be read: --json names all)" in capsys.readouterr().out


def test_score_ranks_frames_by_surprise(
    pyroseq: Callable[..., int], notes: Path, tunes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = sorted(tunes.glob("*.mid"))[0]
    assert pyroseq("score", "--run-dir", notes, one, "--json", "--top", 3) == 0
    found = json.loads(capsys.readouterr().out)
    roll = roll_of(read_tune(one), Timing(rate=8.0), 88)
    assert (found["steps"], found["unit"]) == (len(roll), "frame")
    nats = [step["nats"] for step in found["surprising"]]
    assert len(nats) == 3 and nats == sorted(nats, reverse=True)
    assert pyroseq("score", "--run-dir", notes, one, "--by", "step") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert math.fsum(float(line.split("\t")[3]) for line in lines) == pytest.approx(
        -found["log_likelihood"], rel=1e-5
    )
    sounding = json.loads(lines[0].split("\t")[2])
    assert len(sounding.split("+")) == int(roll[0].sum())


# generate


def test_samples_can_be_heard_and_seen_and_are_never_overwritten(
    pyroseq: Callable[..., int], notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert (
        pyroseq(
            "midi",
            "generate",
            "--run-dir",
            notes,
            "--out-dir",
            out,
            "--length",
            3,
            "--num-samples",
            2,
        )
        == 0
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{out}/sample-{i}.{kind}" for i in (1, 2) for kind in ("mid", "wav", "png")]
    with wave.open(str(out / "sample-1.wav")) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(3.0, abs=1e-3)
    PIL.Image.open(out / "sample-1.png").verify()
    assert mido.MidiFile(out / "sample-1.mid").length == pytest.approx(3.0, abs=0.01)
    before = (out / "sample-1.mid").read_bytes()
    assert (
        pyroseq(
            "midi",
            "generate",
            "--run-dir",
            notes,
            "--out-dir",
            out,
            "--length",
            2,
            "--formats",
            "MID",
        )
        == 0
    )
    assert (
        capsys.readouterr().out == f"{out}/sample-3.mid\n"
        and (out / "sample-1.mid").read_bytes() == before
    )
    assert {path.name for path in out.iterdir()} == {
        "sample-3.mid",
        *(Path(path).name for path in printed),
    }


def test_a_sample_begins_with_its_primer(
    pyroseq: Callable[..., int], run: Path, tunes: Path, tmp_path: Path
) -> None:
    primer = sorted(tunes.glob("*.mid"))[1]
    words = [
        "--primer",
        primer,
        "--primer-seconds",
        3,
        "--length",
        2,
        "--formats",
        "mid,wav",
        "--seed",
        5,
    ]
    assert pyroseq("midi", "generate", "--run-dir", run, "--out-dir", tmp_path, *words) == 0
    tempo = json.loads((run / "music.json").read_text())["tempo"]
    timing = Timing(grid=4, tempo=tempo)
    given = round(3 * timing.frames_per_second)
    sample, whole = (
        roll_of(read_tune(path), timing, 88) for path in (tmp_path / "sample-1.mid", primer)
    )
    assert torch.equal(sample[:given], whole[:given])
    assert len(sample) == given + round(2 * timing.frames_per_second)


# report


@pytest.mark.one_in(3)
def test_report_is_one_page_about_the_run(
    pyroseq: Callable[..., int],
    run: Path,
    tunes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "page.html"
    words: list[Any] = ["--num-samples", 2, "--length", 2, "--out", path]
    assert (
        pyroseq(
            "midi",
            "report",
            "--run-dir",
            run,
            "--eval-files",
            tunes,
            "--primer",
            sorted(tunes.glob("*.mid"))[0],
            *words,
        )
        == 0
    )
    out = capsys.readouterr().out.splitlines()
    page = path.read_text()
    assert out[0] == str(path) and len(out) == 6 and out[1].startswith("pitch classes")
    assert page.count("<audio") == 4 and "Learning curves" in page and "rolls.grid" in page
    assert ("first-order Markov model on the pieces given" in page) == (run.name != "beta")


def test_report_of_a_run_compares_with_its_validation_pieces(
    pyroseq: Callable[..., int], notes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyroseq("midi", "report", "--run-dir", notes, "--num-samples", 1, "--length", 1) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{notes}/report.html"
    assert "its validation pieces" in (notes / "report.html").read_text()


def test_report_of_a_run_whose_files_have_become_others(
    pyroseq: Callable[..., int], tunes: Path, tmp_path: Path, refused: Refused
) -> None:
    """Pieces that were learnt from must not be called validation pieces."""
    folder, run = tmp_path / "tunes", tmp_path / "run"
    shutil.copytree(tunes, folder)
    assert (
        pyroseq(
            "midi",
            "train",
            "--quiet",
            "--train-files",
            folder,
            "--preset",
            "default",
            "--grid",
            4,
            "--run-dir",
            run,
            *WORDS,
        )
        == 0
    )
    shutil.copy(next(folder.glob("*.mid")), folder / "another.mid")
    line = refused("midi", "report", "--run-dir", run, "--num-samples", 1, "--length", 1)
    assert "these are not the pieces that the run" in line and "by --eval-files" in line


# what goes wrong


def test_mistakes_are_one_line(notes: Path, tunes: Path, tmp_path: Path, refused: Refused) -> None:
    def train(*words: object) -> str:
        return refused("midi", "train", "--quiet", "--run-dir", tmp_path / "run", *words)

    assert "--train-files is missing: the music to learn from (or --demo" in train()
    assert "--demo brings tunes of its own" in train("--demo", "--train-files", tunes)
    assert "--valid-files and --valid-fraction exclude each other" in train(
        "--train-files", tunes, "--valid-files", tunes, "--valid-fraction", 0.2
    )
    assert "--rate and --grid exclude each other" in train("--demo", "--rate", 3, "--grid", 4)
    assert "--rate: rolls.rate must lie in [0.01, 1000.0], got 0.0" in train("--demo", "--rate", 0)
    assert "no MIDI files in folder" in train("--train-files", tmp_path)
    assert "unknown preset 'bst'; did you mean 'best'?" in train("--demo", "--preset", "bst")
    assert not (tmp_path / "run").exists()

    def generate(*words: object, out: Path = tmp_path / "out") -> str:
        return refused("midi", "generate", "--run-dir", notes, "--out-dir", out, *words)

    one = sorted(tunes.glob("*.mid"))[0]
    assert generate("--formats", "mid,mp3").startswith(
        "--formats takes some of mid,wav,png, got 'mp3'"
    )
    assert "only" in generate("--primer", one, "--primer-seconds", 7000)
    assert "no such file" in generate("--primer", tmp_path / "none.mid")
    (tmp_path / "bad.mid").write_bytes(b"MThd\0\0\0\6")
    assert "bad.mid" in generate("--primer", tmp_path / "bad.mid")
    (tmp_path / "file").write_text("")
    assert "cannot write to --out-dir" in generate(out=tmp_path / "file")
    assert not (tmp_path / "out" / "sample-1.wav").exists()


def test_starting_from_another_run(
    notes: Path, tmp_path: Path, pyroseq: Callable[..., int], refused: Refused
) -> None:
    words = ["midi", "train", "--demo", "--run-dir", tmp_path / "run", "--quiet"]
    same = ["--preset", "default", *WORDS, "--grid", 4, "--start-from"]
    assert refused(*words, *same, tmp_path).startswith(f"{tmp_path}")
    said = refused(*words, *same, notes, "--set", "model.hidden_size=9")
    assert (
        "best.safetensors does not fit these settings: weight model." in said
        and not (tmp_path / "run" / "run.json").exists()
    )
    assert pyroseq(*words, *same, notes) == 0
    assert pyroseq(*words, *same, notes, "--resume") == 0
    said = refused(*words, "--resume", "--start-from", tmp_path)
    assert f"was begun with start_from = {notes}, not {tmp_path}; only" in said


def test_a_sound_font_is_looked_at_before_anything_is_sampled_and_only_for_sound(
    notes: Path,
    tmp_path: Path,
    pyroseq: Callable[..., int],
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [
        "midi",
        "generate",
        "--run-dir",
        notes,
        "--out-dir",
        tmp_path / "out",
        "--sound-font",
        tmp_path / "none.sf2",
        "--length",
        1,
    ]
    assert pyroseq(*words, "--formats", "mid") == 0
    monkeypatch.setattr("pyro_seq.music.model.training.generate", None)
    assert (
        refused(*words, "--formats", "wav,mid")
        == f"cannot read the sound font {tmp_path}/none.sf2: No such file or directory"
    )


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_sampled(
    notes: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    assert "No space left on device" in refused(
        "midi", "generate", "--run-dir", notes, "--out-dir", tmp_path
    )


def test_runs_of_another_kind_are_refused(
    trained: Path, notes: Path, corpus: Path, refused: Refused, tmp_path: Path
) -> None:
    assert "holds a run of kind 'text', not 'midi'" in refused(
        "midi", "generate", "--run-dir", trained, "--out-dir", tmp_path
    )
    assert "holds a run of kind 'midi', not 'text'" in refused(
        "text", "generate", "--run-dir", notes
    )
    assert "is for texts" in refused("score", "--run-dir", notes, corpus, "--lines")


def test_a_missing_file_is_found_before_any_is_scored(
    notes: Path, tunes: Path, refused: Refused, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.mid"
    assert (
        refused("score", "--run-dir", notes, next(tunes.glob("*.mid")), missing)
        == f"{missing}: no such file or folder"
    )


def test_arrays_are_evaluated_on_their_test_pieces(
    pyroseq: Callable[..., int], notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 11), np.uint8)
    arrays = {f"{split}_frames": frames for split in ("train", "valid", "test")} | {
        f"{split}_lengths": np.array([2, 4]) for split in ("train", "valid", "test")
    }
    np.savez(tmp_path / "a.npz", **arrays)
    assert (
        pyroseq(
            "midi", "evaluate", "--run-dir", notes, "--eval-files", tmp_path / "a.npz", "--json"
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["frames"] == 6
