"""`check_pair` has nothing to say of sound pairs, shipped or written as functions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_seq import AutoSequenceGuide, Pair, SequenceBatch, UserError
from pyro_seq.config.build import PairComponents
from pyro_seq.contexts import LastObservations, PreviousObservation
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Bernoulli, Categorical, Normal
from pyro_seq.encoders import Embedding, Flatten
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.guides import no_guide
from pyro_seq.models import HMM, SRNN
from pyro_seq.testing import check_pair, notes, problems

Both = tuple[Callable[[SequenceBatch], Any], Callable[[SequenceBatch], Any]]


def reals(full: bool = False) -> SequenceBatch:
    return SequenceBatch(torch.randn(4, 5), None if full else [5, 3, 1, 4])


def symbols() -> tuple[PairComponents, SequenceBatch]:
    parts = PairComponents(
        Categorical(4), lambda: Embedding(4, 3), lambda encoder: LastObservations(encoder, 2)
    )
    return parts, SequenceBatch(torch.randint(4, (3, 6)), [6, 4, 1])


def group() -> tuple[PairComponents, SequenceBatch]:
    emission = Joint({"notes": Factorised(Bernoulli(), 3), "level": Normal()})
    parts = PairComponents(
        emission,
        lambda: JointEncoder({"notes": Flatten(3), "level": Flatten(())}),
        PreviousObservation,
    )
    values = {"notes": torch.randint(2, (4, 5, 3)).float(), "level": torch.randn(4, 5)}
    return parts, SequenceBatch(values, [5, 5, 2, 4])


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("make_parts", [symbols, group])
def test_shipped_pairs_are_sound(
    shipped: Callable[[PairComponents, str], Pair], layout: str, make_parts: Any
) -> None:
    parts, batch = make_parts()
    pair = shipped(parts, layout)
    before = copy.deepcopy(pair.weights())
    random = torch.get_rng_state()
    check_pair(pair.model, pair.guide, batch)
    assert notes(pair.model, pair.guide, batch) == []
    assert torch.equal(random, torch.get_rng_state()) and not pyro.get_param_store().keys()
    assert all(
        torch.equal(w, pair.weights()[side][name])
        for side in before
        for name, w in before[side].items()
    )
    assert all(part.training for module in pair.modules().values() for part in module.modules())


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("make_parts", [symbols, group])
def test_hidden_markov_models_are_sound(layout: Any, autoregressive: bool, make_parts: Any) -> None:
    parts, batch = make_parts()
    model = HMM(
        parts.emission,
        parts.context(parts.encoder()),
        num_states=3,
        autoregressive=autoregressive,
        layout=layout,
    )
    check_pair(model, no_guide, batch)


@pytest.mark.parametrize("layout", ["path", "steps"])
def test_automatic_guides_are_sound(layout: str) -> None:
    parts, batch = symbols()
    model = SRNN(
        parts.emission, parts.context(parts.encoder()), hidden_size=4, latent_size=2, layout=layout
    )
    check_pair(model, AutoSequenceGuide(model, hidden_size=4), batch)


def functions() -> Both:
    def model(batch: SequenceBatch) -> None:
        drift = pyro.param("drift", torch.tensor(0.1))
        with batch.plate():
            z = torch.zeros(len(batch))
            for t in batch.steps():
                with batch.active(t):
                    z = pyro.sample(f"z_{t}", dist.Normal(z + drift, 0.5))
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        gain = pyro.param("gain", torch.tensor(0.5))
        with batch.plate():
            z = torch.zeros(len(batch))
            for t in batch.steps():
                with batch.active(t):
                    z = pyro.sample(f"z_{t}", dist.Normal(z + gain * (batch.at(t) - z), 0.5))

    return model, guide


def enumerated() -> Both:
    @config_enumerate
    def model(batch: SequenceBatch) -> None:
        rows = pyro.param(
            "rows", torch.tensor([[0.2, 0.8], [0.6, 0.4]]), constraint=dist.constraints.simplex
        )
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with batch.plate():
            k = torch.zeros(len(batch), dtype=torch.long)
            for t in batch.steps():
                with batch.active(t):
                    k = pyro.sample(f"k_{t}", dist.Categorical(rows[k]))
                    pyro.sample(f"x_{t}", dist.Normal(locs[k], 1.0), obs=batch.at(t))

    return model, no_guide


def sequence_latent() -> Both:
    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            level = pyro.sample("level", dist.Gamma(torch.full((len(batch),), 2.0), 1.0))
            pyro.sample(
                "x",
                dist.Normal(level.unsqueeze(-1), 1.0)
                .expand([len(batch), batch.num_steps])
                .mask(batch.mask)
                .to_event(1),
                obs=batch.values,
            )

    return model, AutoSequenceGuide(model, hidden_size=3)


def as_many_entries_as_steps() -> Both:
    """A latent of a whole sequence with five entries: none is one of a step."""

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            weights = pyro.sample(
                "weights", dist.Normal(torch.zeros(len(batch), 5), 1.0).to_event(1)
            )
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(weights.sum(-1), 1.0), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        loc = pyro.param("loc", torch.tensor(0.1))
        with batch.plate():
            pyro.sample("weights", dist.Normal(loc.expand(len(batch), 5), 1.0).to_event(1))

    return model, guide


def path_of_independent_steps(masked: bool = True) -> Both:
    """All steps' latents in one site that is no path by its type."""

    def latent(loc: Tensor, batch: SequenceBatch) -> Tensor:
        steps = dist.Normal(loc.expand(len(batch), batch.num_steps), 1.0)
        return pyro.sample("z", (steps.mask(batch.mask) if masked else steps).to_event(1))

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            z = latent(torch.zeros(()), batch)
            pyro.sample("x", dist.Normal(z, 1.0).mask(batch.mask).to_event(1), obs=batch.values)

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            latent(pyro.param("loc", torch.tensor(0.1)), batch)

    return model, guide


