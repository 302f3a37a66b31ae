"""Train a pair on piano rolls, and generate new ones, with or without a primer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, finite_probabilities
from pyro_seq.infer.continuation import continuation
from pyro_seq.infer.sampling import ancestral, sharpened
from pyro_seq.music.evaluation.markov import MarkovKeys
from pyro_seq.music.evaluation.scoring import MusicScore, evaluate, nats_per_frame, score_pieces
from pyro_seq.music.model.model import (
    KIND,
    MusicModel,
    MusicSettings,
    load,
    music_settings,
    new_pair,
    timing_of,
)
from pyro_seq.music.model.parts import as_roll, observed
from pyro_seq.music.render.samples import Rendered
from pyro_seq.programs.restore import pair_to_train
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.tensorboard import Audio, Image
from pyro_seq.train.minibatches import PieceBatches
from pyro_seq.train.trainer import Hooks, Trainer

__all__ = [
    "KIND",
    "MusicModel",
    "MusicScore",
    "MusicSettings",
    "Pieces",
    "evaluate",
    "generate",
    "load",
    "music_settings",
    "nats_per_frame",
    "play",
    "score_pieces",
    "train",
]

VALIDATED = 100_000  # frames of the validation pieces that are scored during training, at most
PREVIEW_SECONDS = 8.0
MOST_FRAMES = 1_000_000  # of a sample: nearly nine hours at 32 a second
SAMPLED = 2**25  # entries of the rolls of samples drawn side by side: bounds memory


@dataclass(frozen=True, eq=False)
class Pieces:
    """Piano rolls `[T_n, keys]` to train and validate on, and the tempo of their grid.

    The tempo is in beats a minute.
    """

    train: Sequence[Tensor]
    valid: Sequence[Tensor] = ()
    tempo: float = 120.0


def train(
    pieces: Pieces,
    settings: MusicSettings,
    *,
    run: RunFolder | None = None,
    start_from: RunFolder | None = None,
    markov: MarkovKeys | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    resume: bool = False,
    quiet: bool = False,
) -> MusicModel:
    """Train on pieces, and keep the best model on the validation pieces.

    Best is by exact likelihood or ELBO per frame.

    Args:
        pieces: the data.
        settings: hyper-parameters.
        run: where to keep checkpoints and the curve of metrics.
        start_from: another run, whose best weights are the first ones, in place of new ones; a run
            that has a checkpoint to go on from goes on from that.
        markov: the simplest model of the same pieces, if it is known already.
        seed: of all randomness.
        device: where to compute.
        resume: whether to go on with the run.
        quiet: no progress on stderr.

    Raises `UserError` if the weights to start from do not fit the settings, and as `Trainer.fit`.
    """
    torch.manual_seed(seed)

    pair = pair_to_train(
        run,
        lambda: new_pair(settings, pieces.train),
        settings.model.kind,
        resume,
        start_from=start_from,
    ).to(device)
    timing = timing_of(settings.rolls, pieces.tempo)
    music = MusicModel(
        pair, settings, timing, markov or MarkovKeys.fit(pieces.train), torch.device(device)
    )
    rolls = settings.rolls
    batches = PieceBatches(
        pieces.train,
        batch_size=rolls.batch_size,
        window=rolls.window,
        transpose=rolls.transpose,
        seed=seed,
        device=device,
        observe=partial(observed, settings.frames),
    )
    valid = _at_most(pieces.valid, VALIDATED)
    hooks = Hooks(
        validate=(
            lambda: {
                "loss": nats_per_frame(
                    music, valid, method="elbo", samples=settings.training.valid_particles
                )
            }
        )
        if valid
        else None,
        samples=lambda: previews(music, pieces.train),
        units="frames",
        bits="bits/frame",
    )
    frames, held_out = (
        f"{sum(map(len, part)):,} frames of {len(part):,} pieces"
        for part in (pieces.train, pieces.valid)
    )
    with pair.scope():
        parameters = sum(p.numel() for p in pair.parameters().values())
    words = (
        f"{frames} to train on, {held_out} to validate on; {settings.model.kind} with "
        f"{parameters:,} parameters"
    )
    Progress(quiet=quiet).say(words)
    trainer = Trainer(pair, batches, settings.training, run=run, hooks=hooks, quiet=quiet)
    trainer.fit(resume=resume)
    music.step = trainer.step
    return music


def _at_most(pieces: Sequence[Tensor], frames: int) -> list[Tensor]:
    """Pieces, as many as have so many frames together, the last one cut short."""
    kept: list[Tensor] = []
    for piece in pieces:
        if frames > 0 and len(piece):
            kept.append(piece[:frames])
            frames -= len(kept[-1])
    return kept


def previews(music: MusicModel, pieces: Sequence[Tensor]) -> dict[str, Image | Audio]:
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
    adjust = partial(sharpened, temperature=temperature)
    most = max(1, SAMPLED // (frames * music.settings.rolls.keys))
    for first in range(0, num_samples, most):
        rows = min(most, num_samples - first)
        with finite_probabilities():
            if primer is None or not len(primer):
                values = ancestral(music.pair, rows, frames, adjust=adjust)
            else:
                batch = observed(
                    music.settings.frames, SequenceBatch(primer.unsqueeze(0).to(music.device))
                )
                values = continuation(
                    music.pair, batch, frames, samples=samples, draws=rows, adjust=adjust
                )
        yield from as_roll(music.settings.frames, values)


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
