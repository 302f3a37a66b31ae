"""The games played so far: held-out ones, stretches to learn from, starts to imagine from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_seq._rng import describe_generator_state, generator, generator_state, load_generator_state
from pyro_seq._schema import Fields, Flag, Items, Kind, TensorOf, Whole, Word, check
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.games.environment.environments import Game
from pyro_seq.games.environment.episodes import PLAYERS, Episode, Normalisation, Stacked
from pyro_seq.runs.checkpoint import load_tree, save_tree
from pyro_seq.runs.writing import make_folder


class Replay:
    """Games, every `1 / held_out`-th of which, for each player, is held out of training.

    It is a stream of training batches (`training.Batches`): stretches of games, every step in about
    as many as the others, but for a game's first ones, which are in up to twice as many.

    Args:
        normalisation: takes in the games that are learnt from.
        held_out: the fraction of games that is held out.
        batch_size, window: how many stretches in a batch, and of how many steps.
        seed: of the choice of stretches.
    """

    def __init__(
        self,
        normalisation: Normalisation,
        *,
        held_out: float,
        batch_size: int,
        window: int,
        seed: int,
    ) -> None:
        self.normalisation, self.held_out = normalisation, held_out
        self.batch_size, self.window = batch_size, window
        self.learnt: list[Episode] = []
        self.kept: list[Episode] = []  # those held out
        self._played = dict.fromkeys(PLAYERS, 0)
        self._random = generator(seed)
        self._stacked: Stacked | None = None

    @property
    def episodes(self) -> list[Episode]:
        """All games."""
        return self.learnt + self.kept

    @property
    def num_steps(self) -> int:
        """The moves in all games, as asked of the environment."""
        return sum(map(len, self.episodes))

    def add(self, episodes: Sequence[Episode], *, new: bool = True) -> None:
        """Add games; those that are not `new` are in the normalisation already."""
        learnt = []
        for episode in episodes:
            if len(episode) == 0:
                continue
            self._played[episode.player] += 1
            number = self._played[episode.player] * self.held_out
            if int(number + 1e-9) > int(number - self.held_out + 1e-9):
                self.kept.append(episode)
            else:
                learnt.append(episode)
        self.learnt += learnt
        if new:
            self.normalisation.add(learnt)
        self._stacked = None

    @property
    def stacked(self) -> Stacked:
        """The games that are learnt from."""
        if self._stacked is None:
            if not self.learnt:
                raise UserError("there is nothing to learn from yet: no game was played")
            self._stacked = Stacked(self.learnt, self.normalisation)
        return self._stacked

    def draw(self) -> tuple[SequenceBatch, bool]:
        """Draw stretches, each from a state of its own."""
        stacked = self.stacked
        # a stretch that would begin before its game begins with it: else a game's first steps would
        # be in fewer than the others
        last = np.cumsum(stacked.lengths.numpy() + self.window - 1)
        places = self._random.integers(last[-1], size=self.batch_size)
        games = np.searchsorted(last, places, side="right")
        starts = stacked.lengths.numpy()[games] - (last[games] - places)
        return stacked.stretches(
            torch.from_numpy(games), torch.from_numpy(np.maximum(starts, 0)), self.window
        ), False

    def beginnings(self, count: int) -> SequenceBatch:
        """Draw the first step of `count` games."""
        games = torch.from_numpy(self._random.integers(len(self.learnt), size=count))
        return self.stacked.stretches(games, torch.zeros_like(games), 1)

    def prefixes(self, count: int, steps: int) -> SequenceBatch | None:
        """Draw `count` stretches of exactly so many steps, all equally likely.

        None of them has ended; `None` if no game is as long.
        """
        stacked = self.stacked
        room = (
            stacked.lengths
            - steps
            - torch.tensor([episode.ended for episode in self.learnt]).long()
            + 1
        )
        last = room.clamp(min=0).cumsum(0).numpy()
        if last[-1] == 0:
            return None
        places = self._random.integers(last[-1], size=count)
        games = np.searchsorted(last, places, side="right")
        starts = room.numpy()[games] - (last[games] - places)
        return stacked.stretches(torch.from_numpy(games), torch.from_numpy(starts), steps)

    def state(self) -> dict[str, Any]:
        """Return the state of the random choice of stretches."""
        return generator_state(self._random)

    def describe_state(self) -> Kind:
        """Return the kind of a `state()`."""
        return describe_generator_state()

    def load_state(self, state: Any) -> None:
        """Restore a `state()`."""
        load_generator_state(self._random, state)


def save_episodes(path: Path, episodes: Sequence[Episode]) -> None:
    """Write games as one safetensors file, whole or not at all."""
    make_folder(path.parent)

    def joined(name: str, *shape: int) -> Tensor:
        parts = [getattr(episode, name) for episode in episodes]
        if not parts:
            return torch.zeros(0, *shape)
        whole = np.concatenate(parts)
        return torch.from_numpy(whole if whole.dtype == np.uint8 else whole.astype(np.float32))

    kept = {
        "lengths": [len(episode) for episode in episodes],
        "ended": [episode.ended for episode in episodes],
        "complete": [episode.complete for episode in episodes],
        "players": [episode.player for episode in episodes],
        "observations": joined("observations", 0),
        "actions": joined("actions", 0),
        "rewards": joined("rewards"),
    }
    save_tree(path, kept)


def describe_episodes(game: Game | None = None) -> Kind:
    """Return the kind of what `save_episodes` writes, of games of a form."""
    sizes = (None, None) if game is None else (game.observation_size, game.action_size)
    kind = torch.float32 if game is None or not game.picture else torch.uint8
    sides = {
        "lengths": Items(Whole()),
        "ended": Items(Flag()),
        "complete": Items(Flag()),
        "players": Items(Word(*PLAYERS)),
    }
    return Fields(
        {
            **sides,
            "observations": TensorOf(None, sizes[0], dtype=kind),
            "actions": TensorOf(None, sizes[1]),
            "rewards": TensorOf(None),
        }
    )


def load_episodes(path: Path, game: Game | None = None) -> list[Episode]:
    """Read games of a form that `save_episodes` wrote.

    Raises `UserError` if the file is missing, damaged or something else, or holds other games.
    """
    kept = load_tree(path)
    # then nothing tells how large an observation is
    none = isinstance(kept, dict) and kept.get("lengths") == []
    check(kept, describe_episodes(None if none else game), path, otherwise="is damaged")
    try:
        observations, actions, rewards = (
            kept[name].numpy() for name in ("observations", "actions", "rewards")
        )
        lengths = kept["lengths"]
        ends = np.cumsum(lengths, dtype=np.int64)
        if (
            len(rewards) != sum(lengths)
            or len(actions) != len(rewards)
            or len(observations) != len(rewards) + len(lengths)
        ):
            raise ValueError("its games' lengths do not fit")
        games = zip(
            lengths, ends.tolist(), kept["ended"], kept["complete"], kept["players"], strict=True
        )
        return [
            Episode(
                observations[end - n + i : end + i + 1],
                actions[end - n : end],
                rewards[end - n : end],
                bool(ended),
                bool(full),
                player,
            )
            for i, (n, end, ended, full, player) in enumerate(games)
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
