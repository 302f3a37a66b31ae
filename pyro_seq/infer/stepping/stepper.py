"""Define `Stepper`, which runs the model of a pair step after step.

Sampling, continuation, prediction and rollouts are written against this interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.base import Distribution
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.observation_sites import TransformDistribution, unchanged
from pyro_seq.poutine.step_densities import Observed, observed_steps

# steps of particles that are worked on at once: bounds the memory of that work, not of what is kept
CHUNK_STEPS = 32_768
STATE_NUMBERS = 2**24  # of the states of all sequences side by side
CHUNK_FEATURES = 128  # of an emission: with more of them fewer steps are worked on at once

State = TypeVar("State")
DrawLatent = Callable[[dist.Normal], Tensor]
Observe = Callable[[Distribution], Any]


class Stepper(ABC, Generic[State]):
    """Run the model of a pair step after step.

    The states that it starts from are trees of tensors, sequences first.

    There are two kinds: `DeclaredStepper` runs a model's equations, `ReplayStepper` runs any Pyro
    function again on the steps so far. `declared.stepper_of` says which one a pair has. All methods
    are called in the pair's scope and in evaluation mode.

    Args:
        pair: a model and a guide.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    @abstractmethod
    def initial(self, n: int) -> State:
        """Return the state before the first step of n sequences."""

    @abstractmethod
    def state_before(self, batch: SequenceBatch) -> State:
        """Return the state that the first step of a batch starts from."""

    @abstractmethod
    def step(
        self, state: State, inputs: Tensor | None, draw_latent: DrawLatent, observe: Observe
    ) -> tuple[Any, State]:
        """Return (x_t `[N, *event]`, the state after it).

        Args:
            state: of N sequences.
            inputs: side inputs `[N, C]`.
            draw_latent: z_t from its prior.
            observe: x_t from p(x_t | …), of a named group from a dict of distributions.
        """

    @abstractmethod
    def sample(
        self,
        state: State,
        num_steps: int,
        *,
        inputs: Tensor | None = None,
        transform_distribution: TransformDistribution = unchanged,
        latents: dict[str, Tensor] | None = None,
    ) -> Iterator[Any]:
        """Sample x_t `[N, *event]` for t = 1 … num_steps.

        Args:
            state: of N sequences.
            num_steps: how many steps.
            inputs: side inputs `[N, num_steps, C]`.
            transform_distribution: what is done to each observation's distribution before it is
                sampled.
            latents: values `[N, *event]` of the latent sites, in place of draws from the prior.
        """

    @abstractmethod
    def stack(self, steps: list[Any]) -> Any:
        """Return observations of T steps `[N, *event]` as `[N, T, *event]`."""

    @abstractmethod
    def rows_at_once(self, num_steps: int) -> int:
        """Return how many sequences are sampled side by side, which bounds the memory."""

    @property
    def state_size(self) -> int:
        """How many numbers the state of a sequence holds, at least 1; 1 where it is not known."""
        return 1

    @property
    def states_at_once(self) -> int:
        """How many sequences' states are held side by side, which bounds the memory."""
        return max(1, STATE_NUMBERS // self.state_size)

    @property
    def steps_at_once(self) -> int:
        """Return how many steps of particles are worked on at once.

        They are fewer where emissions have many features.
        """
        emission = getattr(self.pair.model, "emission", None)
        features = max(CHUNK_FEATURES, getattr(emission, "num_features", 0))
        return CHUNK_STEPS * CHUNK_FEATURES // features

    def by_step(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the guide's latents by the names of the sites of a model that samples."""
        return latents

    @abstractmethod
    def proposes_by_step(self, proposal: str) -> bool:
        """Tell whether latents can be proposed by step, from the `guide` or the `prior`."""

    @property
    def is_exact(self) -> bool:
        """Whether it is known before a run that there are no latents."""
        return False

    def summing_out(self) -> Stepper[State]:
        """Return the same with the latents summed out of the model that are none to the tools."""
        return self

    def unshared(self, state: object, k: int) -> Any:
        """Return a state of model and guide after a run in a plate of k particles to the left.

        The state is `[N, k, …]`; there is one for pairs whose latents are proposed by step.
        """
        raise TypeError(f"the states of a {type(self).__name__} have no particles to the left")

    def check(self, batch: SequenceBatch) -> None:
        """Raise `UserError` for observations outside of the support.

        Only what is known before the model runs is checked, and no missing cell.
        """

    def to_check(self, batch: SequenceBatch, rows: Tensor) -> Observed | None:
        """Return which observations remain to be checked as they are scored.

        `rows` is what the sequences are called in a message.
        """
        return observed_steps(batch, rows)


def side_by_side(
    batch: SequenceBatch, most_steps: int, samples: int = 1
) -> Iterator[tuple[Tensor, int]]:
    """Yield (rows, the steps of the longest) of sequences that are worked on at once.

    All sequences are if they are few, else those of like length.

    Args:
        batch: N sequences.
        most_steps: of all particles together.
        samples: particles of each sequence.
    """
    n = len(batch)
    order = torch.arange(n, device=batch.device)
    if n * batch.num_steps * samples <= most_steps:
        yield order, batch.num_steps
        return
    order = batch.lengths.argsort(descending=True, stable=True)
    start = 0
    while start < n:
        longest = max(1, int(batch.lengths[order[start]]))
        rows = order[start : start + max(1, most_steps // (longest * samples))]
        yield rows, longest
        start += len(rows)
