"""A world model: a pair over observations given actions, stepped with or without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_seq._pytree import tree_leaves, tree_map
from pyro_seq._rng import fork_rng
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
from pyro_seq.games.environment.episodes import FLAGS, Normalisation, PictureUnits
from pyro_seq.games.settings import GameSettings
from pyro_seq.games.world.pictures import (
    SMALLEST_SCALE,
    ObservationOf,
    picture_parts,
    remembered,
    without_pictures,
)
from pyro_seq.infer.continuations import state_after
from pyro_seq.infer.smc.particle_filter import particle_filter
from pyro_seq.infer.stepping.declared import draw, stepper_of
from pyro_seq.infer.stepping.replay import Prefix, ReplayStepper
from pyro_seq.pairs.pair import Pair


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
            NoContext(), LastObservations(ObservationOf(Flatten(self.emission_context_size)))
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
    """Make the world model of a game, with new weights.

    Raises `UserError` for a pair without latents where observations are pictures.
    """
    s = settings.world
    if game.picture:
        pair = make_pair(settings.model, picture_parts(game, settings.picture))
        if getattr(pair.model, "latent_size", 1) == 0:
            raise UserError(
                f"the pair {settings.model.name!r} has no latents, and only latents remember what "
                "was seen in pictures: vrnn, srnn or dmm would do"
            )
        return pair
    return make_pair(
        settings.model,
        game_parts(game, change=s.change, encoder_sizes=s.encoder_sizes, activation=s.activation),
    )


def world_of(pair: Pair, game: Game) -> World:
    """Return the world model of a game as it is stepped."""
    return World(pair, game.action_size, pictures=bool(game.picture))


def units_of(settings: GameSettings, game: Game) -> Normalisation:
    """Return the units in which a game's world model observes it, of no games yet."""
    if not game.picture:
        return Normalisation(game.observation_size)
    return PictureUnits(game.picture, settings.picture.pixel)


def set_spread(pair: Pair, spread: Tensor) -> None:
    """Set the scale `[D]` of changes of observations, in normalised units, of a pair."""
    emission = getattr(pair.model, "emission", None)
    if isinstance(emission, GameStep):
        with torch.no_grad():
            emission.spread.copy_(spread)


