"""The agent: a model of actions given observations, for real games and for `Reinforce`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_seq._pytree import tree_cat, tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import Context, SideInputs
from pyro_seq.distributions.base import Distribution
from pyro_seq.emissions.base import Emission
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import MLPEncoder as EncoderMLP
from pyro_seq.errors import DIVERGED, UserError, finite_probabilities
from pyro_seq.games.environment.environments import Game
from pyro_seq.games.environment.episodes import Normalisation
from pyro_seq.games.settings import AgentSettings
from pyro_seq.games.world.pictures import remembered
from pyro_seq.games.world.world_model import World
from pyro_seq.infer.sampling import draw, tempered
from pyro_seq.models import RNN
from pyro_seq.nn.feedforward import MLP
from pyro_seq.pairs.model import ModelState, SequenceModel
from pyro_seq.pairs.pair import Pair
from pyro_seq.reinforce.baselines import Critic

LEAST_SCALE = 0.2  # of a continuous action, before tanh


class Feedforward(SequenceModel):
    """x_t ~ p(x_t | f(c_t)): a multilayer perceptron without memory.

    Args:
        emission: p(x_t | features).
        context: c_t.
        hidden_sizes: of f, whose activation is tanh.
    """

    def __init__(
        self,
        emission: Emission,
        context: Context,
        *,
        hidden_sizes: Sequence[int] = (64,),
    ) -> None:
        super().__init__(emission, context)
        self.decoder = MLP(
            context.num_features, hidden_sizes, emission.num_features, activation="tanh"
        )

    def decode(
        self, h: Tensor, latents: Tensor | None, rnn_state: tuple[()]
    ) -> tuple[Tensor, tuple[()]]:
        """Compute the features of p(x_t | c_t)."""
        return self.decoder(h), rnn_state


class Action(Emission):
    """Real numbers N(f_1, 0.2 + sigmoid(f_2)), which become actions by tanh within bounds.

    The scale has a floor, since the variance of a score function goes with 1 / scale^2, and a
    ceiling, since beyond it noise is all that tanh leaves, though the entropy would go on growing.

    Args:
        size: A, numbers of an action.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.event_shape, self.num_features = (size,), 2 * size

    def forward(self, features: Tensor) -> Distribution:
        """Return the distribution given locations, then raw scales, `[..., 2 A]`."""
        loc, raw_scale = features.chunk(2, -1)
        return dist.Normal(loc, LEAST_SCALE + raw_scale.sigmoid()).to_event(1)


def make_policy(game: Game, settings: AgentSettings, size: int | None = None) -> Pair:
    """Make an agent: actions given what it sees as side inputs.

    That is `size` numbers of a world model's state (`World.size_seen`), or else an observation.

    All actions of a discrete game are about equally likely at first.
    """
    emission: Emission = (
        Categorical(game.action_size) if game.discrete else Action(game.action_size)
    )
    context = _sees(game.observation_size if size is None else size, settings)
    if settings.kind == "mlp":
        model: SequenceModel = Feedforward(emission, context, hidden_sizes=settings.decoder_sizes)
    else:
        model = RNN(
            emission,
            context,
            cell=settings.cell,
            hidden_size=settings.hidden_size,
            decoder_sizes=settings.decoder_sizes,
            skip=True,
            activation="tanh",
        )
    decoder: Any = model.decoder
    with torch.no_grad():
        decoder[-1].weight.mul_(0.01)
        decoder[-1].bias.zero_()
    return Pair(model)


def make_critic(game: Game, settings: AgentSettings, size: int | None = None) -> Critic:
    """Make a critic of what the agent sees; `size` is that of `make_policy`."""
    seen = game.observation_size if size is None else size
    return Critic(_sees(seen, settings), hidden_size=settings.hidden_size)


def _sees(size: int, settings: AgentSettings) -> SideInputs:
    """The side inputs that an agent and its critic see."""
    return SideInputs(size, EncoderMLP(size, settings.encoder_sizes, activation="tanh"))


@torch.no_grad()
def state_after(model: SequenceModel, observations: Tensor) -> ModelState:
    """Return the agent's state after normalised observations `[N, T, D]`; T may be 0."""
    n = len(observations)
    state = model.initial(n)
    if observations.shape[1] == 0:
        return state
    _, rnn_state = model.hidden_states(SequenceBatch(None, inputs=observations))
    return {**state, "carried": rnn_state}


