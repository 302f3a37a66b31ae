"""Discretised logistics: sums over all 256 values, mixtures over pixels, channels left out."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pyro_seq.distributions.cells import conditioned, mask_cells
from pyro_seq.distributions.numeric.logistic import LEVELS, DiscretisedLogistic, PixelMixture

VALUES = torch.arange(LEVELS)
PARAMETERS = [(0.0, 0.01), (127.5, 0.5), (254.0, 3.0), (300.0, 40.0), (-40.0, 1_000.0), (60.0, 7.0)]


@pytest.mark.parametrize(("loc", "scale"), PARAMETERS)
def test_sums_to_one(loc: float, scale: float) -> None:
    for dtype, most in ((torch.double, 1e-12), (torch.float, 1e-5)):
        law = DiscretisedLogistic(torch.tensor(loc, dtype=dtype), torch.tensor(scale, dtype=dtype))
        assert abs(float(law.log_prob(VALUES.to(dtype)).exp().sum()) - 1) < most
        assert float(law.mean) == pytest.approx(
            float((law.log_prob(VALUES.to(dtype)).exp() * VALUES).sum()), rel=1e-4, abs=1e-4
        )


def test_is_the_difference_of_sigmoids() -> None:
    loc, scale = torch.tensor(90.0, dtype=torch.double), torch.tensor(6.0, dtype=torch.double)
    edges = torch.arange(LEVELS - 1, dtype=torch.double) + 0.5
    below = torch.cat([edges.new_zeros(1), ((edges - loc) / scale).sigmoid(), edges.new_ones(1)])
    direct = below.diff().log()
    near = direct > -20  # beyond, the difference has lost its digits
    found = DiscretisedLogistic(loc, scale).log_prob(VALUES.double())
    torch.testing.assert_close(found[near], direct[near], rtol=1e-6, atol=1e-6)
    assert found.isfinite().all()


def test_draws_follow_it() -> None:
    law = DiscretisedLogistic(torch.tensor(3.0), torch.tensor(2.0))
    drawn = law.sample([40_000])
    for value in range(6):
        p = float(law.log_prob(torch.tensor(float(value))).exp())
        share = float((drawn == value).double().mean())
        assert abs(share - p) < 5 * (p * (1 - p) / 40_000) ** 0.5, value


def mixture(k: int = 3, colours: int = 2) -> PixelMixture:
    torch.manual_seed(0)
    logits, loc = torch.randn(k, 1, 1), torch.rand(k, colours, 1, 1) * 255
    return PixelMixture(logits.double(), loc.double(), (torch.rand_like(loc) * 30 + 1).double())


def by_hand(law: PixelMixture, x: Tensor, channels: list[int]) -> Tensor:
    """The density of some channels of one pixel, as a sum over the components."""
    weights = law.logits.softmax(-3)[:, 0, 0]
    parts = torch.stack(
        [
            torch.stack(
                [
                    DiscretisedLogistic(law.loc[k, c, 0, 0], law.scale[k, c, 0, 0])
                    .log_prob(x[..., c, 0, 0])
                    .exp()
                    for c in channels
                ]
            ).prod(0)
            for k in range(len(weights))
        ]
    )
    return (weights[:, None] * parts).sum(0).log()


def test_a_mixture_is_a_sum_over_components_and_sums_to_one() -> None:
    law = mixture(colours=1)
    x = VALUES.double().view(-1, 1, 1, 1)
    density = law.expand([LEVELS]).log_prob(x)
    torch.testing.assert_close(density, by_hand(law, x, [0]))
    assert abs(float(density.exp().sum()) - 1) < 1e-6


def test_channels_that_are_missing_leave_the_sum() -> None:
    law, x = mixture(), torch.tensor([[[40.0]], [[200.0]]], dtype=torch.double)
    whole = law.log_prob(x)
    torch.testing.assert_close(whole, by_hand(law, x[None], [0, 1])[0])
    seen = torch.tensor([True, False]).view(2, 1, 1)
    told = mask_cells(law, seen)
    torch.testing.assert_close(told.log_prob(x), by_hand(law, x[None], [0])[0])
    rest = conditioned(law, x, seen)
    given = mask_cells(rest, ~seen).log_prob(x)
    torch.testing.assert_close(told.log_prob(x) + given, whole)


def test_draws_of_pixels_share_their_component() -> None:
    far = PixelMixture(
        torch.zeros(2, 1, 1),
        torch.tensor([20.0, 220.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1),
        torch.ones(2, 3, 1, 1),
    )
    drawn = far.sample([2_000])[..., 0, 0]
    assert ((drawn > 120).float().mean(-1) % 1 == 0).all()
    assert float(far.mean[0, 0, 0]) == pytest.approx(120, abs=0.1)
    assert abs(float((drawn > 120).float().mean()) - 0.5) < 0.05
    for lead, batch in itertools.product(([], [4]), ([], [5])):
        assert far.expand(batch).sample(lead).shape == (*lead, *batch, 3, 1, 1)
