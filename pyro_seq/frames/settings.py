"""Settings of runs on films, and the bundled ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro_seq.config.build import model_settings
from pyro_seq.config.fields import at_least, between, described, one_of
from pyro_seq.config.model_settings import Layer, resolve
from pyro_seq.emissions.pictures import PIXELS
from pyro_seq.train.settings import TrainingSettings

MOST_UNITS = 4_096
# of a pair, where films have their own
MODEL = {"model.name": "vrnn"}
DEFAULTS: dict[str, Any] = {
    "hidden_size": 64,
    "latent_size": 8,
    "smoothing": False,
}


@dataclass(frozen=True)
class PixelSettings:
    """Settings of a frame as a pair observes it, and of films as minibatches."""

    pixel: str = one_of(
        ("auto", *PIXELS),
        "auto",
        "what a pixel is given the features: bernoulli: 0 or 1; logistic: 8 bits, a mixture of "
        "logistics; normal: a real number; auto: by the films",
    )
    history: int = between(
        0, 64, 1, "how many of the last frames the emission and the guide see as pictures"
    )
    noise: float = between(
        0,
        0.99,
        0.0,
        "noise on half of the frames before, in training: which share of pixels is replaced "
        "by others of the same frame, so that a model finds its way back from its own errors",
    )
    wraps: bool = described(False, "whether frames join at their edges, as on a torus")
    features: int = between(1, MOST_UNITS, 64, "features that a frame is drawn from")
    map_channels: tuple[int, ...] = between(
        1,
        MOST_UNITS,
        (16, 8),
        "channels of the transposed convolutions from features to hidden units, each of stride 2, "
        "the coarsest first; none: hidden units know no places but by the last frames",
    )
    hidden_size: int = between(1, MOST_UNITS, 16, "hidden units at each place")
    kernel_sizes: tuple[int, ...] = between(
        1, 63, (5, 1), "kernels from the last frames to hidden units, between them, and to pixels"
    )
    num_mixtures: int = between(1, 64, 5, "logistics in the mixture of a pixel of 8 bits")
    encoder_channels: tuple[int, ...] = between(
        1, MOST_UNITS, (16, 16), "channels of the convolutions that see a frame, each of stride 2"
    )
    encoder_features: int = between(1, MOST_UNITS, 64, "features of a frame that they end in")
    batch_size: int = between(1, 65_536, 16, "films, or stretches of films, side by side")
    window: int = at_least(
        0, 64, "frames of the stretches that films are cut into; 0: films are left whole"
    )


@dataclass(frozen=True)
class FilmSettings:
    """All hyper-parameters of a run on films; those of the model are its pair's."""

    frames: PixelSettings = field(default_factory=PixelSettings)
    model: Any = field(default_factory=lambda: model_settings("vrnn", DEFAULTS))
    training: TrainingSettings = field(default_factory=TrainingSettings)


def film_settings(*layers: Layer | Mapping[str, Any]) -> FilmSettings:
    """Return the defaults with settings by dotted name overridden, in order.

    `model.name` is among them; errors are those of `text_settings`.
    """
    return resolve(FilmSettings, [MODEL, *layers], DEFAULTS)
