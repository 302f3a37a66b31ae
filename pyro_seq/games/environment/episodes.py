"""Games that were played, as sequences: step t + 1 is what the t-th action led to.

Step 0 is what a game begins with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_seq._schema import Checked, Fields, Kind, TensorOf, Whole
from pyro_seq.batch import SequenceBatch

PLAYERS = ("random", "agent")
MOST_FLOAT = float(np.finfo(np.float32).max)
# of the side inputs, after the action: a game's first step; the first step that is seen of one
# under way
FLAGS = 2


@dataclass(slots=True, eq=False)
class Episode:
    """A game of T moves.

    Attributes:
        observations: as the environment gave them, float32 `[T + 1, D]`; of pictures bytes, D the
            pixels of all channels.
        actions: encoded (`environments.Game`), float32 `[T, A]`.
        rewards: float32 `[T]`.
        ended: whether the environment said that the game is over (termination), and not only cut
            off (truncation).
        complete: whether it was played until the environment ended or cut it; else the player left
            it.
        player: who played, one of `PLAYERS`.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    ended: bool
    complete: bool
    player: str

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def total(self) -> float:
        """The return of the game, the sum of all rewards."""
        return float(self.rewards.sum(dtype=np.float64))


class Running:
    """Running mean and deviation of columns of numbers `[n, F]` (Chan et al. 1979)."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean, self.squares = np.zeros(size), np.zeros(size)

    def add(self, values: np.ndarray) -> None:
        """Add numbers `[n, F]`."""
        n = len(values)
        if n == 0:
            return
        values = values.astype(np.float64)
        mean = values.mean(0)
        squares = np.square(values - mean).sum(0)
        total, shift = self.count + n, mean - self.mean
        self.mean = self.mean + shift * n / total
        self.squares = self.squares + squares + shift**2 * self.count * n / total
        self.count = total

    @property
    def deviation(self) -> np.ndarray:
        """The standard deviation `[F]`; 1 for columns that do not vary."""
        deviation = np.sqrt(self.squares / max(1, self.count))
        return np.where(deviation > 1e-6 * np.maximum(1.0, np.abs(self.mean)), deviation, 1.0)

    def state(self) -> dict[str, Any]:
        """Return the state that `load_state` restores."""
        return {
            "count": self.count,
            "mean": torch.from_numpy(self.mean.copy()),
            "squares": torch.from_numpy(self.squares.copy()),
        }

    def describe_state(self) -> Kind:
        """Return the kind of a `state()`."""
        mean = TensorOf(len(self.mean), dtype=torch.float64, low=-MOST_FLOAT, high=MOST_FLOAT)
        return Fields(
            {
                "count": Whole(),
                "mean": mean,
                "squares": TensorOf(len(self.mean), dtype=torch.float64, low=0),
            }
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state()`; raise `ValueError` for another size or an impossible state."""
        self.describe_state().check(state, "the running statistics")
        self.count = state["count"]
        self.mean = state["mean"].numpy().copy()
        self.squares = state["squares"].numpy().copy()


