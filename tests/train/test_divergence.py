"""Trainings that diverge say so, and what they leave is never called the best; enumeration as an
objective by its setting.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_seq import Pair, SequenceBatch, Trainer, TrainingSettings, UserError, score
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.models import HMM, RNN
from pyro_seq.train.divergence import diverged, diverged_words
from pyro_seq.train.trainer import Hooks


class Same:
    """One batch, over and over."""

    def __init__(self) -> None:
        self.batch = SequenceBatch(torch.tensor([[0, 1, 2, 0], [1, 2, 0, 1]]), [4, 3])

    def draw(self) -> tuple[SequenceBatch, bool]:
        return self.batch, False

    def state(self) -> Any:
        return {}

    def load_state(self, state: Any) -> None:
        pass


def trained(pair: Pair, losses: list[float] | None = None, **settings: Any) -> Trainer:
    """A training, each of whose validations finds the next of these losses."""
    found = iter(losses or [])
    hooks = Hooks(validate=lambda: {"loss": next(found)}) if losses else None
    chosen = TrainingSettings(num_steps=len(losses or [0] * 3), valid_every=1, **settings)
    return Trainer(pair, Same(), chosen, hooks=hooks, quiet=False)


def rnn() -> Pair:
    return Pair(RNN(Categorical(3), PreviousObservation(OneHot(3)), hidden_size=3))


def test_what_is_far_beyond() -> None:
    assert (
        diverged(math.inf, 1.0)
        and diverged(math.nan, None)
        and diverged(2.7e30, 3.6)
        and diverged(1e3, -5.0)
    )
    assert (
        not diverged(30.0, 3.6)
        and not diverged(-4.0, -5.0)
        and not diverged(1e9, None)
        and not diverged(2e6, 1e6)
    )
    assert (
        diverged_words("the loss", 2.7e30, 3.6)
        == "the training has diverged: the loss is 2.7e+30 nats per step, and it began at 3.6"
    )


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_a_training_without_validation_ends_with_a_word(rate: float) -> None:
    with pytest.raises(
        UserError,
        match=r"diverged: its loss is .* nats per step, and it began at 1\.|is not finite",
    ):
        trained(rnn(), learning_rate=rate, warmup=0.0).fit()


def test_no_validation_far_beyond_the_beginning_is_the_best(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match="every validation's loss is far beyond where it began"):
        trained(rnn(), [2.6e30, 2.5e30]).fit()
    said = capsys.readouterr().err
    assert (
        "the training has diverged: step 1: the validation loss is 2.6e+30" in said
        and "best so far" not in said
    )


def test_better_weights_from_before_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trained(rnn(), [1.0, 3e8])
    trainer.fit()
    said = capsys.readouterr().err
    assert (
        trainer.best_loss == 1.0
        and "the training has diverged: step 2" in said
        and said.count("best so far") == 1
    )


def test_a_training_that_does_well_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    trained(rnn(), [1.0, 0.9]).fit()
    assert "diverged" not in capsys.readouterr().err


def own(batch: SequenceBatch) -> None:
    """A hidden Markov model of one's own, its states marked to be enumerated."""
    first, move, emit = (
        pyro.param(name, lambda shape=shape: torch.randn(shape))
        for name, shape in (("first", (2,)), ("move", (2, 2)), ("emit", (2, 3)))
    )
    z: Any = None
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(
                    f"z_{t}",
                    dist.Categorical(logits=first if z is None else move[z]),
                    infer={"enumerate": "parallel"},
                )
                pyro.sample(f"x_{t}", dist.Categorical(logits=emit[z]), obs=batch.at(t))


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("kind", ["own", "hmm"])
def test_enumeration_is_an_objective(kind: str, schedule: str) -> None:
    """By its setting, also with a schedule of the divergence, of which there is none: the loss of
    each step is the exact one.
    """
    context = PreviousObservation(OneHot(3))
    pair = Pair(
        own
        if kind == "own"
        else HMM(Categorical(3), context, num_states=2, embedding_size=2, layout="steps")
    )
    trainer = trained(pair, [1.0, 1.0], objective="enum", kl_schedule=schedule, learning_rate=1e-9)
    seen: list[float] = []
    trainer.log.add = lambda figures, n: seen.append(figures["loss"])  # type: ignore[method-assign]
    trainer.fit()
    exact = score(pair, Same().batch)
    assert exact.exact and seen == pytest.approx([-float(exact.total.sum()) / 7] * 2, rel=1e-4)
