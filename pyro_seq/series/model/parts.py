"""Parts of pairs over series: emission, encoder, context and side inputs of a schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.config.build import PairComponents
from pyro_seq.contexts import Chain, Context, Lags, PreviousObservation, SideInputs
from pyro_seq.emissions.anchored import Anchored
from pyro_seq.emissions.base import Emission
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Bernoulli, Categorical
from pyro_seq.emissions.numeric import (
    Located,
    LowRankStudentT,
    NegativeBinomial,
    Poisson,
    StudentT,
    StudentTMixture,
    ZeroInflated,
    ZeroOneInflatedBeta,
    ZeroOrGamma,
)
from pyro_seq.encoders import Encoder, Flatten, OneHot, WithIndicators
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.series.data.schema import Schema
from pyro_seq.series.model.columns import NUMERIC, Group, groups_of, numeric_columns
from pyro_seq.series.model.inputs import InputEncoder, Inputs
from pyro_seq.series.model.settings import EmissionSettings, SeriesSettings

LAWS: Mapping[str, Callable[[], Located]] = {
    "count": NegativeBinomial,
    "poisson": Poisson,
    "zero_inflated": lambda: ZeroInflated(NegativeBinomial()),
    "positive": ZeroOrGamma,
    "share": ZeroOneInflatedBeta,
}


def series_parts(
    schema: Schema, settings: SeriesSettings, num_ids: int, encoder: InputEncoder | None = None
) -> PairComponents:
    """Return the parts of pairs that observe the columns of a schema.

    Args:
        schema: says which columns there are.
        settings: of the run.
        num_ids: how many series have a vector of their own.
        encoder: of the side inputs; a new one by default.
    """
    groups, inputs = groups_of(schema), Inputs(schema, num_ids)
    numeric = len(numeric_columns(schema))
    lags, first = {}, 0
    for group in groups:
        if group.kind in NUMERIC:
            lags[group.name] = Lags(
                len(group.columns),
                schema.seasons,
                member=group.name,
                columns=numeric,
                first=first,
            )
            first += len(group.columns)
    encoder = encoder or InputEncoder(
        inputs.size, inputs.num_scales, num_ids, settings.series.embedding_size
    )
    emissions = {group.name: emission_of(group, settings.emission, lags) for group in groups}

    def context(_: Encoder) -> Context:
        symbols = {group.name: _symbols(group) for group in groups if group.kind not in NUMERIC}
        seen: list[Context] = [*lags.values(), SideInputs(inputs.size, encoder)]
        if symbols:
            seen.append(PreviousObservation(JointEncoder(symbols)))
        return Chain(*seen)

    return PairComponents(
        Joint(emissions),
        lambda: JointEncoder({group.name: _encoder(group) for group in groups}),
        context,
        inputs.size,
    )


def emission_of(group: Group, settings: EmissionSettings, lags: Mapping[str, Lags]) -> Emission:
    """Return the emission of a group of columns, around anchors if they are numbers."""
    size = len(group.columns)
    if group.is_category:
        return Categorical(group.num_categories)
    if group.kind == "yes":
        return Factorised(Bernoulli(), size)
    law: Emission
    if group.kind != "real":
        law = LAWS[group.kind]()
    elif size > 1 and settings.rank:
        law = LowRankStudentT(size, min(settings.rank, size - 1))
    else:
        law = StudentT() if settings.mixture == 1 else StudentTMixture(settings.mixture)
    anchors = lags[group.name]
    return Anchored(law, size, len(anchors.anchors), anchors.num_errors)


def _symbols(group: Group) -> Encoder:
    """Return the encoder of yes-or-no columns or a category, with what was seen of them."""
    size = len(group.columns)
    return WithIndicators(OneHot(group.num_categories) if group.is_category else Flatten(size))


def _encoder(group: Group) -> Encoder:
    """Return a guide's encoder of a group of columns."""
    if group.kind not in NUMERIC:
        return _symbols(group)
    return WithIndicators(Standardised(len(group.columns)))


class Standardised(Encoder):
    """Numeric columns `[C]` as asinh((x - centre) / spread), both of the training data."""

    centre: Tensor
    spread: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.event_shape, self.num_features = (size,), size
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def standardise_by(self, cells: NDArray[np.float64]) -> None:
        """Take centre and spread of each column from examples `[n, C]`, NaN where missing."""
        for i, column in enumerate(cells.T):
            seen = column[~np.isnan(column)]
            if len(seen):
                self.centre[i] = float(seen.mean())
                self.spread[i] = float(seen.std()) or 1.0

    def forward(self, values: Tensor) -> Tensor:
        """Compute features `[..., C]` of columns `[..., C]`."""
        return ((values.to(self.centre.dtype) - self.centre) / self.spread).asinh()
