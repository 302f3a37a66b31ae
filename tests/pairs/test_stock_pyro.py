"""Every shipped pair is an ordinary Pyro model and guide: hand-written SVI loops, Pyro's
objectives, and Pyro's handlers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    ELBO,
    SVI,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.optim import Adam, ClippedAdam
from torch import Tensor

from pyro_seq import Pair, SequenceBatch
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import LastObservations
from pyro_seq.emissions.composite import Factorised
from pyro_seq.emissions.elementary import Categorical, Normal
from pyro_seq.encoders import Embedding, Flatten
from pyro_seq.guides import AutoSequenceGuide, no_guide
from pyro_seq.nn.feedforward import MLP

Maker = Callable[[PairComponents, str], Pair]
LAYOUTS = ("path", "steps")


def symbols() -> PairComponents:
    return PairComponents(
        Categorical(4),
        lambda: Embedding(4, 3),
        lambda encoder: LastObservations(encoder, 2, MLP(6, [5], activation="tanh")),
    )


def vectors() -> PairComponents:
    return PairComponents(
        Factorised(Normal(), 2), lambda: Flatten(2), lambda encoder: LastObservations(encoder, 1)
    )


def new_pair(name: str, parts: PairComponents, **settings: Any) -> Pair:
    sizes: dict[str, Any] = {
        "hidden_size": 4,
        "latent_size": 2,
        "latent_sizes": (5,),
        "decoder_sizes": (5,),
        "activation": "tanh",
    }
    quiet = {"input_dropout": 0.0, "output_dropout": 0.0, "residual": name != "srnn_plain"}
    return make_pair(model_settings(name.removesuffix("_plain"), sizes | quiet | settings), parts)


def new_batch() -> SequenceBatch:
    return SequenceBatch(
        torch.tensor([[0, 1, 2, 3, 0], [3, 3, 1, 2, 0], [2, 0, 0, 0, 0]]), [5, 3, 1]
    )


def weights(pair: Pair) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in pair.parameters().items()}


def assert_all_move(pair: Pair, before: dict[str, Tensor]) -> None:
    """Every matrix and bias has changed, in every row that data reach."""
    still = [name for name, p in pair.parameters().items() if torch.equal(p, before[name])]
    assert not still
    assert len(before) == len(
        {id(p) for module in pair.modules().values() for p in module.parameters()}
    )


@pytest.mark.one_in(5)
@pytest.mark.parametrize("optimiser", [Adam, ClippedAdam])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hand_written_svi(shipped: Maker, layout: str, optimiser: Any) -> None:
    """In the global store, with Pyro's own optimisers: every parameter moves, also those that model
    and guide share.
    """
    pair, batch = shipped(symbols(), layout), new_batch()
    before = weights(pair)
    svi = SVI(pair.model, pair.guide, optimiser({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(batch) for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert_all_move(pair, before)
    assert set(pyro.get_param_store().keys()) == {
        f"{type(side).__name__}$$${name}"
        for side in pair.modules().values()
        for name, _ in side.named_parameters()
    }


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_elbo_module_with_a_torch_optimiser(shipped: Maker, layout: str) -> None:
    pair, batch = shipped(symbols(), layout), new_batch()
    before = weights(pair)
    loss_of = Trace_ELBO()(pair.model, pair.guide)
    loss_of(batch)
    modules = [side for side in (pair.model, pair.guide) if isinstance(side, torch.nn.Module)]
    optimiser = torch.optim.Adam([p for module in modules for p in module.parameters()], 1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        loss_of(batch).backward()
        optimiser.step()
    assert_all_move(pair, before)


ELBOS: dict[str, Callable[[], ELBO]] = {
    "particles": lambda: Trace_ELBO(num_particles=2),
    "vectorised": lambda: Trace_ELBO(
        num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
    "mean field": TraceMeanField_ELBO,
    "graph": TraceGraph_ELBO,
    "renyi": lambda: RenyiELBO(alpha=0.5, num_particles=2),
    "iwae": lambda: RenyiELBO(
        alpha=0, num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
}


@pytest.mark.one_in(5)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("elbo", ELBOS)
def test_pyro_objectives(shipped: Maker, elbo: str, layout: str) -> None:
    """Each of Pyro's objectives trains the pair; without latents all of them are the exact
    log-likelihood.
    """
    pair, batch = shipped(symbols(), layout), new_batch()
    before, exact = weights(pair), Trace_ELBO().loss(pair.model, pair.guide, batch)
    svi = SVI(pair.model, pair.guide, Adam({"lr": 1e-2}), ELBOS[elbo]())
    losses = [svi.step(batch) for _ in range(2)]
    if pair.guide is no_guide:
        assert losses[0] == pytest.approx(exact, rel=1e-5)
    assert_all_move(pair, before)


def latent_names(layout: str, steps: int = 5) -> list[str]:
    return ["z"] if layout == "path" else [f"z_{t}" for t in range(steps)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["iseq", "srnn"])
@torch.no_grad()
def test_handlers(name: str, layout: str) -> None:
    """Replay, condition, block, scale and mask do to the sites what they do in any Pyro model."""
    pair, batch = new_pair(name, symbols(), layout=layout), new_batch()
    sites = latent_names(layout)
    guide_trace = poutine.trace(pair.guide).get_trace(batch)
    replayed = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(batch)
    assert all(
        torch.equal(replayed.nodes[site]["value"], guide_trace.nodes[site]["value"])
        for site in sites
    )

    values = {site: torch.full_like(guide_trace.nodes[site]["value"], 0.5) for site in sites}
    conditioned = poutine.trace(poutine.condition(pair.model, data=values)).get_trace(batch)
    assert all(
        conditioned.nodes[site]["is_observed"] and (conditioned.nodes[site]["value"] == 0.5).all()
        for site in sites
    )

    blocked = poutine.trace(
        poutine.block(poutine.condition(pair.model, data=values), hide=sites)
    ).get_trace(batch)
    assert not set(sites) & set(blocked.nodes)
    whole, visible = float(conditioned.log_prob_sum()), float(blocked.log_prob_sum())
    latent = sum(float(conditioned.nodes[site]["log_prob_sum"]) for site in sites)
    assert visible == pytest.approx(whole - latent, rel=1e-5)

    scaled = poutine.trace(
        poutine.scale(poutine.condition(pair.model, data=values), 0.25)
    ).get_trace(batch)
    assert float(scaled.log_prob_sum()) == pytest.approx(0.25 * whole, rel=1e-5)

    only = torch.tensor([True, False, False])
    masked = poutine.trace(
        poutine.mask(poutine.condition(pair.model, data=values), only)
    ).get_trace(batch)
    first = poutine.condition(pair.model, data={site: value[:1] for site, value in values.items()})
    assert float(masked.log_prob_sum()) == pytest.approx(
        float(poutine.trace(first).get_trace(batch.select(slice(1))).log_prob_sum())
    )


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parallel", [False, True])
@torch.no_grad()
def test_predictive(shipped: Maker, layout: str, parallel: bool) -> None:
    """Posterior draws from the guide, one by one or side by side, with densities that the model has
    for each of them alone.
    """
    pair, batch = shipped(symbols(), layout), new_batch()
    drawn = Predictive(
        pair.model, guide=pair.guide, num_samples=5, parallel=parallel, return_sites=None
    )(batch)
    latents = {name: values for name, values in drawn.items() if name.startswith("z")}
    assert bool(latents) == (pair.guide is not no_guide)
    for values in latents.values():
        assert values.shape[0] == 5 and values.isfinite().all() and (values.std(0) > 0).any()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_particles_side_by_side_are_those_one_by_one(shipped: Maker, layout: str) -> None:
    """Each particle of a vectorised run has, run alone, the same densities under model and
    guide.
    """
    pair, batch, particles = shipped(symbols(), layout), new_batch(), 3
    with pyro.plate("particles", particles, dim=-2):
        guide = poutine.trace(pair.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(batch)
    for trace, side in ((guide, pair.guide), (model, pair.model)):
        trace.compute_log_prob()
        for k in range(particles):
            values = {
                site: guide.nodes[site]["value"][k]
                for site in guide.stochastic_nodes
                if not site.startswith(("particles", "sequences"))
            }
            alone = poutine.trace(poutine.condition(side, data=values)).get_trace(batch)
            alone.compute_log_prob()
            for site in [*values, *alone.observation_nodes]:
                if site in trace.nodes and "log_prob" in trace.nodes[site]:
                    together = trace.nodes[site]["log_prob"].expand(particles, len(batch))[k]
                    torch.testing.assert_close(
                        together, alone.nodes[site]["log_prob"], rtol=1e-4, atol=1e-5
                    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_trace_of_the_model_without_values_is_a_sample(shipped: Maker, layout: str) -> None:
    pair = shipped(vectors(), layout)
    batch = SequenceBatch(torch.randn(3, 4, 2), [4, 2, 0])
    trace = poutine.trace(pair.model).get_trace(batch.without_values())
    assert all(
        trace.nodes[f"x_{t}"]["value"].shape == (3, 2) and not trace.nodes[f"x_{t}"]["is_observed"]
        for t in range(4)
    )
    sampled = trace.nodes["_RETURN"]["value"].values
    assert sampled.shape == (3, 4, 2)
    assert (sampled[~batch.mask] == 0).all() and (sampled[batch.mask] != 0).all()


def test_two_pairs_need_two_stores() -> None:
    """Two pairs of one kind would be one in the global store; each `scope()` keeps its own."""
    batch, pairs = new_batch(), [new_pair("srnn", symbols()) for _ in range(2)]
    before = [weights(pair) for pair in pairs]
    for pair in pairs:
        with pair.scope():
            SVI(pair.model, pair.guide, Adam({"lr": 1e-2}), Trace_ELBO()).step(batch)
    for pair, then in zip(pairs, before, strict=True):
        assert_all_move(pair, then)
    assert not pyro.get_param_store().keys()


def hidden_markov(layout: str, autoregressive: bool) -> Pair:
    sizes = {"num_states": 3, "embedding_size": 2, "emission_sizes": (5,), "activation": "tanh"}
    return make_pair(
        model_settings("hmm", sizes | {"layout": layout, "autoregressive": autoregressive}),
        symbols(),
    )


HMM_ELBOS: list[tuple[str, Callable[[], ELBO]]] = [
    ("path", elbo) for elbo in (Trace_ELBO, *ELBOS.values())
]
HMM_ELBOS += [
    ("steps", lambda: TraceEnum_ELBO(max_plate_nesting=1)),
    (
        "steps",
        lambda: TraceEnum_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    ),
]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize(("layout", "elbo"), HMM_ELBOS, ids=[layout for layout, _ in HMM_ELBOS])
def test_hidden_states_summed_out(
    layout: str, elbo: Callable[[], ELBO], autoregressive: bool
) -> None:
    """Each of Pyro's objectives trains a hidden Markov model's one site x; those that enumerate,
    its steps: all by the exact likelihood.
    """
    pair, batch = hidden_markov(layout, autoregressive), new_batch()
    before = weights(pair)
    pair.model.layout = "path"
    exact = Trace_ELBO().loss(pair.model, pair.guide, batch)
    pair.model.layout = layout
    svi = SVI(pair.model, pair.guide, ClippedAdam({"lr": 1e-2}), elbo())
    losses = [svi.step(batch) for _ in range(5)]
    assert losses[0] == pytest.approx(exact, rel=1e-5)
    assert losses[-1] < losses[0]
    assert_all_move(pair, before)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_guide_for_free(layout: str) -> None:
    """A model with an `AutoSequenceGuide` is as ordinary: SVI, Predictive, and particles side by
    side.
    """
    model, batch = new_pair("srnn", symbols(), layout=layout).model, new_batch()
    guide = AutoSequenceGuide(model, hidden_size=4)
    guide.prepare(batch)
    pair = Pair(model, guide)
    before = weights(pair)
    svi = SVI(model, guide, ClippedAdam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(batch) for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert_all_move(pair, before)
    for elbo in ELBOS.values():
        before = weights(pair)
        SVI(model, guide, ClippedAdam({"lr": 1e-2}), elbo()).step(batch)
        assert_all_move(pair, before)
    for parallel in (False, True):
        drawn = Predictive(model, guide=guide, num_samples=5, parallel=parallel, return_sites=None)(
            batch
        )
        for site in latent_names(layout):
            assert drawn[site].shape[0] == 5 and (drawn[site].std(0) > 0).any()
