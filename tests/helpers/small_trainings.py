"""Small pairs and trainings of them, for the tests of the trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_seq import Pair, RunFolder, SequenceBatch, Trainer, TrainingSettings
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot

PAIRS = ("rnn", "iseq", "srnn")


class Stream:
    """Batches made from random numbers of the stream's own, carried on if asked."""

    def __init__(
        self, make: Callable[[torch.Generator], SequenceBatch], *, carry: bool = False
    ) -> None:
        self.make, self.carry, self.drawn = make, carry, 0
        self.random = torch.Generator().manual_seed(0)

    def draw(self) -> tuple[SequenceBatch, bool]:
        self.drawn += 1
        return self.make(self.random), self.carry and self.drawn > 1

    def state(self) -> Any:
        return {"drawn": self.drawn, "random": self.random.get_state()}

    def load_state(self, state: Any) -> None:
        self.drawn = state["drawn"]
        self.random.set_state(state["random"])


def random_symbols(random: torch.Generator) -> SequenceBatch:
    return SequenceBatch(torch.randint(0, 3, (3, 4), generator=random), [4, 4, 2])


def full_symbols(random: torch.Generator) -> SequenceBatch:
    return SequenceBatch(torch.randint(0, 3, (3, 4), generator=random))


def real_numbers(random: torch.Generator) -> SequenceBatch:
    return SequenceBatch(torch.randn(3, 4, generator=random), [4, 2, 1])


def periodic(random: torch.Generator) -> SequenceBatch:
    return SequenceBatch((torch.arange(12) % 3).expand(8, 12))


def new_pair(kind: str, **settings: Any) -> Pair:
    sizes: dict[str, Any] = {
        "hidden_size": 4,
        "latent_size": 2,
        "latent_sizes": (3,),
        "input_dropout": 0.0,
        "output_dropout": 0.0,
    }
    return make_pair(
        model_settings(kind, sizes | settings),
        PairComponents(Categorical(3), lambda: OneHot(3), PreviousObservation),
    )


def settings(**changes: Any) -> TrainingSettings:
    plain: dict[str, Any] = {
        "precision": "float32",
        "schedule": "constant",
        "warmup": 0.0,
        "sample_every": 0,
        "log_every": 1,
    }
    return TrainingSettings(**(plain | changes))


def new_trainer(
    pair: Pair,
    batches: Any = None,
    *,
    hooks: Any = None,
    elbo: Any = None,
    run: Any = None,
    **changes: Any,
) -> Trainer:
    batches = batches or Stream(random_symbols)
    return Trainer(pair, batches, settings(**changes), hooks=hooks, elbo=elbo, run=run, quiet=True)


def new_run(folder: Path) -> RunFolder:
    return RunFolder(folder, "test")


def logged(trainer: Trainer) -> list[dict[str, Any]]:
    """The lines of figures that the trainer will report, as they come."""
    lines: list[dict[str, Any]] = []
    trainer.log.report = lambda step, split, figures: lines.append(
        {"step": step, "split": split, **figures}
    )  # type: ignore[method-assign]
    return lines


def parameters(pair: Pair) -> dict[str, Tensor]:
    with pair.scope():
        return {name: p.detach().clone() for name, p in pair.parameters().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def function_pair() -> Pair:
    def model(batch: SequenceBatch) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        weight = pyro.param("weight", lambda: torch.randn(2))
        with batch.plate():
            z = torch.zeros(len(batch))
            for t in batch.steps():
                with batch.active(t):
                    z = pyro.sample(f"z_{t}", dist.Normal(weight[0] * z + weight[1], 1.0))
                    pyro.sample(f"x_{t}", dist.Normal(z, scale), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        gain, width = (
            pyro.param("gain", torch.tensor(0.5)),
            pyro.param("width", torch.tensor(1.0), constraint=dist.constraints.positive),
        )
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"z_{t}", dist.Normal(gain * batch.at(t), width))

    return Pair(model, guide)
