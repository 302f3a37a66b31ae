"""Free bits and the record of a bound's parts, re-derived from the very traces that they were
computed from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.guides import DMMGuide, SRNNGuide
from pyro_seq.infer.elbo import FreeBits_ELBO, Recorder, make_elbo
from pyro_seq.models import DMM, SRNN

LENGTHS = [5, 2, 0, 4]
LAYOUTS = ["path", "steps"]
SAMPLE_SITES = {"path": ["z"], "steps": [f"z_{t}" for t in range(5)]}


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    pass


@pytest.fixture
def batch() -> SequenceBatch:
    return SequenceBatch(torch.randint(3, (4, 5)), LENGTHS)


@pytest.fixture(params=LAYOUTS)
def pair(request: pytest.FixtureRequest) -> tuple[SRNN, SRNNGuide]:
    return make_pair(request.param)


def make_pair(layout: Any) -> tuple[SRNN, SRNNGuide]:
    torch.manual_seed(0)
    model = SRNN(
        Categorical(3),
        PreviousObservation(OneHot(3)),
        latent_size=2,
        latent_sizes=(3,),
        hidden_size=3,
        layout=layout,
    )
    return model, SRNNGuide(model, OneHot(3), hidden_size=3, latent_sizes=(3,))


def seeded(function: Callable[[], Any], seed: int = 7) -> Any:
    pyro.set_rng_seed(seed)
    return function()


def traces(model: Any, guide: Any, batch: SequenceBatch) -> tuple[Any, Any]:
    """What an evaluation that starts from the same seed samples."""
    guide_trace = poutine.trace(guide).get_trace(batch)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch)
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    return model_trace, guide_trace


def likelihood(trace: Any) -> Tensor:
    return sum(trace.nodes[name]["log_prob_sum"] for name in trace.observation_nodes)


def step_divergences(model_trace: Any, guide_trace: Any, analytic: bool) -> Tensor:
    """KL_t of each step, summed over the sequences that have it, `[T]`."""
    totals = []
    active = torch.tensor([[t < n for t in range(5)] for n in LENGTHS])
    if "z" in guide_trace:
        q, p, z = (
            guide_trace.nodes["z"]["fn"],
            model_trace.nodes["z"]["fn"],
            guide_trace.nodes["z"]["value"],
        )
        pairs = [
            (
                q.at(z).loc[:, t],
                q.at(z).scale[:, t],
                p.at(z).loc[:, t],
                p.at(z).scale[:, t],
                z[:, t],
            )
            for t in range(5)
        ]
    else:
        sites = [(guide_trace.nodes[f"z_{t}"], model_trace.nodes[f"z_{t}"]) for t in range(5)]
        bases = [(q["fn"].base_dist, p["fn"].base_dist, q["value"]) for q, p in sites]
        pairs = [(q.loc, q.scale, p.loc, p.scale, z) for q, p, z in bases]
    for t, (q_loc, q_scale, p_loc, p_scale, z) in enumerate(pairs):
        if analytic:
            kl = (
                (p_scale / q_scale).log()
                + (q_scale**2 + (q_loc - p_loc) ** 2) / (2 * p_scale**2)
                - 0.5
            )
        else:
            kl = dist.Normal(q_loc, q_scale).log_prob(z) - dist.Normal(p_loc, p_scale).log_prob(z)
        totals.append((kl.sum(-1) * active[:, t]).sum())
    return torch.stack(totals)


class TestFreeBits:
    @pytest.mark.parametrize("analytic", [False, True])
    @pytest.mark.parametrize("nats", [0.0, 0.05, 0.3, 100.0])
    def test_value(self, pair: Any, batch: SequenceBatch, nats: float, analytic: bool) -> None:
        loss = seeded(
            lambda: FreeBits_ELBO(nats, analytic_kl=analytic, max_plate_nesting=1).loss(
                *pair, batch
            )
        )
        model_trace, guide_trace = seeded(lambda: traces(*pair, batch))
        kl = step_divergences(model_trace, guide_trace, analytic)
        counts = torch.tensor([sum(t < n for n in LENGTHS) for t in range(5)])
        expected = torch.maximum(kl, nats * counts).sum() - likelihood(model_trace)
        assert loss == pytest.approx(expected.item(), rel=1e-10)

    def test_no_free_nats_is_the_mean_field_bound(self, pair: Any, batch: SequenceBatch) -> None:
        ours, pyros = (
            FreeBits_ELBO(0.0, analytic_kl=True, max_plate_nesting=1),
            TraceMeanField_ELBO(max_plate_nesting=1),
        )
        assert seeded(lambda: ours.loss(*pair, batch)) == pytest.approx(
            seeded(lambda: pyros.loss(*pair, batch)), rel=1e-10
        )

    @pytest.mark.parametrize("analytic", [False, True])
    @pytest.mark.parametrize("nats", [0.0, 0.1, 0.5])
    def test_layouts_agree(self, batch: SequenceBatch, nats: float, analytic: bool) -> None:
        model, guide = make_pair("path")
        elbo = FreeBits_ELBO(nats, analytic_kl=analytic, max_plate_nesting=1)
        loss = seeded(lambda: elbo.loss(model, guide, batch))
        z = seeded(lambda: poutine.trace(guide).get_trace(batch)).nodes["z"]["value"]
        model.layout = "steps"
        trace = poutine.trace(guide).get_trace(batch)
        for t in range(5):  # the same latents, step by step
            trace.nodes[f"z_{t}"]["value"] = z[:, t]
        again = elbo.loss(model, poutine.replay(guide, trace=trace), batch)
        assert again == pytest.approx(loss, rel=1e-10)

    @pytest.mark.parametrize("analytic", [False, True])
    def test_gradient_of_free_nats_vanishes(
        self, pair: Any, batch: SequenceBatch, analytic: bool
    ) -> None:
        parameters = [p for side in pair for p in side.parameters()]

        def gradient(loss: Tensor) -> list[Tensor]:
            return list(
                torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            )

        free = FreeBits_ELBO(1e6, analytic_kl=analytic, max_plate_nesting=1)
        actual = gradient(seeded(lambda: free.differentiable_loss(*pair, batch)))
        expected = gradient(-likelihood(seeded(lambda: traces(*pair, batch))[0]))
        torch.testing.assert_close(actual, expected)
        prior = list(pair[0].prior.parameters())
        strict = seeded(
            lambda: FreeBits_ELBO(0.0, analytic_kl=True, max_plate_nesting=1).differentiable_loss(
                *pair, batch
            )
        )
        assert any(g.any() for g in torch.autograd.grad(strict, prior)), (
            "which it does not without free nats"
        )

    def test_loss_and_grads(self, pair: Any, batch: SequenceBatch) -> None:
        elbo = FreeBits_ELBO(0.1, analytic_kl=False, max_plate_nesting=1)
        loss = seeded(lambda: elbo.loss_and_grads(*pair, batch))
        assert loss == seeded(lambda: elbo.loss(*pair, batch))
        parameters = list(pair[0].parameters())
        expected = torch.autograd.grad(
            seeded(lambda: elbo.differentiable_loss(*pair, batch)), parameters
        )
        torch.testing.assert_close([p.grad for p in parameters], list(expected))

    def test_particles_are_averaged_before_the_threshold(
        self, pair: Any, batch: SequenceBatch
    ) -> None:
        triple = FreeBits_ELBO(0.1, analytic_kl=False, num_particles=3, max_plate_nesting=1)
        runs = seeded(lambda: [traces(*pair, batch) for _ in range(3)])
        kl = torch.stack([step_divergences(*run, False) for run in runs]).mean(0)
        counts = torch.tensor([sum(t < n for n in LENGTHS) for t in range(5)])
        expected = (
            torch.maximum(kl, 0.1 * counts).sum() - sum(likelihood(run[0]) for run in runs) / 3
        )
        assert seeded(lambda: triple.loss(*pair, batch)) == pytest.approx(
            expected.item(), rel=1e-10
        )

    @pytest.mark.parametrize("mean", [0.5, 1.0, 2.0])
    @pytest.mark.parametrize("kind", ["trace", "mean_field"])
    def test_default_is_the_closed_form(self, kind: str, mean: float) -> None:
        """max(nats, KL) and no more, for one sequence and one particle, whatever is drawn."""

        def model(batch: SequenceBatch) -> None:
            with batch.plate():
                pyro.sample("z_0", dist.Normal(torch.zeros(len(batch)), 1.0))

        def guide(batch: SequenceBatch) -> None:
            with batch.plate():
                pyro.sample("z_0", dist.Normal(torch.full((len(batch),), mean), 1.0))

        batch = SequenceBatch(torch.zeros(1, 1))
        losses = [
            elbo.loss(model, guide, batch)
            for elbo in (FreeBits_ELBO(0.6), make_elbo(kind, free_bits=0.6))
            for _ in range(3)
        ]
        assert losses == pytest.approx([max(0.6, mean**2 / 2)] * 6)

    @pytest.mark.parametrize("nats", [0.0, 0.4])
    def test_vectorised_particles(self, nats: float) -> None:
        """A pair whose analytic bound is the same for every sample."""

        def model(batch: SequenceBatch) -> None:
            with batch.plate():
                pyro.sample("z_0", dist.Normal(torch.zeros(3), 1.0))
                pyro.sample("x_0", dist.Normal(torch.zeros(3), 1.0), obs=batch.at(0))

        def guide(batch: SequenceBatch) -> None:
            with batch.plate():
                pyro.sample("z_0", dist.Normal(torch.full((3,), 0.5), 1.0))

        batch = SequenceBatch(torch.randn(3, 1))
        losses = [
            FreeBits_ELBO(
                nats, analytic_kl=True, num_particles=k, vectorize_particles=v, max_plate_nesting=1
            ).loss(model, guide, batch)
            for k, v in ((1, False), (4, False), (4, True))
        ]
        assert losses == pytest.approx(
            [3 * max(0.125, nats) - float(dist.Normal(0.0, 1.0).log_prob(batch.values).sum())] * 3
        )

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_masks_and_scales_around_the_pair(self, batch: SequenceBatch, layout: str) -> None:
        """Sequences masked from outside are as good as absent; a scale of each sequence weighs
        it.
        """
        pair = make_pair(layout)
        elbo = FreeBits_ELBO(0.3, analytic_kl=True, max_plate_nesting=1)
        keep = torch.tensor([True, False, False, True])

        def loss(handler: Any) -> float:
            with handler:
                return seeded(lambda: elbo.loss(*pair, batch))

        masked = loss(poutine.mask(mask=keep))
        assert masked == pytest.approx(
            loss(poutine.scale(scale=keep.to(torch.float64) + 1e-12)), rel=1e-9
        )
        assert masked < loss(poutine.scale(scale=1.0))
        assert loss(poutine.scale(scale=0.25)) == pytest.approx(
            0.25 * loss(poutine.scale(scale=1.0)), rel=1e-10
        )

    def test_refusals(self) -> None:
        batch = SequenceBatch(torch.zeros(2, 1))

        def discrete(batch: SequenceBatch) -> None:
            with batch.plate():
                pyro.sample("z_0", dist.Bernoulli(torch.full((2,), 0.5)))

        def nothing(batch: SequenceBatch) -> None:
            with batch.plate():
                pass

        elbo = FreeBits_ELBO(0.1, max_plate_nesting=1)
        with pytest.raises(ValueError, match="reparameterised latents, and site 'z_0' is not"):
            elbo.loss(discrete, discrete, batch)
        for sides in ((discrete, nothing), (nothing, discrete)):
            with (
                pyro.validation_enabled(False),
                pytest.raises(ValueError, match="site 'z_0' is in one of them alone"),
            ):
                elbo.loss(*sides, batch)
        for nats in (-0.1, math.nan, math.inf):
            with pytest.raises(ValueError, match="finite number of nats, at least 0"):
                FreeBits_ELBO(nats)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flows_have_no_closed_form(layout: Any, batch: SequenceBatch) -> None:
    """Their divergence is the Monte Carlo estimate, whichever was asked for."""
    torch.manual_seed(0)
    model = DMM(
        Categorical(3),
        PreviousObservation(OneHot(3)),
        latent_size=2,
        transition_sizes=(3,),
        emission_sizes=(),
        layout=layout,
    )
    guide = DMMGuide(model, OneHot(3), hidden_size=3, num_flows=1, flow_sizes=(4,))
    analytic, sampled = (
        seeded(
            lambda asked=asked: FreeBits_ELBO(0.1, analytic_kl=asked, max_plate_nesting=1).loss(
                model, guide, batch
            )
        )
        for asked in (True, False)
    )
    assert math.isfinite(analytic) and analytic == sampled


class TestMakeElbo:
    def test_kinds(self) -> None:
        assert (
            type(make_elbo("trace")) is Trace_ELBO
            and type(make_elbo("mean_field", num_particles=3)) is TraceMeanField_ELBO
        )
        free = [make_elbo(kind, free_bits=0.2, num_particles=3) for kind in ("trace", "mean_field")]
        assert [(e.nats, e.analytic_kl, e.num_particles) for e in free] == [
            (0.2, True, 3),
            (0.2, True, 3),
        ]  # type: ignore[attr-defined]
        assert make_elbo("trace") is not make_elbo("trace"), "an objective belongs to one model"
        with pytest.raises(
            ValueError, match=r"must be one of trace, mean_field, enum, .*rws, fivo, got 'elbo'"
        ):
            make_elbo("elbo")


class TestRecorder:
    @pytest.mark.parametrize("particles", [1, 3])
    @pytest.mark.parametrize("vectorised", [False, True])
    def test_parts_add_up_to_the_bound(
        self, pair: Any, batch: SequenceBatch, particles: int, vectorised: bool
    ) -> None:
        elbo = Trace_ELBO(
            num_particles=particles, vectorize_particles=vectorised, max_plate_nesting=1
        )
        recorder = Recorder(elbo)
        loss = elbo.loss(*pair, batch)
        parts = recorder.take()
        assert parts.log_likelihood - parts.kl == pytest.approx(-loss, rel=1e-10)
        assert parts.log_likelihood < 0 and parts.kl != 0
        assert recorder.take() is None, "taken once"

    def test_enumerated_latents_have_no_parts(self, batch: SequenceBatch) -> None:
        """The densities of their trace are those of every state, not of the bound."""

        @config_enumerate
        def model(batch: SequenceBatch) -> None:
            with batch.plate():
                z = pyro.sample("z", dist.Bernoulli(0.3 * torch.ones(len(batch))))
                pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(len(batch)))

        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        recorder = Recorder(elbo)
        elbo.loss(model, lambda batch: None, batch)
        assert recorder.take() is None

    def test_parts_are_not_scaled(self, pair: Any, batch: SequenceBatch) -> None:
        elbo = Trace_ELBO(max_plate_nesting=1)
        recorder = Recorder(elbo)
        loss = seeded(lambda: elbo.loss(*pair, batch))
        plain = recorder.take()
        for scale in (0.1, torch.tensor([0.1, 1.0, 2.0, 3.0])):
            with poutine.scale(scale=scale):
                assert seeded(lambda: elbo.loss(*pair, batch)) != loss
            scaled = recorder.take()
            assert (scaled.log_likelihood, scaled.kl) == pytest.approx(
                (plain.log_likelihood, plain.kl), rel=1e-10
            )

    def test_parts_of_several_evaluations_are_averaged(
        self, pair: Any, batch: SequenceBatch
    ) -> None:
        elbo = Trace_ELBO(max_plate_nesting=1)
        recorder = Recorder(elbo)
        losses = [elbo.loss(*pair, batch) for _ in range(3)]
        parts = recorder.take()
        assert parts.log_likelihood - parts.kl == pytest.approx(-sum(losses) / 3, rel=1e-10)

    @pytest.mark.parametrize(
        "make",
        [
            TraceMeanField_ELBO,
            lambda **k: RenyiELBO(num_particles=2, **k),
            lambda **k: FreeBits_ELBO(0.1, **k),
        ],
    )
    def test_other_objectives(self, pair: Any, batch: SequenceBatch, make: Any) -> None:
        elbo = make(max_plate_nesting=1)
        recorder = Recorder(elbo)
        elbo.loss(*pair, batch)
        assert recorder.take().log_likelihood < 0

    def test_latents_of_one_side(self) -> None:
        """An auxiliary variable of the guide, and a latent that the model draws from its prior,
        belong to the bound as Pyro sees it.
        """
        batch = SequenceBatch(torch.randn(3, 1))

        def model(batch: SequenceBatch) -> None:
            with batch.plate():
                z = pyro.sample("z_0", dist.Normal(torch.zeros(3), 2.0))
                w = pyro.sample("w_0", dist.Normal(z, 1.0))
                pyro.sample("x_0", dist.Normal(w, 1.0), obs=batch.at(0))

        def guide(batch: SequenceBatch) -> None:
            with batch.plate():
                u = pyro.sample(
                    "u_0", dist.Normal(torch.zeros(3), 1.0), infer={"is_auxiliary": True}
                )
                pyro.sample("z_0", dist.Normal(u, 1.0))

        elbo = Trace_ELBO(max_plate_nesting=1)
        recorder = Recorder(elbo)
        with pytest.warns(UserWarning, match="w_0"):
            loss = elbo.loss(model, guide, batch)
        parts = recorder.take()
        assert parts.log_likelihood - parts.kl == pytest.approx(-loss, rel=1e-10)

    def test_where_it_was_not_finite(self, batch: SequenceBatch) -> None:
        model, guide = make_pair("steps")
        elbo = Trace_ELBO(max_plate_nesting=1)
        recorder = Recorder(elbo)
        assert recorder.first_non_finite() is None
        elbo.loss(model, guide, batch)
        assert recorder.first_non_finite() is None
        with pyro.validation_enabled(False), torch.no_grad():
            saved = model.decoder[-1].bias.clone()
            model.decoder[-1].bias.fill_(math.nan)
            with pytest.warns(UserWarning, match="NaN"):
                elbo.loss(model, guide, batch)
            assert recorder.first_non_finite() == "the log prob of site 'x_0' in the model"
            model.decoder[-1].bias.copy_(saved)
            guide.network.mlp[-1].bias.fill_(math.nan)
            with pytest.warns(UserWarning, match="NaN"):
                elbo.loss(model, guide, batch)
        assert recorder.first_non_finite() == "the value of site 'z_0' in the guide"
        recorder.take()
        assert recorder.first_non_finite() is None, "the traces are let go"
