"""Music: pieces to learn from, and new ones that a pair plays, or continuations of a primer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, finite_probabilities
from pyro_seq.infer.continuations import continuation
from pyro_seq.infer.sampling import sample, tempered
from pyro_seq.music.evaluation.scoring import MusicScore, evaluate, nats_per_frame, score_pieces
from pyro_seq.music.model.model import (
    MusicModel,
    MusicSettings,
    music_settings,
)
from pyro_seq.music.model.parts import decode_frames, encode_frames
from pyro_seq.music.render.samples import Rendered
from pyro_seq.runs.tensorboard import Audio, Image
from pyro_seq.train.minibatches import Piece

__all__ = [
    "MusicModel",
    "MusicScore",
    "MusicSettings",
    "Pieces",
    "evaluate",
    "generate",
    "music_settings",
    "nats_per_frame",
    "play",
    "score_pieces",
]

PREVIEW_SECONDS = 8.0
MOST_FRAMES = 1_000_000  # of a sample: nearly nine hours at 32 a second
SAMPLED = 2**25  # entries of the rolls of samples drawn side by side: bounds memory


@dataclass(frozen=True, eq=False)
class Pieces:
    """Piano rolls `[T_n, keys]` to train and validate on, and the tempo of their grid.

    The tempo is in beats a minute. Of large data the pieces are what stretches of their rolls are
    laid out from; what was found out of all of them is `sha256`, of training and validation pieces
    (`fingerprint`), and `counts`, how often keys sound in those to train on (`key_counts`).
    """

    train: Sequence[Piece]
    valid: Sequence[Piece] = ()
    tempo: float = 120.0
    sha256: str = ""
    counts: Tensor | None = None


def previews(music: MusicModel, pieces: Sequence[Piece]) -> dict[str, Image | Audio]:
    """Return a stretch of a piece and a sample, to see and hear in TensorBoard."""
    frames = max(1, round(PREVIEW_SECONDS * music.timing.frames_per_second))
    longest = [piece for piece in pieces if len(piece) >= frames] or [max(pieces, key=len)]
    piece = longest[int(torch.randint(len(longest), ()))]
    start = int(torch.randint(max(1, len(piece) - frames), ()))
    shown: dict[str, Image | Audio] = {}
    for name, roll in (
        ("observed", piece[start : start + frames]),
        ("generated", next(generate(music, frames)).cpu()),
    ):
        rendered = Rendered(roll, music.timing)
        shown[f"{name}/roll"], shown[f"{name}/sound"] = (
            Image(rendered.png(name)),
            Audio(rendered.wav()),
        )
    return shown


def generate(
    music: MusicModel,
    frames: int,
    *,
    num_samples: int = 1,
    primer: Tensor | None = None,
    temperature: float = 1.0,
    samples: int = 16,
) -> Iterator[Tensor]:
    """Draw new rolls `[frames, keys]`, each after the primer `[T, keys]` if there is one.

    The primer is not repeated.

    Draws from torch's global random state.

    Args:
        music: the model.
        frames: how many, of each.
        num_samples: how many rolls.
        primer: what to go on from.
        temperature: below 1, likelier keys sound; above 1, rarer ones.
        samples: particles by which the latents are inferred from a primer.

    Raises `UserError` for numbers out of range, more than `MOST_FRAMES` among them, and for a
    temperature other than 1 with the emission `beta`, whose scores have none.
    """
    if frames < 1 or num_samples < 1:
        raise UserError(
            f"frames and number of samples must be at least 1, got {frames} and {num_samples}"
        )
    if frames > MOST_FRAMES:
        fast = f"{frames:,} frames, at {music.timing.frames_per_second:,.4g} a second"
        raise UserError(
            f"a sample of {music.timing.seconds(frames):,.4g} seconds is {fast}, and at most "
            f"{MOST_FRAMES:,} are sampled"
        )
    transform_distribution = partial(tempered, temperature=temperature)
    most = max(1, SAMPLED // (frames * music.settings.rolls.keys))
    for first in range(0, num_samples, most):
        rows = min(most, num_samples - first)
        with finite_probabilities():
            if primer is None or not len(primer):
                values = sample(
                    music.pair, rows, frames, transform_distribution=transform_distribution
                )
            else:
                batch = encode_frames(
                    music.settings.frames, SequenceBatch(primer.unsqueeze(0).to(music.device))
                )
                values = continuation(
                    music.pair,
                    batch,
                    frames,
                    samples=samples,
                    draws=rows,
                    transform_distribution=transform_distribution,
                )
        yield from decode_frames(music.settings.frames, values)


def play(
    music: MusicModel,
    seconds: float,
    *,
    num_samples: int = 1,
    primer: Tensor | None = None,
    temperature: float = 1.0,
    program: int = 0,
    sound_font: Path | None = None,
) -> Iterator[Rendered]:
    """Generate so many seconds of music, each after its primer, as `Rendered`."""
    frames = max(1, round(seconds * music.timing.frames_per_second))
    given = 0 if primer is None else len(primer)
    for roll in generate(
        music, frames, num_samples=num_samples, primer=primer, temperature=temperature
    ):
        whole = roll.cpu() if primer is None else torch.cat([primer, roll.cpu()])
        yield Rendered(whole, music.timing, given, program, sound_font)
