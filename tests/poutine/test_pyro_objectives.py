"""Pyro's own objectives and inspections on shipped pairs: right, or refused in words."""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTMC_ELBO,
    config_enumerate,
)
from pyro.infer.inspect import get_dependencies
from torch import Tensor

from pyro_seq import SequenceBatch, UserError, emissions, encoders, no_guide
from pyro_seq.contexts import Chain, PreviousObservation, SideInputs
from pyro_seq.guides import DMMGuide, SRNNGuide, VRNNGuide
from pyro_seq.infer.elbo import FreeBits_ELBO, make_elbo
from pyro_seq.models import DMM, HMM, RNN, SRNN, VRNN
from pyro_seq.poutine.scale_latents import ScaleLatents, scales_summed_out

MARKED = {"enumerate": "parallel"}

pytestmark = pytest.mark.usefixtures("float64")


def new_hmm(layout: Any, *, autoregressive: bool = False, num_states: int = 3) -> HMM:
    context = PreviousObservation(encoders.OneHot(4))
    sizes: dict[str, Any] = {"num_states": num_states, "embedding_size": 4, "layout": layout}
    return HMM(emissions.Categorical(4), context, autoregressive=autoregressive, **sizes)


def ragged(n: int = 3) -> SequenceBatch:
    return SequenceBatch(torch.randint(4, (n, 5)), [5, 3, 1][:n])


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        RenyiELBO(num_particles=2),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        FreeBits_ELBO(0.1),
    ],
)
def test_objectives_that_do_not_sum_refuse_states_by_step(elbo: Any) -> None:
    """In the first step of stock SVI, also for its loss alone, and where the objective counts
    plates.
    """
    hmm, batch = new_hmm("steps"), ragged()
    svi = SVI(hmm, no_guide, pyro.optim.SGD({"lr": 0.0}), elbo)
    words = (
        f"site 'z_0' is marked to be enumerated, which {type(elbo).__name__} does not do: it "
        "takes TraceEnum_ELBO"
    )
    for attempt in (svi.step, svi.evaluate_loss, lambda batch: elbo.loss(hmm, no_guide, batch)):
        with pytest.raises(UserError, match=words):
            attempt(batch)


def test_states_by_step_are_for_whoever_wants_them() -> None:
    """Enumeration, also with plates to be counted; traces, conditions, `Predictive`; and a guide
    that draws the states itself.
    """
    hmm, batch = new_hmm("steps"), ragged()
    by_path = new_hmm("path")
    by_path.load_state_dict(hmm.state_dict())
    expected = Trace_ELBO().loss(by_path, no_guide, batch)
    for elbo in (TraceEnum_ELBO(), TraceEnum_ELBO(max_plate_nesting=1, num_particles=2)):
        assert SVI(hmm, no_guide, pyro.optim.SGD({"lr": 0.0}), elbo).step(batch) == pytest.approx(
            expected
        )
    assert poutine.trace(hmm).get_trace(batch).nodes["z_4"]["value"].shape == (3,)
    states = {f"z_{t}": torch.zeros(3, dtype=torch.long) for t in range(5)}
    assert (
        poutine.trace(poutine.condition(hmm, data=states))
        .get_trace(batch)
        .log_prob_sum()
        .isfinite()
    )
    assert Predictive(hmm, num_samples=2)(batch)["z_1"].shape == (2, 3)

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"z_{t}", dist.Categorical(torch.ones(len(batch), 3)))

    for drawn in (Trace_ELBO(), TraceGraph_ELBO()):
        SVI(hmm, guide, pyro.optim.SGD({"lr": 0.0}), drawn).step(batch)


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("layout", ["path", "steps"])
def test_dependencies_of_a_hidden_markov_model(layout: Any, autoregressive: bool) -> None:
    for emission, encoder, values in (
        (emissions.Categorical(4), encoders.OneHot(4), torch.randint(4, (2, 3))),
        (emissions.Factorised(emissions.Normal(), 2), encoders.Flatten(2), torch.randn(2, 3, 2)),
        (
            emissions.Joint({"a": emissions.Normal(), "b": emissions.Bernoulli()}),
            encoders.Joint({"a": encoders.Flatten(()), "b": encoders.Flatten(())}),
            {"a": torch.randn(2, 3), "b": torch.ones(2, 3)},
        ),
    ):
        context = PreviousObservation(encoder)
        hmm = HMM(
            emission,
            context,
            num_states=3,
            embedding_size=4,
            autoregressive=autoregressive,
            layout=layout,
        )
        for lengths in (None, [3, 1]):
            found = get_dependencies(hmm, model_args=(SequenceBatch(values, lengths),))  # type: ignore[arg-type]
            sites = found["prior_dependencies"]
            assert (
                ("z_1" in sites and "z_0" in sites["z_1"])
                if layout == "steps"
                else any(name.startswith("x") for name in sites)
            )


