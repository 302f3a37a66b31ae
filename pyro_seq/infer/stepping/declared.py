"""Run a declared pair by its equations, and decide how a pair is run.

`DeclaredStepper` does the first; `stepper_of` is the one place that does the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_seq._pytree import tree_leaves, tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.base import Distribution
from pyro_seq.emissions.base import over_time
from pyro_seq.infer.stepping.replay import ReplayStepper
from pyro_seq.infer.stepping.stepper import DrawLatent, Observe, Stepper
from pyro_seq.pairs.guide import SequenceGuide
from pyro_seq.pairs.model import ModelState, SequenceModel
from pyro_seq.pairs.observed import prepared
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.observation_sites import TransformDistribution, unchanged
from pyro_seq.poutine.step_densities import check_support, observed_steps

AHEAD = 64  # steps that are drawn between two looks at Pyro's global settings
STATES = 8_192  # sequences that are sampled side by side
FEATURES = 2**19  # of their emissions in a step: as many as stay in the processor's cache


class DeclaredStepper(Stepper[ModelState]):
    """Run a pair by its model's equations, in constant memory a step and without Pyro's handlers.

    Args:
        pair: a model and a guide.
        model: the pair's.
    """

    def __init__(self, pair: Pair, model: SequenceModel) -> None:
        super().__init__(pair)
        self.model = model

    def proposes_by_step(self, proposal: str) -> bool:
        """Tell whether latents can be proposed step by step.

        They can be by the prior, or by a guide that is declared as well.
        """
        guided = not self.model.latent_size or isinstance(self.pair.guide, SequenceGuide)
        return guided or proposal == "prior"

    @property
    def is_exact(self) -> bool:
        """Without latent vectors."""
        return not self.model.latent_size

    def summing_out(self) -> DeclaredStepper:
        """Return the stepper in layout `path` if the model has no latent vectors.

        Layout `path` sums out the states that layout `steps` leaves to enumeration.
        """
        if self.model.latent_size:
            return self
        return DeclaredStepper(
            Pair(partial(self.model, layout="path"), self.pair.guide), self.model
        )

    def unshared(self, state: Any, k: int) -> Any:
        """Return tensors `[k, N, …]` or, where all share one, `[N, …]`, as `[N, k, …]`."""
        one, guide = self.model.initial(1), self.pair.guide
        like: dict[str, Any] = {"model": one, "guide": None}
        if isinstance(guide, SequenceGuide) and state["guide"] is not None:
            like["guide"] = {"latent": one["latent"], "carried": guide.initial_rnn_state(1)}
        return tree_map(
            lambda x, y: (x if x.dim() > y.dim() else x.expand(k, *x.shape)).transpose(0, 1),
            state,
            like,
        )

    def initial(self, n: int) -> ModelState:
        """Return what the context remembers, z_0 and the recurrences' state."""
        return self.model.initial(n)

    def state_before(self, batch: SequenceBatch) -> ModelState:
        """Return the batch's own, or the initial one."""
        return self.model.state_before(batch)

    def step(
        self, state: ModelState, inputs: Tensor | None, draw_latent: DrawLatent, observe: Observe
    ) -> tuple[Any, ModelState]:
        """Return (x_t, the state after it)."""
        x, _, after = self.model.advance(state, inputs, draw_latent, observe)
        return x, after

    def sample(
        self,
        state: ModelState,
        num_steps: int,
        *,
        inputs: Tensor | None = None,
        transform_distribution: TransformDistribution = unchanged,
        latents: dict[str, Tensor] | None = None,
    ) -> Iterator[Any]:
        """Yield x_t step after step, drawn a few steps ahead."""
        start = 0
        while start < num_steps:
            end = min(num_steps, start + AHEAD) if start else 1
            steps = []
            # the other steps' distributions have the first one's form
            with pyro.validation_enabled(start == 0):
                for t in range(start, end):

                    def draw_latent(prior: dist.Normal, t: int = t) -> Tensor:
                        return prior.sample() if latents is None else latents[f"z_{t}"]

                    u = None if inputs is None else inputs[..., t, :]
                    x, state = self.step(
                        state, u, draw_latent, lambda law: draw(transform_distribution(law))
                    )
                    steps.append(x)
            yield from steps
            start = end

    def stack(self, steps: list[Any]) -> Any:
        """Return as the emission has them."""
        return self.model.emission.stack(steps)

    def rows_at_once(self, num_steps: int) -> int:
        """Return how many take steps together fastest: large vocabularies leave room for few.

        So do large states, such as the covariances of a Kalman filter.
        """
        features = FEATURES // max(1, self.model.emission.num_features)
        return max(16, min(STATES, features, self.states_at_once))

    @property
    def state_size(self) -> int:
        """How many numbers the state of a sequence holds, at least 1."""
        return max(1, sum(x.numel() for x in tree_leaves(self.model.initial(1))))

    def by_step(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a path's site `z` `[…, T, Z]` as the sites `z_0, z_1, …`."""
        path = latents["z"].unbind(-2) if "z" in latents else ()
        rest = {name: value for name, value in latents.items() if name != "z"}
        return rest | {f"z_{t}": z for t, z in enumerate(path)}

    def check(self, batch: SequenceBatch) -> None:
        """Check all observations before embeddings are asked for symbols that they lack."""
        if batch.values is None:
            return
        emission = self.model.emission
        known = prepared(self.model, batch)
        like = over_time(emission.blank(1, 1, device=batch.device), None)
        observed = observed_steps(batch, torch.arange(len(batch), device=batch.device))
        for name, fn in like.items() if isinstance(like, dict) else (("", like),):
            values = known[name] if name else known
            check_support(f"x_{name}" if name else "x", fn, values, observed, None)

    def to_check(self, batch: SequenceBatch, rows: Tensor) -> None:
        """Return `None`: all were checked before."""


def draw(distribution: Distribution) -> Any:
    """Draw a sample; of a named group, a dict of samples."""
    return (
        {name: part.sample() for name, part in distribution.items()}
        if isinstance(distribution, dict)
        else distribution.sample()
    )


def stepper_of(pair: Pair) -> DeclaredStepper | ReplayStepper:
    """Return how a pair is run step after step."""
    model = pair.model
    return DeclaredStepper(pair, model) if isinstance(model, SequenceModel) else ReplayStepper(pair)
