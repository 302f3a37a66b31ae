"""Annealing: strengths at the points that define a schedule, and what a scale on the latents
scales.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.errors import UserError
from pyro_seq.guides import SRNNGuide
from pyro_seq.infer.elbo import FreeBits_ELBO
from pyro_seq.models import SRNN
from pyro_seq.poutine.scale_latents import ScaleLatents
from pyro_seq.train.schedules import KL_SCHEDULES, kl_strength


class TestStrength:
    def test_half_life(self) -> None:
        """VAE-Seq: 1e-5 at first, one half after 1e5 steps."""
        at = {
            step: kl_strength(step, schedule="half_life", start=1e-5, steps=100_000)
            for step in (0, 50_000, 100_000, 10**7)
        }
        assert (
            at[0] == pytest.approx(1e-5)
            and at[100_000] == pytest.approx(0.5)
            and at[10**7] == pytest.approx(1.0)
        )
        a, b = -math.log(1e-5), (math.log(2) / -math.log(1e-5)) ** 1e-5
        assert at[50_000] == pytest.approx(math.exp(-a * b**50_000))

    def test_linear(self) -> None:
        strengths = [kl_strength(step, schedule="linear", start=0.2, steps=4) for step in range(7)]
        assert strengths == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])

    def test_constant(self) -> None:
        assert kl_strength(0, schedule="constant", start=1e-3, steps=10) == 1.0

    @pytest.mark.parametrize("schedule", KL_SCHEDULES)
    @pytest.mark.parametrize("start", [1e-12, 1e-5, 0.3, 0.4, 1.0])
    def test_rises_within_bounds(self, schedule: str, start: float) -> None:
        strengths = [
            kl_strength(step, schedule=schedule, start=start, steps=50)
            for step in [*range(0, 200, 5), 10**6]
        ]
        assert (
            strengths == sorted(strengths)
            and strengths[0] > 0
            and strengths[-1] == pytest.approx(1.0)
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"schedule": "cosine", "start": 1.0},
                "must be one of constant, half_life, linear, got 'cosine'",
            ),
            ({"schedule": "linear", "start": 0.0}, r"must start in \(0, 1\], got 0.0"),
            ({"schedule": "half_life", "start": 1.5}, r"must start in \(0, 1\], got 1.5"),
            ({"schedule": "half_life", "start": math.nan}, r"must start in \(0, 1\], got nan"),
            ({"schedule": "half_life", "start": 0.5}, "must start below that, got 0.5"),
            ({"schedule": "half_life", "start": 0.9}, "must start below that, got 0.9"),
        ],
    )
    def test_refusals(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            kl_strength(3, steps=10, **options)


class TestScaleLatents:
    @pytest.mark.parametrize("layout", ["path", "steps"])
    @pytest.mark.parametrize(
        "elbo", [Trace_ELBO, TraceMeanField_ELBO, lambda **k: FreeBits_ELBO(0.1, **k)]
    )
    def test_scales_the_divergence_alone(self, float64: None, layout: Any, elbo: Any) -> None:
        """loss(beta) = -(L - beta KL): three strengths lie on a line whose value at 0 is minus the
        likelihood.
        """
        model = SRNN(
            Categorical(3),
            PreviousObservation(OneHot(3)),
            latent_size=2,
            latent_sizes=(3,),
            hidden_size=3,
            layout=layout,
        )
        guide = SRNNGuide(model, OneHot(3), hidden_size=3, latent_sizes=(3,))
        batch = SequenceBatch(torch.randint(3, (4, 5)), [5, 2, 0, 4])
        objective = elbo(max_plate_nesting=1)

        def loss(beta: float) -> float:
            pyro.set_rng_seed(0)
            with ScaleLatents(beta):
                return objective.loss(model, guide, batch)

        pyro.set_rng_seed(0)
        guide_trace = poutine.trace(guide).get_trace(batch)
        trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch)
        likelihood = trace.log_prob_sum(lambda name, site: site["is_observed"]).item()
        slope = loss(1.0) + likelihood
        assert slope != 0
        for beta in (1e-5, 0.25, 3.0):
            assert loss(beta) == pytest.approx(beta * slope - likelihood, rel=1e-9)

    def test_beside_another_scale(self) -> None:
        def model() -> None:
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

        with poutine.scale(scale=3.0), ScaleLatents(0.5):
            trace = poutine.trace(model).get_trace()
        assert (trace.nodes["z"]["scale"], trace.nodes["x"]["scale"]) == (1.5, 3.0)

    @pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
    def test_refusals(self, scale: float) -> None:
        with pytest.raises(ValueError, match="greater than 0"):
            ScaleLatents(scale)
