"""A frame of a piano roll as a pair observes it: values, emission, and back to a roll."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_seq.batch import SequenceBatch
from pyro_seq.config.build import PairComponents
from pyro_seq.config.fields import between, one_of
from pyro_seq.contexts import Context, LastObservations, PreviousObservation, SplitContext
from pyro_seq.emissions.base import Emission
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.convolution import KeyConvolution
from pyro_seq.emissions.elementary import Bernoulli, Beta, Categorical
from pyro_seq.emissions.nade import NADE
from pyro_seq.encoders import Encoder, Flatten, OneHot
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.encoders import MLPEncoder as EncoderMLP
from pyro_seq.nn.feedforward import MLP

SOUNDING, SILENT = 0.95, 0.05  # what a key is observed as by the emission `beta`
MOST_NOTES = 10  # that the emission `beta` can count
RAREST = 1e-4  # the smallest frequency of a key that a new model starts from


@dataclass(frozen=True)
class FrameSettings:
    """Settings of a frame as a pair observes it, and of the frames that a step sees."""

    emission: str = one_of(
        ("bernoulli", "nade", "convolution", "autoregressive_convolution", "beta"),
        "nade",
        "what a key is given: bernoulli: the network alone; nade: and the keys below; convolution: "
        "the last frames around it; "
        "autoregressive_convolution: both; beta: VAE-Seq's scores of keys and a count of notes",
    )
    hidden_size: int = between(
        1, 65_536, 128, "hidden units of nade, or of each key of a convolution"
    )
    num_layers: int = between(1, 64, 1, "hidden layers of each key of a convolution")
    history: int = between(1, 1_024, 4, "how many of the last frames a convolution looks at")
    reach: int = between(1, 128, 12, "how many keys away it looks in them")
    reach_below: int = between(
        1, 128, 36, "how many keys down autoregressive_convolution looks in its own frame"
    )
    dropout: float = between(0, 0.99, 0.0, "dropout on these hidden units, in training")
    context: str = one_of(
        ("previous", "last"),
        "previous",
        "previous: a step sees the frame before; last: the last context_frames, combined",
    )
    context_frames: int = between(1, 10_000, 20, "how far back the context `last` looks")
    combiner_sizes: tuple[int, ...] = between(
        1, 65_536, (128,), "layers of the network that combines them"
    )
    encoder_sizes: tuple[int, ...] = between(
        1, 65_536, (), "layers of the encoder of a frame; none: its keys as they are"
    )


def frame_parts(settings: FrameSettings, keys: int) -> PairComponents:
    """Return the parts of pairs over frames `[keys]`."""

    def encoder() -> Encoder:
        frame = (
            EncoderMLP(keys, settings.encoder_sizes) if settings.encoder_sizes else Flatten(keys)
        )
        return (
            frame
            if settings.emission != "beta"
            else JointEncoder({"notes": frame, "count": OneHot(MOST_NOTES + 1)})
        )

    emission = _emission(settings, keys)

    def context(encoder: Encoder) -> Context:
        if settings.context == "previous":
            seen: Context = PreviousObservation(encoder)
        else:
            count = settings.context_frames
            seen = LastObservations(
                encoder, count, MLP(count * encoder.num_features, settings.combiner_sizes)
            )
        return (
            SplitContext(seen, LastObservations(Flatten(keys), settings.history))
            if emission.emission_context_size
            else seen
        )

    return PairComponents(emission, encoder, context)


def _emission(settings: FrameSettings, keys: int) -> Emission:
    """p(x_t | features) of a frame, with new weights."""
    if settings.emission == "bernoulli":
        return Factorised(Bernoulli(), keys)
    if settings.emission == "nade":
        return NADE(keys, settings.hidden_size, dropout=settings.dropout)
    if settings.emission == "beta":
        return Joint({"notes": Factorised(Beta(), keys), "count": Categorical(MOST_NOTES + 1)})
    return KeyConvolution(
        keys,
        settings.history,
        settings.hidden_size,
        num_layers=settings.num_layers,
        reach=settings.reach,
        reach_below=settings.reach_below,
        autoregressive=settings.emission == "autoregressive_convolution",
        dropout=settings.dropout,
    )


def encode_frames(settings: FrameSettings, batch: SequenceBatch) -> SequenceBatch:
    """Encode a batch of rolls `[N, T, keys]` as the emission observes it.

    By default values have torch's default floating-point type.

    By `beta`, as in VAE-Seq, a key is a number, 0.95 where it sounds and 0.05 where not, beside the
    number of sounding keys (10 at most).
    """
    roll = batch.values
    if not isinstance(roll, Tensor):
        return batch
    if settings.emission != "beta":
        return batch.with_values(roll.to(torch.get_default_dtype()))
    notes = torch.where(roll > 0, SOUNDING, SILENT).to(torch.get_default_dtype())
    return batch.with_values(
        {"notes": notes, "count": roll.sum(-1, dtype=torch.long).clamp(max=MOST_NOTES)}
    )


def decode_frames(settings: FrameSettings, values: Any) -> Tensor:
    """Decode sampled values `[…, keys]`, or a group of them, to a roll (uint8).

    By `beta`, as many keys sound as were counted.
    """
    if settings.emission != "beta":
        return values.to(torch.uint8)
    rank = values["notes"].argsort(-1, descending=True).argsort(-1)
    return (rank < values["count"].unsqueeze(-1)).to(torch.uint8)


def start_from_frequencies(model: Any, settings: FrameSettings, frequency: Tensor) -> None:
    """Set a new model's output biases to how often each key sounds, `[keys]`.

    Its decoder must end in a linear layer.
    """
    decoder: Any = getattr(model, "decoder", None)
    if not isinstance(decoder, nn.Sequential) or not isinstance(decoder[-1], nn.Linear):
        return
    bias, keys = decoder[-1].bias, len(frequency)
    if settings.emission == "beta" or len(bias) != model.emission.num_features:
        return
    frequency = frequency.clamp(RAREST, 1 - RAREST)
    with torch.no_grad():
        bias[:keys].copy_(frequency.logit())