class World:
    """A trained world model that is stepped.

    The pair declares its equations, or its model returns the state it ends in. What an agent sees
    of a step is the observation, or where that is a picture what the model's state remembers of
    the game (`pictures.remembered`): games are imagined without drawing pictures.

    Args:
        pair: over games (`game_parts`, `pictures.picture_parts`); used in evaluation mode.
        num_actions: A.
        pictures: whether observations are pictures.
    """

    def __init__(self, pair: Pair, num_actions: int, *, pictures: bool = False) -> None:
        self.pair, self.num_actions, self.pictures = pair, num_actions, pictures

    def inputs(self, actions: Tensor) -> Tensor:
        """Return the side inputs `[N, A + 2]` of the step after encoded actions `[N, A]`."""
        return torch.cat([actions, actions.new_zeros(*actions.shape[:-1], FLAGS)], -1)

    def first_inputs(self, count: int) -> Tensor:
        """Return the side inputs `[count, A + 2]` of the first step of games."""
        inputs = torch.zeros(count, self.num_actions + FLAGS)
        inputs[:, self.num_actions] = 1.0
        return inputs

    @torch.no_grad()
    def begin(self, count: int, *, drawn: bool = True) -> tuple[dict[str, Tensor], Any]:
        """Draw (the first observations `[N, D]`, …, the states after) of `count` games.

        Args:
            count: N.
            drawn: see `step`.
        """
        return self.step(
            stepper_of(self.pair).initial(count), self.first_inputs(count), drawn=drawn
        )

    @cached_property
    def size_seen(self) -> int | None:
        """How many numbers of a state an agent sees; `None` where it sees the observation."""
        if not self.pictures:
            return None
        with fork_rng(0), self.pair.evaluating():
            return remembered(self.begin(1, drawn=False)[1]).shape[1]

    def seen(self, x: dict[str, Tensor], state: object) -> Tensor:
        """Return what an agent sees of a step `[N, F]`, given the model's state after it."""
        return remembered(cast(Any, state)) if self.pictures else x["observation"]

    @torch.no_grad()
    def watched(self, prefix: SequenceBatch, *, samples: int = 8) -> tuple[Any, Tensor]:
        """Return (the model's states `[N, …]` after games that fill a batch, what an agent sees).

        The latter is `[N, T, F]`. Latents are drawn from their filtered distribution, by `samples`
        particles; of pictures, whose weights would leave one of them, as the guide proposes.

        Nobody around sees this: an agent's `SVI` would take the world's parameters for the agent's.
        """
        values: Any = prefix.values
        if not self.pictures:
            with pyro.validation_enabled(False), poutine.block():
                after = _kept(state_after(self.pair, [prefix], samples=samples))
            return after, values["observation"]
        assert prefix.inputs is not None
        known, states = None, list[Any]()
        for t in range(prefix.num_steps):
            x = tree_map(lambda part, t=t: part[:, t], values)
            known = self.watch(known, x, prefix.inputs[:, t])
            states.append(self.state_of(known))
        return states[-1], torch.stack([remembered(state) for state in states], 1)

    @torch.no_grad()
    def watch(self, known: Any, x: dict[str, Tensor], inputs: Tensor) -> Any:
        """Return what is known of N games after one more step of them was seen.

        Latents are drawn from the guide's proposal.

        Args:
            known: before the step, `None` at the games' beginnings.
            x: the step, `[N, …]`; a guide sees the picture alone.
            inputs: side inputs `[N, A + 2]`.
        """
        step = tree_map(lambda part: part.unsqueeze(1), x)
        batch = SequenceBatch(step, inputs=inputs.unsqueeze(1), state=known)
        with pyro.validation_enabled(False), poutine.block(), without_pictures(self.pair):
            if stepper_of(self.pair).proposes_by_step("guide"):
                return particle_filter(self.pair, batch, samples=1, paths=False).state
            after = _kept(state_after(self.pair, [batch], samples=1))
        return {"model": after.state if isinstance(after, Prefix) else after, "guide": None}

    def state_of(self, known: Any) -> Any:
        """Return the model's states `[N, …]`, given what is known of games (`watch`)."""
        count = len(tree_leaves(known)[0])
        return stepper_of(self.pair).state_before(SequenceBatch(None, [1] * count, state=known))

    def step(
        self, state: object, inputs: Tensor, *, differentiable: bool = False, drawn: bool = False
    ) -> tuple[dict[str, Tensor], Any]:
        """Draw (observation `[N, D]`, reward `[N]`, end `[N]`) of one step, and the state after.

        Args:
            state: as `watched` or a step before has given it.
            inputs: side inputs `[N, A + 2]`.
            differentiable: whether gradients go through the draws (reparameterised); `end` is then
                its probability.
            drawn: whether observations that are pictures `[N, C, H, W]` are asked for, the means
                of their pixels given the latents; else they may be left out.

        Raises `UserError` for a pair that returns no state, and for a differentiable step of one
        that is not declared by its equations.
        """
        stepper: Any = stepper_of(self.pair)
        with nullcontext() if drawn else without_pictures(self.pair):
            if not differentiable:
                with self.pair.scope(), poutine.block():
                    shown = draw if isinstance(stepper, ReplayStepper) else self._draw
                    x, after = stepper.step(state, inputs, lambda prior: prior.sample(), shown)
                return x, _kept(after)
            if isinstance(stepper, ReplayStepper):
                raise UserError(
                    "gradients through a game need a world model declared by its equations "
                    "(SequenceModel); agent.gradient=score needs none"
                )
            return stepper.step(state, inputs, lambda prior: prior.rsample(), _soft)

    def _draw(self, emission: dict[str, Any]) -> dict[str, Tensor]:
        """Draws; of a picture, at which nothing looks but a person, the mean."""
        if not self.pictures:
            return draw(emission)
        return {
            name: part.mean if name == "observation" else part.sample()
            for name, part in emission.items()
        }


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
