"""Pairs in plain Pyro that are valid and rarely seen: what they hold is kept, what they observe is
given back, what cannot be is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_seq import (
    Pair,
    SequenceBatch,
    UserError,
    continuation,
    infill,
    particle_filter,
    sample,
    score,
)
from pyro_seq.infer.elbo import make_elbo
from pyro_seq.testing import problems
from pyro_seq.train.preflight import check_sites

BATCH = SequenceBatch(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), [4, 3, 2])
Model = Callable[[SequenceBatch], Any]


def normed() -> Model:
    """With running statistics and features that stay as they are drawn."""
    features, norm, output = (
        nn.Linear(1, 8).requires_grad_(False),
        nn.BatchNorm1d(8, momentum=0.5),
        nn.Linear(8, 1),
    )

    def model(batch: SequenceBatch) -> None:
        pyro.module("norm", norm)
        pyro.module("output", output)
        last = torch.zeros(len(batch), 1)
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    x = pyro.sample(
                        f"x_{t}",
                        dist.Normal(output(norm(features(last + 5))).squeeze(-1), 1.0),
                        obs=batch.at(t),
                    )
                last = x.unsqueeze(-1)

    return model


def plated(size: int) -> Model:
    """Some independent features in a plate to the left of the sequences, as in Pyro's own example
    of an HMM.
    """
    level = nn.Linear(1, size)

    def model(batch: SequenceBatch) -> None:
        pyro.module("level", level)
        with batch.plate():
            for t in batch.steps():
                x = None if batch.at(t) is None else batch.at(t).t()
                with batch.active(t), pyro.plate(f"features_{t}", size, dim=-2):
                    pyro.sample(
                        f"x_{t}",
                        dist.Normal(
                            (level(torch.ones(1)) + 100 * torch.arange(size)).unsqueeze(-1), 1.0
                        ),
                        obs=x,
                    )

    return model


def with_state(state: Callable[[Tensor], Any]) -> Model:
    """A random walk that returns its last value in a state of some form."""
    drift = nn.Linear(1, 1)

    def model(batch: SequenceBatch) -> SimpleNamespace:
        pyro.module("drift", drift)
        x = torch.zeros(len(batch))
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    x = pyro.sample(
                        f"x_{t}", dist.Normal(x + drift(torch.ones(1)), 1.0), obs=batch.at(t)
                    )
        return SimpleNamespace(state=state(x))

    return model


class Named(NamedTuple):
    x: Tensor


@dataclass
class Data:
    x: Tensor


def test_what_the_modules_of_functions_hold_is_kept() -> None:
    pairs = Pair(normed()), Pair(normed())
    for pair in pairs:
        with pair.scope():
            pair.model(BATCH)  # in training mode: the statistics move
    with pairs[0].scope():
        weights = pairs[0].weights()
    assert {name.partition(": ")[2] for name in weights["store"]} >= {
        "running_mean",
        "running_var",
        "num_batches_tracked",
        "weight",
        "bias",
    }
    before = [score(pair, BATCH).total for pair in pairs]
    assert not before[0].allclose(before[1])
    with pairs[1].scope():
        pairs[1].load_weights(weights, "there")
    assert score(pairs[1], BATCH).total.equal(before[0])


def test_a_check_does_not_move_the_statistics_of_functions_modules() -> None:
    pair = Pair(normed())
    before = [buffer.clone() for buffer in pair.buffers()]
    assert len(before) == 3 and problems(pair.model, pair.guide, BATCH) == []
    assert all(a.equal(b) for a, b in zip(pair.buffers(), before, strict=True))


def test_missing_steps_of_a_batch_are_missing_everywhere(
    linear_gaussian: Callable[..., Pair], float64: None
) -> None:
    pair: Any = linear_gaussian()
    x = torch.randn(2, 4)
    batch, gaps = pair.model.batch(x), torch.tensor([False, True, False, False])
    given = batch.with_missing([1])
    assert given.missing_mask.equal(gaps.expand(2, 4))
    found = []
    for blanked, missing in ((given, None), (batch.with_values(given.values), gaps.expand(2, 4))):
        pyro.set_rng_seed(0)
        found.append(particle_filter(pair, blanked, samples=50, missing=missing))
    # the observation before a step says nothing in this model, be it seen, unseen or drawn
    assert all((one.steps[:, 1] == 0).all() for one in found)
    assert found[0].values is None and found[1].values[:, :, 1].all()
    other = torch.tensor([False, False, True, False])
    filled = infill(pair, batch.with_missing([1]), other, samples=4)
    assert filled[:, [0, 3]].equal(batch.values[:, [0, 3]]) and filled[:, [1, 2]].all()
    with pytest.raises(
        UserError,
        match=("2 steps are to be sampled, and a continuation goes on from observations"),
    ):
        continuation(pair, batch.continued(2, torch.zeros(2, 2, 0)), 2)
    later = torch.zeros(2, 2, 0)
    assert continuation(pair, batch.with_missing([1]), 2, inputs=later).shape == (2, 2)


@pytest.mark.parametrize("size", [2, 3])
def test_plates_inside_a_sequence_are_a_part_of_what_is_observed(size: int) -> None:
    """Also where they are as many as the sequences: the features, 100 apart, tell which dimension
    is which.
    """
    pair, levels = Pair(plated(size)), 100.0 * torch.arange(size)
    values = levels + torch.randn(3, 4, size)
    missing = torch.tensor([False, False, True, False])
    drawn = {
        "ancestral": sample(pair, 5, 4),
        "continuation": continuation(pair, SequenceBatch(values), 2),
        "infill": infill(pair, SequenceBatch(values), missing, samples=3),
    }
    assert {name: x.shape for name, x in drawn.items()} == {
        "ancestral": (5, 4, size),
        "continuation": (3, 2, size),
        "infill": (3, 4, size),
    }
    assert all(((x - levels).abs() < 20).all() for x in drawn.values())
    assert (
        drawn["infill"][:, ~missing].equal(values[:, ~missing])
        and not (drawn["infill"][:, 2] == values[:, 2]).any()
    )
    assert problems(pair.model, pair.guide, SequenceBatch(values, [4, 3, 2])) == []
    with pair.scope():
        loss = make_elbo("trace").loss_and_grads(
            pair.model, pair.guide, SequenceBatch(values, [4, 3, 2])
        )
    exact = -score(pair, SequenceBatch(values, [4, 3, 2])).total.sum()
    assert loss == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.parametrize(("state", "place", "kind"), [
    (Named, "", "Named"), (Data, "", "Data"),
    (lambda x: {"x": [x.detach().numpy()]}, ".x.0", "ndarray"),
])  # fmt: skip
def test_states_that_a_checkpoint_would_not_give_back_are_refused(
    state: Callable[[Tensor], Any], place: str, kind: str
) -> None:
    says = (
        f"the model's state{place} is a {kind}, which a tree of tensors cannot hold: a state "
        "is "
        "made of tensors, in tuples"
    )
    assert problems(with_state(state), lambda batch: None, BATCH) == [f"{says}, lists and dicts"]
    with pytest.raises(UserError, match=f"on the first batch: {says}"):
        check_sites(Pair(with_state(state)), make_elbo("trace"), BATCH)
    check_sites(Pair(with_state(lambda x: {"x": [(x, None, 1)]})), make_elbo("trace"), BATCH)


def regimes(batch: SequenceBatch) -> None:
    """A latent of the whole sequence that is a number of a table."""
    pyro.module("table", TABLE)
    with batch.plate():
        z = pyro.sample("z", dist.Categorical(logits=torch.zeros(2)))
        if batch.values is not None:
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(TABLE(z).squeeze(-1), 1.0), obs=batch.at(t))


def guess(batch: SequenceBatch) -> None:
    with batch.plate():
        pyro.sample("z", dist.Categorical(logits=pyro.param("logits", torch.zeros(2))))


TABLE = nn.Embedding(2, 1)


@pytest.mark.parametrize("options", [{"kind": "mean_field"}, {"kind": "trace", "free_bits": 0.1}])
def test_objectives_that_need_reparameterised_guides_say_so_on_the_first_batch(
    options: Any,
) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"site 'z' in the guide is not reparameterised, which "
            r"(TraceMeanField|FreeBits)_ELBO "
            r"needs"
        ),
    ):
        check_sites(Pair(regimes, guess), make_elbo(**options), BATCH)
    check_sites(Pair(regimes, guess), make_elbo("trace"), BATCH)


def test_a_factor_is_no_observation() -> None:
    level = nn.Linear(1, 1)

    def model(batch: SequenceBatch) -> None:
        pyro.module("level", level)
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    x = pyro.sample(
                        f"x_{t}", dist.Normal(level(torch.ones(1)), 1.0), obs=batch.at(t)
                    )
                    pyro.factor(f"penalty_{t}", -0.1 * x.abs())

    assert problems(model, lambda batch: None, BATCH) == []
    assert continuation(Pair(model), SequenceBatch(torch.randn(2, 3)), 2).shape == (2, 2)
    assert infill(
        Pair(model), SequenceBatch(torch.randn(2, 3)), torch.tensor([False, True, False])
    ).shape == (2, 3)


def test_an_event_over_all_steps_that_cannot_be_told_apart() -> None:
    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample(
                "x", dist.MultivariateNormal(torch.zeros(4), torch.eye(4)), obs=batch.values
            )

    says = (
        "has an event over all steps, and its MultivariateNormal does not tell them apart: "
        "that "
        "takes a .to_event distribution"
    )
    with pytest.raises(UserError, match=says):
        score(Pair(model), SequenceBatch(torch.randn(2, 4)))


def test_latents_of_another_form_are_the_guides_fault() -> None:
    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("z", dist.Normal(pyro.param("z_loc", torch.zeros(2)), 1.0).to_event(1))

    (says,) = problems(model, guide, BATCH)
    assert says.startswith("site 'z' has event shape [2] in the guide and [] in the model")


def test_latents_marked_to_be_enumerated_are_summed_out_or_drawn_from_the_prior() -> None:
    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            z = pyro.sample(
                "z", dist.Categorical(logits=torch.zeros(2)), infer={"enumerate": "parallel"}
            )
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(z.double(), 1.0), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("w", dist.Normal(torch.zeros(len(batch)), 1.0))

    assert score(Pair(model), BATCH).exact
    assert score(Pair(model), BATCH, proposal="prior", samples=10).total.isfinite().all()
    with pytest.raises(
        UserError, match=r"site 'w' is sampled by the guide|the model has no site 'w'"
    ):
        score(Pair(model, guide), BATCH)
