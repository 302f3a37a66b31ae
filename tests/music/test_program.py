"""Music runs: what is kept of a run, with what it can be gone on with, and where pieces come
from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.music.data.cache import TuneCache
from pyro_seq.music.data.midi_reader import to_common_key
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.data.sources import (
    CACHE,
    DEMO,
    REMARKS,
    fingerprint,
    held_out,
    read_demo,
    read_music,
    read_primer,
)
from pyro_seq.music.model.model import RollSettings, read_document
from pyro_seq.music.model.training import (
    MusicModel,
    MusicSettings,
    generate,
    music_settings,
    nats_per_frame,
    play,
)
from pyro_seq.music.program import music_program, read_pieces
from pyro_seq.runs.checkpoint import load_tree
from pyro_seq.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("sketched")

WINDOWS = {
    "rolls.grid": 2,
    "rolls.window": 16,
    "rolls.batch_size": 3,
    "training.num_steps": 4,
    "training.valid_every": 2,
    "training.sample_every": 0,
    "training.precision": "float32",
}
TINY = WINDOWS | {"model.hidden_size": 6}
SETTINGS = music_settings(TINY)
DATA: dict[str, Any] = {"valid_fraction": 0.2, "demo": True}


@pytest.fixture(scope="module")
def tunes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(DEMO, tmp_path_factory.mktemp("tunes"), dirs_exist_ok=True)


def of_files(folder: Path) -> dict[str, Any]:
    return DATA | {"train_files": (str(folder),), "demo": False}


def test_a_run_keeps_all_that_it_needs(tmp_path: Path, tunes: Path) -> None:
    music_program.start(tmp_path / "run", SETTINGS, of_files(tunes), seed=7, quiet=True)
    run = RunFolder(tmp_path / "run", "midi")
    assert music_program.stored_settings(run) == SETTINGS
    kept = run.read_json("pieces.json")
    assert (kept["seed"], kept["demo"], kept["files"]) == (
        7,
        False,
        {"train": [str(tunes)], "valid": []},
    )
    tempo, markov = read_document(run, 88)
    assert 40 < tempo < 200 and 0 < float(markov.transition[1].max()) < 1
    assert (tmp_path / CACHE).is_dir()
    music = music_program.load(tmp_path / "run")
    assert music.timing.tempo == tempo and music.step in (2, 4)
    assert next(generate(music, 5)).shape == (5, 88)


PLAIN = """
import pyro
from torch import nn


