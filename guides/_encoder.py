"""The encoder that a guide of any model takes by default: observations as features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_seq._batch_checks import Values
from pyro_seq.encoders import Encoder, Flatten, Joint, WithIndicators
from pyro_seq.errors import UserError
from pyro_seq.poutine.time_sites import places_of, sample_sites

EMBEDDING_SIZE = 16  # at most; of a symbol


def default_encoder(values: Values, trace: Trace, indicators: bool = False) -> Encoder:
    """Return an encoder: an embedding for symbols, `Flatten` for other observations.

    Symbols are what the model's trace explains by a `Categorical`. With `indicators` the features
    tell which cells were seen.
    """
    if isinstance(values, dict):
        return Joint(
            {
                member: _encoder(value, _num_symbols(trace, member), indicators)
                for member, value in values.items()
            }
        )
    return _encoder(values, _num_symbols(trace), indicators)


def _encoder(values: Tensor, num_symbols: int, indicators: bool) -> Encoder:
    whole = not values.is_floating_point() and values.dtype != torch.bool
    encoder: Encoder = (
        Symbols(num_symbols, values.shape[2:])
        if whole and num_symbols
        else Flatten(values.shape[2:])
    )
    return WithIndicators(encoder) if indicators else encoder


def _num_symbols(trace: Trace, member: str = "") -> int:
    """Return how many symbols the model's observed `Categorical`s know; 0 without any.

    Only sites with the member's name in theirs count.
    """
    counts, places = [0], places_of(trace)
    for name, site in sample_sites(trace):
        stem = places[name].stem
        # what its name is but for the step
        rest = name if stem is None else f"{stem.before.rstrip('_')}{stem.after}"
        if site["is_observed"] and (not member or f"_{member}_" in f"_{rest}_"):
            fn = site["fn"]
            while isinstance(fn, (torch.distributions.Independent, dist.MaskedDistribution)):
                fn = fn.base_dist
            if isinstance(fn, torch.distributions.Categorical):
                counts.append(int(fn.support.upper_bound) + 1)
    return max(counts)


class Symbols(Encoder):
    """The learnt vectors of an array of symbols of shape `event_shape`, side by side."""

    dtype = torch.long

    def __init__(self, num_categories: int, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.table = nn.Embedding(num_categories, min(num_categories, EMBEDDING_SIZE))
        self.num_features = math.prod(self.event_shape) * self.table.embedding_dim

    def forward(self, values: Tensor) -> Tensor:
        """Look up features `[..., num_features]` of symbols `[..., *event_shape]`.

        Raises `UserError` for a symbol that the table lacks.
        """
        wrong = values[(values < 0) | (values >= self.table.num_embeddings)]
        if wrong.numel():
            raise UserError(
                f"observations must be symbols 0 … {self.table.num_embeddings - 1}, and "
                f"{int(wrong[0])} is among them"
            )
        lead = values.shape[: values.dim() - len(self.event_shape)]
        return self.table(values.long()).reshape(*lead, self.num_features)
