"""A training that was interrupted, wherever it was, ends with the very weights and metrics of one
that was not: any pair.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyro_seq import Pair, RunFolder, SequenceBatch, Trainer, TrainingSettings, UserError
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Normal
from pyro_seq.encoders import Flatten
from pyro_seq.runs.checkpoint import load_tree, save_tree
from pyro_seq.train import loop as training
from pyro_seq.train.trainer import Hooks

STEPS = 9
SETTINGS: dict[str, Any] = {
    "num_steps": STEPS,
    "learning_rate": 0.02,
    "schedule": "cosine",
    "kl_schedule": "linear",
    "kl_steps": 5,
    "valid_every": 3,
    "log_every": 2,
    "sample_every": 4,
    "ema_decay": 0.9,
    "l1": 1e-4,
    "l2": 1e-3,
    "weight_decay": 0.1,
    "patience": 2,
    "precision": "float32",
    "checkpoint_seconds": 0.0,
}


class Killed(BaseException):
    """What ends a process without any chance to tidy up."""


class Fuse:
    """Counts the moments at which a training might be killed, and kills it at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.moments = at, 0

    def burn(self) -> None:
        self.moments += 1
        if self.moments == self.at:
            raise Killed


class Stream:
    """Random batches; if asked, states are carried over, but for every third batch, which begins
    anew.
    """

    def __init__(self, fuse: Fuse, *, carry: bool) -> None:
        self.fuse, self.carry, self.drawn = fuse, carry, 0
        self.random = torch.Generator().manual_seed(0)

    def draw(self) -> tuple[SequenceBatch, bool]:
        self.fuse.burn()
        self.drawn += 1
        return SequenceBatch(
            torch.randn(2, 3, generator=self.random)
        ), self.carry and self.drawn % 3 != 1

    def state(self) -> Any:
        return {"drawn": self.drawn, "random": self.random.get_state()}

    def load_state(self, state: Any) -> None:
        self.drawn = state["drawn"]
        self.random.set_state(state["random"])


def shipped(kind: str, **settings: Any) -> Callable[[], Pair]:
    dropout = {"num_layers": 2, "dropout": 0.2, "input_dropout": 0.2, "output_dropout": 0.2}
    chosen = model_settings(
        kind, {"hidden_size": 3, "latent_size": 2, "latent_sizes": (3,)} | dropout | settings
    )
    return lambda: make_pair(
        chosen, PairComponents(Normal(), lambda: Flatten(()), PreviousObservation)
    )


def functions() -> Pair:
    def model(batch: SequenceBatch) -> None:
        loc, scale = (
            pyro.param("loc", lambda: torch.randn(2, 2)),
            pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive),
        )
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc.sum(), 1.0).expand([len(batch)]))
                    pyro.sample(f"x_{t}", dist.Normal(z, scale), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        gain = pyro.param("gain", torch.tensor(0.5))
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"z_{t}", dist.Normal(gain * batch.at(t), 1.0))

    return Pair(model, guide)


class Probabilistic(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[nn.Linear](1, 1)
        self.scale = PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive)

    def forward(self, batch: SequenceBatch) -> None:
        scale = self.scale
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    loc = self.layer(torch.full((len(batch), 1), float(t)))[:, 0]
                    pyro.sample(f"x_{t}", dist.Normal(loc, scale), obs=batch.at(t))


PAIRS: dict[str, Callable[[], Pair]] = {
    "rnn": shipped("rnn"),
    "iseq": shipped("iseq", cell="gru"),
    "srnn": shipped("srnn"),
    "srnn by steps": shipped("srnn", layout="steps"),
    "functions": functions,
    "a PyroModule": lambda: Pair(Probabilistic()),
}


@pytest.fixture(autouse=True)
def _short_way_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing here survives the test


