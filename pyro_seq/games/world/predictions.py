"""Measure a world model: its likelihood of unseen games, and open-loop errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.games.environment.episodes import (
    Episode,
    Normalisation,
    PictureUnits,
    Running,
    Stacked,
    whole,
)
from pyro_seq.games.world.world_model import World
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.pairs.pair import Pair

HORIZONS = (1, 10, 50)  # steps ahead of which predictions are judged
CHUNK_GAMES = 64  # games that are scored side by side
STARTS = 256  # places in games from which predictions are made
PICTURE_STARTS = 16  # likewise, where they are of pictures
PICTURE_DRAWS = 4  # dreams that are shown beside a game of pictures


@torch.no_grad()
def nats_per_step(pair: Pair, episodes: Sequence[Episode], normalisation: Normalisation) -> float:
    """Return -log p(o, r, e | a) of whole games per step, or its estimate, in nats.

    It is a density in the environment's own units. Pixels are in levels of 8 bits, or
    black and white; their figure is the bound by one draw of the latents.
    """
    total, steps = 0.0, 0
    pictures = isinstance(normalisation, PictureUnits)
    at_once, samples = (1, 1) if pictures else (CHUNK_GAMES, 16)
    for start in range(0, len(episodes), at_once):
        batch = whole(episodes[start : start + at_once], normalisation)
        with pyro.validation_enabled(False):
            total += float(score(pair, batch, samples=samples).log_likelihood.double().sum())
        steps += batch.num_observations
    units = float(normalisation.deviation.double().log().sum()) + math.log(
        normalisation.reward_deviation
    )
    return -total / max(1, steps) + units


@dataclass(frozen=True, eq=False)
class OpenLoop:
    """Errors of predictions after a prefix of real steps, from actions alone.

    Attributes:
        errors: by horizon, the root mean squared error of each number of the observation, in
            deviations of that number over the same games, `[D]`; a prediction is the mean of some
            draws. Of pictures it is that of all pixels, in root mean squares of what they differ
            from their mean picture, `[1]`.
        counts: by horizon, how many predictions these are.
    """

    errors: dict[int, Tensor]
    counts: dict[int, int]

    def figures(self) -> dict[str, float]:
        """Return the mean over the numbers of the observation, by name."""
        return {f"error_{horizon}": float(error.mean()) for horizon, error in self.errors.items()}


@torch.no_grad()
def open_loop(
    world: World,
    episodes: Sequence[Episode],
    normalisation: Normalisation,
    *,
    prefix: int = 4,
    samples: int = 8,
    starts: int = STARTS,
) -> OpenLoop:
    """Predict from places spread evenly over games that are long enough.

    A horizon for which no game is long enough is left out.

    Args:
        world: the model.
        episodes: games that it has not learnt from.
        normalisation: of these.
        prefix: real steps that are seen first.
        samples: draws of each prediction.
        starts: places at most.
    """
    errors, counts = {}, {}
    if isinstance(normalisation, PictureUnits):
        for horizon in HORIZONS:
            found = _places(episodes, prefix + horizon, min(starts, PICTURE_STARTS))
            if found is not None:
                batch = Stacked(episodes, normalisation).stretches(*found, prefix + horizon)
                errors[horizon] = _picture_error(world, batch, prefix, samples)
                counts[horizon] = len(batch)
        return OpenLoop(errors, counts)
    numbers = Running(episodes[0].observations.shape[1])
    numbers.add(np.concatenate([episode.observations for episode in episodes]))
    # of a number that does not vary it is 1: an error is in its own units
    deviation = torch.from_numpy(numbers.deviation)
    for horizon in HORIZONS:
        found = _places(episodes, prefix + horizon, starts)
        if found is None:
            continue
        batch = Stacked(episodes, normalisation).stretches(*found, prefix + horizon)
        predicted = imagined_from(world, batch, prefix, samples)[:, :, -1].mean(1)
        values: Any = batch.values
        off = (predicted - values["observation"][:, -1]).double() * normalisation.deviation
        errors[horizon], counts[horizon] = off.square().mean(0).sqrt() / deviation, len(batch)
    return OpenLoop(errors, counts)


def _picture_error(world: World, batch: SequenceBatch, prefix: int, samples: int) -> Tensor:
    """The error of the last picture `[1]`, see `OpenLoop`."""
    predicted = imagined_from(world, batch, prefix, samples, last=True)[:, :, -1].mean(1)
    values: Any = batch.values
    real = values["observation"][:, -1]
    of_mean = (real - real.mean(0)).square().mean().sqrt()
    return ((predicted - real).square().mean().sqrt() / of_mean.clamp(min=1e-6)).unsqueeze(0)


def _places(episodes: Sequence[Episode], length: int, most: int) -> tuple[Tensor, Tensor] | None:
    """(games, steps in them) from which so many steps follow, spread evenly; `None` if there are
    none.
    """
    games = torch.cat(
        [torch.full((max(0, len(e) + 2 - length),), i) for i, e in enumerate(episodes)]
    )
    if not len(games):
        return None
    steps = torch.cat([torch.arange(max(0, len(e) + 2 - length)) for e in episodes])
    chosen = torch.linspace(0, len(games) - 1, min(most, len(games))).round().long()
    return games[chosen], steps[chosen]


@torch.no_grad()
def imagined_from(
    world: World, batch: SequenceBatch, prefix: int, samples: int, *, last: bool = False
) -> Tensor:
    """Draw normalised observations `[N, samples, T - prefix, D]` after the first steps.

    The actions of full sequences are given. Where only the `last` pictures are asked for, others
    may be left out.
    """
    values: Any = batch.values
    assert batch.inputs is not None
    seen = SequenceBatch(tree_map(lambda x: x[:, :prefix], values), inputs=batch.inputs[:, :prefix])
    (state, _), drawn = world.watched(seen.repeat(samples)), []
    with pyro.validation_enabled(False), world.pair.evaluating():
        for t in range(prefix, batch.num_steps):
            inputs = batch.inputs[:, t].repeat_interleave(samples, 0)
            asked = not last or t == batch.num_steps - 1
            x, state = world.step(state, inputs, drawn=asked)
            if asked:
                drawn.append(x["observation"])
    return torch.stack(drawn, 1).unflatten(0, (len(batch), samples))


def shown_beside(
    world: World, episode: Episode, normalisation: Normalisation
) -> tuple[Any, Any, int]:
    """Return a game's observations `[T, D]`, imagined ones, and the prefix, to show.

    Imagined ones are `[64, T - prefix, D]`, of pictures fewer; all are in the game's units.
    """
    draws = PICTURE_DRAWS if isinstance(normalisation, PictureUnits) else 64
    length = min(len(episode) + 1, 64)
    prefix = max(1, min(4, length - 1))
    start = torch.zeros(1, dtype=torch.long)
    batch = Stacked([episode], normalisation).stretches(start, start, length)
    imagined = normalisation.raw(imagined_from(world, batch, prefix, draws)[0])
    return episode.observations[:length], imagined.numpy(), prefix
