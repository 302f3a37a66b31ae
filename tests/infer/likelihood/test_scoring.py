"""Scoring: exact where there are no latents; estimates against a linear-Gaussian model, whose
likelihood is known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.distributions.path import MarkovPath
from pyro_seq.emissions.composite import Joint
from pyro_seq.emissions.elementary import Bernoulli, Beta, Binomial, Categorical, Normal
from pyro_seq.encoders import Flatten, Group, OneHot
from pyro_seq.errors import UserError
from pyro_seq.guides import SRNNGuide
from pyro_seq.infer.likelihood.document import filtered_state, score_document
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.stepping import stepper
from pyro_seq.models import RNN, SRNN
from pyro_seq.pairs.pair import Pair

A, Q, C, R = 0.8, 0.6, 1.0, 1.0  # z_t = A z_{t-1} + Q noise, x_t = C z_t + R noise
STATIONARY = Q / math.sqrt(1 - A**2)


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    pass


# a linear-Gaussian pair, written as a page of Pyro


class Result(NamedTuple):
    state: Any


def transition(z: Tensor | None, n: int) -> dist.Normal:
    return dist.Normal(torch.zeros(n), STATIONARY) if z is None else dist.Normal(A * z, Q)


def before(batch: SequenceBatch, side: str) -> Tensor | None:
    return None if batch.state is None else batch.state[side]


def model(batch: SequenceBatch) -> Result:
    z = before(batch, "model")
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", transition(z, len(batch)))
                pyro.sample(f"x_{t}", dist.Normal(C * z, R), obs=batch.at(t))
    return Result(z)


def prior_guide(batch: SequenceBatch) -> Result:
    z = before(batch, "guide")
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", transition(z, len(batch)))
    return Result(z)


def posterior(x: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of z_{1:T} given x_{1:length}, from the joint Gaussian."""
    steps = torch.arange(len(x), dtype=x.dtype)
    z = STATIONARY**2 * A ** (steps[:, None] - steps).abs()
    seen = torch.linalg.inv(C**2 * z[:length, :length] + R**2 * torch.eye(length))
    gain = C * z[:, :length] @ seen
    return gain @ x[:length], z - gain @ (C * z[:length])


def exact_guide(batch: SequenceBatch) -> Result:
    """q(z_t | z_{t-1}, x_{1:T}), the conditionals of the exact posterior, which is a Markov
    chain.
    """
    assert isinstance(batch.values, Tensor)
    moments = [posterior(x, int(n)) for x, n in zip(batch.values, batch.lengths, strict=True)]
    m, s = torch.stack([m for m, _ in moments]), torch.stack([s for _, s in moments])
    z: Tensor = torch.zeros(len(batch))
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                slope = s[:, t, t - 1] / s[:, t - 1, t - 1] if t else torch.zeros(())
                loc = m[:, t] + (slope * (z - m[:, t - 1]) if t else 0)
                variance = s[:, t, t] - (slope * s[:, t, t - 1] if t else 0)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, variance.sqrt()))
    return Result(z)


def exact_log_likelihood(x: Tensor, lengths: list[int]) -> Tensor:
    """log p(x_{1:length}) `[N]`, by the joint Gaussian of the observations."""
    results = []
    for row, n in zip(x, lengths, strict=True):
        steps = torch.arange(n, dtype=x.dtype)
        covariance = C**2 * STATIONARY**2 * A ** (steps[:, None] - steps).abs() + R**2 * torch.eye(
            n
        )
        results.append(
            dist.MultivariateNormal(torch.zeros(n), covariance).log_prob(row[:n])
            if n
            else torch.zeros(())
        )
    return torch.stack(results)


def copies(x: Tensor, n: int) -> SequenceBatch:
    return SequenceBatch(x.expand(n, -1))


def windows(batch: SequenceBatch, *edges: int) -> Iterator[SequenceBatch]:
    """The batch cut at the edges."""
    for start, stop in zip([0, *edges], [*edges, batch.num_steps], strict=True):
        values = (
            {k: v[:, start:stop] for k, v in batch.values.items()}
            if isinstance(batch.values, dict)
            else batch.values[:, start:stop]
        )
        yield SequenceBatch(values, (batch.lengths - start).clamp(0, stop - start))


X = torch.tensor([0.4, -1.1, 1.3, 0.7], dtype=torch.float64)


