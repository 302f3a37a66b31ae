"""The settings of series: how they become windows, what a step sees, how a pair is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyro_seq.config.build import model_settings
from pyro_seq.config.fields import at_least, between, described
from pyro_seq.config.model_settings import Layer, resolve
from pyro_seq.train.settings import TrainingSettings

LONGEST_WINDOW = 512  # steps that a window has where the settings leave it open
WITHOUT_SEASON = 24  # steps to forecast where neither the settings nor a season say how many
# of a pair, where series have their own; most series are short for a network, and what it has
# learnt by heart makes forecasts too narrow
DEFAULTS: dict[str, Any] = {
    "hidden_size": 64,
    "skip": True,
    "scaled": True,
    "input_dropout": 0.2,
    "output_dropout": 0.3,
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "quick": {"training.max_minutes": 1.0, "training.num_steps": 500},
    "best": {
        "model.hidden_size": 128,
        "training.num_steps": 6_000,
        "training.learning_rate": 1e-3,
    },
}


@dataclass(frozen=True)
class WindowSettings:
    """Settings of how series become windows, and what a step sees beside its columns."""

    horizon: int = at_least(0, 0, "steps to forecast; 0: the longest season, or 24 without one")
    context: int = at_least(
        0, 0, "steps before them that a forecast sees; 0: as many as fit into 512 steps with them"
    )
    batch_size: int = between(
        0, 65_536, 0, "windows side by side; 0: as many as have 4,096 steps together"
    )
    embedding_size: int = between(
        0, 1_024, 8, "size of the vector that each series has of its own, where there are several"
    )
    id_dropout: float = between(
        0, 1, 0.1, "share of the windows in training whose series is treated as one never seen"
    )
    pool: bool = described(
        True,
        "whether forecasts are pooled with the last value, the seasonal naive, climatology, "
        "analogues and exponential smoothing, by how each did in the windows held out",
    )


@dataclass(frozen=True)
class EmissionSettings:
    """Settings of the distribution of a step's cells."""

    mixture: int = between(1, 64, 1, "Student-t distributions that are mixed for a real number")
    rank: int = between(
        0, 64, 2, "factors that real columns of one series share (low-rank Student-t); 0: none"
    )


@dataclass(frozen=True)
class SeriesSettings:
    """All hyper-parameters of a run on series; those of the model are its pair's.

    See `model_settings`.
    """

    series: WindowSettings = field(default_factory=WindowSettings)
    emission: EmissionSettings = field(default_factory=EmissionSettings)
    model: Any = field(default_factory=lambda: model_settings("rnn", DEFAULTS))
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(
            num_steps=2_000,
            max_minutes=10.0,
            learning_rate=2e-3,
            weight_decay=0.3,
            ema_decay=0.99,
            valid_every=50,
            patience=12,
        )
    )


def series_settings(*layers: Layer | Mapping[str, Any]) -> SeriesSettings:
    """Return the defaults with settings by dotted name overridden, in order.

    `model.name` is among them; errors are those of `text_settings`.
    """
    return resolve(SeriesSettings, layers, DEFAULTS)


def horizon_of(settings: WindowSettings, seasons: Sequence[int]) -> int:
    """Return how many steps are forecast where nothing else is said."""
    return settings.horizon or max(seasons, default=WITHOUT_SEASON)


def context_of(settings: WindowSettings, seasons: Sequence[int]) -> int:
    """Return how many steps a forecast sees of the past: at least as many as are forecast."""
    horizon = horizon_of(settings, seasons)
    return settings.context or max(LONGEST_WINDOW - horizon, horizon)
