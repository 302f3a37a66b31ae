"""Films that a pair draws: new ones, several futures of one, hidden frames, ways between two."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from pyro_seq.errors import UserError, finite_probabilities, whole
from pyro_seq.frames.data.films import Film
from pyro_seq.frames.model import FilmModel
from pyro_seq.infer.continuations import continuation
from pyro_seq.infer.infilling import infill
from pyro_seq.infer.interpolation import interpolate
from pyro_seq.infer.sampling import sample, tempered

MOST_FRAMES = 100_000  # of all films that are drawn at once


def generate(
    model: FilmModel,
    num_frames: int,
    *,
    num_films: int = 1,
    temperature: float = 1.0,
) -> Film:
    """Draw new films `[num_films, num_frames, C, H, W]`, from torch's global random state.

    Args:
        model: the model.
        num_frames: of each film.
        num_films: how many.
        temperature: of pixels given the latents, of films of 0 and 1: 0 for the likeliest ones.

    Raises `UserError` for numbers below 1 or too large together, and for a temperature of pixels
    that have none.
    """
    _check(num_frames, num_films)
    with finite_probabilities():
        values = sample(
            model.pair,
            num_films,
            num_frames,
            transform_distribution=partial(tempered, temperature=temperature),
        )
    return model.films_of(values)


def continue_films(
    model: FilmModel,
    films: Sequence[Film],
    num_frames: int,
    *,
    draws: int = 1,
    samples: int = 16,
    temperature: float = 1.0,
) -> Film:
    """Draw `draws` futures of each film: `[N, draws, num_frames, C, H, W]`.

    Args:
        model: the model.
        films: what is gone on from, `[T_n, C, H, W]` each.
        num_frames: of each future.
        draws: futures of each film.
        samples: particles by which the latents are inferred.
        temperature: of pixels given the latents, of films of 0 and 1: 0 for the likeliest ones.

    Raises `UserError` for numbers below 1 or too large together.
    """
    _check(num_frames, draws * len(films))
    with finite_probabilities():
        values = continuation(
            model.pair,
            model.batch_of(films),
            num_frames,
            samples=samples,
            draws=draws,
            transform_distribution=partial(tempered, temperature=temperature),
        )
    return model.films_of(values.unflatten(0, (len(films), draws)))


def fill(model: FilmModel, film: Film, hidden: slice, *, draws: int = 1, samples: int = 64) -> Film:
    """Draw hidden frames of a film given all others: `[draws, T, C, H, W]`.

    Frames that were not hidden are as they are.

    Args:
        model: the model.
        film: `[T, C, H, W]`; what stands in hidden frames is not looked at.
        hidden: which frames are hidden.
        draws: how many draws, independent of each other.
        samples: particles for each.

    Raises `UserError` where no frame is hidden, or all are.
    """
    steps = np.zeros(len(film), bool)
    steps[hidden] = True
    if not steps.any() or steps.all():
        raise UserError(
            f"frames to fill in must be some of the film's {len(film)}, and not all of them"
        )
    _check(len(film), draws)
    with finite_probabilities():
        values = infill(
            model.pair,
            model.batch_of([film]),
            torch.from_numpy(steps),
            samples=samples,
            draws=draws,
        )
    drawn = model.films_of(values)
    drawn[:, ~steps] = film[~steps]
    return drawn


def between(model: FilmModel, first: Film, second: Film, num: int, *, samples: int = 64) -> Film:
    """Draw films on the way from one to another in latent space: `[num, T, C, H, W]`.

    From a film to itself, they are what the model makes of its latents: reconstructions.

    Args:
        model: the model, of a pair with latents.
        first: `[T, C, H, W]`.
        second: the other one.
        num: how many, the two ends among them.
        samples: draws of the guide that are averaged.

    Raises `UserError` for a pair without latents.
    """
    values = interpolate(
        model.pair, model.batch_of([first]), model.batch_of([second]), num, samples=samples
    )
    return model.films_of(values)


def _check(num_frames: int, num_films: int) -> None:
    whole(num_frames, "the number of frames", 1)
    whole(num_films, "the number of films", 1)
    if num_frames * num_films > MOST_FRAMES:
        raise UserError(
            f"{num_films:,} films of {num_frames:,} frames are more than {MOST_FRAMES:,} frames: "
            "ask for fewer"
        )


def hidden_frames(words: str | None, num_frames: int) -> slice:
    """Return which frames are hidden, by words as `5-9`, counted from 1; else the middle third.

    Raises `UserError` for words of another form, and frames that the film does not have.
    """
    if words is None:
        return slice(num_frames // 3, max(num_frames // 3 + 1, 2 * num_frames // 3))
    first, sign, last = words.partition("-")
    ends = (first, last if sign else first)
    if not all(end.isdecimal() and len(end) < 9 for end in ends):
        raise UserError(f"--hide takes FROM-TO, as 5-9, got {words!r}")
    start, end = map(int, ends)
    if not 1 <= start <= end <= num_frames:
        raise UserError(f"--hide {words}: the film has frames 1 to {num_frames}")
    return slice(start - 1, end)
