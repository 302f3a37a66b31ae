"""Refinement of a guide for each sequence: closed forms, independence, what stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_latents import shipped, symbols
from torch import Tensor

from linear_chain import A, C, Q, R, Result, X, exact_log_likelihood, model, windows
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.document import score_document
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.refinement.guides import numbered
from pyro_seq.infer.refinement.refining import refine, refined_for
from pyro_seq.models import RNN
from pyro_seq.pairs.pair import Pair

LENGTHS = [4, 2, 3]


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    pass


@pytest.fixture
def batch() -> SequenceBatch:
    torch.manual_seed(1)
    return SequenceBatch(torch.randn(3, 4), LENGTHS)


def chain_guide(batch: SequenceBatch) -> None:
    """q(z_t | z_{t-1}) with the posterior's own slope, and with a wrong location and scale."""
    z, slopes = None, _slopes(batch)
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                loc = torch.full((len(batch),), 0.5) + (0 if z is None else slopes[:, t] * z)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, 0.8))


def _slopes(batch: SequenceBatch) -> Tensor:
    """dE[z_t | z_{t-1}, x] / dz_{t-1} `[N, T]`, by backward precisions of what follows."""
    n, steps = len(batch), batch.num_steps
    slopes, future = torch.zeros(n, steps), torch.zeros(n)
    for t in reversed(range(steps)):
        own = torch.where(batch.mask[:, t], C**2 / R**2 + future, 0.0)
        slopes[:, t] = (A / Q**2) / (1 / Q**2 + own)
        future = own * A**2 / (1 + own * Q**2)  # precision of z_{t-1} that the rest brings
    return slopes


def flat_guide(batch: SequenceBatch) -> None:
    """A mean field, far off."""
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                pyro.sample(f"z_{t}", dist.Normal(torch.full((len(batch),), 0.5), 0.8))


def joint_guide(batch: SequenceBatch) -> None:
    """One latent of a whole sequence, its covariance the posterior's up to scales."""
    a = torch.tensor([1.0, 0.5])
    covariance = torch.linalg.inv(torch.eye(2) + 4 * torch.outer(a, a))
    triangle = torch.linalg.cholesky(covariance).expand(len(batch), 2, 2)
    with batch.plate():
        loc = torch.ones(len(batch), 2)
        pyro.sample("w", dist.MultivariateNormal(loc, scale_tril=triangle * 2))


def joint_model(batch: SequenceBatch) -> None:
    """w ~ N(0, I), x_t = w . (1, 0.5) + noise."""
    with batch.plate():
        w = pyro.sample("w", dist.Normal(torch.zeros(len(batch), 2), 1.0).to_event(1))
        for t in batch.steps():
            with batch.active(t):
                loc = w @ torch.tensor([1.0, 0.5])
                pyro.sample(f"x_{t}", dist.Normal(loc, 1.0), obs=batch.at(t))


def refined_elbo(pair: Pair, batch: SequenceBatch, steps: int, samples: int = 400) -> Any:
    torch.manual_seed(2)
    return score(pair, batch, method="elbo", samples=samples, refine=steps)


class TestClosedForms:
    """A linear-Gaussian model, whose likelihood and posterior are known."""

    def test_a_family_that_holds_the_posterior_reaches_the_likelihood(
        self, batch: SequenceBatch
    ) -> None:
        assert isinstance(batch.values, Tensor)
        exact = exact_log_likelihood(batch.values, LENGTHS)
        scored = refined_elbo(Pair(model, chain_guide), batch, 140, samples=100)
        torch.testing.assert_close(scored.total, exact, rtol=0, atol=1e-3)
        assert (scored.standard_error < 2e-3).all()

    @pytest.mark.slow
    def test_importance_weights_stay_unbiased(self, batch: SequenceBatch) -> None:
        assert isinstance(batch.values, Tensor)
        exact = exact_log_likelihood(batch.values, LENGTHS)
        torch.manual_seed(0)
        for method in ("importance", "filter"):
            scored = score(Pair(model, flat_guide), batch, method=method, samples=2_000, refine=40)
            assert scored.refined == 40 and scored.method == method
            assert (scored.total - exact < 4 * scored.standard_error + 0.01).all()
            assert (scored.total - exact > -4 * scored.standard_error - 0.15).all()

    @pytest.mark.slow
    def test_a_latent_of_a_whole_sequence_of_several_dimensions(self) -> None:
        batch = SequenceBatch(X.expand(1, -1))
        a, one = torch.tensor([1.0, 0.5]), torch.ones(4)
        covariance = torch.eye(4) + (a @ a) * torch.outer(one, one)
        exact = dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(X)
        scored = refined_elbo(Pair(joint_model, joint_guide), batch, 150, samples=100)
        torch.testing.assert_close(scored.total[0], exact, rtol=0, atol=1e-3)


KINDS = ["srnn", "vrnn", "dmm", "flows", "auto"]