def act(
    model: SequenceModel, state: ModelState, observations: Tensor, temperature: float = 1.0
) -> tuple[Tensor, ModelState]:
    """Draw (actions `[N]` or `[N, A]`, the state after) given normalised observations `[N, D]`.

    Actions are as the emission draws them.

    At temperature 0 it is the likeliest action; the scale of a continuous one is multiplied by the
    temperature. Raises `UserError` for a temperature that is no number, or below 0.
    """
    if not 0 <= temperature < math.inf:
        raise UserError(f"the temperature must be a number, at least 0, got {temperature}")

    def drawn(emission: Distribution) -> Tensor:
        if isinstance(emission, torch.distributions.Categorical):
            return (
                emission.logits.argmax(-1)
                if temperature == 0
                else draw(tempered(emission, temperature=temperature))
            )
        normal = emission.base_dist
        return normal.loc + temperature * normal.scale * torch.randn_like(normal.loc)

    action, _, after = model.advance(state, observations, no_latents, drawn)
    return action, after


def no_latents(prior: object) -> NoReturn:
    """Raise an error: an agent has no latents to draw."""
    raise TypeError("an agent has no latents")


class AgentPlayer:
    """An agent that plays the real game.

    Args:
        game: its form.
        policy: the agent, used in evaluation mode.
        normalisation: of observations.
        temperature: of its choices; 0: always the likeliest action.
        world: the model of a game that is observed by pictures, through which the agent sees them.
    """

    def __init__(
        self,
        game: Game,
        policy: Pair,
        normalisation: Normalisation,
        temperature: float = 1.0,
        world: World | None = None,
    ) -> None:
        self.game = game
        self.policy = policy
        self.normalisation = normalisation
        self.temperature = temperature
        self.model: Any = policy.model
        self.world = world if game.picture else None
        self._states: dict[int, Any] = {}  # by place, each of one row
        # likewise, what the world model knows of a game, and the side inputs of its next step
        self._known: dict[int, Any] = {}

    def begin(self, place: int) -> None:
        """Forget the game at a place."""
        self._states[place] = self.model.initial(1)
        self._known.pop(place, None)

    @torch.no_grad()
    def act(self, places: Sequence[int], observations: np.ndarray) -> np.ndarray:
        """Return encoded actions `[K, A]`."""
        state = tree_cat([self._states[place] for place in places])
        seen = self._seen(places, self.normalisation.normal(torch.from_numpy(observations)))
        with self.policy.evaluating(), pyro.validation_enabled(False), finite_probabilities():
            action, state = act(self.model, state, seen, self.temperature)
        encoded = self.game.encode(action)
        if not encoded.isfinite().all():
            raise UserError(f"the agent's actions are not finite: {DIVERGED}")
        for i, place in enumerate(places):
            self._states[place] = tree_map(lambda x, i=i: x[i : i + 1], state)
            if self.world is not None:
                before = self.world.inputs(encoded[i : i + 1])
                self._known[place] = (self._known[place][0], before)
        return encoded.numpy()

    def _seen(self, places: Sequence[int], observations: Tensor) -> Tensor:
        """What the agent sees of the games at some places, `[K, F]`."""
        world = self.world
        if world is None:
            return observations
        begun = [place in self._known for place in places]
        seen: dict[int, Tensor] = {}
        for group in (False, True):
            rows = [i for i, going in enumerate(begun) if going == group]
            if not rows:
                continue
            known, inputs = None, world.first_inputs(len(rows))
            if group:
                known, inputs = tree_cat([self._known[places[i]] for i in rows])
            zeros = torch.zeros(len(rows))
            x = {"observation": observations[rows], "reward": zeros, "end": zeros}
            known = world.watch(known, x, inputs)
            shown = remembered(world.state_of(known))
            for j, i in enumerate(rows):
                row = tree_map(lambda part, j=j: part[j : j + 1], known)
                self._known[places[i]], seen[i] = (row, None), shown[j]
        return torch.stack([seen[i] for i in range(len(places))])
