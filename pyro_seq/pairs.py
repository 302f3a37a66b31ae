"""The shipped pairs by name, made of a domain's parts and one table of hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro_seq.contexts import Context
from pyro_seq.emissions import Emission
from pyro_seq.encoders import Encoder
from pyro_seq.errors import did_you_mean
from pyro_seq.guides import ISEQGuide, SRNNGuide
from pyro_seq.models import ISEQ, RNN, SRNN
from pyro_seq.networks import ACTIVATIONS, POSITIVE
from pyro_seq.pair import Pair
from pyro_seq.recurrence import KINDS
from pyro_seq.sequence_model import SequenceModel
from pyro_seq.settings import above, between, described, one_of


@dataclass(frozen=True)
class ModelSettings:
    """Which pair, and how large."""

    kind: str = one_of(("rnn", "iseq", "srnn"), "rnn", "rnn: no latents; iseq: latents independent over time; srnn: a chain of latents")
    cell: str = one_of(sorted(KINDS), "lstm", "recurrent cell")
    hidden_size: int = between(1, 65_536, 512, "units of each recurrent layer")
    num_layers: int = between(1, 64, 1, "recurrent layers")
    dropout: float = between(0, 0.99, 0.0, "dropout between recurrent layers, in training")
    input_dropout: float = between(0, 0.99, 0.2, "dropout on what the recurrences see, the same features at all steps of a sequence")
    output_dropout: float = between(0, 0.99, 0.4, "dropout on what the model's recurrence gives, likewise")
    decoder_sizes: tuple[int, ...] = between(1, 65_536, (), "hidden layers between the recurrence and the emission")
    latent_size: int = between(1, 65_536, 16, "size of z_t")
    latent_sizes: tuple[int, ...] = between(1, 65_536, (64,), "hidden layers of the networks of z_t's prior and posterior")
    residual: bool = described(True, "srnn: the posterior's mean is the prior's plus a correction")
    activation: str = one_of(sorted(ACTIVATIONS), "relu", "of hidden layers")
    positive: str = one_of(sorted(POSITIVE), "softplus", "how scales are kept positive")
    epsilon: float = above(0, 1e-4, "the smallest scale")
    layout: str = one_of(("path", "steps"), "path", "path: one site for all steps, fast; steps: a site for each, as in Pyro's examples")


@dataclass(frozen=True)
class Parts:
    """What a domain gives to a pair.

    Args:
        emission: p(x_t | features).
        encoder: makes an encoder of observations; called once for the model's context and once for the guide.
        context: makes the model's context from its encoder.
        num_inputs: size of the side inputs, 0 if there are none.
    """

    emission: Emission
    encoder: Callable[[], Encoder]
    context: Callable[[Encoder], Context]
    num_inputs: int = 0


def make_pair(settings: ModelSettings, parts: Parts) -> Pair:
    """The pair of `settings.kind` with new weights; raises `ValueError` for an unknown kind."""
    makers = {"rnn": _rnn, "iseq": _iseq, "srnn": _srnn}
    if settings.kind not in makers:
        raise ValueError(f"unknown pair {settings.kind!r}{did_you_mean(settings.kind, makers)}")
    context = parts.context(parts.encoder())
    return makers[settings.kind](settings, parts, context)


def _common(s: ModelSettings) -> dict[str, Any]:
    """What recurrences of models and guides share."""
    sizes = {"cell": s.cell, "hidden_size": s.hidden_size, "num_layers": s.num_layers}
    return sizes | {"dropout": s.dropout, "input_dropout": s.input_dropout, "activation": s.activation}


def _latents(s: ModelSettings) -> dict[str, Any]:
    """What networks of latents share."""
    return {"latent_sizes": s.latent_sizes, "positive": s.positive, "epsilon": s.epsilon}


def _model(kind: type[SequenceModel], s: ModelSettings, parts: Parts, context: Context, **more: Any) -> Any:
    options: dict[str, Any] = {"decoder_sizes": s.decoder_sizes, "output_dropout": s.output_dropout, "layout": s.layout} | _common(s) | more
    return kind(parts.emission, context, **options)


def _rnn(s: ModelSettings, parts: Parts, context: Context) -> Pair:
    return Pair(_model(RNN, s, parts, context))


def _iseq(s: ModelSettings, parts: Parts, context: Context) -> Pair:
    model = _model(ISEQ, s, parts, context, latent_size=s.latent_size)
    return Pair(model, ISEQGuide(model, parts.encoder(), num_inputs=parts.num_inputs, **_common(s), **_latents(s)))


def _srnn(s: ModelSettings, parts: Parts, context: Context) -> Pair:
    model = _model(SRNN, s, parts, context, latent_size=s.latent_size, **_latents(s))
    options = {"num_inputs": parts.num_inputs, "residual": s.residual} | _common(s) | _latents(s)
    return Pair(model, SRNNGuide(model, parts.encoder(), **options))