class Scaled(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](1, 1)
        self.scale = PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive)

    def forward(self, batch: SequenceBatch) -> None:
        x = torch.zeros(len(batch))
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    x = pyro.sample(
                        f"x_{t}",
                        dist.Normal(self.linear(x.unsqueeze(-1)).squeeze(-1), self.scale),
                        obs=batch.at(t),
                    )


def after_the_observation() -> Both:
    """A latent that is drawn given the observation of its step, one member of a group given the
    other: in order, so no peeking.
    """

    def model(batch: SequenceBatch) -> None:
        weight = pyro.param("weight", torch.tensor(0.4))
        with batch.plate():
            z = torch.zeros(len(batch))
            for t in batch.steps():
                with batch.active(t):
                    x = pyro.sample(f"x_{t}", dist.Normal(weight * z, 1.0), obs=batch.at(t))
                    z = pyro.sample(f"z_{t}", dist.Normal(z + weight * x, 1.0))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(
                        f"z_{t}",
                        dist.Normal(pyro.param("gain", torch.tensor(0.5)) * batch.at(t), 0.5),
                    )

    return model, guide


SOUND: dict[str, Callable[[], Both]] = {
    "functions": functions,
    "enumerated": enumerated,
    "sequence latent": sequence_latent,
    "as many entries as steps": as_many_entries_as_steps,
    "path of independent steps": path_of_independent_steps,
    "PyroModule": lambda: (Scaled(), no_guide),
    "z after x": after_the_observation,
}


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("rows", [slice(None), slice(1)], ids=["four", "one"])
def test_sound_pairs(name: str, rows: slice) -> None:
    model, guide = SOUND[name]()
    assert problems(model, guide, reals().select(rows)) == []


def test_a_latent_over_time_that_is_not_masked() -> None:
    found = problems(*path_of_independent_steps(masked=False), reals())
    assert [
        line
        for side in ("guide", "model")
        for line in found
        if line.startswith(f"site 'z' in the {side} is not masked")
    ] == found


class Elsewhere(TorchFunctionMode):
    """Inside, what is made of nothing lies on another device than the batch unless it is told where
    to be, as with a batch on a GPU.
    """

    MAKERS = (
        torch.arange,
        torch.zeros,
        torch.ones,
        torch.full,
        torch.empty,
        torch.randn,
        torch.randint,
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        elsewhere = {"device": "meta"} if func in self.MAKERS else {}
        return func(*args, **elsewhere | (kwargs or {}))


def on_its_device() -> Both:
    def latent(batch: SequenceBatch) -> Tensor:
        return pyro.sample(
            "w", dist.Normal(torch.zeros(len(batch), 5, device=batch.device), 1.0).to_event(1)
        )

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            z = latent(batch).sum(-1)
            for t in batch.steps():
                with batch.active(t):
                    z = pyro.sample(f"z_{t}", dist.Normal(z, 0.5))
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            latent(batch)
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"z_{t}", dist.Normal(batch.at(t), 0.5))

    return model, guide


@pytest.mark.parametrize("full", [False, True], ids=["padded", "full"])
def test_everything_is_on_the_device_of_the_batch(full: bool) -> None:
    parts, batch = symbols()
    hmm, numbers = HMM(parts.emission, parts.context(parts.encoder()), num_states=3), reals(full)
    with Elsewhere():
        assert problems(*on_its_device(), numbers) == []
        assert problems(hmm, no_guide, batch) == []


def test_in_double_precision(float64: None) -> None:
    model, guide = functions()
    assert problems(model, guide, reals()) == []


def test_long_and_large_batches_are_cut() -> None:
    model, guide = functions()
    calls: list[int] = []

    def counted(batch: SequenceBatch) -> None:
        calls.append(len(batch) * batch.num_steps)
        model(batch)

    assert problems(counted, guide, SequenceBatch(torch.randn(100, 300))) == []
    assert max(calls) <= 2 * 4 * 24


def test_batches_that_it_refuses() -> None:
    model, guide = functions()
    with pytest.raises(UserError, match="needs a batch to check the pair on"):
        check_pair(model, guide)
    for batch in (
        reals().without_values(),
        reals().select(slice(0)),
        SequenceBatch(torch.zeros(2, 0)),
    ):
        with pytest.raises(UserError, match="is checked on a batch with observations"):
            problems(model, guide, batch)
