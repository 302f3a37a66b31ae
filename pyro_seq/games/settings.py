"""The hyper-parameters of a game's run, with their defaults and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyro_seq.config.build import model_settings
from pyro_seq.config.fields import above, at_least, between, described, one_of
from pyro_seq.config.model_settings import Layer, resolve
from pyro_seq.emissions.pictures import MOST_CHANNELS, PIXELS
from pyro_seq.errors import UserError
from pyro_seq.games.environment.making import Named, environment_arguments
from pyro_seq.games.environment.pictures import PictureForm
from pyro_seq.nn.feedforward import ACTIVATIONS
from pyro_seq.nn.recurrent import KINDS
from pyro_seq.train.settings import TrainingSettings

# moves or updates: more than any machine makes, and whole numbers that float64 holds
MOST_STEPS = 10**15
LEAST_TEMPERATURE = 1e-6  # below it float32 has no room for what a logit is divided by
# steps that an update is made of at most, all stretches or imagined games counted
MOST_ROWS = 2**20
# of a pair, where games have their own: what a step leads to is a function of the step before, and
# a little of what came before that
DEFAULTS: dict[str, Any] = {
    "cell": "gru",
    "hidden_size": 32,
    "skip": True,
    "decoder_sizes": (64, 64),
    "emission_sizes": (64, 64),
    "activation": "silu",
    "latent_size": 8,
    "conditional": True,
}

# where observations are pictures: the state of a pair with latents says what is to be seen
# (Hafner et al. 2019, arXiv 1811.04551), and an agent that sees all of it needs no memory
PIXEL_DEFAULTS: dict[str, Any] = {
    "model.name": "vrnn",
    "model.hidden_size": 64,
    "model.latent_size": 16,
    "model.latent_sizes": (64,),
    "model.feature_sizes": (32,),
    "model.decoder_sizes": (64,),
    "model.smoothing": False,
    "agent.kind": "mlp",
    "agent.encoder_sizes": (64,),
    "agent.decoder_sizes": (64,),
    "world.batch_size": 16,
    "training.kl_schedule": "linear",  # latents that cost less at first are used at all
    "training.kl_start": 0.05,
    "training.kl_steps": 300,
}


@dataclass(frozen=True)
class PlaySettings:
    """Settings of playing the real game."""

    env: str = described("CartPole-v1", "gymnasium's id of the environment")
    env_kwargs: str | None = described(
        None, "arguments that the environment is made with, a JSON object; none for none"
    )
    pixels: bool = described(
        False,
        "whether it is observed by pictures: what it observes if that is one, else what it draws",
    )
    env_steps: int = between(
        1, MOST_STEPS, 5_000, "moves in the real game at most, over all resumptions"
    )
    num_envs: int = between(1, 1_024, 4, "games played side by side")
    first_games: int = between(1, 10**6, 30, "games of the random agent before anything is learnt")
    games_per_round: int = between(1, 10**6, 4, "games between two trainings")
    random_ratio: float = between(0, 1, 0.5, "fraction of these games that the random agent plays")
    goal: float | None = described(
        None, "mean return of the agent's last goal_games games that ends the training; none: none"
    )
    goal_games: int = between(1, 10**6, 4, "how many games that is the mean of")
    action_repeat: int = between(
        1, 1_000, 1, "moves that the random agent holds an action for at most"
    )
    temperature: float = between(
        LEAST_TEMPERATURE, 1e6, 1.0, "of the agent's choices in the games that are learnt from"
    )
    held_out: float = between(
        0, 0.5, 0.1, "fraction of the games that is never learnt from, and measured on"
    )


@dataclass(frozen=True)
class PictureSettings:
    """Settings of observations that are pictures (`play.pixels`), and of how a pair sees them."""

    size: tuple[int, ...] = between(
        1,
        4_096,
        (16, 24),
        "height and width that larger pictures are averaged down to; none: as they are",
    )
    grey: bool = described(True, "whether three colours become one grey")
    frame_stack: int = between(
        1, MOST_CHANNELS, 1, "how many of the last pictures are one observation"
    )
    pixel: str = one_of(
        PIXELS,
        "normal",
        "what a pixel is given the features: normal: a real number; bernoulli: black or white; "
        "logistic: 8 bits, a mixture of logistics",
    )
    scale: float = above(
        0,
        0.5,
        "of normal: the scale of all pixels, in root mean squares of what pixels differ from the "
        "mean picture",
    )
    num_mixtures: int = between(1, 64, 5, "of logistic: logistics in the mixture of a pixel")
    features: int = between(1, 4_096, 64, "features that a picture is drawn from")
    map_channels: tuple[int, ...] = between(
        1,
        4_096,
        (16,),
        "channels of the transposed convolutions from features to hidden units, each of stride 2, "
        "the coarsest first",
    )
    hidden_size: int = between(1, 4_096, 8, "hidden units at each place")
    kernel_size: int = between(1, 63, 1, "of the convolution from hidden units to pixels, odd")
    encoder_channels: tuple[int, ...] = between(
        1, 4_096, (8, 16), "channels of the convolutions that see a picture"
    )
    encoder_features: int = between(1, 4_096, 64, "features of a picture that they end in")

    @property
    def form(self) -> PictureForm:
        """The form that pictures are brought to."""
        return PictureForm(self.size, self.grey, self.frame_stack)


@dataclass(frozen=True)
class WorldSettings:
    """Settings of the world model's training; its optimiser is that of `training`."""

    first_updates: int = between(1, MOST_STEPS, 1_000, "updates after the first games")
    updates: int = between(1, MOST_STEPS, 300, "updates after each further round")
    batch_size: int = between(1, 65_536, 64, "stretches of games side by side")
    window: int = between(2, 65_536, 16, "steps of these stretches")
    change: bool = described(
        True, "whether it predicts the change of the observation, not the observation itself"
    )
    encoder_sizes: tuple[int, ...] = between(
        1,
        65_536,
        (),
        "hidden layers of the encoder of an observation; none: its numbers as they are",
    )
    activation: str = one_of(sorted(ACTIVATIONS), "silu", "of these layers")


