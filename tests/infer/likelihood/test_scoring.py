"""Scoring: exact where there are no latents; estimates against a linear-Gaussian model, whose
likelihood is known.
"""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from linear_chain import (
    STATIONARY,
    A,
    C,
    Q,
    R,
    Result,
    X,
    before,
    copies,
    exact_guide,
    exact_log_likelihood,
    model,
    posterior,
    prior_guide,
    windows,
)
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.document import filtered_state, score_document
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.stepping import stepper
from pyro_seq.models import RNN
from pyro_seq.pairs.pair import Pair


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    pass


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
        _, *seen = seen  # at first it is run for latents that all sequences share
        assert [len(rows) for rows in seen] == sizes
        assert [row for rows in seen for row in rows] == [0, 0, 0, 2, 2, 2, 4, 4, 4]
        assert scored.state["carried"]["model"].shape == (9,)


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