class TestPairs:
    """Declared pairs in both layouts, an automatic guide, functions."""

    @pytest.mark.one_in(3)
    @pytest.mark.parametrize(
        ("kind", "layout"), [*((kind, "path") for kind in KINDS), ("srnn", "steps")]
    )
    def test_bounds_stand_in_order_and_no_weight_changes(self, kind: str, layout: str) -> None:
        pair, batch = shipped(kind, layout), symbols()
        score(pair, batch)  # an automatic guide makes its weights on its first batch
        with pair.scope():
            before = {
                side: {name: x.clone() for name, x in part.items()}
                for side, part in pair.weights().items()
            }
        torch.manual_seed(0)
        own = score(pair, batch, method="elbo", samples=60)
        refined = score(pair, batch, method="elbo", samples=60, refine=12)
        error = (own.variance + refined.variance).sqrt()
        assert (refined.total > own.total - 4 * error).all()
        weighted = score(pair, batch, samples=60, refine=12)
        assert (weighted.total > refined.total - 4 * (error + weighted.standard_error)).all()
        with pair.scope():
            for side, part in pair.weights().items():
                for name, x in part.items():
                    assert torch.equal(x, before[side][name])
            assert all(p.grad is None for p in pair.parameters().values())

    @pytest.mark.parametrize("kind", ["srnn", "flows"])
    def test_a_filter_proposes_from_the_same_guide(self, kind: str) -> None:
        """log q of a path by steps of the refined guide's proposals is that of its trace."""
        pair, batch = shipped(kind), numbered(symbols())
        with pair.scope(), pair.evaluating(), torch.no_grad():
            refined = refine(pair, batch, 10)
            guide: Any = refined.guide
            trace = pyro.poutine.trace(guide).get_trace(batch)
            z, fn = trace.nodes["z"]["value"], trace.nodes["z"]["fn"]
            evidence, _ = guide.encode(batch, guide.initial_rnn_state(3))
            running, previous = guide.initial_guide_state(batch), guide.initial_latent(3)
            for t in range(batch.num_steps):
                chunk = tuple(part[:, t : t + 1] for part in evidence)
                q, running = guide.proposal(chunk, previous.unsqueeze(-2), running)
                previous = z[:, t]
                share = torch.where(batch.mask[:, t], q.log_prob(previous), 0.0)
                torch.testing.assert_close(share, fn.step_log_prob(z)[:, t])

    def test_functions_are_filtered_by_the_refined_guide(self, batch: SequenceBatch) -> None:
        assert isinstance(batch.values, Tensor)
        exact = exact_log_likelihood(batch.values, LENGTHS)
        torch.manual_seed(0)
        pair = Pair(model, chain_guide)
        scored = score(pair, batch, method="filter", samples=30, refine=80)
        torch.testing.assert_close(scored.total, exact, rtol=0, atol=3e-2)

    def test_missing_cells(self) -> None:
        """What was not seen counts nothing, refined or not."""
        missing = torch.zeros(3, 4, dtype=torch.bool)
        missing[0, 1] = missing[2, 0] = True
        values = torch.randn(3, 4)
        scored = [
            score(
                Pair(model, flat_guide),
                SequenceBatch(x, LENGTHS, missing=missing),
                samples=50,
                refine=5,
            ).total
            for x in (values, torch.where(missing, 9.0, values))
            if torch.manual_seed(0)
        ]
        assert torch.equal(*scored)


class TestEachSequenceByItself:
    """What is found for a sequence does not depend on the others."""

    @pytest.mark.parametrize("make", [partial(shipped, "srnn"), partial(shipped, "auto")])
    def test_others_change_nothing(self, make: Callable[[], Pair]) -> None:
        pair, batch = make(), symbols()
        score(pair, batch)
        with pair.scope(), pair.evaluating():
            whole: Any = refine(pair, batch, 8).guide
            for row, n in enumerate([6, 3, 5]):
                alone: Any = refine(pair, batch.select(slice(row, row + 1)).truncate(n), 8).guide
                for name, mine in alone.corrections.items():
                    of = whole.corrections[name].of_rows(torch.tensor([row]), n)
                    torch.testing.assert_close(mine.shift, of.shift, rtol=0, atol=1e-9)
                    torch.testing.assert_close(mine.log_scale, of.log_scale, rtol=0, atol=1e-9)

    def test_elementwise_pairs_to_the_bit(self, batch: SequenceBatch) -> None:
        pair = Pair(model, flat_guide)
        whole: Any = refine(pair, batch, 12).guide
        alone: Any = refine(pair, batch.select(slice(1, 2)), 12).guide
        for name, mine in alone.corrections.items():
            assert torch.equal(mine.shift, whole.corrections[name].shift[1:2])

    def test_neither_the_seed_nor_torch_s_random_state_has_a_part(
        self, batch: SequenceBatch
    ) -> None:
        pair, found = Pair(model, flat_guide), []
        for seed in (0, 1):
            torch.manual_seed(seed)
            guide: Any = refine(pair, batch, 5).guide
            found.append(guide.corrections["z_0"].shift)
            after = torch.rand(())
            torch.manual_seed(seed)
            assert torch.equal(after, torch.rand(()))
        assert torch.equal(*found)

    def test_a_batch_that_was_not_numbered_is_answered_by_the_guide_itself(
        self, batch: SequenceBatch
    ) -> None:
        pair, known = refined_for(Pair(model, flat_guide), batch, 5)
        traces = [pyro.poutine.trace(pair.guide).get_trace(b) for b in (batch, known)]
        locs = [trace.nodes["z_0"]["fn"].loc for trace in traces]
        assert (locs[0] == 0.5).all() and not (locs[1] == 0.5).any()

    def test_an_answer_that_is_worse_is_not_kept(self) -> None:
        """One step from the exact posterior leads away from it."""
        a, batch = torch.tensor([1.0, 0.5]), SequenceBatch(X.expand(1, -1))

        def exact(batch: SequenceBatch) -> None:
            covariance = torch.linalg.inv(torch.eye(2) + 4 * torch.outer(a, a))
            loc = (covariance @ a * X.sum()).expand(len(batch), 2)
            with batch.plate():
                pyro.sample("w", dist.MultivariateNormal(loc, covariance))

        scored = refined_elbo(Pair(joint_model, exact), batch, 1, samples=20)
        assert scored.standard_error < 1e-6


