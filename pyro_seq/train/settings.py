"""The hyper-parameters of training, with their defaults and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyro_seq.config.fields import above, at_least, between, one_of
from pyro_seq.infer.elbo import OBJECTIVES
from pyro_seq.train.schedules import KL_SCHEDULES, LEARNING_RATE_SCHEDULES

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class TrainingSettings:
    """Hyper-parameters of training; all rates are per step, all figures in nats."""

    num_steps: int = at_least(1, 10_000, "parameter updates at most")
    max_minutes: float | None = above(
        0, None, "minutes of training at most, over all resumptions; none for no limit"
    )
    learning_rate: float = above(0, 6e-3, "AdamW's learning rate, at its highest")
    schedule: str = one_of(
        LEARNING_RATE_SCHEDULES,
        "linear",
        "learning rate over the run, as a fraction of steps or minutes",
    )
    final_lr_fraction: float = between(
        0, 1, 0.02, "where the schedule ends, as a fraction of the learning rate"
    )
    warmup: float = between(
        0, 0.99, 0.02, "fraction of the run over which the learning rate rises from 0"
    )
    beta1: float = between(0, 0.9999, 0.9, "AdamW's decay of the gradient's mean")
    beta2: float = between(0, 0.99999, 0.99, "AdamW's decay of the gradient's square")
    weight_decay: float = at_least(0, 0.0, "AdamW's decoupled weight decay, on weight matrices")
    l1: float = at_least(
        0, 0.0, "penalty l1 |w|_1 on weight matrices, in nats per step of a sequence"
    )
    l2: float = at_least(
        0, 0.0, "penalty l2/2 |w|^2 on weight matrices, in nats per step of a sequence"
    )
    penalty_steps: int = at_least(
        0,
        0,
        "steps over which l1 and l2 rise from 0 to their strength; 0: whole from the first step",
    )
    clip_norm: float = at_least(
        0, 1.0, "largest norm of the gradient over all parameters; 0 for no limit"
    )
    ema_decay: float = between(
        0,
        0.99999,
        0.0,
        "decay of the moving average of the weights, which is what is evaluated and kept; 0: none",
    )
    objective: str = one_of(
        OBJECTIVES,
        "trace",
        "trace: Monte Carlo divergence; mean_field: analytic at each step; enum: latents marked to "
        "be enumerated summed out; stl: trace by gradients through the draws alone; iwae, dreg, "
        "renyi, rws: num_particles weighted draws of each sequence; fivo: a particle filter of "
        "num_particles",
    )
    num_particles: int = at_least(1, 1, "samples of the latents per step")
    renyi_alpha: float = between(
        0, 10, 0.5, "order of Renyi's divergence in the objective renyi; 0: iwae, near 1: trace"
    )
    resample_below: float = between(
        0,
        1,
        0.5,
        "fivo resamples particles whose effective number is below this fraction of them; 1: at "
        "every step, 0: never",
    )
    kl_schedule: str = one_of(KL_SCHEDULES, "constant", "how the divergence's strength rises to 1")
    kl_start: float = between(1e-12, 1, 1e-3, "the divergence's strength at the first step")
    kl_steps: int = at_least(1, 2_000, "steps until the strength is 1/2 (half_life) or 1 (linear)")
    free_bits: float = at_least(
        0,
        0.0,
        "nats of divergence per step of a sequence, analytic where it can be, that cost nothing",
    )
    precision: str = one_of(
        PRECISIONS,
        "auto",
        "of the networks' products in training; auto: bfloat16 where it is faster",
    )
    log_every: int = at_least(
        1, 100, "steps between lines of the metrics file and scalars in TensorBoard"
    )
    valid_every: int = at_least(1, 500, "steps between validations")
    valid_particles: int = at_least(
        1,
        1,
        "samples of each sequence's latents at a validation: the more, the surer which weights are "
        "best; of fivo at least num_particles, by its own bound",
    )
    sample_every: int = at_least(
        0, 1_000, "steps between samples and histograms in TensorBoard; 0: never"
    )
    patience: int = at_least(
        0, 0, "validations without a better loss after which training stops; 0: never"
    )
    checkpoint_seconds: float = at_least(0, 30.0, "seconds between checkpoints")

    def validation(self) -> tuple[Literal["elbo", "filter"], int]:
        """Return (the method, the number of samples) of the score that weights are chosen by.

        The bound that `fivo` maximises is that of a particle filter, which is far above the ELBO of
        the same pair; the other objectives' pairs are compared by the ELBO.
        """
        if self.objective == "fivo":
            return "filter", max(self.valid_particles, self.num_particles)
        return "elbo", self.valid_particles
