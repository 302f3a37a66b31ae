"""Noise on what a context sees: in training alone, the same for all that look, never the target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import LastObservations, PreviousObservation, SplitContext
from pyro_seq.contexts.noisy import NoisyObservations
from pyro_seq.encoders import Flatten
from pyro_seq.nn.pictures import PixelNoise

SHAPE = (2, 4, 4)


def films(steps: int = 5) -> SequenceBatch:
    values = torch.rand(3, steps, *SHAPE, generator=torch.Generator().manual_seed(0))
    return SequenceBatch(values, [steps, steps - 1, steps])


def context(rate: float) -> NoisyObservations:
    seen = PreviousObservation(Flatten(SHAPE))
    return NoisyObservations(
        SplitContext(seen, LastObservations(Flatten(SHAPE), 2)), PixelNoise(rate)
    )


def test_pixels_are_replaced_by_others_of_the_same_picture() -> None:
    torch.manual_seed(0)
    noise, pictures = PixelNoise(0.3), torch.arange(40 * 3 * 400.0).view(40, 3, 20, 20)
    found = noise(pictures)
    changed = found != pictures
    assert (changed == changed[:, :1]).all(), "all channels of a pixel come from one place"
    touched = changed.flatten(1).any(1)
    assert 8 < int(touched.sum()) < 32, "half of the pictures are left whole"
    # each of their pixels is replaced with probability 0.3, one in 400 of them by itself
    share, count = float(changed[touched, 0].float().mean()), 400 * int(touched.sum())
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / count) ** 0.5
    low, high = pictures.amin((-2, -1), True), pictures.amax((-2, -1), True)
    assert ((found >= low) & (found <= high)).all(), "values are those of the channel"
    assert torch.equal(noise.eval()(pictures), pictures)
    with pytest.raises(ValueError, match="rate of noise"):
        PixelNoise(1.0)


def test_nothing_is_changed_but_in_training() -> None:
    noisy, batch = context(0.5), films()
    plain = noisy.context
    state = noisy.initial(len(batch))
    noisy.eval()
    for found, wanted in zip(noisy.over(batch, state), plain.over(batch, state), strict=True):
        torch.testing.assert_close(found, wanted)
    noisy.train()
    assert not torch.equal(noisy.over(batch, state)[0], plain.over(batch, state)[0])


def test_networks_and_emission_see_the_same_noise() -> None:
    noisy, batch = context(0.5), films()
    features, _ = noisy.over(batch, noisy.initial(len(batch)))
    size = noisy.num_features
    last = features[..., -size:]  # what is passed on ends with the most recent frame
    torch.testing.assert_close(features[..., :size], last)
    assert noisy.emission_only().emission_context_size == noisy.emission_context_size


def test_what_was_not_seen_stays_zero() -> None:
    noisy = context(0.9)
    missing = torch.rand(3, 5, *SHAPE, generator=torch.Generator().manual_seed(1)) < 0.5
    batch = films().with_missing(missing)
    assert isinstance(batch.values, Tensor)
    shown, _ = noisy.over(batch, noisy.initial(len(batch)))
    first = shown[:, 1:, : noisy.num_features].view(3, 4, *SHAPE)
    assert (first[missing[:, :-1]] == 0).all()
    state = noisy.observe(noisy.initial(3), batch.values[:, 0], batch.seen[:, 0])
    stepped = noisy.features(state, None)[:, : noisy.num_features].view(3, *SHAPE)
    assert (stepped[missing[:, 0]] == 0).all()
    assert (stepped != batch.values[:, 0]).any()
