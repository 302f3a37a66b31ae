"""`LazyCategorical` against Pyro's own `Categorical`: equal in everything but the time it takes."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from torch.distributions import kl_divergence

from pyro_seq.distributions.categorical import LazyCategorical

pytestmark = pytest.mark.usefixtures("float64")

MANY = 100_000


def both(*shape: int) -> tuple[LazyCategorical, dist.Categorical]:
    scores = 3 * torch.randn(*shape)
    return LazyCategorical(scores), dist.Categorical(logits=scores)


def test_densities_and_moments() -> None:
    lazy, eager = both(4, 3, 5)
    assert (lazy.batch_shape, lazy.event_shape, lazy.param_shape) == (
        eager.batch_shape,
        eager.event_shape,
        eager.param_shape,
    )
    symbols = torch.randint(5, (4, 3))
    torch.testing.assert_close(lazy.log_prob(symbols), eager.log_prob(symbols))
    torch.testing.assert_close(lazy.logits, eager.logits)
    torch.testing.assert_close(lazy.probs, eager.probs)
    torch.testing.assert_close(lazy.entropy(), eager.entropy())
    torch.testing.assert_close(kl_divergence(lazy, both(4, 3, 5)[1]).shape, eager.batch_shape)
    torch.testing.assert_close(lazy.enumerate_support(), eager.enumerate_support())
    support = lazy.enumerate_support(expand=False)
    torch.testing.assert_close(lazy.log_prob(support), eager.log_prob(eager.enumerate_support()))


def test_gradients() -> None:
    scores, symbols = torch.randn(4, 5, requires_grad=True), torch.randint(5, (4,))
    (lazy,) = torch.autograd.grad(LazyCategorical(scores).log_prob(symbols).sum(), scores)
    (eager,) = torch.autograd.grad(dist.Categorical(logits=scores).log_prob(symbols).sum(), scores)
    torch.testing.assert_close(lazy, eager)


def test_expanded_masked_and_made_an_event() -> None:
    lazy, eager = both(3, 5)
    symbols, mask = torch.randint(5, (2, 3)), torch.tensor([True, False, True])
    for change in (
        lambda d: d.expand((2, 3)),
        lambda d: d.expand((2, 3)).mask(mask),
        lambda d: d.to_event(1).expand((2,)),
        lambda d: d.mask(mask).to_event(1).expand((2,)),
    ):
        torch.testing.assert_close(change(lazy).log_prob(symbols), change(eager).log_prob(symbols))
        assert change(lazy).sample().shape == change(eager).sample().shape


@pytest.mark.parametrize("sample_shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize("batch_shape", [(), (4,), (4, 1)])
def test_shapes_of_samples(batch_shape: tuple[int, ...], sample_shape: tuple[int, ...]) -> None:
    lazy, eager = both(*batch_shape, 5)
    sample, expected = lazy.sample(torch.Size(sample_shape)), eager.sample(torch.Size(sample_shape))
    assert sample.shape == expected.shape and sample.dtype == expected.dtype


def test_frequencies() -> None:
    """Each within five standard errors of its probability; what is impossible never occurs, at the
    ends and in between.
    """
    never = -torch.inf
    scores = torch.tensor(
        [[never, 0.0, never, 2.0, -6.0, never], [1.0, never, 0.5, never, never, 0.0]]
    )
    p = scores.softmax(-1)
    sample = LazyCategorical(scores, validate_args=False).sample((MANY,))
    counts = torch.stack([torch.bincount(column, minlength=6) for column in sample.unbind(1)])
    assert ((counts / MANY - p).abs() <= 5 * (p * (1 - p) / MANY).sqrt()).all()
    assert (counts[p == 0] == 0).all() and (counts[p > 0] > 0).all()


def test_float32_reaches_small_probabilities() -> None:
    """A symbol below float32's resolution of uniform numbers is not left out of the distribution
    function.
    """
    lazy = LazyCategorical(torch.tensor([0.0, -20.0], dtype=torch.float32))
    assert lazy.probs.cumsum(-1, dtype=torch.double).diff().item() == pytest.approx(
        2.06e-9, rel=1e-2
    )
    assert lazy.sample().dtype == torch.long


def test_bad_scores_are_refused_under_validation() -> None:
    with pytest.raises(ValueError, match="unnormalised"):
        LazyCategorical(torch.tensor([0.0, torch.nan]))


def test_enumeration() -> None:
    """Pyro sums it out as it does its own."""
    scores, loc, x = torch.randn(3), torch.tensor([-1.0, 0.0, 2.0]), torch.randn(6)

    def model(kind: object) -> None:
        with pyro.plate("sequences", 6):
            z = pyro.sample("z", kind(scores))  # type: ignore[operator]
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    def loss(kind: object) -> float:
        enumerated = config_enumerate(lambda: model(kind))
        return SVI(
            enumerated, lambda: None, pyro.optim.Adam({}), TraceEnum_ELBO(max_plate_nesting=1)
        ).evaluate_loss()

    assert loss(LazyCategorical) == pytest.approx(
        loss(lambda scores: dist.Categorical(logits=scores)), rel=1e-12
    )


@pytest.mark.parametrize("num", [600, 640, 5_000])
def test_many_symbols_are_drawn_by_their_probabilities(num: int) -> None:
    logits = 2 * torch.randn(2, num)
    logits[0, ::3] = -torch.inf  # as top-k leaves them
    draws = LazyCategorical(logits).sample((MANY,))
    assert draws.shape == (MANY, 2)
    for row in range(2):
        counts = torch.bincount(draws[:, row], minlength=num).double()
        p = logits[row].softmax(-1)
        assert not counts[p == 0].any()
        groups = torch.arange(num) // 20  # so that each is expected often enough
        expected, seen = (
            torch.zeros(int(groups[-1]) + 1).index_add(0, groups, x) for x in (MANY * p, counts)
        )
        statistic = ((seen - expected).square() / expected).sum()
        freedom = len(expected) - 1
        # the deviation of a chi-squared statistic
        assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


def test_uniform_numbers_at_the_edges_give_possible_symbols(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = torch.full((3, 1_000), -torch.inf)
    for row, symbol in enumerate((0, 517, 999)):
        logits[row, symbol] = 0.0
    for edge in (0.0, 1.0):  # torch.rand gives 0, and nearly gives 1
        monkeypatch.setattr(
            torch,
            "rand",
            lambda *shape, edge=edge, **kwargs: torch.full(shape, edge, dtype=torch.double),
        )
        assert LazyCategorical(logits).sample().tolist() == [0, 517, 999]


@pytest.mark.parametrize("num", [5, 1_000])
def test_symbols_of_no_probability_are_refused(num: int) -> None:
    with pytest.raises(ValueError, match="probability tensor"):
        LazyCategorical(torch.full((2, num), torch.nan), validate_args=False).sample()