class TestExact:
    """Without latents."""

    @pytest.fixture
    def rnn(self) -> RNN:
        return RNN(
            Categorical(4),
            PreviousObservation(OneHot(4)),
            hidden_size=5,
            num_layers=2,
            decoder_sizes=(3,),
        ).eval()

    @pytest.fixture
    def batch(self) -> SequenceBatch:
        return SequenceBatch(torch.randint(4, (5, 7)), [7, 3, 2, 1, 6])

    def by_hand(self, rnn: RNN, batch: SequenceBatch) -> Tensor:
        """log p(x_t | x_{<t}) `[N, T]`, sequence by sequence."""
        expected = torch.zeros(len(batch), batch.num_steps)
        for n, length in enumerate(batch.lengths.tolist()):
            if length:
                x = batch.values[n, :length]
                shifted = torch.cat([torch.zeros(1, 4), torch.eye(4)[x[:-1]]])
                outputs, _ = rnn.recurrence.rnn(shifted.unsqueeze(0))
                log_probs = rnn.decoder(outputs[0]).log_softmax(-1)
                expected[n, :length] = log_probs[torch.arange(length), x]
        return expected.detach()

    @pytest.mark.parametrize("layout", ["path", "steps"])
    def test_is_the_teacher_forced_likelihood(
        self, rnn: RNN, batch: SequenceBatch, layout: Any
    ) -> None:
        rnn.layout = layout
        scored = score(Pair(rnn), batch)
        expected = self.by_hand(rnn, batch)
        torch.testing.assert_close(scored.steps, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(scored.log_likelihood, expected.sum(-1))
        assert (
            scored.exact
            and scored.samples == 1
            and not scored.standard_error.any()
            and not scored.steps.requires_grad
        )

    @pytest.mark.parametrize("samples", [1, 5])
    @pytest.mark.parametrize("edges", [(1,), (3, 6), (2, 2, 5)])
    def test_windows_equal_one_pass(
        self, rnn: RNN, batch: SequenceBatch, edges: tuple[int, ...], samples: int
    ) -> None:
        if 2 in edges:
            edges = (2, 5)
        parts = list(score_document(Pair(rnn), windows(batch, *edges), samples=samples))
        torch.testing.assert_close(
            torch.cat([part.steps for part in parts], 1),
            self.by_hand(rnn, batch),
            rtol=1e-10,
            atol=1e-12,
        )
        assert all(part.exact and part.samples == 1 for part in parts)

    def test_a_first_window_with_a_state_of_its_own(self, rnn: RNN, batch: SequenceBatch) -> None:
        batch = SequenceBatch(batch.values)
        first, second = windows(batch, 3)
        carried = score(Pair(rnn), first).state["carried"]
        for samples in (1, 4):
            scored = score(Pair(rnn), second.with_state(carried), samples=samples)
            torch.testing.assert_close(
                scored.steps, self.by_hand(rnn, batch)[:, 3:], rtol=1e-10, atol=1e-12
            )

    def test_particles_are_not_wasted(self, rnn: RNN, batch: SequenceBatch) -> None:
        with mock.patch.object(stepper, "CHUNK_STEPS", 8):
            scored = score(Pair(rnn), batch, samples=100)
        torch.testing.assert_close(scored.steps, self.by_hand(rnn, batch), rtol=1e-10, atol=1e-12)
        assert scored.samples == 1 and scored.state["carried"]["model"]["latent"].shape[0] == len(
            batch
        )

    def test_states_to_go_on_from(self, rnn: RNN, batch: SequenceBatch) -> None:
        full = SequenceBatch(batch.values)
        state = filtered_state(Pair(rnn), windows(full, 3), samples=5, draws=2)["model"]
        expected = rnn(full).state
        torch.testing.assert_close(
            state["carried"][0], expected["carried"][0].repeat_interleave(2, 0)
        )
        assert state["context"]["observations"].squeeze(-1).tolist() == [
            x for x in batch.values[:, -1].tolist() for _ in range(2)
        ]


class TestBounds:
    """With latents, against the exact likelihood."""

    def test_the_oracle_is_pyros(self) -> None:
        normals = (dist.Normal(torch.zeros(1), scale).to_event(1) for scale in (STATIONARY, Q, R))
        first, noise, observation = normals
        hmm = dist.GaussianHMM(
            first, torch.tensor([[A]]), noise, torch.tensor([[C]]), observation, duration=4
        )
        torch.testing.assert_close(
            exact_log_likelihood(X[None], [4])[0], hmm.log_prob(X.unsqueeze(-1))
        )

    @pytest.mark.parametrize("samples", [1, 3])
    def test_is_exact_with_the_exact_posterior(self, samples: int) -> None:
        lengths = [4, 1, 2, 3]
        batch = SequenceBatch(torch.randn(4, 4), lengths)
        scored = score(Pair(model, exact_guide), batch, samples=samples)
        torch.testing.assert_close(
            scored.log_likelihood, exact_log_likelihood(batch.values, lengths), rtol=0, atol=1e-9
        )
        assert not scored.exact and scored.samples == samples
        assert (
            scored.standard_error.isnan().all()
            if samples == 1
            else (scored.standard_error < 1e-9).all()
        )
        assert not scored.steps[~batch.mask].any(), "nothing at padding"

    def test_standard_errors_are_calibrated(self) -> None:
        n, samples = 400, 200
        scored = score(Pair(model, prior_guide), copies(X, n), samples=samples)
        z = (scored.log_likelihood - exact_log_likelihood(X[None], [4])) / scored.standard_error
        # four standard errors: 4 / sqrt(400) for the mean, which is low by half a standard error
        # squared, and 4 / sqrt(800)
        assert z.mean().abs() < 0.2 + 0.5 * scored.standard_error.mean()
        assert abs(z.std() - 1) < 0.15

    def test_a_step_s_share_is_the_bound_s_growth(self) -> None:
        """With the prior as guide every prefix is a bound of its own, and a good one with many
        particles.
        """
        scored = score(Pair(model, prior_guide), copies(X, 50), samples=400)
        totals = torch.stack([exact_log_likelihood(X[None], [t + 1])[0] for t in range(4)])
        expected = torch.diff(totals, prepend=torch.zeros(1))
        error = scored.steps.std(0) / math.sqrt(50)
        assert ((scored.steps.mean(0) - expected).abs() < 4 * error + 0.01).all()
        assert (error < 0.05).all()

    def test_more_particles_are_a_tighter_bound(self) -> None:
        means = []
        for samples in (1, 4, 32):
            scored = score(
                Pair(model, prior_guide), copies(X, 1000), samples=samples
            ).log_likelihood
            means.append((scored.mean(), scored.std() / math.sqrt(1000)))
        exact = exact_log_likelihood(X[None], [4])[0]
        for (low, a), (high, b) in zip(means, [*means[1:], (exact, torch.zeros(()))], strict=True):
            assert low + 4 * (a + b) < high or (high is exact and low < exact + 4 * a)

    @pytest.mark.parametrize("edges", [(), (1, 2), (1, 2, 3)])
    def test_windows_estimate_the_likelihood_without_bias(self, edges: tuple[int, ...]) -> None:
        """Resampled between windows or not: the mean of exp(estimate - exact) is 1."""
        n, samples = 3000, 8
        parts = list(
            score_document(Pair(model, prior_guide), windows(copies(X, n), *edges), samples=samples)
        )
        total = sum(part.log_likelihood for part in parts)
        ratio = (total - exact_log_likelihood(X[None], [4])).exp()
        assert (ratio.mean() - 1).abs() < 4 * ratio.std() / math.sqrt(n)
        for part in parts[:-1]:
            assert 0 < part.state["particles"].degenerate.sum() < n, "resampled or not: both happen"
            torch.testing.assert_close(
                part.state["particles"].log_weights.exp().sum(-1), torch.ones(n)
            )

    def test_resampling_lowers_the_spread(self) -> None:
        """A long sequence: whole-path weights degenerate, a filter's do not; and its standard
        errors are honest.
        """
        torch.manual_seed(1)
        x, n = torch.randn(24) * 1.2, 200
        exact = exact_log_likelihood(x[None], [24])
        at_once = score(Pair(model, prior_guide), copies(x, n), samples=64).log_likelihood
        parts = list(
            score_document(
                Pair(model, prior_guide), windows(copies(x, n), *range(1, 24)), samples=64
            )
        )
        filtered, error = parts[-1].total, parts[-1].standard_error
        torch.testing.assert_close(filtered, sum(p.log_likelihood for p in parts))
        assert filtered.std() < 0.5 * at_once.std()
        z = (filtered - exact) / error
        assert 0.7 < z.std() < 1.3  # 200 of them; the windows are nearly independent

    def test_chunks_change_nothing_but_the_draws(self) -> None:
        batch = SequenceBatch(torch.randn(3, 4), [4, 2, 3])
        with mock.patch.object(stepper, "CHUNK_STEPS", 8):
            scored = score(Pair(model, exact_guide), batch, samples=3)
        torch.testing.assert_close(
            scored.log_likelihood, exact_log_likelihood(batch.values, [4, 2, 3]), rtol=0, atol=1e-9
        )
        assert scored.state["carried"]["model"].shape == (9,)

    def test_states_are_draws_from_the_filter(self) -> None:
        n, draws = 500, 3
        mean, covariance = posterior(X, 4)
        law = dist.Normal(mean[-1], covariance[-1, -1].sqrt())
        exact = filtered_state(Pair(model, exact_guide), [copies(X, n * 4)], samples=4, draws=1)[
            "model"
        ]
        assert exact.shape == (n * 4,)
        weighted = filtered_state(
            Pair(model, prior_guide), windows(copies(X, n), 2), samples=100, draws=draws
        )["model"]
        assert weighted.shape == (n * draws,)
        for z, count in ((exact, 4 * n), (weighted.view(n, draws)[:, 0], n)):
            assert (z.mean() - law.mean).abs() < 4 * law.stddev / math.sqrt(count) + 0.005
            assert (z.var() / law.variance - 1).abs() < 4 * math.sqrt(2 / count) + 0.01


class TestParticles:
    """What goes on from window to window, and how much is worked on at once."""

    def test_a_window_without_latents_keeps_the_particles(self) -> None:
        """One latent in the first window, which both windows' observations depend on; its exact
        posterior is the guide.
        """

        def shared(batch: SequenceBatch) -> Result:
            z = before(batch, "model")
            with batch.plate():
                if z is None:
                    z = pyro.sample("z_0", dist.Normal(torch.zeros(len(batch)), 1.0))
                for t in batch.steps():
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=batch.at(t))
            return Result(z)

        def guide(batch: SequenceBatch) -> Result:
            z = before(batch, "guide")
            if z is None:
                with batch.plate():
                    z = pyro.sample("z_0", dist.Normal(torch.full((len(batch),), 0.2), 0.8))
            return Result(z)

        n, samples = 2000, 20
        parts = list(score_document(Pair(shared, guide), windows(copies(X, n), 2), samples=samples))
        law = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 1)
        ratio = (parts[0].log_likelihood + parts[1].log_likelihood - law.log_prob(X)).exp()
        assert (ratio.mean() - 1).abs() < 4 * ratio.std() / math.sqrt(n)
        assert not parts[1].exact and parts[1].samples == samples and parts[1].variance.all()
        assert parts[1].state["particles"].log_weights.shape == (n, samples)

    @pytest.mark.parametrize(("num_features", "sizes"), [(2, [3, 3, 3]), (300, [1] * 9)])
    def test_chunks_are_bounded(self, num_features: int, sizes: list[int]) -> None:
        """3 sequences of 2 steps, 3 particles each, with 8 steps at once; fewer if a step has many
        features.
        """
        seen: list[list[float]] = []

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.emission = Categorical(num_features)

            def forward(self, batch: SequenceBatch) -> Result:
                seen.append(batch.values[:, 0].tolist())
                return model(batch)

        batch = SequenceBatch(torch.arange(6.0).view(3, 2))
        with mock.patch.object(stepper, "CHUNK_STEPS", 8):
            scored = score(Pair(Model(), prior_guide), batch, samples=3)
        assert [len(rows) for rows in seen] == sizes
        assert [row for rows in seen for row in rows] == [0, 0, 0, 2, 2, 2, 4, 4, 4]
        assert scored.state["carried"]["model"].shape == (9,)


