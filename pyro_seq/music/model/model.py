"""Models of music: settings, a pair over frames, and what a run folder holds of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_seq.config.build import carries_state, make_pair, model_settings
from pyro_seq.config.fields import at_least, between, described, one_of
from pyro_seq.config.model_settings import Layer, resolve
from pyro_seq.errors import UserError
from pyro_seq.music.data.piano_rolls import KEYS, LOWEST, Timing
from pyro_seq.music.evaluation.markov import MarkovKeys, key_counts
from pyro_seq.music.model.parts import FrameSettings, frame_parts, start_from_frequencies
from pyro_seq.pairs.pair import Pair
from pyro_seq.runs.folder import RunFolder
from pyro_seq.train.minibatches import Piece
from pyro_seq.train.settings import TrainingSettings

DOCUMENT = "music.json"
DEFAULTS: dict[str, Any] = {"skip": True}  # of a pair, where music has its own
MOST_RATE = 1_000.0  # frames a second; a beat grid has as many steps a beat at most


@dataclass(frozen=True)
class RollSettings:
    """Settings of how pieces become piano rolls, and rolls minibatches."""

    rate: float = between(0.01, MOST_RATE, 32.0, "frames a second")
    grid: int = between(
        0, int(MOST_RATE), 0, "frames a beat (a quarter note), tempo changes followed; 0: by rate"
    )
    keys: int = one_of(tuple(LOWEST), KEYS, "88: a piano's keys; 128: all of MIDI's pitches")
    common_key: bool = described(False, "whether all pieces are moved to C major or A minor")
    transpose: int = between(
        0,
        128,
        0,
        "semitones by which a stretch is moved up or down at most, anew each time it is seen",
    )
    batch_size: int = between(1, 65_536, 32, "pieces, or stretches of pieces, side by side")
    window: int = at_least(
        0, 128, "frames of the stretches that pieces are cut into; 0: pieces are left whole"
    )


@dataclass(frozen=True)
class MusicSettings:
    """All hyper-parameters of a music run; those of the model are its pair's.

    See `model_settings`.
    """

    rolls: RollSettings = field(default_factory=RollSettings)
    frames: FrameSettings = field(default_factory=FrameSettings)
    model: Any = field(default_factory=lambda: model_settings("rnn", DEFAULTS))
    training: TrainingSettings = field(default_factory=TrainingSettings)


def music_settings(*layers: Layer | Mapping[str, Any]) -> MusicSettings:
    """Return the defaults with settings by dotted name overridden, in order.

    `model.name` is among them; errors are those of `text_settings`.
    """
    return resolve(MusicSettings, layers, DEFAULTS)


def timing_of(rolls: RollSettings, tempo: float = 120.0) -> Timing:
    """Return when a run's frames sound; `tempo` is its beat grid's, in beats a minute."""
    return Timing(rolls.rate, rolls.grid, tempo)


@dataclass
class MusicModel:
    """Hold a trained pair of music; `MusicProgram` makes it.

    Beside the pair stand when its frames sound and what the simplest model has learnt of the same
    pieces.
    """

    pair: Pair
    settings: MusicSettings
    timing: Timing
    markov: MarkovKeys
    device: torch.device
    step: int = 0

    @cached_property
    def carries(self) -> bool:
        """Tell whether a window can start from the state of the one before."""
        return carries_state(
            self.pair, frame_parts(self.settings.frames, self.settings.rolls.keys), self.device
        )


def new_pair(
    settings: MusicSettings, pieces: Sequence[Piece] = (), counts: Tensor | None = None
) -> Pair:
    """Make a pair over frames, with new weights.

    It starts from how often each key sounds in the pieces, if there are any and it can. `counts`
    says that where it was counted before (`key_counts`).
    """
    pair = make_pair(settings.model, frame_parts(settings.frames, settings.rolls.keys))
    if counts is None and any(map(len, pieces)):
        counts = key_counts(piece[:] for piece in pieces)
    if counts is not None:
        frequencies = counts[..., 1].sum(0) / int(counts[:, 0].sum())
        start_from_frequencies(pair.model, settings.frames, frequencies)
    return pair


def document(tempo: float, markov: MarkovKeys) -> dict[str, Any]:
    """Return what a run folder keeps of its pieces besides their files: `music.json`."""
    return {
        "tempo": tempo,
        "markov": {"initial": markov.initial.tolist(), "transition": markov.transition.tolist()},
    }


def read_document(run: RunFolder, keys: int) -> tuple[float, MarkovKeys]:
    """Read (tempo, the Markov baseline) of `music.json`.

    Raises `UserError` if it is missing or damaged.
    """
    found = run.read_json(DOCUMENT)
    try:
        tempo = float(found["tempo"])
        initial, transition = (
            torch.tensor(found["markov"][name], dtype=torch.double)
            for name in ("initial", "transition")
        )
        sound = all(bool(((p >= 0) & (p <= 1)).all()) for p in (initial, transition))
        if (
            not (math.isfinite(tempo) and tempo > 0 and sound)
            or initial.shape != (keys,)
            or transition.shape != (2, keys)
        ):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError):
        raise UserError(f"{run.path / DOCUMENT} is damaged") from None
    return tempo, MarkovKeys(initial, transition)