class Plain(nn.Module):
    def __init__(self, emission):
        super().__init__()
        self.emission = emission
        self.features = nn.Linear(emission.event_shape[0], emission.num_features)

    def forward(self, batch):
        pyro.module("plain", self)
        x = self.features.weight.new_zeros(len(batch), self.features.in_features)
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    x = pyro.sample(f"x_{t}", self.emission(self.features(x)), obs=batch.at(t))
"""


@pytest.mark.parametrize("emission", ["bernoulli", "nade"])
def test_a_pair_in_plain_pyro_is_given_numbers(tmp_path: Path, emission: str) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    kind = f"{tmp_path}/plain.py:Plain"
    settings = music_settings({**WINDOWS, "model.name": kind, "frames.emission": emission})
    music_program.start(tmp_path / "run", settings, DATA, seed=1, quiet=True)
    music = music_program.load(tmp_path / "run", pair=kind)
    assert next(generate(music, 5)).shape == (5, 88)
    assert 0 < nats_per_frame(music, [next(generate(music, 9))]) < 100


def test_a_training_can_start_from_another_runs_best_weights(tmp_path: Path) -> None:
    first = tmp_path / "first"
    music_program.start(first, SETTINGS, DATA, seed=1, quiet=True)
    best = load_tree(first / "best.safetensors")["weights"]["model"]
    still = music_settings(TINY, {"training.learning_rate": 1e-30, "training.num_steps": 1})

    def train(settings: MusicSettings, start_from: Path) -> MusicModel:
        source = DATA | {"start_from": start_from}
        return music_program.start(tmp_path / "second", settings, source, seed=2, quiet=True)

    wider = music_settings(TINY, {"model.hidden_size": 7})
    with pytest.raises(
        UserError,
        match=r"best.safetensors does not fit these settings: weight model\..* has shape \[",
    ):
        train(wider, first)
    with pytest.raises(UserError, match=f"{tmp_path}/none"):
        train(SETTINGS, tmp_path / "none")
    model: Any = train(still, first).pair.model
    assert all(torch.equal(weight, best[name]) for name, weight in model.state_dict().items())


def test_a_run_that_starts_from_another_is_gone_on_with_from_its_own_checkpoint(
    tmp_path: Path,
) -> None:
    """One killed before its first checkpoint starts from the other again, and ends as one that was
    not.
    """
    music_program.start(tmp_path / "first", SETTINGS, DATA, seed=1, quiet=True)
    data = DATA | {"start_from": tmp_path / "first"}
    whole = music_program.start(
        tmp_path / "whole", SETTINGS, data, seed=2, quiet=True
    ).pair.weights()
    music_program.start(tmp_path / "killed", SETTINGS, data, seed=2, quiet=True)
    fresh = music_program.start(
        tmp_path / "fresh", SETTINGS, DATA, seed=2, quiet=True
    ).pair.weights()
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl"):
        (tmp_path / "killed" / name).unlink()
    again = music_program.resume(tmp_path / "killed", {}, quiet=True).pair.weights()
    music_program.resume(tmp_path / "killed", {"training.num_steps": 6}, quiet=True)
    assert all(torch.equal(weight, whole["model"][name]) for name, weight in again["model"].items())
    assert not all(
        torch.equal(weight, whole["model"][name]) for name, weight in fresh["model"].items()
    )
    with pytest.raises(UserError, match=f"{tmp_path}/none"):
        music_program.start(
            tmp_path / "other",
            SETTINGS,
            DATA | {"start_from": tmp_path / "none"},
            seed=2,
            quiet=True,
        )
    assert not (tmp_path / "other" / "run.json").exists()


def test_pieces_are_validated_on_with_the_samples_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(*args: Any, **options: Any) -> float:
        asked.append(options)
        return nats_per_frame(*args, **options)

    monkeypatch.setattr("pyro_seq.music.program.nats_per_frame", noted)
    music_program.start(
        tmp_path / "run",
        music_settings({**TINY, "model.name": "iseq", "training.valid_particles": 5}),
        DATA,
        seed=1,
        quiet=True,
    )
    assert asked == [{"method": "elbo", "samples": 5}] * 2


@pytest.mark.parametrize("emission", ["bernoulli", "nade"])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    tmp_path: Path, emission: str
) -> None:
    settings = music_settings(
        TINY,
        {
            "frames.emission": emission,
            "frames.hidden_size": 4,
            "training.schedule": "constant",
            "training.warmup": 0.0,
        },
    )
    music_program.start(tmp_path / "whole", settings, DATA, seed=3, quiet=True)
    shorter = music_settings(
        TINY,
        {
            "frames.emission": emission,
            "frames.hidden_size": 4,
            "training.schedule": "constant",
            "training.warmup": 0.0,
            "training.num_steps": 2,
        },
    )
    music_program.start(tmp_path / "broken", shorter, DATA, seed=3, quiet=True)
    music_program.resume(tmp_path / "broken", {"training.num_steps": 4}, quiet=True)
    whole, broken = (
        load_tree(tmp_path / name / "last.safetensors")["weights"]["model"]
        for name in ("whole", "broken")
    )
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "broken")]
    assert metrics[0] == metrics[1]


def test_pieces_that_have_moved_are_found_and_others_are_refused(
    tmp_path: Path, tunes: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(DEMO, moved)
    music_program.start(tmp_path / "run", SETTINGS, of_files(moved), seed=0, quiet=True)
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="moved"):
        music_program.resume(tmp_path / "run", {"training.num_steps": 5}, quiet=True)
    assert (
        music_program.resume(
            tmp_path / "run",
            {"training.num_steps": 5},
            source={"train_files": [str(tmp_path / "elsewhere")]},
            quiet=True,
        ).step
        == 5
    )
    next((tmp_path / "elsewhere").glob("*.mid")).unlink()
    with pytest.raises(UserError, match=r"not the pieces that the run in .* was begun with"):
        music_program.resume(
            tmp_path / "run",
            {"training.num_steps": 6},
            source={"train_files": [str(tmp_path / "elsewhere")]},
            quiet=True,
        )
    with pytest.raises(UserError, match=r"^--valid-files: .* valid_files = none, not "):
        music_program.resume(tmp_path / "run", source={"valid_files": [str(tunes)]}, quiet=True)
    with pytest.raises(UserError, match=r"^--seed: .* was begun with seed = 0, not 1$"):
        music_program.resume(tmp_path / "run", seed=1, quiet=True)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"files": {"train": ["x"], "valid": []}},
        {"files": 3},
        {"valid_fraction": "most"},
        {"demo": 1},
        {"start_from": 3},
    ],
)
def test_damaged_documents_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    music_program.start(tmp_path / "run", SETTINGS, DATA, seed=0, quiet=True)
    run = RunFolder(tmp_path / "run", "midi")
    run.write_json("pieces.json", run.read_json("pieces.json") | change)
    with pytest.raises(UserError, match=r"pieces\.json is damaged"):
        music_program.resume(tmp_path / "run", {"training.num_steps": 6}, quiet=True)


@pytest.mark.parametrize(
    "change",
    [
        {"tempo": 0},
        {"tempo": "fast"},
        {"markov": {}},
        {"markov": {"initial": [0.5], "transition": [[0.5], [0.5]]}},
        {"tempo": float("inf")},
    ],
)
def test_damaged_music_documents_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    music_program.start(tmp_path / "run", SETTINGS, DATA, seed=0, quiet=True)
    document = json.loads((tmp_path / "run" / "music.json").read_text()) | change
    (tmp_path / "run" / "music.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"music\.json is damaged"):
        music_program.load(tmp_path / "run")


def test_weights_of_other_sizes_are_refused(tmp_path: Path) -> None:
    music_program.start(tmp_path / "run", SETTINGS, DATA, seed=0, quiet=True)
    run = RunFolder(tmp_path / "run", "midi")
    document = run.read_json("run.json")
    document["settings"]["model.hidden_size"] = 60_000  # of which there is no room for the weights
    run.write_json("run.json", document)
    with pytest.raises(UserError, match=r"does not fit run\.json: weight model\..* has shape"):
        music_program.load(tmp_path / "run")


# where pieces come from


def test_arrays_bring_their_own_splits(tmp_path: Path, tunes: Path) -> None:
    frames = {
        split: np.random.default_rng(i).integers(0, 256, (n, 11), np.uint8)
        for i, (split, n) in enumerate([("train", 9), ("valid", 5), ("test", 4)])
    }
    arrays = {f"{split}_frames": found for split, found in frames.items()} | {
        "train_lengths": np.array([4, 5]),
        "valid_lengths": np.array([5]),
        "test_lengths": np.array([1, 3]),
    }
    path = tmp_path / "bach.npz"
    np.savez(path, **arrays)
    read, _ = read_pieces(
        SETTINGS, DATA | {"train_files": (path,), "demo": False}, TuneCache(), quiet=True
    )
    assert [len(piece) for piece in read.train] == [4, 5] and [
        len(piece) for piece in read.valid
    ] == [5]
    found = read_music([path], "test", SETTINGS.rolls)
    assert found.names == [f"{path}, test piece 1", f"{path}, test piece 2"]
    both = read_music([tunes, path], "train", SETTINGS.rolls)
    assert len(both.pieces) == len(list(tunes.glob("*.mid"))) + 2
    with pytest.raises(UserError, match=r"holds rolls of 88 keys, and rolls\.keys is 128"):
        read_music([path], "test", RollSettings(keys=128))


def test_some_of_the_pieces_are_kept_for_validation() -> None:
    assert (
        held_out(10, 0.2) == [2, 7]
        and held_out(1, 0.9) == []
        and held_out(2, 0.9) == [1]
        and held_out(5, 0.0) == []
    )
    assert len(set(held_out(97, 0.9))) == 87


def test_demo_tunes_come_in_the_key_that_is_asked_for() -> None:
    own, common = (
        read_demo(RollSettings(grid=4, common_key=common)).pieces for common in (False, True)
    )
    assert [len(piece) for piece in own] == [len(piece) for piece in common]
    assert all(
        torch.equal(to_common_key(one), other) for one, other in zip(own, common, strict=True)
    )
    assert not all(torch.equal(one, other) for one, other in zip(own, common, strict=True))


def test_fingerprints_tell_pieces_apart() -> None:
    one, other = torch.zeros(4, 88, dtype=torch.uint8), torch.zeros(4, 88, dtype=torch.uint8)
    other[2, 3] = 1
    split = [one[:2], one[2:]]
    assert len({fingerprint(pieces) for pieces in ([one], [other], [one, other], split, [])}) == 5
    assert fingerprint([one]) == fingerprint([one.clone()])


def test_a_primer_is_a_files_beginning(tunes: Path) -> None:
    path = sorted(tunes.glob("*.mid"))[0]
    rolls = RollSettings(rate=8.0)
    assert read_primer(path, 2.0, rolls, 120.0).shape == (16, 88)
    with pytest.raises(UserError, match=r"--primer-seconds 900: .*\.mid has only \d+\.\d seconds"):
        read_primer(path, 900.0, rolls, 120.0)


def test_refusals_leave_nothing_behind(tmp_path: Path, tunes: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=match):
            music_program.start(
                tmp_path / "run",
                changes.pop("settings", SETTINGS),
                of_files(tunes) | changes,
                seed=0,
                quiet=True,
            )
        assert not (tmp_path / "run" / "run.json").exists()

    refused(
        "there is no such file|no such file or folder", train_files=(str(tmp_path / "nowhere"),)
    )
    refused("fraction kept for validation", valid_fraction=1.0)
    refused(
        "kl_start",
        settings=music_settings(
            TINY, {"training.kl_schedule": "half_life", "training.kl_start": 0.9}
        ),
    )
    (tmp_path / "bad.mid").write_bytes(b"no music")
    refused(
        r"the only file could not be read, .*bad\.mid", train_files=(str(tmp_path / "bad.mid"),)
    )


@pytest.fixture
def progress(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capsys.readouterr().err


def test_files_that_are_no_music_are_skipped_and_named(
    tmp_path: Path, tunes: Path, progress: Callable[[], str]
) -> None:
    (tmp_path / "bad.mid").write_bytes(b"no music")
    music_program.start(
        tmp_path / "run",
        SETTINGS,
        of_files(tunes) | {"train_files": (str(tunes), str(tmp_path / "bad.mid"))},
        seed=0,
    )
    assert "skipped 1 of 13 files" in (said := progress()) and "bad.mid" in said


def test_all_files_that_were_skipped_or_mended_are_named_in_the_run(
    tmp_path: Path, tunes: Path, progress: Callable[[], str]
) -> None:
    folder = Path(shutil.copytree(tunes, tmp_path / "tunes"))
    for i in range(5):
        (folder / f"bad-{i}.mid").write_bytes(b"MThd" + bytes(i))
    one = sorted(tunes.glob("*.mid"))[0].read_bytes()
    (folder / "odd.mid").write_bytes(one[:10] + b"\0\x09" + one[12:])
    music_program.start(tmp_path / "run", SETTINGS, of_files(folder), seed=0, quiet=True)
    kept = json.loads((tmp_path / "run" / REMARKS).read_text())
    assert kept["skipped"] == {
        str(folder / f"bad-{i}.mid"): "it is cut short: it ends within its header" for i in range(5)
    }
    assert kept["mended"] == {
        str(folder / "odd.mid"): "a number of tracks that is wrong, all read (1)"
    }
    assert progress() == ""
    music_program.start(tmp_path / "other", SETTINGS, of_files(folder), seed=0)
    assert (
        f"which files were skipped or mended, and why, is in {tmp_path / 'other' / REMARKS}"
        in progress()
    )
    music_program.start(tmp_path / "sound", SETTINGS, of_files(tunes), seed=0, quiet=True)
    assert not (tmp_path / "sound" / REMARKS).exists()
    music_program.resume(tmp_path / "run", {"training.num_steps": 5}, quiet=True)


def test_nothing_is_left_beside_a_run_that_is_refused(tmp_path: Path, tunes: Path) -> None:
    (tmp_path / "bad.mid").write_bytes(b"no music")
    before = sorted(tmp_path.rglob("*"))
    refused = {
        "could not be read": of_files(tmp_path / "bad.mid"),
        "no such file": of_files(tunes) | {"valid_files": (str(tmp_path / "none.mid"),)},
    }
    for reason, data in refused.items():
        for run_dir in (tmp_path / "run", tmp_path / "new" / "deep" / "run"):
            with pytest.raises(UserError, match=reason):
                music_program.start(run_dir, SETTINGS, data, seed=0, quiet=True)
            assert sorted(tmp_path.rglob("*")) == before
    music_program.start(tmp_path / "run", SETTINGS, of_files(tunes), seed=0, quiet=True)
    cached = sorted((tmp_path / CACHE).iterdir())
    with pytest.raises(UserError, match="could not be read"):
        music_program.resume(
            tmp_path / "run", source={"train_files": [str(tmp_path / "bad.mid")]}, quiet=True
        )
    assert sorted((tmp_path / CACHE).iterdir()) == cached


def test_a_primer_is_one_piece(tmp_path: Path, tunes: Path, progress: Callable[[], str]) -> None:
    notes = b"MTrk\0\0\0\7" + b"\0\x90\x3c\x40\x60\x3c\0"
    two, frames, odd = (tmp_path / name for name in ("two.mid", "frames.mid", "odd.mid"))
    two.write_bytes(b"MThd\0\0\0\6\0\2\0\2\0\x60" + 2 * notes)
    frames.write_bytes(b"MThd\0\0\0\6\0\1\0\1\xe2\x28" + notes)
    odd.write_bytes(b"MThd\0\0\0\6\0\1\0\5\0\x60" + notes)
    with pytest.raises(
        UserError,
        match=(
            r"^--primer: .*two.mid holds 2 pieces of their own \(a MIDI file of type 2\), and a "
            r"primer is one$"
        ),
    ):
        read_primer(two, 0.1, RollSettings(), 120)
    with pytest.raises(
        UserError, match=r"^--primer: .*frames.mid: its times are SMPTE frames, not beats"
    ):
        read_primer(frames, 0.01, RollSettings(grid=4), 120)
    assert len(read_primer(odd, 0.5, RollSettings(rate=8), 120, Progress())) == 4
    assert progress() == f"mended {odd}: a number of tracks that is wrong, all read (1)\n"


def test_no_more_frames_are_sampled_than_anybody_could_hear(tmp_path: Path, tunes: Path) -> None:
    music_program.start(tmp_path / "run", SETTINGS, of_files(tunes), seed=0, quiet=True)
    music = music_program.load(tmp_path / "run")
    music.timing = Timing(grid=2, tempo=6e7)  # of a file of a microsecond a beat
    words = (
        r"^a sample of 2 seconds is 4,000,000 frames, at 2e\+06 a second, and at most "
        r"1,000,000 are sampled$"
    )
    with pytest.raises(UserError, match=words):
        next(play(music, 2.0))