class TestModes:
    """What a pair is scored with."""

    def test_dropout_is_off_and_each_module_s_mode_comes_back(self) -> None:
        rnn = RNN(
            Categorical(4),
            PreviousObservation(OneHot(4)),
            hidden_size=5,
            input_dropout=0.5,
            output_dropout=0.5,
        )
        rnn.decoder.eval()
        modes = {name: part.training for name, part in rnn.named_modules()}
        batch, pair = SequenceBatch(torch.randint(4, (5, 7))), Pair(rnn)
        in_training = score(pair, batch).steps
        assert {name: part.training for name, part in rnn.named_modules()} == modes and rnn.training
        torch.testing.assert_close(
            in_training, score(Pair(rnn.eval()), batch).steps, rtol=0, atol=0
        )
        with pytest.raises(UserError):
            score(Pair(rnn.train(), prior_guide), batch)
        assert rnn.training and rnn.decoder.training

    def test_the_pairs_own_parameters(self) -> None:
        def located(batch: SequenceBatch) -> Result:
            loc = pyro.param("loc", torch.tensor(0.0))
            with batch.plate():
                for t in batch.steps():
                    pyro.sample(f"x_{t}", dist.Normal(loc, 1.0), obs=batch.at(t))
            return Result(loc.detach().expand(len(batch)))

        pair, batch = Pair(located), copies(X, 2)
        with pair.scope():
            pyro.param("loc", torch.tensor(3.0))
        torch.testing.assert_close(
            score(pair, batch).steps, dist.Normal(3.0, 1.0).log_prob(batch.values)
        )
        assert filtered_state(pair, [batch])["model"].tolist() == [3.0, 3.0]
        assert not pyro.get_param_store().keys()

    def test_no_parameters_at_all(self, linear_gaussian: Callable[..., Pair]) -> None:
        """Types and device are the defaults' then; with the exact posterior the bound is the
        likelihood.
        """
        pair: Any = linear_gaussian()
        scale = pair.model.scale.detach()
        del pair.model.scale, pair.guide.place
        pair.model.scale = scale
        assert not [*pair.model.parameters(), *pair.guide.parameters()]
        x = torch.randn(3, 5)
        scored = score(pair, pair.model.batch(x), method="elbo")
        torch.testing.assert_close(
            scored.log_likelihood, pair.model.log_likelihood(x), rtol=0, atol=1e-9
        )

    def test_a_guide_without_parameters_has_types_and_device_of_its_model(
        self, linear_gaussian: Callable[..., Pair]
    ) -> None:
        pair: Any = linear_gaussian()
        del pair.guide.place
        pair.model.to("meta", torch.bfloat16)
        latent = pair.guide.initial_latent(3)
        assert (latent.shape, latent.device.type, latent.dtype) == ((3, 1), "meta", torch.bfloat16)

    def test_functions_trained_by_hand(self) -> None:
        """Stock SVI in Pyro's own store, then a score of the functions: it is that of what was
        learnt.
        """

        def located(batch: SequenceBatch) -> None:
            loc = pyro.param("loc", torch.tensor(0.0))
            scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
            with batch.plate():
                for t in batch.steps():
                    pyro.sample(f"x_{t}", dist.Normal(loc, scale), obs=batch.at(t))

        def nothing(batch: SequenceBatch) -> None:
            """A guide without sites."""

        batch = copies(X, 2)
        svi = SVI(located, nothing, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        for _ in range(10):
            svi.step(batch)
        loc, scale = (pyro.param(name).detach() for name in ("loc", "scale"))
        assert loc > 0.1 and scale != 1
        torch.testing.assert_close(
            score(Pair(located, nothing), batch).steps,
            dist.Normal(loc, scale).log_prob(batch.values),
        )
        assert pyro.param("loc").detach() == loc, "outside, nothing has changed"


class TestLayouts:
    """A path's site and the steps' sites are shares of the same steps."""

    @pytest.mark.parametrize("batch", [SequenceBatch(torch.tensor([[0, 1, 2], [2, 0, 0]]), [3, 2])])
    def test_agree_step_by_step(self, batch: SequenceBatch) -> None:
        model = SRNN(
            Categorical(3),
            PreviousObservation(OneHot(3)),
            latent_size=3,
            latent_sizes=(3,),
            hidden_size=3,
        )
        guide = SRNNGuide(model, OneHot(3), hidden_size=3, latent_sizes=(3,))
        path_trace = poutine.trace(guide).get_trace(batch)
        path = score(Pair(model, poutine.replay(guide, trace=path_trace)), batch)
        model.layout = "steps"
        steps_trace = poutine.trace(guide).get_trace(batch)
        for t in range(3):
            steps_trace.nodes[f"z_{t}"]["value"] = path_trace.nodes["z"]["value"][:, t]
        steps = score(Pair(model, poutine.replay(guide, trace=steps_trace)), batch)
        torch.testing.assert_close(path.steps, steps.steps, rtol=1e-10, atol=1e-12)
        assert not path.exact and path.steps[0].all()

    @pytest.mark.parametrize(
        "names", [("a", "b"), ("track_0", "track_1"), ("note_2", "b"), ("a_2_b", "track_0")]
    )
    @pytest.mark.parametrize("layout", ["path", "steps"])
    def test_groups_whose_names_hold_numbers(self, names: tuple[str, str], layout: Any) -> None:
        values = [torch.randint(3, (2, 4)), torch.randn(2, 4)]
        batch = SequenceBatch(dict(zip(names, values, strict=True)), [4, 3])
        torch.manual_seed(3)
        emission = Joint(dict(zip(names, (Categorical(3), Normal()), strict=True)))
        encoder = Group(dict(zip(names, (OneHot(3), Flatten(())), strict=True)))
        rnn = RNN(emission, PreviousObservation(encoder), hidden_size=3, layout=layout)
        trace = poutine.trace(rnn).get_trace(batch)
        total = trace.log_prob_sum()
        steps = score(Pair(rnn), batch).steps
        torch.testing.assert_close(steps.sum(), total.detach())
        assert steps[batch.mask].all() and not steps[~batch.mask].any(), "every step has its share"


class TestCustomPairs:
    @staticmethod
    def nothing(batch: SequenceBatch) -> None:
        """A guide without sites."""

    def test_masks_plates_and_deterministic_sites(self) -> None:
        batch = SequenceBatch(torch.randn(2, 3, 5), [3, 1])
        keep = torch.tensor([True, False])

        def by_steps(batch: SequenceBatch) -> None:
            with pyro.plate("features", 5, dim=-2), batch.plate(), poutine.mask(mask=keep):
                for t in batch.steps():
                    with batch.active(t):
                        rate = pyro.deterministic(f"rate_{t}", torch.zeros(5, 2))
                        pyro.sample(f"x_{t}", dist.Normal(rate, 1.0), obs=batch.at(t).t())

        def by_path(batch: SequenceBatch) -> None:
            with batch.plate(), poutine.mask(mask=keep):
                pyro.deterministic("rate", torch.zeros(2))
                steps = dist.Normal(torch.zeros(2, 3, 5), 1.0).to_event(1).mask(batch.mask)
                pyro.sample("x", steps.to_event(1), obs=batch.values)

        expected = (
            dist.Normal(0.0, 1.0).log_prob(batch.values).sum(-1) * batch.mask
        ) * keep.unsqueeze(-1)
        torch.testing.assert_close(score(Pair(by_steps), batch).steps, expected)
        torch.testing.assert_close(score(Pair(by_path), batch).steps, expected)

    def test_a_path_with_a_mask(self) -> None:
        keep = torch.tensor([True, False])

        def latent() -> None:
            with poutine.mask(mask=keep):
                pyro.sample(
                    "z",
                    MarkovPath(
                        torch.zeros(2, 1), lambda previous, steps: dist.Normal(previous, 1.0), 3
                    ),
                )

        def guide(batch: SequenceBatch) -> None:
            with batch.plate(), poutine.scale(scale=2.0):
                latent()

        def both(batch: SequenceBatch) -> None:
            with batch.plate():
                latent()
                pyro.sample("x", dist.Normal(torch.zeros(2, 3), 1.0).to_event(1), obs=batch.values)

        batch = SequenceBatch(torch.randn(2, 3))
        torch.testing.assert_close(
            score(Pair(both, guide), batch).steps, dist.Normal(0.0, 1.0).log_prob(batch.values)
        )

    def test_auxiliary_variables_of_the_guide(self) -> None:
        """x ~ N(0, 1) and a latent that is no more than a copy of the guide's own noise."""

        def pair_model(batch: SequenceBatch) -> None:
            with batch.plate():
                pyro.sample("z_0", dist.Normal(torch.zeros(2), 1.0))
                pyro.sample("x_0", dist.Normal(torch.zeros(2), 1.0), obs=batch.at(0))

        def guide(batch: SequenceBatch) -> None:
            with batch.plate():
                u = pyro.sample(
                    "u_0", dist.Normal(torch.zeros(2), 1.0), infer={"is_auxiliary": True}
                )
                pyro.sample("z_0", dist.Delta(u))

        batch = SequenceBatch(torch.randn(2, 1))
        scored = score(Pair(pair_model, guide), batch)
        torch.testing.assert_close(
            scored.log_likelihood, dist.Normal(0.0, 1.0).log_prob(batch.values[:, 0])
        )

    @pytest.mark.parametrize("name", ["z", "z_9", "sentence"])
    def test_a_latent_of_a_whole_sequence(self, name: str) -> None:
        """A sentence VAE, z ~ N(0, 1), x_t ~ N(z, 1), with its exact posterior as guide."""
        lengths = torch.tensor([4, 2, 1])
        batch = SequenceBatch(torch.randn(3, 4), lengths)

        def sentences(batch: SequenceBatch) -> None:
            with batch.plate():
                z = pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1))[..., 0]
                for t in batch.steps():
                    with batch.active(t):
                        pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=batch.at(t))

        def guide(batch: SequenceBatch) -> None:
            precision = batch.lengths + 1.0
            loc = torch.stack([batch.values.sum(-1) / precision, torch.zeros(len(batch))], -1)
            scale = torch.stack([precision.rsqrt(), torch.ones(len(batch))], -1)
            with batch.plate():
                pyro.sample(name, dist.Normal(loc, scale).to_event(1))

        laws = [dist.MultivariateNormal(torch.zeros(n), torch.eye(n) + 1) for n in lengths.tolist()]
        expected = torch.stack(
            [law.log_prob(x[:n]) for law, x, n in zip(laws, batch.values, lengths, strict=True)]
        )
        scored = score(Pair(sentences, guide), batch, samples=3)
        torch.testing.assert_close(scored.log_likelihood, expected, rtol=0, atol=1e-9)
        assert not scored.exact and not scored.steps[~batch.mask].any()

    @pytest.mark.parametrize("name", ["w", "w_0"])
    @pytest.mark.parametrize("size", [(), (1,), (2,)])
    def test_what_all_sequences_share_is_refused(self, name: str, size: tuple[int, ...]) -> None:
        """One density for all of them is no share of each."""

        def shared(batch: SequenceBatch) -> None:
            pyro.sample(name, dist.Normal(torch.zeros(size), 1.0))

        def both(batch: SequenceBatch) -> None:
            shared(batch)
            with batch.plate():
                for t in batch.steps():
                    pyro.sample(f"x_{t}", dist.Normal(torch.zeros(3), 1.0), obs=batch.at(t))

        with pytest.raises(
            UserError,
            match=(
                rf"^site '{name}' has batch shape \[{size[0] if size else ''}\], not one entry "
                r"for each"
            ),
        ):
            score(Pair(both, shared), copies(X, 3))

    def test_a_path_that_all_sequences_share_is_refused(self) -> None:
        def path(batch: SequenceBatch) -> None:
            pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))

        with pytest.raises(
            UserError, match=r"^site 'z' has batch shape \[\], not one entry for each sequence"
        ):
            score(Pair(path, path), copies(X, 3))

    def test_sites_of_one_side(self) -> None:
        batch = copies(X, 2)
        with pytest.raises(
            UserError, match=r"^the guide has no site 'z_0', which the model samples$"
        ):
            score(Pair(model, self.nothing), batch)

        def observed(batch: SequenceBatch) -> None:
            with batch.plate():
                for t in batch.steps():
                    pyro.sample(f"x_{t}", dist.Normal(torch.zeros(2), 1.0), obs=batch.at(t))

        with pytest.raises(
            UserError, match=r"^the model has no site 'z_0', which the guide samples$"
        ):
            score(Pair(observed, prior_guide), batch)

    @pytest.mark.parametrize("name", ["x", "x_4", "x_", "x4", "x_1a"])
    def test_sites_of_no_step(self, name: str) -> None:
        def outside(batch: SequenceBatch) -> None:
            with batch.plate():
                pyro.sample(name, dist.Normal(torch.zeros(2), 1.0), obs=batch.at(0))

        with pytest.raises(
            UserError, match=f"^site '{name}' belongs to no step: name it for its step"
        ):
            score(Pair(outside), copies(X, 2))

    def test_nothing_to_score(self) -> None:
        pair = Pair(model, prior_guide)
        for batch in (
            SequenceBatch(None, [3]),
            SequenceBatch(torch.zeros(2, 0)),
            SequenceBatch(torch.zeros(0, 3)),
        ):
            with pytest.raises(UserError, match="there is nothing to score"):
                score(pair, batch)
        with pytest.raises(UserError, match="at least 1, got 0"):
            score(pair, copies(X, 2), samples=0)
        assert list(score_document(pair, [])) == []
        with pytest.raises(UserError, match="no window was given"):
            filtered_state(pair, [])
        with pytest.raises(
            UserError, match=r"must be of equal length, got \[4, 3\] steps of a window of 4"
        ):
            filtered_state(pair, [SequenceBatch(torch.zeros(2, 4), [4, 3])])


