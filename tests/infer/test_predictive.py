"""Posterior prediction: to the bit what Pyro's `Predictive` gives, in few runs, and replicates of
what was observed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor

from pyro_seq import Pair, SequenceBatch, UserError, posterior_predictive
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import LastObservations
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.models import HMM

PAIRS = ("rnn", "iseq", "srnn")


def new_pair(kind: str, layout: str) -> Pair:
    sizes: dict[str, Any] = {
        "hidden_size": 4,
        "latent_size": 2,
        "latent_sizes": (3,),
        "layout": layout,
    }
    parts = PairComponents(
        Categorical(4), lambda: OneHot(4), lambda encoder: LastObservations(encoder, 2)
    )
    return make_pair(model_settings(kind, sizes), parts)


def batches() -> dict[str, SequenceBatch]:
    values = torch.randint(0, 4, (3, 5))
    return {
        "observed": SequenceBatch(values, [5, 3, 1]),
        "continued": SequenceBatch(values).continued(2),
        "missing": SequenceBatch(values, [5, 3, 1]).with_missing([1, 3]),
    }


def seeded(function: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    pyro.set_rng_seed(7)
    return function()


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[[SequenceBatch], Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, batch: SequenceBatch) -> Any:
        self.calls += 1
        return self.function(batch)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("kind", PAIRS)
def test_equals_predictive(kind: str, layout: str, parallel: bool) -> None:
    pair = new_pair(kind, layout)
    pair.train(False)
    given = batches()
    for batch in (given["observed"], given["continued"]):
        expected = seeded(
            lambda batch=batch: Predictive(
                pair.model, guide=pair.guide, num_samples=6, parallel=parallel
            )(batch)
        )
        found = seeded(lambda batch=batch: posterior_predictive(pair, batch, 6, parallel=parallel))
        assert found.keys() == expected.keys() and all(
            found[name].equal(expected[name]) for name in expected
        )
        assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("layout", ["path", "steps"])
def test_predicts_what_the_batch_leaves_open(layout: str) -> None:
    pair, given = new_pair("srnn", layout), batches()
    found = posterior_predictive(pair, given["continued"], 50)
    assert (
        found["x_4"].equal(given["continued"].values[:, 4].expand(50, 3))
        and len(found["x_5"].unique()) > 1
    )
    assert found["z_6"].shape == (50, 3, 2)
    found = posterior_predictive(pair, given["missing"], 50)
    assert len(found["x_1"][:, 0].unique()) > 1 and len(found["x_0"][:, 0].unique()) == 1


def test_runs_do_not_grow_with_the_samples() -> None:
    pair, batch = new_pair("srnn", "path"), batches()["observed"]
    model, guide = Counted(pair.model), Counted(pair.guide)
    posterior_predictive(Pair(model, guide), batch, 100)
    assert (model.calls, guide.calls) == (3, 3)
    posterior_predictive(Pair(model, guide), batch, 5, parallel=False)
    assert (model.calls, guide.calls) == (3 + 7, 3 + 7)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("kind", PAIRS)
def test_replicates_have_the_law_of_either_layout(kind: str, parallel: bool) -> None:
    """In layout `steps` Pyro's own two stages; in layout `path` the same latents, as sites of
    steps.
    """
    batch = batches()["observed"]
    pair = new_pair(kind, "steps")
    pair.train(False)

    def two_stages() -> dict[str, Tensor]:
        latents = Predictive(pair.guide, num_samples=6, parallel=parallel)(batch)
        return latents | Predictive(
            pair.model, posterior_samples=latents, num_samples=6, parallel=parallel
        )(batch.without_values())

    expected = seeded(two_stages)
    found = seeded(lambda: posterior_predictive(pair, batch, 6, replicate=True, parallel=parallel))
    assert found.keys() == expected.keys() and all(
        found[name].equal(expected[name]) for name in expected
    )
    pair.model.layout = "path"
    found = posterior_predictive(pair, batch, 6, replicate=True, parallel=parallel)
    assert found["x_2"].shape == (6, 3) and ("z" in found) == (kind != "rnn")


def test_replicates_follow_the_posterior(linear_gaussian: Callable[..., Pair]) -> None:
    """With the exact guide: p(x' | x) of a linear-Gaussian model, in both layouts."""
    for layout in ("path", "steps"):
        pair = linear_gaussian(layout)
        model: Any = pair.model
        x = torch.tensor([[2.0, 1.0, 3.0]])
        found = posterior_predictive(pair, model.batch(x), 20_000, replicate=True)
        drawn = torch.stack([found[f"x_{t}"] for t in range(3)], -1)[:, 0]
        mean, covariance = model.posterior(x)
        variance = covariance.diagonal() + model.R**2
        assert ((drawn.mean(0) - mean[0]).abs() < 5 * (variance / 20_000).sqrt()).all()
        assert ((drawn.var(0) - variance).abs() < 5 * variance * (2 / 20_000) ** 0.5).all()


def test_chunks_bound_what_runs_at_once() -> None:
    sizes: list[int] = []

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            sizes.append(z.numel())
            pyro.sample("x", dist.Normal(z, 1.0))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("z", dist.Normal(1.0, 1.0))

    batch = SequenceBatch(torch.zeros(2, 1))
    found = posterior_predictive(Pair(model, guide), batch, 10, chunk_size=4)
    assert found["x"].shape == (10, 2) and max(sizes) == 8 and len(found["x"].unique()) == 20
    assert set(posterior_predictive(Pair(model, guide), batch, 3, return_sites=["x"])) == {"x"}


def test_hmm() -> None:
    model = HMM(Categorical(4), LastObservations(OneHot(4), 2), num_states=3, autoregressive=True)
    batch: Any = batches()["continued"]
    found = posterior_predictive(Pair(model), batch, 20)
    assert (
        found["x_6"].shape == (20, 3)
        and found["x_0"].equal(batch.values[:, 0].expand(20, 3))
        and "z_0" not in found
    )
    model.layout = "steps"
    with pytest.warns(
        UserWarning,
        match=(
            r"'z_0' \(and \d more\) is marked to be enumerated and not in the guide: it was "
            r"drawn from the prior"
        ),
    ):
        found = posterior_predictive(Pair(model), batches()["observed"], 20)
    assert found["x_2"].shape == (20, 3)


def test_the_pair_s_own_parameters_and_mode() -> None:
    pair = new_pair("srnn", "path")
    pair.train()
    posterior_predictive(pair, batches()["observed"], 2)
    assert pair.model.training and not list(pyro.get_param_store().keys())


def test_refusals() -> None:
    pair, batch = new_pair("srnn", "path"), batches()["observed"]
    with pytest.raises(UserError, match="the batch has none"):
        posterior_predictive(pair, batch.without_values(), 3)
    with pytest.raises(UserError, match="samples must be at least 1, got 0"):
        posterior_predictive(pair, batch, 0)
    with pytest.raises(UserError, match="chunk must be at least 1, got 0"):
        posterior_predictive(pair, batch, 3, chunk_size=0)
    with pytest.raises(UserError, match="no site 'y'; the sites are"):
        posterior_predictive(pair, batch, 3, return_sites=["y"])


def test_draws_of_a_path_are_heard_where_a_model_samples(
    linear_gaussian: Callable[..., Pair],
) -> None:
    """`Predictive` given z of layout `path`: the observations are of these latents, not of the
    prior.
    """
    model: Any = linear_gaussian("path").model
    path = torch.arange(3.0).view(1, 1, 3, 1).expand(500, 1, 3, 1) * 100
    found = Predictive(model, posterior_samples={"z": path}, parallel=True)(
        model.batch(torch.zeros(1, 3)).without_values()
    )
    for t in range(3):
        assert (found[f"x_{t}"] - 100 * t).abs().max() < 5
    with pytest.raises(
        UserError, match="the values given for the path 'z' have 3 steps, and the batch has 2"
    ):
        Predictive(model, posterior_samples={"z": path}, parallel=True)(
            model.batch(torch.zeros(1, 2)).without_values()
        )


@pytest.mark.parametrize("layout", ["path", "steps"])
def test_a_refined_guide_predicts(layout: str) -> None:
    """Latents are drawn from the guide refined for the sequences, also where they go on."""
    pair, given = new_pair("srnn", layout), batches()
    for name in ("observed", "continued"):
        draws = [
            seeded(lambda name=name, n=n: posterior_predictive(pair, given[name], 40, refine=n))
            for n in (0, 20)
        ]
        assert draws[0].keys() == draws[1].keys()
        site = "z" if layout == "path" and name == "observed" else "z_0"
        assert not draws[0][site].equal(draws[1][site])
    with pytest.raises(UserError, match="refine improves what the guide says"):
        posterior_predictive(pair, given["missing"], 2, refine=3)