@pytest.mark.parametrize("kind", ["srnn", "dmm"])
def test_tensor_monte_carlo_is_unbiased(kind: str) -> None:
    """Layout `steps` under `TraceTMC_ELBO`: the mean of its estimates of p(x) is that of importance
    weights.
    """
    torch.manual_seed(0)
    context = PreviousObservation(encoders.OneHot(3))
    if kind == "srnn":
        model: Any = SRNN(
            emissions.Categorical(3), context, hidden_size=3, latent_size=1, layout="steps"
        )
        guide: Any = SRNNGuide(model, encoders.OneHot(3), hidden_size=3)
    else:
        model = DMM(
            emissions.Categorical(3),
            context,
            latent_size=1,
            transition_sizes=(3,),
            emission_sizes=(),
            layout="steps",
        )
        guide = DMMGuide(model, encoders.OneHot(3), hidden_size=3)
    batch = SequenceBatch(torch.randint(3, (1, 3)))
    many = batch.repeat(4_000)
    elbo = Trace_ELBO(max_plate_nesting=1)
    with torch.no_grad():
        model_trace, guide_trace = next(iter(elbo._get_traces(model, guide, (many,), {})))
        weights = sum(
            site["unscaled_log_prob"]
            for site in model_trace.nodes.values()
            if "unscaled_log_prob" in site and site["type"] == "sample"
        )
        weights = weights - sum(
            site["unscaled_log_prob"]
            for site in guide_trace.nodes.values()
            if "unscaled_log_prob" in site and site["type"] == "sample"
        )
        one = weights.exp()
        by_samples = config_enumerate(guide, default="parallel", num_samples=4, expand=False)
        tensor = TraceTMC_ELBO(max_plate_nesting=1)
        found = torch.tensor([-tensor.loss(model, by_samples, batch) for _ in range(60)]).exp()
    error = (one.var() / len(one) + found.var() / len(found)).sqrt()
    assert abs(found.mean() - one.mean()) < 4 * error and error < 0.15 * one.mean()
    tensor.loss_and_grads(model, by_samples, SequenceBatch(torch.randint(3, (2, 4)), [4, 1]))


def test_enumeration_of_what_recurs_on_all_latents_is_refused() -> None:
    model = VRNN(
        emissions.Categorical(3),
        PreviousObservation(encoders.OneHot(3)),
        hidden_size=3,
        latent_size=1,
        layout="steps",
    )
    guide = config_enumerate(
        VRNNGuide(model, encoders.OneHot(3)), default="parallel", num_samples=3, expand=False
    )
    with pytest.raises(UserError, match="recurs on all latents"):
        TraceTMC_ELBO(max_plate_nesting=1).loss(
            model, guide, SequenceBatch(torch.randint(3, (2, 4)))
        )


def annealed(beta: float, elbo: Any, model: Any, guide: Any, batch: SequenceBatch) -> float:
    with ScaleLatents(
        beta, summed_out=scales_summed_out(elbo, model, guide, batch, beta)
    ) as scaled:
        return float(elbo.loss(model, scaled.noting(guide), batch))


def test_annealing_leaves_states_that_are_summed_out() -> None:
    """They have no divergence, so that every strength has the loss of the exact likelihood."""
    hmm, batch = new_hmm("steps"), ragged()
    losses = [annealed(beta, make_elbo("enum"), hmm, no_guide, batch) for beta in (1e-3, 0.5, 1.0)]
    assert losses == pytest.approx([losses[-1]] * 3)


def mixture(of: str) -> tuple[Any, Any]:
    """A class k, summed out, that a latent z, an observation or both of them depend on; the guide
    draws z.
    """

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            k = pyro.sample("k", dist.Bernoulli(torch.full((len(batch),), 0.3)), infer=MARKED)
            z = pyro.sample("z", dist.Normal(2 * k if of != "x" else torch.zeros(len(batch)), 1.0))
            pyro.sample("x_0", dist.Normal(z + (k if of != "z" else 0.0), 1.0), obs=batch.at(0))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("z", dist.Normal(torch.full((len(batch),), 0.5), 1.0))

    return model, guide


@pytest.mark.parametrize("of", ["z", "x"])
def test_annealing_beside_states_that_are_summed_out(of: str) -> None:
    """The divergence of a mixture prior is that of the mixture; the likelihood of a mixture of
    emissions stays as it is.
    """
    (model, guide), batch, betas = mixture(of), SequenceBatch(torch.randn(4, 1)), (0.25, 0.5, 1.0)
    losses = []
    for beta in betas:
        pyro.set_rng_seed(0)
        scales = scales_summed_out(TraceEnum_ELBO(max_plate_nesting=1), model, guide, batch, beta)
        pyro.set_rng_seed(0)
        with ScaleLatents(beta, summed_out=scales) as scaled:
            losses.append(
                TraceEnum_ELBO(max_plate_nesting=1).loss(model, scaled.noting(guide), batch)
            )
    pyro.set_rng_seed(0)
    z = poutine.trace(guide).get_trace(batch).nodes["z"]["value"]
    q = dist.Normal(0.5, 1.0).log_prob(z)
    weights, x = torch.tensor([0.7, 0.3]).log(), batch.values[:, 0]  # type: ignore[index]
    if of == "z":
        prior = (
            weights + dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(z.unsqueeze(-1))
        ).logsumexp(-1)
        likelihood = dist.Normal(z, 1.0).log_prob(x)
    else:
        prior = dist.Normal(0.0, 1.0).log_prob(z)
        likelihood = (
            weights + dist.Normal(z.unsqueeze(-1) + torch.arange(2), 1.0).log_prob(x.unsqueeze(-1))
        ).logsumexp(-1)
    assert losses == pytest.approx(
        [float((beta * (q - prior) - likelihood).sum()) for beta in betas]
    )


