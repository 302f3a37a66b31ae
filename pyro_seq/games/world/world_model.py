"""A world model: a pair over observations given actions, stepped with or without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.config.build import PairComponents, make_pair
from pyro_seq.contexts import (
    Chain,
    Context,
    LastObservations,
    NoContext,
    PreviousObservation,
    SideInputs,
    SplitContext,
)
from pyro_seq.emissions.base import Emission
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Bernoulli, Normal
from pyro_seq.encoders import Encoder, Flatten, MLPEncoder
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.errors import UserError
from pyro_seq.games.environment.environments import Game
from pyro_seq.games.environment.episodes import FLAGS
from pyro_seq.games.settings import GameSettings
from pyro_seq.infer.continuations import state_after
from pyro_seq.infer.stepping.declared import draw, stepper_of
from pyro_seq.infer.stepping.replay import Prefix, ReplayStepper
from pyro_seq.pairs.pair import Pair

# of what is predicted, in its own deviations: how exact a model may claim to be
SMALLEST_SCALE = 0.01


class ObservationOf(Encoder):
    """Encode a step's named group by its observation alone, as it is.

    Args:
        size: D.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def blank(self, *lead: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """Return a group of zeros."""
        zeros = torch.zeros(*lead, device=device)
        return {
            "observation": torch.zeros(*lead, self.num_features, device=device),
            "reward": zeros,
            "end": zeros,
        }

    def forward(self, values: dict[str, Tensor]) -> Tensor:
        """Return the observation `[..., D]`."""
        return values["observation"]


class WithObservation(Encoder):
    """Encode a step's named group, and append the observation as it is, `[..., F + D]`.

    Args:
        encoder: of the group.
        size: D.
    """

    def __init__(self, encoder: Encoder, size: int) -> None:
        super().__init__()
        self.encoder, self.num_features = encoder, encoder.num_features + size

    def blank(self, *lead: int, device: torch.device | None = None) -> Any:
        """Return a group of zeros."""
        return self.encoder.blank(*lead, device=device)

    def forward(self, values: dict[str, Tensor]) -> Tensor:
        """Return the encoder's features, then the observation."""
        return torch.cat([self.encoder(values), values["observation"]], -1)


class Before(Chain):
    """u_t and the previous step's encoding, with its observation passed on to the emission.

    The emission predicts a change of that observation.

    The same as `SplitContext` of two contexts, each of which would look the step before up by
    itself.

    Args:
        encoder: of a step's named group.
        size: D, numbers of an observation.
        inputs: size of the side inputs.
    """

    def __init__(self, encoder: Encoder, size: int, inputs: int) -> None:
        super().__init__(SideInputs(inputs), PreviousObservation(WithObservation(encoder, size)))
        self.num_features, self.emission_context_size = self.num_features - size, size

    def emission_only(self) -> Context:
        """Return a context of the observation that is passed on, and no other features."""
        return SplitContext(
            NoContext(), LastObservations(ObservationOf(self.emission_context_size))
        )


class GameStep(Joint):
    """p(o, r, e | f) = N(o; o_{t-1} + s m, s sigma) N(r; …) Bernoulli(e; …).

    m and sigma are computed from the features.

    That is the change of the observation that is predicted, in units s of how much it changes from
    step to step; the observation before is passed on from the context (`contexts.SplitContext`).
    With `change=False` it is the observation itself, N(o; m, sigma).

    Args:
        size: D, numbers of an observation.
        change: whether it is the change that is predicted.
    """

    spread: Tensor

    def __init__(self, size: int, *, change: bool = True) -> None:
        number = Normal(epsilon=SMALLEST_SCALE)
        super().__init__(
            {
                "observation": Factorised(number, size),
                "reward": Normal(epsilon=SMALLEST_SCALE),
                "end": Bernoulli(),
            }
        )
        self.emission_context_size = size if change else 0
        self.register_buffer("spread", torch.ones(size))

    def forward(self, features: Tensor, previous: Tensor | None = None) -> dict[str, Any]:
        """Return the distributions given features and the previous observation `[..., D]`.

        Features are those of observation, reward and end, one after the other.
        """
        parts = super().forward(features)
        if self.emission_context_size:
            if previous is None:
                raise UserError(
                    "this emission predicts changes of the observation before, which its model's "
                    "context must pass on"
                )
            change = parts["observation"].base_dist
            loc, scale = previous + self.spread * change.loc, self.spread * change.scale
            parts["observation"] = dist.Normal(loc, scale).to_event(1)
        return parts


def game_parts(
    game: Game, *, change: bool = True, encoder_sizes: Sequence[int] = (), activation: str = "relu"
) -> PairComponents:
    """Return the parts of pairs over a game's steps.

    Args:
        game: its form.
        change: whether the change of the observation is predicted, and not the observation itself.
        encoder_sizes: hidden layers of the encoder of an observation; none: its numbers as they
            are.
        activation: of these.
    """
    size, inputs = game.observation_size, game.action_size + FLAGS

    def encoder() -> Encoder:
        seen = (
            MLPEncoder(size, encoder_sizes, activation=activation)
            if encoder_sizes
            else Flatten(size)
        )
        return JointEncoder({"observation": seen, "reward": Flatten(()), "end": Flatten(())})

    def context(encoder: Encoder) -> Context:
        return (
            Before(encoder, size, inputs)
            if change
            else Chain(SideInputs(inputs), PreviousObservation(encoder))
        )

    emission: Emission = GameStep(size, change=change)
    return PairComponents(emission, encoder, context, inputs)


def new_world(settings: GameSettings, game: Game) -> Pair:
    """Make the world model of a game, with new weights."""
    s = settings.world
    return make_pair(
        settings.model,
        game_parts(game, change=s.change, encoder_sizes=s.encoder_sizes, activation=s.activation),
    )


def set_spread(pair: Pair, spread: Tensor) -> None:
    """Set the scale `[D]` of changes of observations, in normalised units, of a pair."""
    emission = getattr(pair.model, "emission", None)
    if isinstance(emission, GameStep):
        with torch.no_grad():
            emission.spread.copy_(spread)


class World:
    """A trained world model that is stepped.

    The pair declares its equations, or its model returns the state it ends in.

    Args:
        pair: over games (`game_parts`); used in evaluation mode.
        num_actions: A.
    """

    def __init__(self, pair: Pair, num_actions: int) -> None:
        self.pair, self.num_actions = pair, num_actions

    def inputs(self, actions: Tensor) -> Tensor:
        """Return the side inputs `[N, A + 2]` of the step after encoded actions `[N, A]`."""
        return torch.cat([actions, actions.new_zeros(*actions.shape[:-1], FLAGS)], -1)

    @torch.no_grad()
    def begin(self, count: int) -> tuple[dict[str, Tensor], Any]:
        """Draw (the first observations `[N, D]`, …, the states after) of `count` games."""
        inputs = torch.zeros(count, self.num_actions + FLAGS)
        inputs[:, self.num_actions] = 1.0
        return self.step(stepper_of(self.pair).initial(count), inputs)

    @torch.no_grad()
    def states(self, prefix: SequenceBatch, *, samples: int = 8) -> Any:
        """Return the model's states `[N, …]` after games that fill a batch.

        Latents are drawn from their filtered distribution.

        Nobody around sees this: an agent's `SVI` would take the world's parameters for the agent's.
        """
        with pyro.validation_enabled(False), poutine.block():
            return _kept(state_after(self.pair, [prefix], samples=samples))

    def step(
        self, state: object, inputs: Tensor, *, differentiable: bool = False
    ) -> tuple[dict[str, Tensor], Any]:
        """Draw (observation `[N, D]`, reward `[N]`, end `[N]`) of one step, and the state after.

        Args:
            state: as `states` or a step before has given it.
            inputs: side inputs `[N, A + 2]`.
            differentiable: whether gradients go through the draws (reparameterised); `end` is then
                its probability.

        Raises `UserError` for a pair that returns no state, and for a differentiable step of one
        that is not declared by its equations.
        """
        stepper: Any = stepper_of(self.pair)
        if not differentiable:
            with self.pair.scope(), poutine.block():
                x, after = stepper.step(state, inputs, lambda prior: prior.sample(), draw)
            return x, _kept(after)
        if isinstance(stepper, ReplayStepper):
            raise UserError(
                "gradients through a game need a world model declared by its equations "
                "(SequenceModel); agent.gradient=score needs none"
            )
        x, after = stepper.step(state, inputs, lambda prior: prior.rsample(), _soft)
        return x, after


def _kept(state: object) -> Any:
    """A state of games that are to be put beside others of another length."""
    if isinstance(state, Prefix) and state.state is None:
        raise UserError(
            "a pair that is to stand for a game must return a SequenceOutput with its values and "
            "the state that it ends in"
        )
    return state


def _soft(emission: dict[str, Any]) -> dict[str, Tensor]:
    """Draws that gradients go through; of an end, its probability."""
    drawn = {name: part.rsample() for name, part in emission.items() if name != "end"}
    return drawn | {"end": emission["end"].probs}
