"""Pyro's own tools around pairs: what docs/pyro-tools.md says works does, and what does not is said
in words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_

from pyro_seq import AutoSequenceGuide, SequenceBatch, UserError, no_guide
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.composite import Factorised
from pyro_seq.emissions.elementary import Categorical, Normal
from pyro_seq.encoders import Embedding, Flatten
from pyro_seq.guides import SRNNGuide
from pyro_seq.models import DMM, HMM, RNN, SRNN, VRNN

BATCH = SequenceBatch(
    torch.randint(5, (3, 4), generator=torch.Generator().manual_seed(0)), [4, 4, 2]
)
FULL = SequenceBatch(BATCH.values)
Sides = tuple[Any, Any]


def srnn(layout: str) -> Sides:
    sizes: Any = {"hidden_size": 4, "latent_sizes": (3,)}
    model = SRNN(
        Categorical(5), PreviousObservation(Embedding(5, 3)), latent_size=2, layout=layout, **sizes
    )  # type: ignore[arg-type]
    return model, SRNNGuide(model, Embedding(5, 3), **sizes)


def walk(batch: SequenceBatch) -> None:
    """A random walk that is seen through noise."""
    with batch.plate():
        z = torch.zeros(len(batch))
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=batch.at(t))


@pytest.fixture(params=["path", "steps"])
def pair(request: pytest.FixtureRequest) -> Sides:
    return srnn(request.param)


@pytest.mark.one_in(3)
@pytest.mark.filterwarnings(
    "ignore:TraceEnum_ELBO found no sample sites configured for enumeration"
)
@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO])
def test_objectives_agree(pair: Sides, elbo: Any, vectorised: bool) -> None:
    """The same draws give the same bound, but for the analytic divergence, which is within its
    Monte Carlo estimate's reach.
    """
    options = {"num_particles": 20, "vectorize_particles": vectorised, "max_plate_nesting": 1}
    losses = []
    for kind in (Trace_ELBO, elbo):
        pyro.set_rng_seed(0)
        losses.append(kind(**options).loss(*pair, BATCH))
    assert losses[1] == pytest.approx(losses[0], rel=0.2 if elbo is TraceMeanField_ELBO else 1e-5)
    before = [p.detach().clone() for side in pair for p in side.parameters()]
    SVI(*pair, pyro.optim.Adam({"lr": 0.01}), elbo(max_plate_nesting=1)).step(BATCH)
    assert not any(
        p.equal(q)
        for p, q in zip((p for side in pair for p in side.parameters()), before, strict=True)
    )


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_with_a_guide(pair: Sides, parallel: bool) -> None:
    model, guide = pair
    found = Predictive(model, guide=guide, num_samples=6, parallel=parallel)(FULL.sampling([3]))
    assert found["x_3"].shape == (6, 3) and found["z_0"].shape == (6, 3, 2)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_with_draws_of_a_path(parallel: bool) -> None:
    """Draws of the one site `z`, whether there are observations, and it is one path, or none, and
    the model runs in steps.
    """
    model, guide = srnn("path")
    draws = torch.randn(6, 3, 4, 2)
    found = Predictive(model, posterior_samples={"z": draws}, parallel=parallel)(
        FULL.without_values()
    )
    assert (
        torch.stack([found[f"z_{t}"].view(6, 3, 2) for t in range(4)], 2).equal(draws)
        and found["x_3"].numel() == 18
    )
    assert Predictive(model, posterior_samples={"z": draws}, parallel=parallel)(FULL)[
        "x"
    ].shape == (6, 3, 4)
    with pytest.raises(
        UserError, match="the values given for the path 'z' have 3 steps, and the batch has 4"
    ):
        Predictive(model, posterior_samples={"z": draws[:, :, :3]}, parallel=parallel)(
            FULL.without_values()
        )
    trace = poutine.trace(guide).get_trace(FULL)
    replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(FULL.without_values())
    assert all(
        replayed.nodes[f"z_{t}"]["value"].equal(trace.nodes["z"]["value"][:, t]) for t in range(4)
    )
    assert not replayed.nodes["z_0"]["is_observed"]
    hidden = poutine.trace(
        poutine.condition(poutine.block(model, hide=["z"]), data={"z": draws[0]})
    ).get_trace(FULL.without_values())
    assert not hidden.nodes["z_0"]["is_observed"]


def test_condition_do_block_and_replay_on_single_steps() -> None:
    model, _ = srnn("steps")
    value = torch.ones(3, 2)
    trace = poutine.trace(poutine.condition(model, data={"z_1": value})).get_trace(BATCH)
    assert trace.nodes["z_1"]["is_observed"] and trace.nodes["z_1"]["value"] is value
    trace = poutine.trace(poutine.do(model, data={"z_1": value})).get_trace(BATCH)
    assert trace.nodes["z_2"]["value"].shape == (3, 2)
    assert "z_1" not in poutine.trace(poutine.block(model, hide=["z_1"])).get_trace(BATCH)
    again = poutine.trace(poutine.replay(model, trace=trace)).get_trace(BATCH)
    assert again.nodes["z_2"]["value"] is trace.nodes["z_2"]["value"]


def test_conditioning_on_a_path_is_conditioning_on_its_steps() -> None:
    model, _ = srnn("path")
    path = torch.randn(3, 4, 2)
    whole = poutine.trace(poutine.condition(model, data={"z": path})).get_trace(BATCH)
    model.layout = "steps"
    data = {f"z_{t}": path[:, t] for t in range(4)}
    steps = poutine.trace(poutine.condition(model, data=data)).get_trace(BATCH)
    torch.testing.assert_close(whole.log_prob_sum(), steps.log_prob_sum())


def test_scale_and_mask_around_a_pair(pair: Sides) -> None:
    losses = []
    for change in (
        lambda f: f,
        lambda f: poutine.scale(f, scale=0.5),
        lambda f: poutine.mask(f, mask=torch.tensor([True, False, True])),
    ):
        pyro.set_rng_seed(0)
        losses.append(Trace_ELBO().loss(change(pair[0]), change(pair[1]), BATCH))
    assert losses[1] == pytest.approx(losses[0] / 2) and losses[2] < losses[0]


def test_plates_around_a_pair(pair: Sides) -> None:
    with pyro.plate("particles", 5, dim=-2):
        trace = poutine.trace(pair[1]).get_trace(BATCH)
    assert all(
        site["fn"].batch_shape == (5, 3)
        for name, site in trace.nodes.items()
        if name.startswith("z")
    )


@pytest.mark.parametrize(
    "model", [lambda batch: srnn("path")[0](batch), walk], ids=["shipped", "function"]
)
def test_plates_that_subsample_are_said_to_make_copies(
    model: Callable[[SequenceBatch], Any],
) -> None:
    def subsampled(batch: SequenceBatch) -> None:
        with pyro.plate("data", 12, subsample_size=3):
            model(batch)

    says = (
        r"plate 'data' takes 3 of 12, which would make copies of a batch's "
        r"sequences.*batch.select\(index\).*scale=12/3"
    )
    with pytest.raises(UserError, match=says):
        subsampled(SequenceBatch(torch.randint(5, (3, 4))))


@pytest.mark.parametrize("centered", [0.0, 0.5, None])
def test_reparametrised_latents(centered: float | None) -> None:
    config = {f"z_{t}": LocScaleReparam(centered) for t in range(4)}
    trace = poutine.trace(poutine.reparam(srnn("steps")[0], config)).get_trace(BATCH)
    assert trace.nodes["z_3_decentered"]["fn"].event_shape == (2,)
    for layout, site in (("path", "z"),):
        model = poutine.reparam(srnn(layout)[0], {site: LocScaleReparam(centered)})
        with pytest.raises(
            UserError,
            match=r"a latent path has no one location and scale.* z_0, z_1, … of layout='steps'",
        ):
            model(BATCH)


def shipped_models(layout: Any) -> list[Any]:
    sizes: Any = {"latent_size": 2, "layout": layout}

    def parts() -> Any:
        return Categorical(5), PreviousObservation(Embedding(5, 3))

    return [
        RNN(*parts(), hidden_size=3, layout=layout),
        RNN(*parts(), hidden_size=3, cell="gru", layout=layout),
        SRNN(*parts(), hidden_size=3, latent_sizes=(3,), **sizes),
        VRNN(*parts(), hidden_size=3, latent_sizes=(3,), feature_sizes=(3,), **sizes),
        DMM(*parts(), transition_sizes=(3,), emission_sizes=(3,), **sizes),
        HMM(*parts(), num_states=3, embedding_size=2, layout=layout),
    ]


def test_random_weights_of_densities_that_are_computed_later_are_refused() -> None:
    for model in shipped_models("path")[2:]:
        to_pyro_module_(model)
        model.decoder[0].weight = PyroSample(
            dist.Normal(0.0, 1.0).expand(model.decoder[0].weight.shape).to_event(2)
        )
        with pytest.raises(
            UserError, match=r"has random weights \(PyroSample\).*make it with layout='steps'"
        ):
            model(BATCH)


@pytest.mark.parametrize(
    ("layout", "index"), [*(("steps", i) for i in range(6)), *(("path", i) for i in (0, 1))]
)
def test_any_weight_may_be_random(layout: str, index: int) -> None:
    """All weights at once, one draw of each for all sequences: the density of plain weights."""
    plain, model = (shipped_models(layout)[index] for _ in range(2))
    values = {name: torch.randn_like(p) for name, p in plain.named_parameters()}
    to_pyro_module_(model)
    for name, value in values.items():
        *path, last = name.split(".")
        part = model.get_submodule(".".join(path))
        setattr(
            part, last, PyroSample(dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim()))
        )
    plain.load_state_dict(values)
    figures = []
    for side in (plain, poutine.condition(model, data=values)):
        pyro.set_rng_seed(0)
        with poutine.block(hide_types=["param"]):
            trace = poutine.trace(side).get_trace(BATCH)
        trace.compute_log_prob()
        sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
        assert all(not sites[name]["cond_indep_stack"] for name in values if name in sites)
        figures.append(
            sum(site["log_prob_sum"].detach() for name, site in sites.items() if name not in values)
        )
    assert len(sites) > len(values)
    torch.testing.assert_close(*figures, rtol=1e-5, atol=1e-5)


def test_random_weights_are_inferred() -> None:
    model = RNN(
        Factorised(Normal(), 2), PreviousObservation(Flatten(2)), hidden_size=3, layout="steps"
    )
    to_pyro_module_(model)
    weight = model.decoder[0].weight
    model.decoder[0].weight = PyroSample(dist.Normal(0.0, 1.0).expand(weight.shape).to_event(2))
    batch = SequenceBatch(torch.randn(4, 5, 2), [5, 5, 3, 1])
    guide = AutoNormal(poutine.block(model, expose=["decoder.0.weight"]))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(num_particles=5))
    losses = [svi.step(batch) for _ in range(15)]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_random_weights_of_a_part_alone_are_refused() -> None:
    model = srnn("path")[0]
    to_pyro_module_(model.decoder)
    model.decoder[0].bias = PyroSample(dist.Normal(0.0, 1.0).expand([5]).to_event(1))
    with pytest.raises(
        UserError,
        match=r"the weight 'decoder.0.bias' of this SRNN is random.*to_pyro_module_\(model\)",
    ):
        model(BATCH)


@pytest.mark.filterwarnings("ignore:Singular sample detected")
@pytest.mark.parametrize(("make", "says"), [
    (lambda n: dist.Delta(torch.zeros(n)),
    r"'mu' is a Delta, a value and nothing to infer.*pyro.deterministic\('mu', value\)"),
    (lambda n: dist.Delta(torch.zeros(n, 2)).to_event(1), "site 'mu' is a Delta"),
    (lambda n: dist.Wishart(torch.tensor(4.0), torch.eye(2)).expand([n]),
    "site 'mu' lies in .*, to which PyTorch knows no one-to-one map"),
], ids=["delta", "vector of deltas", "wishart"])  # fmt: skip
def test_latents_that_the_automatic_guide_cannot_infer(
    make: Callable[[int], Any], says: str
) -> None:
    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("mu", make(len(batch)))
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(
                        f"x_{t}", dist.Normal(torch.zeros(len(batch)), 1.0), obs=batch.at(t)
                    )

    guide = AutoSequenceGuide(model, hidden_size=3)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    with pytest.raises(UserError, match=says):
        svi.step(SequenceBatch(torch.randn(3, 4)))


def test_models_without_latents_need_no_guide_of_pyros() -> None:
    model = RNN(Categorical(5), PreviousObservation(Embedding(5, 3)), hidden_size=3)
    assert Trace_ELBO().loss(model, no_guide, BATCH) == pytest.approx(
        -float(poutine.trace(model).get_trace(BATCH).log_prob_sum().detach())
    )