@dataclass(frozen=True)
class AgentSettings:
    """Settings of the agent, and of its training in imagined games."""

    kind: str = one_of(
        ("recurrent", "mlp"),
        "recurrent",
        "recurrent: remembers what it saw; mlp: sees this step alone",
    )
    cell: str = one_of(sorted(KINDS), "gru", "recurrent cell")
    hidden_size: int = between(
        1, 65_536, 32, "units of the recurrence, of the agent and of its critic"
    )
    encoder_sizes: tuple[int, ...] = between(
        1, 65_536, (32,), "layers of the encoder of an observation"
    )
    decoder_sizes: tuple[int, ...] = between(1, 65_536, (32,), "hidden layers before the action")
    gradient: str = one_of(
        ("score", "pathwise"),
        "score",
        (
            "score: REINFORCE with a critic; pathwise: through relaxed or Gaussian actions and the "
            "world model"
        ),
    )
    first_updates: int = between(1, MOST_STEPS, 60, "updates after the first games")
    updates: int = between(1, MOST_STEPS, 80, "updates after each further round")
    num_games: int = between(1, 1_000_000, 128, "imagined games of an update")
    horizon: int = between(1, 100_000, 32, "moves of an imagined game at most")
    prefix: int = between(
        1, 100_000, 4, "real steps that are seen before a game is imagined on from its middle"
    )
    initial_state_fraction: float = between(
        0, 1, 0.25, "fraction of the imagined games that start from a real game's beginning"
    )
    discount: float = between(0, 1, 0.99, "of rewards, per move")
    gae_lambda: float = between(
        0, 1, 0.95, "lambda of generalised advantages, between critic (0) and returns (1)"
    )
    entropy_bonus: float = between(
        0, 1e6, 0.2, "what a nat of the agent's entropy is worth, in root mean squares of a reward"
    )
    normalise: bool = described(False, "whether advantages are brought to mean 0 and deviation 1")
    gumbel_temperature: float = between(
        LEAST_TEMPERATURE,
        1e6,
        1.0,
        "temperature of relaxed actions, for pathwise gradients of a discrete game",
    )
    learning_rate: float = above(0, 2e-3, "AdamW's learning rate of agent and critic")
    clip_norm: float = at_least(0, 1.0, "largest norm of the gradient; 0 for no limit")
    ema_decay: float = between(
        0,
        0.99999,
        0.98,
        "decay of the moving average of the agent's weights, which is what plays; 0: none",
    )


def _training() -> TrainingSettings:
    return replace(
        TrainingSettings(),
        num_steps=1_000_000,
        learning_rate=2e-3,
        schedule="linear",
        final_lr_fraction=0.1,
        warmup=0.0,
    )


@dataclass(frozen=True)
class GameSettings:
    """Hold all hyper-parameters of a game's run.

    Those of the model are its pair's (`config.model_settings`).
    """

    play: PlaySettings = field(default_factory=PlaySettings)
    picture: PictureSettings = field(default_factory=PictureSettings)
    world: WorldSettings = field(default_factory=WorldSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    model: Any = field(default_factory=lambda: model_settings("rnn", DEFAULTS))
    training: TrainingSettings = field(default_factory=_training)


def game_settings(*layers: Layer | Mapping[str, Any]) -> GameSettings:
    """Return the defaults with settings by dotted name overridden, in order.

    `model.name` is among them; errors are those of `text_settings`. With `play.pixels` the defaults
    are those of pictures.
    """
    pixels = [
        changes["play.pixels"]
        for changes in (layer.changes if isinstance(layer, Layer) else layer for layer in layers)
        if "play.pixels" in changes
    ]
    # lenient, since another pair may be named, which does not take all of them
    own = [Layer(PIXEL_DEFAULTS, lenient=True)] if pixels and pixels[-1] is True else []
    settings = checked(resolve(GameSettings, [*own, *layers], DEFAULTS))
    last = {
        name: layer
        for layer in layers
        for name in (layer.changes if isinstance(layer, Layer) else layer)
    }
    others = {
        name: layer.source
        for name, layer in last.items()
        if isinstance(layer, Layer) and not layer.trusted
    }
    named = Named(
        *(
            None if f"play.{name}" in others else getattr(settings.play, name) or "{}"
            for name in ("env", "env_kwargs")
        )
    )
    for name in ("play.env", "play.env_kwargs"):
        if name in others:
            named.check_allowed(settings.play.env, settings.play.env_kwargs, others[name])
    return settings


def checked(settings: GameSettings) -> GameSettings:
    """Return settings that go together; raise `UserError` for others."""
    s = settings
    environment_arguments(s.play.env_kwargs, "play.env_kwargs")
    for many, steps, count in (
        ("world.batch_size", "world.window", s.world.batch_size * s.world.window),
        ("agent.num_games", "agent.horizon", s.agent.num_games * s.agent.horizon),
        ("agent.num_games", "agent.prefix", s.agent.num_games * s.agent.prefix),
    ):
        if count > MOST_ROWS:
            raise UserError(
                f"{many} times {steps} is {count:,}, and an update is of at most {MOST_ROWS:,} "
                "steps: lower one of them"
            )
    if len(s.picture.size) not in (0, 2):
        raise UserError(f"picture.size is a height and a width, got {list(s.picture.size)}")
    if s.picture.kernel_size % 2 == 0:
        raise UserError(f"picture.kernel_size must be odd, got {s.picture.kernel_size}")
    return settings
