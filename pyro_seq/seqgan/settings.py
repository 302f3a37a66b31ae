"""The hyper-parameters of a SeqGAN run, with their defaults and what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyro_seq.config.build import model_settings
from pyro_seq.config.fields import above, at_least, between, described, one_of
from pyro_seq.train.schedules import LEARNING_RATE_SCHEDULES
from pyro_seq.train.settings import TrainingSettings

DEFAULTS: dict[str, Any] = {"hidden_size": 32}  # of a generator, where SeqGAN has its own
TASKS = ("oracle", "text", "music")
BASELINES = ("none", "moving_average", "per_step", "leave_one_out", "critic")
# the functions are those of adversary.rewards
REWARD_SHAPINGS = ("probability", "log_odds", "rank", "maligan")


@dataclass(frozen=True)
class TaskSettings:
    """Settings of the data, and of how they become sequences of one length."""

    kind: str = one_of(
        TASKS,
        "oracle",
        "oracle: sentences of a random LSTM; text: a corpus; music: melodies of MIDI files",
    )
    length: int | None = between(
        2,
        10_000,
        None,
        "symbols of a sequence (of a line at most); none for the task's own: 20, of music 30",
    )
    pretrained_by: str = one_of(
        ("nll", "criterion"),
        "nll",
        "pretraining keeps its best weights by held-out NLL, or by the task's figure",
    )
    batch_size: int = between(1, 65_536, 64, "sequences of a minibatch in pretraining")
    embedding_size: int = between(1, 65_536, 32, "size of a symbol's embedding in the generator")
    level: str = one_of(("char", "word"), "char", "of text: characters or words")
    unit: str = one_of(
        ("window", "line"),
        "window",
        "of text: windows of one length; or lines, each up to its own end, length at most",
    )
    vocabulary_size: int = between(
        2, 100_000, 5_000, "of text: distinct symbols at most; the others share one"
    )
    seconds: float = above(0, 0.4, "of music: seconds of a step")
    num_train: int = between(2, 1_000_000, 10_000, "of the oracle: sentences to train on")
    num_held_out: int = between(
        2, 10_000_000, 4_000, "of the oracle: sentences to validate on, and as many to test on"
    )
    oracle_symbols: int = between(2, 1_000_000, 5_000, "of the oracle drawn from its seed: symbols")
    oracle_size: int = between(
        1,
        65_536,
        32,
        "of the oracle drawn from its seed: size of embeddings and of the hidden state",
    )
    oracle_seed: int = at_least(0, 0, "of the oracle drawn from its seed")


@dataclass(frozen=True)
class DiscriminatorSettings:
    """Settings of the discriminator and its training."""

    kind: str = one_of(
        ("cnn", "rnn"),
        "cnn",
        "cnn: convolutions, max over time, a highway; rnn: a bidirectional recurrence",
    )
    embedding_size: int = between(1, 65_536, 64, "size of a symbol's embedding")
    filter_sizes: tuple[int, ...] = between(
        1, 10_000, (3, 5, 5, 5), "of the cnn: symbols that a filter looks at"
    )
    num_filters: tuple[int, ...] = between(
        1, 65_536, (50, 80, 80, 100), "of the cnn: how many filters of each size"
    )
    hidden_size: int = between(1, 65_536, 64, "of the rnn: units in each direction")
    dropout: float = between(0, 0.99, 0.25, "share of features that are dropped, in training")
    l2: float = at_least(0, 0.1, "penalty l2/2 |w|^2 on the output layer")
    learning_rate: float = above(0, 1e-4, "Adam's learning rate")
    batch_size: int = between(1, 65_536, 64, "sequences of a minibatch, real and generated")
    samples: int = between(
        0,
        10_000_000,
        0,
        (
            "generated sequences of a round, and as many real ones; 0: as many as there are to "
            "train on"
        ),
    )
    pretrain_rounds: int = at_least(0, 10, "rounds before the generator's first adversarial step")
    pretrain_epochs: int = at_least(1, 3, "epochs of each of these rounds")


@dataclass(frozen=True)
class AdversarialSettings:
    """Settings of the generator's training against the discriminator."""

    num_steps: int = at_least(
        0, 200, "adversarial steps at most: some of the generator, then rounds of the discriminator"
    )
    max_minutes: float | None = above(
        0,
        None,
        "minutes of the game at most, the discriminator's own rounds included; none for no limit",
    )
    batch_size: int = between(2, 65_536, 64, "sequences of an update of the generator")
    generator_steps: int = at_least(1, 1, "updates of the generator in each")
    discriminator_rounds: int = at_least(
        0, 5, "rounds of the discriminator in each, every one with newly generated sequences"
    )
    discriminator_epochs: int = at_least(1, 3, "epochs of each round")
    likelihood_steps: int = at_least(0, 0, "updates of the generator by maximum likelihood in each")
    learning_rate: float = above(0, 1e-2, "Adam's learning rate, of the generator, at its highest")
    schedule: str = one_of(
        LEARNING_RATE_SCHEDULES, "constant", "learning rate over the adversarial steps, or minutes"
    )
    clip_norm: float = at_least(0, 5.0, "largest norm of the generator's gradient; 0 for no limit")
    rollouts: int = at_least(
        0,
        16,
        "completions of each prefix; 0: the reward of the whole sequence at each of its steps",
    )
    rollout_policy_decay: float = between(
        0, 1, 0.8, "how much of its weights the policy of the rollouts keeps at each step"
    )
    rollout_batch: int = between(
        1, 2**24, 32_768, "completions that are alive at once: bounds memory"
    )
    reward: str = one_of(
        REWARD_SHAPINGS, "probability", "of a sequence, by the discriminator's answer"
    )
    baseline: str = one_of(BASELINES, "none", "what is subtracted from returns")
    entropy_bonus: float = at_least(0, 0.0, "reward for each nat of entropy")
    normalise: bool = described(False, "whether advantages are brought to mean 0 and deviation 1")
    valid_every: int = at_least(1, 5, "steps between validations")
    valid_samples: int = between(2, 10_000_000, 4_000, "generated sequences of a validation")
    valid_margin: float = at_least(
        0,
        2.0,
        "nats a symbol by which held-out sequences may become less likely, for weights to be kept",
    )
    sample_every: int = at_least(
        0, 20, "steps between samples in TensorBoard, and in the run folder; 0: never"
    )
    patience: int = at_least(
        0, 0, "validations without a better figure after which training stops; 0: never"
    )
    lowest_entropy: float = at_least(
        0, 0.05, "nats a symbol below which the generator counts as collapsed"
    )
    checkpoint_seconds: float = at_least(0, 60.0, "seconds between checkpoints")


@dataclass(frozen=True)
class SeqGANSettings:
    """All hyper-parameters of a run.

    Those of the generator are its pair's; `training` is its pretraining by maximum likelihood.
    """

    task: TaskSettings = field(default_factory=TaskSettings)
    model: Any = field(default_factory=lambda: model_settings("rnn", DEFAULTS))
    training: TrainingSettings = field(default_factory=lambda: TrainingSettings(**PRETRAINING))
    discriminator: DiscriminatorSettings = field(default_factory=DiscriminatorSettings)
    adversarial: AdversarialSettings = field(default_factory=AdversarialSettings)

    @property
    def length(self) -> int:
        """The length T of sequences, the task's own if none is given."""
        return self.task.length or (30 if self.task.kind == "music" else 20)


PRETRAINING: dict[str, Any] = {
    "learning_rate": 1e-2,
    "beta2": 0.999,
    "clip_norm": 5.0,
    "num_steps": 6_000,
    "valid_every": 250,
}