def train(
    make: Callable[[], Pair],
    folder: Path,
    fuse: Fuse,
    *,
    resume: bool,
    carry: bool,
    seed: int = 0,
    **changes: Any,
) -> Trainer:
    """One process's part of a training: until it is killed or done."""
    pyro.set_rng_seed(seed)
    pair = make()

    def validate() -> dict[str, float]:
        fuse.burn()
        loss = {3: 3.0, 6: 2.0}.get(trainer.step, 2.5)
        first = next(iter(pair.parameters().values())).detach()
        return {"loss": loss + 0.1 * float(first.mean()), "drawn": float(torch.rand(()))}

    hooks = Hooks(validate=validate, samples=lambda: {"sample": str(torch.rand(1))})
    chosen = TrainingSettings(**(SETTINGS | changes))
    trainer = Trainer(
        pair,
        Stream(fuse, carry=carry),
        chosen,
        run=RunFolder(folder, "test"),
        hooks=hooks,
        quiet=True,
    )
    trainer.fit(resume=resume)
    return trainer


def outcome(folder: Path) -> dict[str, Any]:
    """All that a training leaves, but for times."""
    run = RunFolder(folder, "test")
    last = load_tree(run.last)
    del last["minutes"]
    return {
        "last": flat(last),
        "best": flat(load_tree(run.best)),
        "metrics": run.metrics.read_bytes(),
    }


def flat(tree: Any) -> Any:
    """The tree with its tensors as bytes, so that it can be compared."""
    if isinstance(tree, Tensor):
        return tree.dtype, tuple(tree.shape), tree.numpy().tobytes()
    if isinstance(tree, dict):
        return {key: flat(value) for key, value in tree.items()}
    return [flat(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


@pytest.fixture
def fuses(monkeypatch: pytest.MonkeyPatch) -> list[Fuse]:
    """The last of these fuses also burns before and after every file that is written."""
    current: list[Fuse] = []

    def save(path: Path, tree: Any, **options: Any) -> None:
        current[-1].burn()
        save_tree(path, tree, **options)
        current[-1].burn()

    monkeypatch.setattr("pyro_seq.runs.folder.save_tree", save)
    return current


def kill_everywhere(
    make: Callable[[], Pair], folder: Path, fuses: list[Fuse], *, stride: int = 1, **options: Any
) -> None:
    """Kills a training at every `stride`-th moment, goes on with it, and compares what is left with
    the unbroken one.
    """
    fuses.append(Fuse())
    train(make, folder / "unbroken", fuses[-1], resume=False, **options)
    expected, moments = outcome(folder / "unbroken"), fuses[-1].moments
    for moment in range(1, moments + 1, stride):
        broken = folder / str(moment)
        fuses.append(Fuse(moment))
        with pytest.raises(Killed):
            train(make, broken, fuses[-1], resume=False, **options)
        fuses.append(Fuse())
        # how a training begins comes from its seed; from then on everything comes from its
        # checkpoint
        seed = 1 if RunFolder(broken, "test").last.exists() else 0
        train(make, broken, fuses[-1], resume=True, seed=seed, **options)
        assert outcome(broken) == expected, moment
        shutil.rmtree(broken)


SOME_OR_ALL = pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])


@SOME_OR_ALL
def test_killed_at_any_moment(tmp_path: Path, fuses: list[Fuse], stride: int) -> None:
    """Before and after each step, validation and file, with a checkpoint at every step."""
    kill_everywhere(PAIRS["srnn"], tmp_path, fuses, carry=True, stride=stride)


@SOME_OR_ALL
def test_killed_between_checkpoints(
    tmp_path: Path, fuses: list[Fuse], monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    """Checkpoints are seldom: a validation, its best weights and lines of metrics may lie between
    the last one and the end.
    """
    clock = iter(range(10**9))
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    kill_everywhere(
        PAIRS["rnn"], tmp_path, fuses, carry=True, stride=stride, checkpoint_seconds=8.0
    )


@pytest.mark.one_in(5)
@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("kind", PAIRS)
def test_every_pair(kind: str, carry: bool, tmp_path: Path, fuses: list[Fuse]) -> None:
    kill_everywhere(PAIRS[kind], tmp_path, fuses, stride=13, carry=carry)


def test_killed_again_and_again(tmp_path: Path, fuses: list[Fuse]) -> None:
    fuses.append(Fuse())
    train(PAIRS["iseq"], tmp_path / "unbroken", fuses[-1], resume=False, carry=True)
    kills = 0
    while True:
        fuses.append(Fuse(8))
        try:
            train(PAIRS["iseq"], tmp_path / "broken", fuses[-1], resume=True, carry=True)
        except Killed:
            kills += 1
        else:
            break
    assert kills >= 4
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "unbroken")