class TestMethods:
    """The four ways to score, told apart and told."""

    def test_elbo_is_the_mean_of_the_log_weights(self, linear_gaussian: Any) -> None:
        pair = linear_gaussian(shift=0.2, widen=1.1)
        batch = pair.model.batch(X.expand(400, -1))
        one, many = (score(pair, batch, method="elbo", samples=k) for k in (1, 50))
        assert one.method == many.method == "elbo" and one.effective_samples is None
        assert one.standard_error.isnan().all()
        gap = one.total.mean() - many.total.mean()
        assert gap.abs() < 4 * math.hypot(one.total.std() / 20, many.total.std() / 20)
        assert abs(math.log(many.variance.mean() / many.total.var())) < 4 * math.sqrt(2 / 400)
        torch.testing.assert_close(many.steps.sum(-1), many.total)
        bound = score(pair, batch, method="importance", samples=50)
        assert bound.total.mean() > many.total.mean()

    @pytest.mark.parametrize("layout", ["path", "steps"])
    def test_elbo_at_the_exact_posterior_is_the_likelihood(
        self, linear_gaussian: Any, layout: str
    ) -> None:
        pair = linear_gaussian(layout)
        x = torch.randn(3, 9)
        for method in ("elbo", "importance"):
            scored = score(pair, pair.model.batch(x), method=method, samples=7)
            torch.testing.assert_close(
                scored.total, pair.model.log_likelihood(x), rtol=0, atol=1e-6
            )
        normals = [
            dist.Normal(torch.zeros(1), scale).to_event(1)
            for scale in (1e-9, pair.model.Q, pair.model.R)
        ]
        hmm = dist.GaussianHMM(
            normals[0],
            torch.tensor([[pair.model.A]]),
            normals[1],
            torch.eye(1),
            normals[2],
            duration=9,
        )
        torch.testing.assert_close(
            hmm.log_prob(x.unsqueeze(-1)), pair.model.log_likelihood(x), rtol=0, atol=1e-6
        )

    def test_importance_within_three_standard_errors(self, linear_gaussian: Any) -> None:
        """200 seeds' worth of estimates; their error falls as 1 / sqrt(K)."""
        pair, errors = linear_gaussian(shift=0.1, widen=1.2), []
        exact = pair.model.log_likelihood(X[None])[0]
        for samples in (40, 640):
            scored = score(
                pair, pair.model.batch(X.expand(200, -1)), method="importance", samples=samples
            )
            z = (scored.total - exact) / scored.standard_error
            assert (z.abs() < 3).float().mean() > 0.97 and abs(z.std() - 1) < 4 / math.sqrt(
                400
            ) + 0.05
            assert (
                scored.effective_samples is not None
                and ((scored.effective_samples > 1) & (scored.effective_samples <= samples)).all()
            )
            errors.append(scored.total.std())
        assert abs(math.log(errors[0] / errors[1]) - math.log(4)) < 4 * math.sqrt(1 / 200) + 0.05

    def test_elbo_over_windows(self) -> None:
        batch = copies(X, 300)
        parts = list(
            score_document(
                Pair(model, prior_guide), windows(batch, 1, 3), method="elbo", samples=10
            )
        )
        at_once = score(Pair(model, prior_guide), batch, method="elbo", samples=10)
        error = math.hypot(parts[-1].total.std(), at_once.total.std()) / math.sqrt(300)
        assert (parts[-1].total.mean() - at_once.total.mean()).abs() < 4 * error
        assert abs(math.log(parts[-1].variance.mean() / at_once.variance.mean())) < 0.3

    def test_exact_is_refused_where_there_are_latents(self) -> None:
        with pytest.raises(
            UserError,
            match=(
                r"^the pair has latents \('z_0'\), so its likelihood is an integral.*importance "
                r"and filter"
            ),
        ):
            score(Pair(model, prior_guide), copies(X, 2), method="exact")

    @pytest.mark.parametrize(("options", "says"), [
        ({"method": "guess"}, "unknown method 'guess'"),
        ({"method": "filtr"}, "did you mean 'filter'"),
        ({"proposal": "posterior"}, "unknown proposal 'posterior'"),
    ])  # fmt: skip
    def test_unknown_words(self, options: Any, says: str) -> None:
        with pytest.raises(UserError, match=says):
            score(Pair(model, prior_guide), copies(X, 2), **options)

    def test_pieces_of_unequal_length_are_worked_on_apart(self, linear_gaussian: Any) -> None:
        """In groups of like length, the figures back in their places; and what a long path leaves
        is no longer than a step.
        """
        pair, lengths = linear_gaussian(), [2, 9, 1, 5, 9, 3]
        x = torch.randn(6, 9)
        with mock.patch.object(stepper, "CHUNK_STEPS", 40):
            scored = score(pair, pair.model.batch(x), method="importance", samples=8)
            ragged = score(Pair(model, prior_guide), SequenceBatch(x, lengths), samples=200)
        torch.testing.assert_close(scored.total, pair.model.log_likelihood(x), rtol=0, atol=1e-9)
        z = (ragged.total - exact_log_likelihood(x, lengths)) / ragged.standard_error
        assert (
            (z.abs() < 5).all()
            and ragged.steps.shape == (6, 9)
            and not ragged.steps[~ragged.mask].any()
        )
        latent = scored.state["carried"]["model"]["latent"]
        assert latent.shape == (48, 1) and latent.untyped_storage().nbytes() == 48 * 8


