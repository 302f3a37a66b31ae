"""Polyphonic music: train a pair on piano rolls `[T, 88]`, and measure it in the literature's nats per frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyro_seq.contexts import PreviousObservation
from pyro_seq.domains.piano_rolls import KEYS
from pyro_seq.domains.piece_batches import PieceBatches, scoring_batches
from pyro_seq.emissions import Bernoulli, Independent
from pyro_seq.encoders import Flatten
from pyro_seq.errors import UserError
from pyro_seq.pair import Pair
from pyro_seq.pair_settings import Layer, resolve
from pyro_seq.pairs import Parts, make_pair, model_settings
from pyro_seq.runs import RunFolder
from pyro_seq.scoring import Method, score
from pyro_seq.settings import at_least, between
from pyro_seq.training import Hooks, Trainer
from pyro_seq.training_settings import TrainingSettings

RAREST = 1e-4  # the smallest frequency of a key that a new model starts from


@dataclass(frozen=True)
class RollSettings:
    """How pieces become minibatches."""

    batch_size: int = between(1, 65_536, 20, "pieces, or stretches of pieces, side by side")
    window: int = at_least(0, 0, "steps of the stretches that pieces are cut into; 0: pieces are left whole")
    transpose: int = between(0, KEYS, 0, "semitones by which a stretch is moved up or down at most")


@dataclass(frozen=True)
class PolyphonicSettings:
    """All hyper-parameters of a training on piano rolls; those of the model are its pair's (`pairs.model_settings`)."""

    rolls: RollSettings = field(default_factory=RollSettings)
    model: Any = field(default_factory=lambda: model_settings("rnn"))
    training: TrainingSettings = field(default_factory=lambda: TrainingSettings(precision="float32"))


# settings that differ from the defaults, by dotted name; what each reaches is in benchmarks/README.md
PRESETS: dict[str, dict[str, Any]] = {
    "jsb-best": {
        "model.kind": "dmm",
        "model.conditional": True,
        "model.cell": "gru",
        "model.hidden_size": 200,
        "model.input_dropout": 0.4,
        "model.guide_input_dropout": 0.2,
        "model.guide_output_dropout": 0.3,
        "training.learning_rate": 3e-3,
        "training.weight_decay": 0.1,
        "training.average": 0.999,
        "training.kl_schedule": "linear",
        "training.kl_start": 0.02,
        "training.kl_steps": 2_400,
        "training.num_steps": 8_300,
        "training.valid_every": 600,
    },
    "jsb-dmm": {  # of the sizes of Pyro's example: latent 100, emission 100, transition 200, recurrence 600, minibatches of 20
        "model.kind": "dmm",
        "model.guide_input_dropout": 0.1,
        "model.guide_output_dropout": 0.1,
        "training.learning_rate": 3e-3,
        "training.weight_decay": 0.05,
        "training.average": 0.999,
        "training.kl_schedule": "linear",
        "training.kl_start": 0.1,
        "training.kl_steps": 1_500,
        "training.num_steps": 30_000,
        "training.valid_every": 600,
    },
    "jsb-rnn": {
        "model.kind": "rnn",
        "model.hidden_size": 200,
        "model.input_dropout": 0.3,
        "model.output_dropout": 0.5,
        "training.learning_rate": 5e-3,
        "training.weight_decay": 0.1,
        "training.average": 0.99,
        "training.num_steps": 1_200,
        "training.valid_every": 150,
    },
    "nottingham-best": {
        "model.kind": "srnn",
        "model.hidden_size": 400,
        "model.guide_size": 256,
        "model.latent_size": 48,
        "model.latent_sizes": (160,),
        "model.input_dropout": 0.1,
        "model.output_dropout": 0.4,
        "rolls.window": 160,
        "training.learning_rate": 4e-3,
        "training.weight_decay": 0.05,
        "training.average": 0.999,
        "training.kl_schedule": "linear",
        "training.kl_start": 0.2,
        "training.kl_steps": 1_000,
        "training.num_steps": 6_000,
        "training.valid_every": 500,
    },
    "nottingham-rnn": {
        "model.kind": "rnn",
        "model.hidden_size": 400,
        "model.input_dropout": 0.1,
        "model.output_dropout": 0.5,
        "rolls.window": 160,
        "training.learning_rate": 4e-3,
        "training.weight_decay": 0.05,
        "training.average": 0.998,
        "training.num_steps": 2_600,
        "training.valid_every": 400,
    },
}


def polyphonic_settings(*layers: Mapping[str, Any] | Layer) -> PolyphonicSettings:
    """The defaults with settings by dotted name, `model.kind` among them, overridden in order; raises `UserError` as `text_settings`."""
    return resolve(PolyphonicSettings, [layer if isinstance(layer, Layer) else Layer(layer) for layer in layers], {})


def new_pair(settings: PolyphonicSettings, pieces: Sequence[Tensor] = ()) -> Pair:
    """A pair with new weights, over 88 Bernoullis a frame, each step seeing the frame before.

    A model whose `decoder` ends in a linear layer starts from how often each key sounds in the pieces, if there are any.
    """
    parts = Parts(Independent(Bernoulli(), KEYS), lambda: Flatten(KEYS), PreviousObservation)
    pair = make_pair(settings.model, parts)
    decoder: Any = getattr(pair.model, "decoder", None)
    if pieces and isinstance(decoder, nn.Sequential) and isinstance(decoder[-1], nn.Linear) and decoder[-1].out_features == KEYS:
        frequency = torch.cat(list(pieces)).float().mean(0).clamp(RAREST, 1 - RAREST)
        with torch.no_grad():
            decoder[-1].bias.copy_(frequency.logit())
    return pair


def train(
    splits: Mapping[str, Sequence[Tensor]],
    settings: PolyphonicSettings,
    *,
    run: RunFolder | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    resume: bool = False,
    quiet: bool = False,
) -> tuple[Pair, int]:
    """Train on the split `train`, keep what is best on `valid` (by its ELBO per frame): (the pair, the number of steps).

    Args:
        splits: pieces `[T_n, 88]` by split.
        settings: hyper-parameters.
        run: where to keep checkpoints and the curve of metrics.
        seed: of all randomness.
        device: where to compute.
        resume: whether to go on with the run.
        quiet: no progress on stderr.
    """
    torch.manual_seed(seed)
    pair = new_pair(settings, splits["train"]).to(device)
    rolls = settings.rolls
    batches = PieceBatches(
        splits["train"], batch_size=rolls.batch_size, window=rolls.window, transpose=rolls.transpose, seed=seed, device=device
    )

    def validate() -> dict[str, float]:
        return {"loss": nats_per_frame(pair, splits["valid"], method="auto", device=device)}

    hooks = Hooks(validate=validate, units="frames", bits="bits/frame")
    trainer = Trainer(pair, batches, settings.training, run=run, hooks=hooks, quiet=quiet)
    trainer.fit(resume=resume)
    return pair, trainer.step


def nats_per_frame(
    pair: Pair, pieces: Sequence[Tensor], *, method: Method = "importance", samples: int = 1, device: torch.device | str = "cpu"
) -> float:
    """-log p(x), or its estimate, of all pieces over the number of their frames: type (a) by `importance`, type (b) by `elbo`.

    Raises `UserError` if there are no frames, and as `score`.
    """
    batches = scoring_batches(pieces, device=device)
    if not batches:
        raise UserError("there are no frames to score")
    total = sum(float(score(pair, batch, method=method, samples=samples).total.double().sum()) for batch in batches)
    return -total / sum(batch.num_observations for batch in batches)
