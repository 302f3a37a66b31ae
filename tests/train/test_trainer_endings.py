"""Training: how a run ends, what is not finite, and what is seen of it."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from pyro_seq import Pair, Trainer
from pyro_seq.runs.checkpoint import load_tree
from pyro_seq.train import loop
from pyro_seq.train.trainer import Hooks, NonFinite
from small_trainings import (
    PAIRS,
    Stream,
    equal,
    function_pair,
    logged,
    new_pair,
    new_run,
    new_trainer,
    parameters,
    random_symbols,
    real_numbers,
    settings,
)

# the end of a run


def figures(*losses: float) -> Callable[[], dict[str, float]]:
    """A validation with given losses, one after the other."""
    remaining = list(losses)
    return lambda: {"loss": remaining.pop(0)}


def test_early_stopping_and_best_weights(tmp_path: Path) -> None:
    """It stops after `patience` validations without a better loss; the best weights are in the
    pair, with and without a run.
    """
    for run in (None, new_run(tmp_path)):
        pyro.set_rng_seed(0)
        at_validation: list[dict[str, Tensor]] = []
        losses = figures(3.0, 1.0, 2.0, 1.5, 0.5)

        pair = new_pair("srnn")

        def validate(
            pair: Pair = pair, seen: list[Any] = at_validation, losses: Any = losses
        ) -> dict[str, float]:
            seen.append(parameters(pair))
            return losses()

        trainer = new_trainer(
            pair, num_steps=100, valid_every=3, patience=2, hooks=Hooks(validate=validate), run=run
        )
        trainer.fit()
        assert trainer.step == 12 and trainer.best_loss == 1.0
        assert equal(parameters(pair), at_validation[1])
        assert not pair.model.training
    best = load_tree(new_run(tmp_path).best)
    assert best["step"] == 6
    assert all(
        torch.equal(w, at_validation[1][f"model.{name}"])
        for name, w in best["weights"]["model"].items()
    )


def test_last_weights_are_validated() -> None:
    trainer = new_trainer(
        new_pair("rnn"), num_steps=5, valid_every=3, hooks=Hooks(validate=figures(2.0, 1.0))
    )
    lines = logged(trainer)
    trainer.fit()
    assert [line["step"] for line in lines if line["split"] == "valid"] == [3, 5]
    assert trainer.best_loss == 1.0


def test_untrained_weights_may_be_the_best(tmp_path: Path) -> None:
    """Where a validation comes before the first step, its weights are among those compared."""
    pair = new_pair("srnn")
    before = {name: value.clone() for name, value in parameters(pair).items()}
    run, hooks = new_run(tmp_path), Hooks(validate=figures(1.0, 2.0, 3.0), at_start=True)
    trainer = new_trainer(pair, num_steps=4, valid_every=2, hooks=hooks, run=run)
    trainer.fit()
    assert trainer.best_loss == 1.0 and trainer.step == 4
    assert equal(parameters(pair), before)
    assert load_tree(run.best)["step"] == 0


@pytest.mark.parametrize("with_run", [False, True])
@pytest.mark.parametrize("validated", [False, True])
def test_averaged_weights_are_evaluated_and_kept(
    validated: bool, with_run: bool, tmp_path: Path
) -> None:
    seen: list[dict[str, Tensor]] = []

    def validate() -> dict[str, float]:
        seen.append(parameters(trainer.pair))
        assert not trainer.pair.model.training and not torch.is_grad_enabled()
        return {"loss": -len(seen)}

    run = new_run(tmp_path) if with_run else None
    hooks = Hooks(validate=validate) if validated else None
    trainer = new_trainer(
        new_pair("rnn"),
        num_steps=4,
        ema_decay=0.9,
        valid_every=2,
        hooks=hooks,
        run=run,
        learning_rate=0.1,
    )
    trainer.fit()
    averages = dict(zip(trainer.optimiser.parameters, trainer.optimiser.averages, strict=True))
    assert equal(parameters(trainer.pair), averages)
    assert len(seen) == 2 * validated
    if validated:
        assert equal(seen[-1], averages)
    if run is not None:
        assert equal(
            {f"model.{name}": w for name, w in load_tree(run.best)["weights"]["model"].items()},
            averages,
        )
        assert not equal(
            {f"model.{name}": w for name, w in load_tree(run.last)["weights"]["model"].items()},
            averages,
        )


def test_max_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever comes first ends the run, and the learning rate's schedule follows it."""
    clock = [0.0]

    def tick() -> float:
        clock[0] += 1.0
        return clock[0]

    monkeypatch.setattr(loop.time, "monotonic", tick)
    trainer = new_trainer(
        new_pair("rnn"),
        num_steps=10_000,
        max_minutes=0.5,
        schedule="linear",
        final_lr_fraction=0.0,
        learning_rate=1.0,
    )
    lines = logged(trainer)
    trainer.fit()
    assert 3 < trainer.step < 40 and 0.5 <= trainer.minutes < 0.6
    assert lines[-1]["learning_rate"] < 0.2 < 0.8 < lines[0]["learning_rate"]
    steps = new_trainer(new_pair("rnn"), num_steps=2, max_minutes=1000.0)
    steps.fit()
    assert steps.step == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number: int, tmp_path: Path) -> None:
    """A signal ends the run after the step under way, with a checkpoint, and the handlers are what
    they were.
    """
    before = signal.getsignal(number)

    def interrupt() -> dict[str, float]:
        os.kill(os.getpid(), number)
        return {"loss": 1.0}

    run = new_run(tmp_path)
    trainer = new_trainer(
        new_pair("rnn"), num_steps=10, valid_every=4, hooks=Hooks(validate=interrupt), run=run
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.step == 4 and load_tree(run.last)["step"] == 4
    assert signal.getsignal(number) is before
    assert parameters(trainer.pair)


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    def interrupt() -> dict[str, float]:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        raise AssertionError

    trainer = new_trainer(
        new_pair("rnn"),
        num_steps=10,
        valid_every=4,
        hooks=Hooks(validate=interrupt),
        run=new_run(tmp_path),
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert load_tree(new_run(tmp_path).last)["step"] == 0


# values that are not finite


@pytest.mark.parametrize("kind", PAIRS)
def test_loss_that_is_not_finite(kind: str, tmp_path: Path) -> None:
    """The step and the site are named, and the last good checkpoint can be gone on with."""

    def poison() -> dict[str, float]:
        with torch.no_grad():
            next(iter(trainer.pair.model.decoder.parameters())).fill_(math.inf)
        return {"loss": 1.0}

    run = new_run(tmp_path)
    trainer = new_trainer(
        new_pair(kind), num_steps=10, valid_every=10, run=run, checkpoint_seconds=0
    )
    stream, draws = trainer.batches, iter(range(100))
    draw = stream.draw
    # the first is drawn twice: before the fifth step
    stream.draw = lambda: (next(draws) == 5 and poison(), draw())[1]
    with pytest.raises(
        NonFinite,
        match=(
            r"step 5: the log prob of site 'x' in the model is not finite; the last good "
            r"checkpoint is .*last"
        ),
    ):
        trainer.fit()
    assert load_tree(run.last)["step"] == 4
    again = new_trainer(new_pair(kind), num_steps=6, run=run)
    again.fit(resume=True)
    assert again.step == 6


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """A checkpoint or best weights are not overwritten by weights that no run could go on with."""
    weight: Any = None

    def poison() -> dict[str, float]:
        with torch.no_grad():
            weight.fill_(math.nan)
        return {"loss": loss}

    for checkpoints, loss in itertools.product((0.0, 1e9), (0.5, math.nan)):
        run = new_run(tmp_path / f"{checkpoints} {loss}")
        trainer = new_trainer(
            new_pair("rnn"), num_steps=3, valid_every=3, checkpoint_seconds=checkpoints, run=run
        )
        trainer.hooks = Hooks(validate=poison)
        weight = trainer.pair.model.decoder[0].weight
        with pytest.raises(
            NonFinite,
            match=(
                r"step 3: parameter 'model.decoder.0.weight' is not finite; the last good "
                r"checkpoint"
            ),
        ):
            trainer.fit()
        assert load_tree(run.last)["step"] == (2 if checkpoints == 0 else 0)
        assert not run.best.exists()


def test_weights_that_are_not_finite_at_the_start() -> None:
    pair = new_pair("rnn")
    with torch.no_grad():
        pair.model.decoder[0].bias[1] = math.inf
    with pytest.raises(
        NonFinite, match=r"step 0: parameter 'model.decoder.0.bias' is not finite; a lower"
    ):
        new_trainer(pair, num_steps=3).fit()


def test_gradient_that_is_not_finite(tmp_path: Path) -> None:
    """The parameter is named, and the weights are those of before the step."""
    pair, run = new_pair("srnn"), new_run(tmp_path)
    trainer = new_trainer(pair, num_steps=10, run=run, checkpoint_seconds=0)
    weight = pair.guide.network.mlp[0].weight
    weight.register_hook(lambda gradient: gradient * (math.nan if trainer.step == 4 else 1.0))
    with pytest.raises(
        NonFinite,
        match=(
            r"step 5: the gradient of parameter 'guide.network.mlp.0.weight' is not finite; the "
            r"last good"
        ),
    ):
        trainer.fit()
    saved = load_tree(run.last)
    assert saved["step"] == 4
    assert all(
        torch.equal(w, saved["weights"]["guide"][name])
        for name, w in pair.guide.state_dict().items()
    )


def test_functions_keep_what_they_learnt_when_a_run_fails() -> None:
    pair = function_pair()
    trainer = new_trainer(pair, Stream(real_numbers), num_steps=10)
    draw, draws = trainer.batches.draw, iter(range(100))

    def fail() -> Any:
        if next(draws) == 4:
            raise OSError
        return draw()

    trainer.batches.draw = fail
    with pytest.raises(OSError):
        trainer.fit()
    assert float(parameters(pair)["gain"]) not in (0.0, 0.5)


# what is seen of it


def test_what_a_run_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = new_run(tmp_path)
    hooks = Hooks(
        validate=figures(2.0, 1.5),
        samples=lambda: {"sample": "abc"},
        units="characters",
        bits="bits/char",
    )
    chosen = settings(num_steps=6, valid_every=3, log_every=2, sample_every=3)
    Trainer(new_pair("srnn"), Stream(random_symbols), chosen, run=run, hooks=hooks).fit()
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(line["split"], line["step"]) for line in lines] == [
        ("train", 2),
        ("valid", 3),
        ("train", 4),
        ("train", 6),
        ("valid", 6),
    ]
    assert set(lines[0]) == {
        *(
            "step",
            "split",
            "loss",
            "log_likelihood",
            "kl",
            "elbo",
            "gradient_norm",
            "kl_strength",
            "learning_rate",
        ),
    }
    (events,) = run.tensorboard.iterdir()
    written = events.read_bytes()
    for tag in (
        b"train/kl_strength",
        b"valid/loss",
        b"sample",
        b"parameters/model.decoder.0.weight",
        b"speed/characters_per_second",
    ):
        assert tag in written
    shown = capsys.readouterr().err
    assert "bits/char" in shown and "characters/s" in shown and "left" in shown
    assert "step 6  validation loss 1.5000  (best so far)" in shown
