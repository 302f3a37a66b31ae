"""Emissions and encoders of pictures: any size, the last frames, missing pixels, wrapping."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_seq.batch import SequenceBatch
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import LastObservations, PreviousObservation, SplitContext
from pyro_seq.emissions.pictures import PIXELS, Pictures
from pyro_seq.encoders import Conv2d, Flatten, encode
from pyro_seq.errors import UserError
from pyro_seq.infer.infilling import infill
from pyro_seq.pairs.pair import Pair
from pyro_seq.testing import check_pair

SMALL: dict[str, Any] = {"channels": (3, 2), "hidden_size": 4, "activation": "tanh"}


@pytest.mark.parametrize("pixel", PIXELS)
@pytest.mark.parametrize(("shape", "count"), [((1, 8, 8), 0), ((3, 5, 7), 2), ((4, 1, 3), 1)])
def test_any_size(pixel: str, shape: tuple[int, int, int], count: int) -> None:
    emission = Pictures(shape, 6, pixel=pixel, count=count, kernel_sizes=(3, 3, 1), **SMALL)
    size = torch.Size(shape).numel()
    frames = [torch.zeros(2, 5, count * size)] if count else []
    law = emission(torch.randn(4, 2, 5, 6), *frames)
    x = law.sample()
    assert law.batch_shape == (4, 2, 5) and law.event_shape == shape == x.shape[3:]
    assert law.log_prob(x).isfinite().all()
    if pixel == "logistic":
        assert set(x.unique().tolist()) <= set(range(256))


def test_pixels_of_one_scale_are_least_squares(float64: None) -> None:
    emission = Pictures((2, 3, 4), 5, pixel="normal", scale_of_all=0.5, **SMALL)
    law, x = emission(torch.randn(6, 5)), torch.randn(6, 2, 3, 4)
    squares = (x - law.mean).square().sum((1, 2, 3)) / (2 * 0.5**2)
    constant = 24 * (math.log(0.5) + math.log(2 * math.pi) / 2)
    torch.testing.assert_close(law.log_prob(x), -squares - constant)


def test_particles_share_the_last_frames() -> None:
    emission = Pictures((1, 4, 4), 5, count=2, **SMALL)
    features, frames = torch.randn(3, 2, 5), torch.rand(2, 32)
    together = emission(features, frames).base_dist.logits
    for k in range(3):
        alone = emission(features[k], frames).base_dist.logits
        torch.testing.assert_close(together[k], alone)


def test_wrapping_moves_with_the_picture() -> None:
    emission = Pictures((1, 6, 6), 5, count=1, wraps=True, channels=(), hidden_size=4)
    features, frame = torch.randn(5), torch.rand(1, 6, 6)
    moved = frame.roll((2, 3), (1, 2))
    here, there = (
        emission(features, picture.flatten()).base_dist.logits for picture in (frame, moved)
    )
    torch.testing.assert_close(here.roll((2, 3), (1, 2)), there)


def test_what_is_refused() -> None:
    for wrong, says in (
        ({"shape": (5, 4, 4)}, "from 1 to 4 channels"),
        ({"shape": (4, 4)}, r"\[C, H, W\]"),
        ({"shape": (1, 4, 4), "kernel_sizes": (4, 1)}, "odd"),
        ({"shape": (1, 4, 4), "kernel_sizes": (3,)}, "at least two"),
        ({"shape": (1, 4, 4), "pixel": "logistics"}, "did you mean 'logistic'"),
    ):
        with pytest.raises(ValueError, match=says):
            Pictures(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="SplitContext"):
        Pictures((1, 4, 4), 3, count=1)(torch.zeros(3))


def test_an_encoder_is_told_what_was_seen_and_what_came_before() -> None:
    encoder = Conv2d((2, 5, 3), 6, channels=(4, 4), count=1, takes_seen=True)
    x, past = torch.rand(2, 3, 2, 5, 3), torch.rand(2, 3, 30)
    seen = torch.rand(x.shape) > 0.5
    assert encoder(x).shape == (2, 3, 6) and encoder.blank().shape == (2, 5, 3)
    assert encoder(encoder.blank()).shape == (6,)
    other = torch.where(seen, x, 0.7)
    torch.testing.assert_close(encode(encoder, x, seen, past), encode(encoder, other, seen, past))
    assert not torch.equal(encode(encoder, x, seen, past), encode(encoder, x, None, past))
    assert not torch.equal(encode(encoder, x, None, past), encoder(x))
    with pytest.raises(ValueError, match="at least one"):
        Conv2d((1, 4, 4), 3, channels=())


def pair_of(kind: str, shape: tuple[int, int, int], pixel: str = "bernoulli") -> Pair:
    emission = Pictures(shape, 5, pixel=pixel, count=1, kernel_sizes=(3, 1), **SMALL)

    def encoder(count: int = 1) -> Conv2d:
        return Conv2d(
            shape,
            4,
            channels=(3,),
            count=count,
            scale=emission.scale,
            activation="tanh",
            takes_seen=True,
        )

    def context(_: object) -> SplitContext:
        return SplitContext(PreviousObservation(encoder(0)), LastObservations(Flatten(shape), 1))

    small = {"hidden_size": 4, "latent_size": 2, "latent_sizes": (5,), "activation": "tanh"}
    taken = small | ({"conditional": True, "cell": "gru"} if kind == "dmm" else {})
    known = vars(model_settings(kind))
    kept = {name: value for name, value in taken.items() if name in known}
    return make_pair(model_settings(kind, kept), PairComponents(emission, encoder, context))


@pytest.mark.parametrize("kind", ["vrnn", "srnn"])
def test_every_pair_takes_pictures(kind: str) -> None:
    torch.manual_seed(0)
    shape = (1, 4, 3)
    batch = SequenceBatch((torch.rand(3, 4, *shape) > 0.5).float(), [4, 2, 3])
    pair = pair_of(kind, shape)
    check_pair(pair.model, pair.guide, batch)


@pytest.mark.parametrize("pixel", PIXELS)
def test_missing_pixels_are_left_out(pixel: str) -> None:
    torch.manual_seed(0)
    shape = (2, 3, 4)
    pair, top = pair_of("vrnn", shape, pixel), 255 if pixel == "logistic" else 1
    values = (torch.rand(2, 4, *shape) > 0.5).float() * top
    missing = torch.rand(values.shape) < 0.3
    missing[0, 2] = True  # a whole frame
    losses = []
    for filler in (0.0, 1.0):
        torch.manual_seed(1)
        shown = torch.where(missing, filler * top, values)
        batch = SequenceBatch(shown).with_missing(missing)
        with pair.scope(), pair.evaluating():
            losses.append(Trace_ELBO().loss(pair.model, pair.guide, batch))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    filled = infill(pair, SequenceBatch(values), missing, samples=4, draws=2)
    kept = ~missing.repeat_interleave(2, 0)
    assert torch.equal(filled[kept], values.repeat_interleave(2, 0)[kept])
