"""The particle filter by steps: against the likelihood, the posterior and the missing observations
of a linear-Gaussian model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import LastObservations, PreviousObservation
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Bernoulli, Categorical, Normal
from pyro_seq.encoders import Flatten, OneHot
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.errors import UserError
from pyro_seq.guides import DMMGuide, ISEQGuide, SRNNGuide, VRNNGuide
from pyro_seq.infer.likelihood.document import score_document
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.smc import particle_filter as filtering
from pyro_seq.infer.smc.particle_filter import particle_filter
from pyro_seq.infer.smc.steps import Steps
from pyro_seq.models import DMM, ISEQ, RNN, SRNN, VRNN
from pyro_seq.pairs.pair import Pair

Maker = Callable[..., Pair]
X = torch.tensor(
    [[0.4, -1.1, 1.3, 0.7, 2.0, -0.3, -1.5, 0.2, 0.9, 1.6, -0.8, 0.1]], dtype=torch.float64
)


def repeated(pair: Pair, n: int, x: Tensor = X) -> SequenceBatch:
    model: Any = pair.model
    return model.batch(x.expand(n, -1))


def exact(pair: Pair, x: Tensor = X) -> Tensor:
    model: Any = pair.model
    return model.log_likelihood(x)[0]


class TestLikelihood:
    @pytest.mark.parametrize("layout", ["path", "steps"])
    @pytest.mark.parametrize(
        ("proposal", "options"), [("prior", {}), ("guide", {"shift": 0.3, "widen": 1.3})]
    )
    def test_is_estimated_without_bias(
        self, linear_gaussian: Maker, layout: str, proposal: Any, options: Any
    ) -> None:
        pair, n = linear_gaussian(layout, **options), 2_000
        filtered = particle_filter(
            pair, repeated(pair, n), samples=10, proposal=proposal, paths=False
        )
        assert (filtered.particles.generations > 0).any()
        ratio = (filtered.steps.sum(-1) - exact(pair)).exp()
        assert (ratio.mean() - 1).abs() < 4 * ratio.std() / math.sqrt(n)
        torch.testing.assert_close(filtered.particles.total, filtered.steps.sum(-1))
        torch.testing.assert_close(filtered.log_weights.exp().sum(-1), torch.ones(n))

    def test_over_windows_without_bias(self, linear_gaussian: Maker) -> None:
        pair, n = linear_gaussian(), 2_000
        batch = repeated(pair, n)
        windows = [pair.model.batch(batch.values[:, a:b]) for a, b in ((0, 5), (5, 6), (6, 12))]  # type: ignore[attr-defined, union-attr]
        parts = list(score_document(pair, windows, method="filter", samples=10, proposal="prior"))
        ratio = (parts[-1].total - exact(pair)).exp()
        assert (ratio.mean() - 1).abs() < 4 * ratio.std() / math.sqrt(n)
        torch.testing.assert_close(parts[-1].total, sum(part.log_likelihood for part in parts))

    def test_error_falls_as_one_over_the_root_of_k(self, linear_gaussian: Maker) -> None:
        pair, n, x = linear_gaussian(), 400, X[:, :6]
        spreads, errors = [], []
        for samples in (50, 200, 800):
            scored = score(
                pair, repeated(pair, n, x), method="filter", samples=samples, proposal="prior"
            )
            spreads.append(scored.total.std())
            errors.append(scored.variance.mean().sqrt())
        # of a ratio of two standard deviations of 400 draws each
        slack = 4 / math.sqrt(2 * n) * math.sqrt(2)
        for several in (spreads, errors):
            for coarse, fine in itertools.pairwise(several):
                assert abs(math.log(coarse / fine) - math.log(2)) < slack + 0.05

    def test_few_at_once_is_the_same(self, linear_gaussian: Maker) -> None:
        """Rows are worked on in groups: their figures stay their own."""
        pair = linear_gaussian()
        batch = pair.model.batch(torch.randn(5, 6), [6, 2, 4, 1, 3])  # type: ignore[union-attr, operator]
        with mock.patch.object(filtering, "ROWS", 3_000):
            filtered = particle_filter(pair, batch, samples=3_000, proposal="prior")
        for row, length in enumerate([6, 2, 4, 1, 3]):
            expected = pair.model.log_likelihood(batch.values[row : row + 1, :length])[0]  # type: ignore[union-attr, operator, index]
            assert (
                filtered.particles.total[row] - expected
            ).abs() < 5 * filtered.particles.variance[row].sqrt()
        assert not filtered.steps[~batch.mask].any()
        assert filtered.latents is not None and filtered.latents.shape == (5, 3_000, 6, 1)
        assert filtered.state["model"]["latent"].shape == (15_000, 1)


class TestPosterior:
    def test_paths_are_draws_from_it(self, linear_gaussian: Maker) -> None:
        """Their weighted mean is the posterior's; the error of a resampled path's mean is taken
        from 40 filters.
        """
        pair, n, x = linear_gaussian(shift=0.3, widen=1.3), 40, X[:, :5]
        filtered = particle_filter(pair, repeated(pair, n, x), samples=2_000)
        assert filtered.latents is not None
        means = (filtered.log_weights.exp()[..., None] * filtered.latents[..., 0]).sum(1)
        mean, _ = pair.model.posterior(x)  # type: ignore[union-attr, operator]
        assert ((means.mean(0) - mean[0]).abs() < 4 * means.std(0) / math.sqrt(n)).all()
        torch.testing.assert_close(
            filtered.state["model"]["latent"].view(n, 2_000, 1), filtered.latents[:, :, -1]
        )

    @pytest.mark.parametrize("proposal", ["guide", "prior"])
    def test_of_what_is_missing(self, linear_gaussian: Maker, proposal: Any) -> None:
        pair, n, x = linear_gaussian(widen=1.5), 100, X[:, :6]
        missing = torch.tensor([False, True, True, False, True, False])
        filtered = particle_filter(
            pair,
            repeated(pair, n, x),
            samples=2_000,
            proposal=proposal,
            missing=missing.expand(n, -1),
        )
        model: Any = pair.model
        expected = model.log_likelihood(x, ~missing)[0]
        ratio = (filtered.particles.total - expected).exp()
        assert (ratio.mean() - 1).abs() < 4 * ratio.std() / math.sqrt(n)
        weights = filtered.log_weights.exp()
        mean, covariance = model.posterior(x, ~missing)
        draws = (weights.unsqueeze(-1) * filtered.values).sum(1)
        assert torch.equal(filtered.values[..., ~missing], x[0, ~missing].expand(n, 2_000, -1))
        assert ((draws.mean(0) - mean[0]).abs() < 4 * draws.std(0) / math.sqrt(n) + 1e-12)[
            missing
        ].all()
        second = (weights.unsqueeze(-1) * filtered.values**2).sum(1)
        spread = covariance.diagonal() + model.R**2 + mean[0] ** 2
        assert ((second.mean(0) - spread).abs() < 4 * second.std(0) / math.sqrt(n) + 1e-12)[
            missing
        ].all()

    def test_missing_symbols_of_an_autoregressive_model(self) -> None:
        """Without latents: p(x_1, x_3) and p(x_2 | x_1, x_3) by enumeration."""
        torch.manual_seed(2)
        rnn = RNN(Categorical(3), PreviousObservation(OneHot(3)), hidden_size=4).eval()
        for parameter in rnn.parameters():
            parameter.data.mul_(3)
        x = torch.tensor([[0, 0, 2]])
        whole = [
            float(score(Pair(rnn), SequenceBatch(torch.tensor([[0, k, 2]]))).total)
            for k in range(3)
        ]
        n, samples = 50, 400
        missing = torch.tensor([[False, True, False]]).expand(n, -1)
        filtered = particle_filter(
            Pair(rnn), SequenceBatch(x.expand(n, -1)), samples=samples, missing=missing
        )
        joint = torch.tensor(whole).exp()
        ratio = filtered.particles.total.exp() / joint.sum()
        assert (ratio.mean() - 1).abs() < 4 * ratio.std() / math.sqrt(n)
        found = torch.stack(
            [
                (filtered.log_weights.exp() * (filtered.values[..., 1] == k)).sum(1)
                for k in range(3)
            ],
            -1,
        )
        assert (
            (found.mean(0) - joint / joint.sum()).abs() < 4 * found.std(0) / math.sqrt(n) + 1e-3
        ).all()
        assert filtered.latents is None


class TestMissingBeforeAWindow:
    """Each particle goes on from what it has drawn itself, which is what its window's steps depend
    on.
    """

    def test_likelihood_of_an_autoregressive_model(self) -> None:
        """p(x_1, x_4, x_5, x_6) by enumeration of x_2 and x_3, on which x_4 and x_5 depend; x_5 is
        missing too in half of the sequences.
        """
        torch.manual_seed(4)
        rnn = RNN(Categorical(3), LastObservations(OneHot(3), 2), hidden_size=3, skip=True).eval()
        for parameter in rnn.parameters():
            parameter.data.mul_(4)
        pair, n = Pair(rnn), 10
        x = torch.tensor([[0, 0, 0, 2, 1, 0]])
        missing = torch.tensor([[False, True, True, False, False, False]] * n)
        missing[::2, 4] = True
        filled = torch.tensor(
            [[0, a, b, 2, c, 0] for a in range(3) for b in range(3) for c in range(3)]
        )
        joint = score(pair, SequenceBatch(filled)).total
        exact = torch.where(
            missing[:, 4], joint.logsumexp(0), joint[filled[:, 4] == 1].logsumexp(0)
        )
        for later in (missing[:, 3:], None):
            rows = slice(None) if later is not None else slice(1, None, 2)
            batch = SequenceBatch(x.expand(n, -1)[rows])
            first = particle_filter(
                pair, SequenceBatch(batch.values[:, :3]), samples=2_000, missing=missing[rows, :3]
            )
            carried: Any = {"particles": first.particles, "state": first.state}
            second = particle_filter(
                pair, SequenceBatch(batch.values[:, 3:]), samples=2_000, missing=later, **carried
            )
            assert (second.particles.generations > 0).all(), (
                "particles move with what they remember"
            )
            errors = second.particles.variance.sqrt()
            assert (errors > 1e-3).all() and (
                (second.particles.total - exact[rows]).abs() < 5 * errors
            ).all()

    @pytest.mark.parametrize("kind", ["srnn", "vrnn"])
    def test_windows_with_a_guide_agree_with_one(self, kind: str, float64: None) -> None:
        """The last step of the first window is missing: the spread of the estimates is what they
        say, with and without windows.
        """
        torch.manual_seed(4)
        pair, n = shipped(kind, "path"), 60
        for parameter in pair.model.parameters():  # type: ignore[union-attr]
            parameter.data.mul_(2)
        values = {
            "k": torch.randint(3, (1, 4)),
            "notes": torch.randint(2, (1, 4, 2)).float(),
            "y": torch.randn(1, 4),
        }
        values = {name: x.expand(n, *x.shape[1:]) for name, x in values.items()}
        missing = torch.tensor([[False, True, False, False]] * n)
        whole = particle_filter(
            pair, SequenceBatch(values), samples=200, missing=missing, paths=False
        ).particles
        first, second = (
            {name: x[:, part] for name, x in values.items()} for part in (slice(0, 2), slice(2, 4))
        )
        before = particle_filter(pair, SequenceBatch(first), samples=200, missing=missing[:, :2])
        after = particle_filter(
            pair, SequenceBatch(second), samples=200, particles=before.particles, state=before.state
        ).particles
        ratio = (after.total - whole.total.mean()).exp(), (whole.total - whole.total.mean()).exp()
        error = math.hypot(*(float(r.std()) / math.sqrt(n) for r in ratio))
        assert (ratio[0].mean() - ratio[1].mean()).abs() < 4 * error
        assert abs(math.log(after.variance.mean() / after.total.var())) < 4 * math.sqrt(2 / n) + 0.2

    def test_what_was_observed_is_still_shared(self) -> None:
        rnn = RNN(Categorical(3), PreviousObservation(OneHot(3)), hidden_size=4).eval()
        batch, k = SequenceBatch(torch.tensor([[0, 2], [1, 1]])), 5
        for missing, lead in (
            (None, (2,)),
            (torch.tensor([[False, True]] * 2), (k, 2)),
            (torch.tensor([[True, False]] * 2), (2,)),
        ):
            torch.manual_seed(0)
            state = particle_filter(Pair(rnn), batch, samples=k, missing=missing).state
            run = Steps(Pair(rnn), batch, k, "prior", None, state)
            assert run.state["context"]["known"].shape == (*lead, 1)


def shipped(kind: str, layout: str) -> Pair:
    emission = Joint({"k": Categorical(3), "notes": Factorised(Bernoulli(), 2), "y": Normal()})
    encoders = [
        JointEncoder({"k": OneHot(3), "notes": Flatten((2,)), "y": Flatten(())}) for _ in range(2)
    ]
    makers: dict[str, Any] = {
        "iseq": (ISEQ, ISEQGuide),
        "srnn": (SRNN, SRNNGuide),
        "vrnn": (VRNN, VRNNGuide),
        "dmm": (DMM, DMMGuide),
    }
    of_model, of_guide = makers[kind]
    options: dict[str, Any] = {"conditional": True} if kind == "dmm" else {"hidden_size": 6}
    model = of_model(
        emission, PreviousObservation(encoders[0]), latent_size=2, layout=layout, **options
    )
    # else weights have no variance
    wide: dict[str, Any] = {"epsilon": 0.5} | ({"num_flows": 1} if kind == "dmm" else {})
    return Pair(model, of_guide(model, encoders[1], hidden_size=6, **wide))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("kind", ["iseq", "srnn", "vrnn", "dmm"])
def test_shipped_pairs_agree_with_importance_sampling(
    kind: str, layout: str, float64: None
) -> None:
    """Ragged, a named group, at once and in windows: the mean of the likelihoods of four ways to
    estimate it is one.
    """
    torch.manual_seed(4)
    pair, n = shipped(kind, layout), 80
    values = {
        "k": torch.randint(3, (2, 4)),
        "notes": torch.randint(2, (2, 4, 2)).float(),
        "y": torch.randn(2, 4),
    }
    batch = SequenceBatch(
        {name: value.repeat(n, *(1,) * (value.dim() - 1)) for name, value in values.items()},
        [4, 3] * n,
    )
    halves = []
    for a, b in ((0, 2), (2, 4)):
        half = {name: value[:, a:b] for name, value in batch.values.items()}  # type: ignore[union-attr]
        halves.append(SequenceBatch(half, (batch.lengths - a).clamp(0, b - a)))
    ways: list[tuple[list[SequenceBatch], Any, Any]] = [
        ([batch], "importance", "prior"), ([batch], "importance", "guide"),
        ([batch], "filter", "prior"), ([batch], "filter", "guide"),
        (halves, "filter", "guide"), (halves, "filter", "prior"), (halves, "importance", "guide"),
        (halves, "importance", "prior"),
    ]  # fmt: skip
    logs = []
    for windows, method, proposal in ways:
        scored = list(score_document(pair, windows, method=method, samples=60, proposal=proposal))[
            -1
        ]
        assert not scored.steps[~windows[-1].mask].any() and scored.method == method
        logs.append(scored.total.view(n, 2))
    for row in range(2):
        reference = logs[0][:, row].mean()
        ratios = [(log[:, row] - reference).exp() for log in logs]
        for ratio in ratios[1:]:
            error = math.hypot(ratio.std() / math.sqrt(n), ratios[0].std() / math.sqrt(n))
            assert (ratio.mean() - ratios[0].mean()).abs() < 4.5 * error


def test_missing_steps_of_pairs_that_it_cannot_run_by_steps(linear_gaussian: Maker) -> None:
    pair = Pair(linear_gaussian().model, lambda batch: None)
    batch = repeated(linear_gaussian(), 1)
    with pytest.raises(
        UserError, match="proposals from the guide needs a SequenceModel with a SequenceGuide"
    ):
        particle_filter(pair, batch, samples=2, missing=[2])
    with pytest.raises(UserError, match=r"from the prior needs a SequenceModel$"):
        particle_filter(Pair(lambda batch: None), batch, samples=2, proposal="prior", missing=[2])


def test_no_step_and_no_observations() -> None:
    pair = shipped("srnn", "path")
    law = pair.model.emission.blank(2, 1)  # type: ignore[attr-defined]
    none = SequenceBatch({name: part.sample()[:, :0] for name, part in law.items()})
    found = particle_filter(pair, none, samples=3)
    assert found.steps.shape == (2, 0) and found.particles.total.eq(0).all()
    with pytest.raises(UserError, match="a particle filter needs observations"):
        particle_filter(pair, SequenceBatch(None, [3, 2]), samples=3)