def test_annealing_that_cannot_be_told_apart_is_refused() -> None:
    model, guide = mixture("both")
    batch = SequenceBatch(torch.randn(4, 1))
    with pytest.raises(UserError, match="kl_schedule=constant"):
        scales_summed_out(TraceEnum_ELBO(max_plate_nesting=1), model, guide, batch, 0.5)
    assert not scales_summed_out(TraceEnum_ELBO(max_plate_nesting=1), model, guide, batch, 1.0)
    assert not scales_summed_out(Trace_ELBO(), model, guide, batch, 0.5)


def test_annealing_scales_states_that_the_guide_enumerates() -> None:
    """Those of both sides have a divergence like any other."""

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            k = pyro.sample("k", dist.Bernoulli(torch.full((len(batch),), 0.3)))
            pyro.sample("x_0", dist.Normal(2 * k, 1.0), obs=batch.at(0))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("k", dist.Bernoulli(torch.full((len(batch),), 0.6)), infer=MARKED)

    batch = SequenceBatch(torch.randn(4, 1))
    likelihood = dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(batch.values) @ torch.tensor(
        [0.4, 0.6]
    )  # type: ignore[arg-type]
    kl = torch.distributions.kl_divergence(dist.Bernoulli(0.6), dist.Bernoulli(0.3))
    for beta in (0.1, 1.0):
        found = annealed(beta, TraceEnum_ELBO(max_plate_nesting=1), model, guide, batch)
        assert found == pytest.approx(float(4 * beta * kl - likelihood.sum()))


def test_enum_and_free_bits_do_not_go_together() -> None:
    with pytest.raises(UserError, match="free_bits=0"):
        make_elbo("enum", free_bits=0.1)
    assert type(make_elbo("enum", num_particles=2)) is TraceEnum_ELBO


@pytest.mark.parametrize("missing", [[1], [0, 2], [3], [0, 1, 2, 3]])
@pytest.mark.parametrize("lengths", [[4], [4, 2]])
def test_posterior_of_states_at_and_around_gaps(missing: list[int], lengths: list[int]) -> None:
    """Against a sum over all paths of what was observed; what stood at the gap is not looked at."""
    hmm, x = new_hmm("path"), torch.randint(4, (len(lengths), 4))
    first, move = hmm.initial_logits.log_softmax(-1), hmm.transition_logits.log_softmax(-1)
    emit = hmm.decoder(hmm.embedding).log_softmax(-1)
    found = hmm.posterior(SequenceBatch(x, lengths).with_missing(missing))
    for n, length in enumerate(lengths):
        expected: Tensor = torch.zeros(length, 3)
        for z in itertools.product(range(3), repeat=length):
            total = first[z[0]] + sum(move[z[t - 1], z[t]] for t in range(1, length))
            total = total + sum(emit[z[t], x[n, t]] for t in range(length) if t not in missing)
            for t in range(length):
                expected[t, z[t]] += total.exp().detach()
        torch.testing.assert_close(
            found[n, :length], expected / expected.sum(-1, keepdim=True), rtol=1e-9, atol=1e-10
        )
        assert not found[n, length:].any()


def test_posterior_where_observations_look_at_a_gap() -> None:
    """An autoregressive model's steps after a gap depend on what stood there; a gap at the end, and
    side inputs, do not matter.
    """
    hmm, x = new_hmm("path", autoregressive=True), torch.randint(4, (2, 4))
    with pytest.raises(
        UserError, match="step 1 is to be sampled, and the steps after it look at it"
    ):
        hmm.posterior(SequenceBatch(x).sampling([1]))
    at_end = hmm.posterior(SequenceBatch(x).sampling([3]))
    torch.testing.assert_close(at_end[:, :3], hmm.posterior(SequenceBatch(x[:, :3])))
    ahead = (
        (at_end[:, 2].log().unsqueeze(-1) + hmm.transition_logits.log_softmax(-1))
        .logsumexp(-2)
        .exp()
    )
    torch.testing.assert_close(at_end[:, 3], ahead)
    given = HMM(
        emissions.Categorical(4),
        Chain(SideInputs(2)),
        num_states=3,
        embedding_size=4,
        autoregressive=True,
    )
    assert (
        given.posterior(SequenceBatch(x, inputs=torch.randn(2, 4, 2)).with_missing([1]))
        .isfinite()
        .all()
    )


def test_models_without_latents_under_enumeration() -> None:
    model = RNN(emissions.Categorical(4), PreviousObservation(encoders.OneHot(4)), hidden_size=3)
    batch = ragged()
    assert make_elbo("enum").loss(model, no_guide, batch) == pytest.approx(
        Trace_ELBO().loss(model, no_guide, batch)
    )