def test_early_stopping_counts_on(tmp_path: Path, fuses: list[Fuse]) -> None:
    """The validations without improvement before a kill count after it; a training that has stopped
    stays so.
    """
    kill_everywhere(PAIRS["rnn"], tmp_path, fuses, stride=17, carry=False, num_steps=100)
    assert load_tree(RunFolder(tmp_path / "unbroken", "test").last)["step"] == 12
    fuses.append(Fuse())
    again = train(
        PAIRS["rnn"], tmp_path / "unbroken", fuses[-1], resume=True, carry=False, num_steps=100
    )
    assert again.step == 12


@pytest.mark.parametrize("when", ["a step", "a validation"])
def test_interrupted_by_a_signal(when: str, tmp_path: Path) -> None:
    """Ctrl-C saves where the training stands, checkpoint due or not."""
    train(PAIRS["srnn"], tmp_path / "unbroken", Fuse(), resume=False, carry=True)

    class Interrupting(Fuse):
        def burn(self) -> None:
            self.moments += 1
            # the first batch is drawn twice
            if self.moments == {"a step": 4, "a validation": 5}[when]:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(
            PAIRS["srnn"],
            tmp_path / "broken",
            Interrupting(),
            resume=False,
            carry=True,
            checkpoint_seconds=1e9,
        )
    assert load_tree(RunFolder(tmp_path / "broken", "test").last)["step"] == 3
    train(PAIRS["srnn"], tmp_path / "broken", Fuse(), resume=True, carry=True, seed=1)
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "unbroken")


def test_a_finished_training_is_left_as_it_is(tmp_path: Path) -> None:
    first = train(PAIRS["srnn"], tmp_path, Fuse(), resume=False, carry=True)
    before = outcome(tmp_path)
    again = train(PAIRS["srnn"], tmp_path, Fuse(), resume=True, carry=True, seed=1)
    assert outcome(tmp_path) == before
    assert again.step == STEPS
    assert flat(first.pair.model.state_dict()) == flat(again.pair.model.state_dict())
    assert flat(first.pair.guide.state_dict()) == flat(again.pair.guide.state_dict())


def test_a_finished_training_goes_on_for_longer(tmp_path: Path) -> None:
    train(PAIRS["rnn"], tmp_path, Fuse(), resume=False, carry=True)
    longer = train(PAIRS["rnn"], tmp_path, Fuse(), resume=True, carry=True, num_steps=STEPS + 2)
    assert longer.step == STEPS + 2
    assert load_tree(RunFolder(tmp_path, "test").last)["step"] == STEPS + 2


def test_checkpoints_of_other_trainings_are_refused(tmp_path: Path) -> None:
    train(PAIRS["rnn"], tmp_path, Fuse(), resume=False, carry=False)
    with pytest.raises(UserError, match="does not fit this pair"):
        train(PAIRS["srnn"], tmp_path, Fuse(), resume=True, carry=False)
    with pytest.raises(
        UserError,
        match=r"is not a checkpoint of this run: optimiser\.averages has 10 entries, not 0",
    ):
        train(PAIRS["rnn"], tmp_path, Fuse(), resume=True, carry=False, ema_decay=0.0)
    run = RunFolder(tmp_path, "test")
    saved = load_tree(run.last)
    del saved["batches"]
    save_tree(run.last, saved)
    with pytest.raises(UserError, match="is not a checkpoint of this run: batches is missing"):
        train(PAIRS["rnn"], tmp_path, Fuse(), resume=True, carry=False)