class Normalisation:
    """Running statistics that bring observations, changes and rewards to mean 0, deviation 1.

    Args:
        size: D, numbers of an observation.
    """

    def __init__(self, size: int) -> None:
        self.observations, self.changes, self.rewards = Running(size), Running(size), Running(1)
        self._refresh()

    def _refresh(self) -> None:
        mean, deviation = self.observations.mean, self.observations.deviation
        self.mean = torch.from_numpy(mean).float()
        self.deviation = torch.from_numpy(deviation).float()
        self.reward_mean = float(self.rewards.mean[0])
        self.reward_deviation = float(self.rewards.deviation[0])
        square = self.rewards.mean[0] ** 2 + self.rewards.squares[0] / max(1, self.rewards.count)
        self.usual_reward = float(np.sqrt(square)) if square > 0 else 1.0  # the root mean square
        changes = np.sqrt(self.changes.squares / max(1, self.changes.count))
        # of changes, in normalised units
        self.spread = torch.from_numpy(np.clip(changes / deviation, 1e-3, None)).float()

    def add(self, episodes: Sequence[Episode]) -> None:
        """Add games."""
        for episode in episodes:
            self.observations.add(episode.observations)
            self.changes.add(np.diff(episode.observations, axis=0))
            self.rewards.add(episode.rewards[:, None])
        self._refresh()

    def normal(self, observations: Tensor) -> Tensor:
        """Normalise observations `[..., D]`."""
        return (observations - self.mean.to(observations)) / self.deviation.to(observations)

    def raw(self, observations: Tensor) -> Tensor:
        """Convert normalised observations `[..., D]` to the environment's units."""
        return observations * self.deviation.to(observations) + self.mean.to(observations)

    def state(self) -> dict[str, Any]:
        """Return the state that `load_state` restores."""
        return {
            name: getattr(self, name).state() for name in ("observations", "changes", "rewards")
        }

    def describe_state(self) -> Kind:
        """Return the kind of a `state()`; float32 can hold its means and deviations."""

        def usable(state: Any) -> None:
            tried = Normalisation(len(self.mean))
            tried.load_state(state)
            numbers = [
                tried.mean,
                tried.deviation,
                tried.spread,
                torch.tensor([tried.reward_mean, tried.reward_deviation]),
            ]
            if not all(bool(part.isfinite().all()) for part in numbers):
                raise ValueError("its deviations are not finite")

        parts = {
            name: getattr(self, name).describe_state()
            for name in ("observations", "changes", "rewards")
        }
        return Checked(usable, first=Fields(parts))

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state()`; raise `ValueError` for an impossible one."""
        for name in ("observations", "changes", "rewards"):
            getattr(self, name).load_state(state[name])
        self._refresh()


class PictureUnits(Normalisation):
    """Pictures `[C, H, W]` in the units of a pair's emission; rewards as ever.

    Of real pixels these are differences from the mean picture in units of their root mean square,
    over all pixels: what stands still need not be learnt. Black or white is 0 or 1, and pixels of
    8 bits stay as they are.

    Args:
        shape: C, H and W.
        pixel: what a pixel is (`emissions.Pictures`).
    """

    def __init__(self, shape: Sequence[int], pixel: str) -> None:
        self.shape, self.pixel = tuple(shape), pixel
        super().__init__(math.prod(shape) if pixel == "normal" else 0)

    def _refresh(self) -> None:
        super()._refresh()
        if self.pixel == "normal":
            square = self.observations.squares.mean() / max(1, self.observations.count)
            usual = float(np.sqrt(square)) if square > 0 else 1.0
            self.deviation = torch.full_like(self.deviation, usual)

    def add(self, episodes: Sequence[Episode]) -> None:
        """Add games."""
        for episode in episodes:
            if self.pixel == "normal":
                self.observations.add(episode.observations)
            self.rewards.add(episode.rewards[:, None])
        self._refresh()

    def normal(self, observations: Tensor) -> Tensor:
        """Convert bytes `[..., C H W]` to pictures `[..., C, H, W]`."""
        pixels = observations.to(torch.get_default_dtype())
        if self.pixel == "normal":
            pixels = super().normal(pixels)
        elif self.pixel == "bernoulli":
            pixels = pixels / 255
        return pixels.unflatten(-1, self.shape)

    def raw(self, observations: Tensor) -> Tensor:
        """Convert pictures `[..., C, H, W]` to bytes `[..., C H W]`, clipped to their range."""
        pixels = observations.flatten(-3)
        if self.pixel == "normal":
            pixels = super().raw(pixels)
        elif self.pixel == "bernoulli":
            pixels = pixels * 255
        return pixels.round().clamp(0, 255).to(torch.uint8)


class Stacked:
    """Games one after the other in few tensors, to look up many stretches at once.

    Args:
        episodes: the games, at least one.
        normalisation: of observations and rewards.
    """

    def __init__(self, episodes: Sequence[Episode], normalisation: Normalisation) -> None:
        lengths = torch.tensor([len(episode) + 1 for episode in episodes])
        # steps of each game, and where its step 0 stands
        self.lengths, self.begins = lengths, lengths.cumsum(0) - lengths
        # of pictures these are bytes, a quarter of what they take as a pair observes them
        self.observations = _joined([e.observations for e in episodes])
        self.normalisation = normalisation
        steps, actions = len(self.observations), episodes[0].actions.shape[1]
        later = torch.ones(steps, dtype=torch.bool)
        later[self.begins] = False
        self.rewards, self.ends = torch.zeros(steps), torch.zeros(steps)
        rewards = _joined([e.rewards for e in episodes])
        self.rewards[later] = (rewards - normalisation.reward_mean) / normalisation.reward_deviation
        self.ends[self.begins + lengths - 1] = torch.tensor([float(e.ended) for e in episodes])
        self.inputs = torch.zeros(steps, actions + FLAGS)
        self.inputs[later, :actions] = _joined([e.actions for e in episodes])
        self.inputs[self.begins, actions] = 1.0
        self.num_actions = actions

    def stretches(self, games: Tensor, starts: Tensor, length: int) -> SequenceBatch:
        """Return up to `length` steps of `games` `[N]` from the steps `starts` `[N]` on.

        A stretch is shorter where a game is over.

        The first step of a stretch that begins in mid-game has the second flag, and no action,
        since what it was taken in is not seen.
        """
        lengths = (self.lengths[games] - starts).clamp(max=length)
        steps = torch.arange(int(lengths.max()))
        index = (
            self.begins[games, None] + starts[:, None] + torch.minimum(steps, lengths[:, None] - 1)
        )
        inputs = self.inputs[index]
        inputs[:, 0] = joined(inputs[:, 0], starts > 0, self.num_actions)
        values = {
            "observation": self.normalisation.normal(self.observations[index]),
            "reward": self.rewards[index],
            "end": self.ends[index],
        }
        values["reward"][:, 0] = values["reward"][:, 0] * (starts == 0)
        return SequenceBatch(values, lengths, inputs=inputs)


def _joined(parts: Sequence[np.ndarray]) -> Tensor:
    joined = torch.from_numpy(np.concatenate(parts))
    return joined if joined.dtype == torch.uint8 else joined.to(torch.get_default_dtype())


def joined(inputs: Tensor, under_way: Tensor, num_actions: int) -> Tensor:
    """Make the side inputs `[N, A + 2]` of the first seen step of games.

    Games `under_way` `[N]` are not at their beginning.
    """
    flags = torch.zeros_like(inputs)
    flags[:, num_actions + 1] = 1.0
    return torch.where(under_way[:, None], flags, inputs)


def whole(episodes: Sequence[Episode], normalisation: Normalisation) -> SequenceBatch:
    """Return whole games as a pair observes them."""
    stacked = Stacked(episodes, normalisation)
    games = torch.arange(len(episodes))
    return stacked.stretches(games, torch.zeros_like(games), int(stacked.lengths.max()))
