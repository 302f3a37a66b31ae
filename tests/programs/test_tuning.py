"""Studies of trials: what is found, shared, stopped, gone on with and refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.programs.trial import WatchedTrial
from pyro_seq.programs.tuning import Search, Tuned
from pyro_seq.runs.writing import held
from pyro_seq.text.program import text_program

pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("short_previews")

SMALL: dict[str, Any] = {
    "model.hidden_size": 4,
    "text.window": 12,
    "text.batch_size": 4,
    "training.num_steps": 4,
    "training.valid_every": 2,
    "training.sample_every": 0,
    "training.checkpoint_seconds": 0.0,
    "training.precision": "float32",
}
SPACE = ["model.hidden_size=2..8:log", "training.learning_rate=1e-3..1e-1:log"]
OWN = {name: value for name, value in SMALL.items() if name != "model.hidden_size"}


@pytest.fixture
def search(tmp_path: Path, corpus: Path) -> Callable[..., Search]:
    """A study of text in a new folder, or in the same one again."""

    def make(space: Any = SPACE, layer: Any = OWN, name: str = "study.db", **how: Any) -> Search:
        how = {"seed": 3, "quiet": True, "source": {"train_corpus": corpus}} | how
        source = how.pop("source")
        return Search(text_program, space, [layer], source, storage=tmp_path / name, **how)

    return make


def results(found: Tuned) -> list[tuple[int, str, float | None]]:
    return [(one.number, one.state, one.loss) for one in found.trials]


def test_a_study_finds_what_its_trainings_reach(
    search: Callable[..., Search], tmp_path: Path, corpus: Path
) -> None:
    study = search(prune=False)
    found = study.tune(3)
    assert [one.state for one in found.trials] == ["trained"] * 3
    for one in found.trials:
        settings = text_program.settings(OWN, dict(one.settings))
        run = tmp_path / f"alone-{one.number}"
        text_program.start(run, settings, {"train_corpus": corpus}, seed=3, quiet=True)
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        assert one.loss == min(line["loss"] for line in lines if line["split"] == "valid")
        if found.best == one:
            assert found.run_dir is not None
            twin = found.run_dir / "best.safetensors"
            assert twin.read_bytes() == (run / "best.safetensors").read_bytes()
    assert found.best is not None
    assert found.best.loss == min(one.loss for one in found.trials if one.loss is not None)
    assert [path.name for path in study.run_dir.iterdir()] == [f"trial-{found.best.number:04}"]
    assert results(search(prune=False).tune(3)) == results(found)
    assert results(search(prune=False).tune(4))[:3] == results(found)


def test_a_study_that_was_stopped_ends_as_an_unbroken_one(
    search: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search(name="whole.db").tune(3)
    plain, seen = WatchedTrial.on_validation, [0]

    def stopped(self: WatchedTrial, loop: Any, found: Any) -> None:
        seen[0] += 1
        plain(self, loop, found)
        if seen[0] in (1, 4, 5):
            raise KeyboardInterrupt

    monkeypatch.setattr(WatchedTrial, "on_validation", stopped)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            search().tune(3)
    found = search().tune(3)
    assert results(found) == results(whole)
    assert [one.settings for one in found.trials] == [one.settings for one in whole.trials]


@pytest.mark.slow
def test_trials_of_other_processes_are_left_alone(search: Callable[..., Search]) -> None:
    import optuna

    search().tune(1)
    study = search()
    opened = study._open()
    other = opened.ask()
    study.folder(other.number).mkdir()
    with held(study.folder(other.number)) as mine:
        assert mine
        found = search().tune(3)
        assert [one.state for one in found.trials] == ["trained", "under way", "trained"]
        assert study.folder(other.number).is_dir()
    found = search().tune(3)  # that process is dead now
    assert [one.state for one in found.trials] == ["trained"] * 3
    states = [one.state for one in opened.get_trials()]
    assert states == [optuna.trial.TrialState.COMPLETE] * 3


@pytest.mark.slow
def test_runs_of_another_study_are_neither_gone_on_with_nor_removed(
    search: Callable[..., Search], tmp_path: Path
) -> None:
    found = search().tune(1)
    assert found.run_dir is not None
    kept = (found.run_dir / "run.json").read_bytes()
    (tmp_path / "study.db").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"trial-0000 is there already, and is no run of the"):
            search().tune(1)
    assert (found.run_dir / "run.json").read_bytes() == kept


@pytest.mark.slow
def test_pruned_trials(search: Callable[..., Search], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_seq.programs.tuning.UNPRUNED", 1)
    space = ["training.learning_rate=1e-9,1e-2"]
    found = search(space, SMALL).tune(6)
    states = {one.state for one in found.trials}
    assert found.trials[0].state == "trained" and states == {"trained", "pruned"}
    for one in found.trials:
        assert one.loss is not None
        assert one.state == "trained" or one.settings["training.learning_rate"] == "1e-9"


@pytest.mark.slow
def test_a_trial_that_is_not_finite_fails_alone(search: Callable[..., Search]) -> None:
    found = search(["training.learning_rate=1e-2,1e30"], SMALL | {"training.clip_norm": 0}).tune(5)
    for one in found.trials:
        diverges = one.settings["training.learning_rate"] == "1e30"
        assert (one.state == "failed") == diverges and (one.why is not None) == diverges
    assert {one.state for one in found.trials} == {"trained", "failed"}


@pytest.mark.slow
def test_pairs_are_searched_each_with_its_own_settings(search: Callable[..., Search]) -> None:
    space = ["model.name=rnn,srnn", "model.latent_size=1..2", "model.cell=gru,lstm"]
    layer = OWN | {"training.num_steps": 1, "training.valid_every": 1}
    found = search(space, layer).tune(5)
    for one in found.trials:
        srnn = one.settings["model.name"] == "srnn"
        assert ("model.latent_size" in one.settings) == srnn and "model.cell" in one.settings
    assert len({one.settings["model.name"] for one in found.trials}) == 2


def test_what_is_refused_before_anything_is_made(
    search: Callable[..., Search], tmp_path: Path
) -> None:
    for space, said in (
        ([], "name each setting once, and at least one"),
        (["model.hidden_size=2..4", "model.hidden_size=2,3"], "name each setting once"),
        (["model.latent_size=2..4"], "unknown setting 'model.latent_size'"),
        (["model.name=rnn,lstm"], "unknown pair 'lstm'"),
        (["model.name=rnn"], "one value is for --set"),
        (["training.num_steps=0..4"], "must be at least 1"),
    ):
        with pytest.raises(UserError, match=said):
            search(space)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_study_is_gone_on_with_as_it_was_begun(
    search: Callable[..., Search], tmp_path: Path
) -> None:
    search().tune(1)
    for change, said in (
        ({"space": SPACE[:1]}, "was begun with --space model.hidden_size=2..8:log training.lear"),
        ({"layer": OWN | {"text.window": 8}}, "was begun with text.window 12, not 8"),
        ({"seed": 4}, "was begun with --seed 3, not 4"),
        ({"run_dir": tmp_path / "other"}, "was begun with --run-dir"),
    ):
        with pytest.raises(UserError, match=said):
            search(**change).tune(2)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("study.db", "study.db.runs"):
        shutil.move(tmp_path / name, moved / name)
    assert len(search(name="moved/study.db").tune(1).trials) == 1


@pytest.mark.slow
def test_what_no_trial_can_begin_with_ends_the_study_and_does_not_count(
    search: Callable[..., Search], tmp_path: Path, corpus: Path
) -> None:
    missing = {"train_corpus": tmp_path / "no.txt"}
    with pytest.raises(UserError, match=r"no\.txt"):
        search(source=missing).tune(1)
    assert not list(tmp_path.iterdir())
    unvalidated = {"train_corpus": corpus, "valid_fraction": 0.0}
    with pytest.raises(UserError, match="nothing is kept to validate on"):
        search(source=unvalidated).tune(1)
    found = search().tune(1)
    assert [one.state for one in found.trials] == ["trained"] and found.run_dir is not None


@pytest.mark.slow
def test_losses_of_other_data_are_not_compared(
    search: Callable[..., Search], tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the cat sat on the mat; " * 20)
    source = {"train_corpus": corpus}
    search(source=source).tune(1)
    corpus.write_text("the dog sat on the mat; " * 20)
    found = search(source=source).tune(2)
    assert [one.state for one in found.trials] == ["trained", "failed"]
    assert "its data is not that of the study's first trial" in str(found.trials[1].why)


def test_a_file_that_is_no_study_is_refused(search: Callable[..., Search], tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("something else " * 100)
    with pytest.raises(UserError, match=r"--storage .*study\.db: file is not a database"):
        search().tune(1)
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(UserError, match=r"--storage .*folder\.db is no file"):
        search(name="folder.db").tune(1)


@pytest.mark.slow
def test_a_name_may_hold_anything(search: Callable[..., Search], tmp_path: Path) -> None:
    name = "a b?c=#{d}%41'é.db"
    assert len(search(name=name).tune(1).trials) == 1 and (tmp_path / name).is_file()


def test_without_optuna(search: Callable[..., Search], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"needs Optuna, .*: pip install 'pyro_seq\[tune\]'"):
        search().tune(1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["midi", "series", "frames"])
def test_other_programs(kind: str, tmp_path: Path) -> None:
    from pyro_seq.frames.program import frame_program
    from pyro_seq.music.program import music_program
    from pyro_seq.series.program import series_program

    torch.set_num_threads(1)
    programs: list[Any] = [music_program, series_program, frame_program]
    program = next(one for one in programs if one.kind == kind)
    layer = {
        "training.num_steps": 2,
        "training.valid_every": 1,
        "training.sample_every": 0,
        **({"rolls.window": 8, "rolls.batch_size": 2} if kind == "midi" else {}),
        **({"frames.window": 3, "frames.batch_size": 2} if kind == "frames" else {}),
        **({"series.pool": False} if kind == "series" else {}),
    }
    source = {"demo": True}
    if kind == "frames":
        path = tmp_path / "films.npy"
        np.save(path, np.random.default_rng(0).integers(0, 2, (6, 4, 8, 8)).astype(bool))
        source = {"train_data": (path,)}
    storage = tmp_path / "study.db"
    space = ["model.hidden_size=2..4"]
    found = Search(program, space, [layer], source, storage=storage, quiet=True).tune(2)
    assert [one.state for one in found.trials] == ["trained"] * 2
    assert found.run_dir is not None and program.load(found.run_dir).step in (0, 1, 2)


@pytest.mark.slow
def test_killed_processes_side_by_side(tmp_path: Path, corpus: Path) -> None:
    """Three processes, killed at any moment, make the trials asked for, each once."""
    line = [sys.executable, "-P", "-m", "pyro_seq", "text", "tune", "--train-corpus", str(corpus)]
    line += ["--storage", str(tmp_path / "study.db"), "--trials", "6", "--quiet"]
    line += [w for space in SPACE for w in ("--space", space)]
    slow = OWN | {"training.num_steps": 60, "training.valid_every": 10}
    line += [w for name, value in slow.items() for w in ("--set", f"{name}={value}")]
    runs = tmp_path / "study.db.runs"
    for _ in range(2):
        processes = [subprocess.Popen(line, stdout=subprocess.DEVNULL) for _ in range(3)]
        end = time.monotonic() + 120
        while not [*runs.glob("*/last.safetensors")] and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(2)
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "\n6 trials: " in done.stdout and "under way" not in done.stdout
    assert len([*runs.iterdir()]) == 1