class TestSurprise:
    def test_steps_are_ranked(self) -> None:
        rnn = RNN(Categorical(4), PreviousObservation(OneHot(4)), hidden_size=5).eval()
        scored = score(Pair(rnn), SequenceBatch(torch.randint(4, (3, 6)), [6, 2, 4]))
        torch.testing.assert_close(scored.surprise, -scored.steps)
        every = scored.most_surprising(100)
        assert (
            len(every) == 12
            and len(scored.most_surprising(5)) == 5
            and scored.most_surprising(5) == every[:5]
        )
        assert all(a.nats >= b.nats for a, b in itertools.pairwise(every))
        assert all(s.nats == pytest.approx(float(-scored.steps[s.sequence, s.step])) for s in every)
        assert {(s.sequence, s.step) for s in every} == {
            (n, t) for n, length in enumerate([6, 2, 4]) for t in range(length)
        }
        with pytest.raises(UserError, match="at least 1, got 0"):
            scored.most_surprising(0)


class TestOutsideTheSupport:
    """Said in words, never NaN or a silent zero."""

    @pytest.mark.parametrize(("emission", "encoder", "value", "says"), [
        (Categorical(3), OneHot(3), 3,
        "site 'x' observes 3, which must be a whole number from 0 to 2"),
        (Categorical(3), OneHot(3), -1,
        "site 'x' observes -1, which must be a whole number from 0 to 2"),
        (Beta(), Flatten(()), 0.0, "site 'x' observes 0.0, which must be strictly between 0 and 1"),
        (Beta(), Flatten(()), 1.0, "site 'x' observes 1.0, which must be strictly between"),
        (Bernoulli(), Flatten(()), 0.5, "site 'x' observes 0.5, which must be 0 or 1"),
        (Binomial(5), Flatten(()), 6.0,
        "site 'x' observes 6.0, which must be a whole number from 0 to 5"),
    ])  # fmt: skip
    @pytest.mark.parametrize("samples", [1, 3])
    def test_of_a_shipped_pair(
        self, emission: Any, encoder: Any, value: Any, says: str, samples: int
    ) -> None:
        srnn = SRNN(emission, PreviousObservation(encoder), latent_size=2, hidden_size=3)
        guide = SRNNGuide(srnn, encoder, hidden_size=3)
        good = 1 if isinstance(value, int) else 0.25 if isinstance(emission, Beta) else 1.0
        values = torch.full((2, 4), good)
        values[1, 2] = value
        values[0, 3] = value  # padding
        batch = SequenceBatch(values, [3, 4])
        for method in ("elbo", "importance", "filter"):
            with pytest.raises(UserError, match=f"^sequence 1, step 2: {says}"):
                score(Pair(srnn, guide), batch, method=method, samples=samples)  # type: ignore[arg-type]

    @pytest.mark.parametrize("method", ["auto", "filter"])
    def test_of_a_plain_function(self, method: Any) -> None:
        def counts(batch: SequenceBatch) -> None:
            with batch.plate():
                for t in batch.steps():
                    with batch.active(t):
                        z = pyro.sample(f"z_{t}", dist.Beta(torch.ones(len(batch)), 1.0))
                        pyro.sample(
                            f"x_{t}",
                            dist.Independent(dist.Bernoulli(z.unsqueeze(-1).expand(-1, 2)), 1),
                            obs=batch.at(t),
                        )

        values = torch.ones(3, 4, 2)
        values[2, 1, 1] = 2.0
        with pytest.raises(
            UserError, match=r"^sequence 2, step 1: site 'x_1' observes 2.0, which must be 0 or 1"
        ):
            score(
                Pair(counts),
                SequenceBatch(values, [4, 1, 3]),
                samples=5,
                proposal="prior",
                method=method,
            )
        scored = score(
            Pair(counts),
            SequenceBatch(values, [4, 1, 1]),
            samples=5,
            proposal="prior",
            method=method,
        )
        assert scored.total.isfinite().all()

    @pytest.mark.parametrize(
        ("law", "value", "words"),
        [
            (dist.Poisson(2.0), 2.5, "a whole number of at least 0"),
            (dist.Gamma(2.0, 1.0), -1.0, "at least 0"),
            (dist.Pareto(3.0, 1.0), 2.0, "at least 3"),
        ],
    )
    def test_bounds_in_words(self, law: Any, value: float, words: str) -> None:
        def model(batch: SequenceBatch) -> None:
            with batch.plate():
                pyro.sample("x_0", law.expand([len(batch)]), obs=batch.at(0))

        batch = SequenceBatch(torch.tensor([[value]]))
        with pytest.raises(
            UserError,
            match=f"^sequence 0, step 0: site 'x_0' observes {value}, which must be {words}$",
        ):
            score(Pair(model), batch)

    def test_a_group_names_its_member(self) -> None:
        emission = Joint({"count": Binomial(2), "level": Normal()})
        encoder = Group({"count": Flatten(()), "level": Flatten(())})
        rnn = RNN(emission, PreviousObservation(encoder), hidden_size=3)
        batch = SequenceBatch({"count": torch.tensor([[1.0, 3.0]]), "level": torch.zeros(1, 2)})
        with pytest.raises(
            UserError,
            match=(
                r"^sequence 0, step 1: site 'x_count' observes 3.0, which must be a whole "
                r"number "
                r"from 0 to 2$"
            ),
        ):
            score(Pair(rnn), batch)

    def test_weights_that_are_not_finite(self) -> None:
        rnn = RNN(Categorical(4), PreviousObservation(OneHot(4)), hidden_size=5)
        with torch.no_grad():
            rnn.get_parameter("decoder.0.bias")[0] = torch.nan
        with (
            pyro.validation_enabled(False),
            pytest.raises(
                UserError, match="log-density of site 'x' is not a number: the weights are not"
            ),
        ):
            score(Pair(rnn), SequenceBatch(torch.randint(4, (3, 6))))

    def test_sequences_without_a_step(self) -> None:
        batch = SequenceBatch(torch.zeros(4, 3), [3, 0, 2, 0])
        with pytest.raises(
            UserError,
            match=r"^sequence 1 \(and 1 more\) has no step: there is nothing to score in it$",
        ):
            score(Pair(model, prior_guide), batch)
        with pytest.raises(
            UserError, match="1 steps are missing, and only observations can be scored"
        ):
            score(Pair(model, prior_guide), copies(X, 2).with_missing([1]))