class TestDocuments:
    """Windows that start from states."""

    @pytest.mark.one_in(4)
    @pytest.mark.parametrize("kind", ["srnn", "vrnn", "auto"])
    @pytest.mark.parametrize("method", ["importance", "elbo", "filter"])
    def test_windows_are_refined_one_after_the_other(self, kind: str, method: Any) -> None:
        if kind == "auto" and method == "filter":
            pytest.skip("a path of a function is not filtered")
        pair, batch = shipped(kind), SequenceBatch(torch.randint(4, (1, 8)))
        parts = list(windows(batch, 3))
        torch.manual_seed(0)
        *_, scored = score_document(pair, parts, method=method, samples=8, refine=4)
        assert scored.refined == 4 and bool(scored.total.isfinite().all())

    @pytest.mark.slow
    def test_functions_reach_the_likelihood_over_windows(self) -> None:
        """q(z_t | z_{t-1}) with the exact slopes, each window's posterior given its state."""

        def going_on(batch: SequenceBatch) -> Result:
            z = torch.zeros(len(batch)) if batch.state is None else batch.state["guide"]
            slopes = _slopes(batch)
            with batch.plate():
                for t in batch.steps():
                    with batch.active(t):
                        first = t == 0 and batch.state is None
                        loc = 0.7 + (0.0 if first else slopes[:, t] * z)
                        z = pyro.sample(f"z_{t}", dist.Normal(loc * torch.ones(len(batch)), 1.2))
            return Result(z)

        batch = SequenceBatch(X.expand(1, -1))
        torch.manual_seed(0)
        *_, scored = score_document(
            Pair(model, going_on), windows(batch, 2), samples=400, refine=60
        )
        exact = exact_log_likelihood(X.expand(1, -1), [4])
        assert abs(scored.total - exact) < 4 * scored.standard_error + 0.02
        assert scored.effective_samples is not None and scored.effective_samples > 100


class TestRefused:
    """What cannot be refined is said in a line."""

    def test_sites_by_name_and_reason(self, batch: SequenceBatch) -> None:
        def guide(batch: SequenceBatch, fn: Any) -> None:
            with batch.plate():
                pyro.sample("w", fn)

        def plain(batch: SequenceBatch) -> None:
            with batch.plate():
                pyro.sample("w", dist.Normal(0.0, 1.0))
                for t in batch.steps():
                    with batch.active(t):
                        pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0), obs=batch.at(t))

        one = torch.ones(3)
        for fn, why in (
            (dist.Poisson(one), "its Poisson is not reparameterised"),
            (dist.Gamma(one, one), "its Gamma is no map of a location and a scale"),
        ):
            with pytest.raises(UserError, match=f"'w' of the guide cannot be refined.*{why}"):
                score(Pair(plain, partial(guide, fn=fn)), batch, refine=3)
        # mapped normals and others of a location and a scale can be
        for fn in (dist.Laplace(one, one), dist.LogNormal(one, one)):
            score(Pair(plain, partial(guide, fn=fn)), batch, refine=3)

    def test_options(self, batch: SequenceBatch) -> None:
        pair = Pair(model, flat_guide)
        with pytest.raises(UserError, match="refine improves the guide's proposals"):
            score(pair, batch, refine=3, proposal="prior")
        with pytest.raises(UserError, match="steps to refine the guide by"):
            score(pair, batch, refine=-1)

    def test_an_exact_figure_is_left_alone(self) -> None:
        rnn = RNN(Categorical(4), PreviousObservation(OneHot(4)), hidden_size=3)
        scored = score(Pair(rnn), symbols(), refine=5)
        assert scored.exact and scored.refined == 0
