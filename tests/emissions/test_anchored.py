"""`Anchored`: location and scale against the sums of its equations."""

from __future__ import annotations

import pytest
import torch

from pyro_seq.emissions import Anchored, Bernoulli, NegativeBinomial, StudentT
from pyro_seq.emissions.numeric import LowRankStudentT
from pyro_seq.errors import UserError


def test_location_and_scale_are_those_of_the_equations() -> None:
    torch.manual_seed(0)
    emission = Anchored(StudentT(), 2, anchors=3, errors=2).double()
    with torch.no_grad():
        for weights in emission.parameters():
            weights.normal_()
    anchors, errors = torch.randn(3, 2).double(), torch.randn(2, 3, 2).double()
    known = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]]).double()
    features = torch.randn(emission.num_features).double()
    passed_on = torch.cat([anchors[None], known[None], errors]).flatten()
    law = emission(features, passed_on).base_dist
    by_location, by_scale = features[:12].view(2, 3, 2)
    own = (features[12:] + emission.base).view(2, 3)
    for c in range(2):
        there = known[:, c] > 0
        score = emission.location_weights[:, c] + by_location[:, c]
        score = score - (emission.error_powers[:, None, c] * errors[..., c]).sum(0)
        share = score[there].exp() / score[there].exp().sum()
        location = (share * anchors[there, c]).sum()
        weights = emission.scale_weights[:, there, c] + by_scale[there, c]
        mixed = weights.exp() * share
        scale = ((mixed / mixed.sum()) * errors[:, there, c]).sum().exp()
        alone = StudentT().around(location, scale, own[c])
        for name in ("df", "loc", "scale"):
            expected = getattr(alone, name)
            torch.testing.assert_close(getattr(law, name)[c], expected, rtol=1e-12, atol=1e-12)


def test_new_one_follows_the_anchor_with_the_smallest_error() -> None:
    emission = Anchored(NegativeBinomial(), 1, anchors=2)
    known = torch.ones(2)
    passed_on = torch.cat([torch.tensor([10.0, 90.0]), known, torch.tensor([0.0, 8.0])])
    law = emission(torch.zeros(emission.num_features), passed_on)
    assert float(law.mean.detach()) == pytest.approx(10.0, rel=1e-4)


def test_anchor_that_is_not_known_may_be_anything() -> None:
    emission = Anchored(StudentT(), 1, anchors=2)
    found = []
    for value in (0.0, torch.inf):
        anchors = torch.tensor([3.0, value])
        passed_on = torch.cat([anchors, torch.tensor([1.0, 0.0]), torch.zeros(2)])
        features = torch.zeros(emission.num_features, requires_grad=True)
        emission(features, passed_on).log_prob(torch.ones(1)).backward()
        found.append(features.grad)
    assert torch.equal(*found) and found[0].isfinite().all()


def test_vectors_are_located_whole() -> None:
    emission = Anchored(LowRankStudentT(3, 2), 3, anchors=4, errors=2)
    law = emission.blank(5)
    assert law.event_shape == (3,) and law.batch_shape == (5,)
    assert law.sample().isfinite().all()


def test_what_has_no_location_is_refused() -> None:
    with pytest.raises(UserError, match="Bernoulli has no location"):
        Anchored(Bernoulli(), 1, anchors=2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="of one column or of all 2"):
        Anchored(LowRankStudentT(3, 1), 2, anchors=2)
