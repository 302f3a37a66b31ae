"""Models of films: a pair over frames, and how films are shown to it and taken from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.config.build import PairComponents, carries_state, make_pair
from pyro_seq.contexts import Context, LastObservations, PreviousObservation, SplitContext
from pyro_seq.contexts.noisy import NoisyObservations
from pyro_seq.emissions.pictures import Pictures
from pyro_seq.encoders import Conv2d, Encoder, Flatten
from pyro_seq.errors import UserError
from pyro_seq.frames.data.films import LEVELS, Film, Shape
from pyro_seq.frames.settings import FilmSettings, PixelSettings
from pyro_seq.nn.pictures import PixelNoise
from pyro_seq.pairs.pair import Pair

PIXEL_OF = {"binary": "bernoulli", "bytes": "logistic", "real": "normal"}


def pixel_of(settings: PixelSettings, kind: str) -> str:
    """Return what a pixel is given the features, of films whose pixels are of a kind.

    Raises `UserError` for an emission that those pixels do not have.
    """
    pixel = PIXEL_OF[kind] if settings.pixel == "auto" else settings.pixel
    if pixel == "bernoulli" and kind != "binary":
        raise UserError("frames.pixel=bernoulli is for pixels of 0 and 1, and these are others")
    if pixel == "logistic" and kind == "real":
        raise UserError("frames.pixel=logistic is for pixels of 8 bits, and these are reals")
    return pixel


def frame_parts(settings: PixelSettings, shape: Shape, kind: str) -> PairComponents:
    """Return the parts of pairs over frames `[C, H, W]` of a kind of pixels."""
    pixel, count = pixel_of(settings, kind), settings.history
    emission = Pictures(
        shape,
        settings.features,
        pixel=pixel,
        channels=settings.map_channels,
        hidden_size=settings.hidden_size,
        kernel_sizes=settings.kernel_sizes,
        count=count,
        num_mixtures=settings.num_mixtures,
        wraps=settings.wraps,
    )

    def encoder(count: int = count) -> Conv2d:
        return Conv2d(
            shape,
            settings.encoder_features,
            channels=settings.encoder_channels,
            count=count,
            scale=emission.scale,
            wraps=settings.wraps,
        )

    def context(_: Encoder) -> Context:
        seen: Context = PreviousObservation(encoder(0))
        if count:
            seen = SplitContext(seen, LastObservations(Flatten(shape), count))
        return NoisyObservations(seen, PixelNoise(settings.noise)) if settings.noise else seen

    return PairComponents(emission, encoder, context)


@dataclass
class FilmModel:
    """Hold a trained pair over frames; `FrameProgram` makes it.

    Attributes:
        pair: the pair.
        settings: of its run.
        shape: C, H and W of a frame.
        kind: of the films' pixels: `binary`, `bytes` or `real`.
        device: where it computes.
        step: how many updates were made.
    """

    pair: Pair
    settings: FilmSettings
    shape: Shape
    kind: str
    device: torch.device
    step: int = 0

    @cached_property
    def carries(self) -> bool:
        """Tell whether a window can start from the state of the one before."""
        parts = frame_parts(self.settings.frames, self.shape, self.kind)
        return carries_state(self.pair, parts, self.device)

    @property
    def pixel(self) -> str:
        """What a pixel is given the features: `bernoulli`, `logistic` or `normal`."""
        return pixel_of(self.settings.frames, self.kind)

    def batch_of(self, films: Sequence[Film]) -> SequenceBatch:
        """Return films `[T_n, C, H, W]` as the pair observes them."""
        shown = [torch.from_numpy(np.ascontiguousarray(film)) for film in films]
        return self.observed(SequenceBatch.from_sequences(shown).to(self.device))

    def observed(self, batch: SequenceBatch) -> SequenceBatch:
        """Return a batch of films' pixels as the pair observes them."""
        values = batch.values
        assert isinstance(values, Tensor)
        return batch.with_values(values.to(torch.get_default_dtype()) / self.unit)

    @property
    def unit(self) -> float:
        """What films' pixels are divided by to be observed."""
        if self.pixel == "logistic":
            return 1 / LEVELS if self.kind == "binary" else 1.0
        return LEVELS if self.kind == "bytes" else 1.0

    def films_of(self, values: Tensor) -> Film:
        """Return observations `[..., C, H, W]` as films' pixels; those out of range are clipped."""
        pixels = (values * self.unit).double().cpu().numpy()
        if self.kind == "real":
            return np.clip(pixels, 0, 1).astype(np.float32)
        return np.clip(np.round(pixels), 0, 1 if self.kind == "binary" else LEVELS).astype(np.uint8)


def new_pair(settings: FilmSettings, shape: Shape, kind: str) -> Pair:
    """Make a pair over frames, with new weights."""
    return make_pair(settings.model, frame_parts(settings.frames, shape, kind))
