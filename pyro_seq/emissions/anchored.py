"""Emissions located by anchors: a learnt mix of past values, a scale learnt from recent moves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_seq.distributions.base import Distribution
from pyro_seq.emissions.base import Emission
from pyro_seq.emissions.numeric import Located
from pyro_seq.errors import UserError, whole

NEVER = -1e30  # logarithm of the weight of an anchor that is not known


class Anchored(Emission):
    r"""p(x_i | f, A, e) of `size` columns, around a mix of anchors, on the scale of their errors.

    location = sum_k p_k A_k, p = softmax_k(w_k - sum_j b_j log e_jk + f^w_k),
    log scale = sum_jk q_jk log e_jk, q = softmax_jk(v_jk + log p_k + f^v_k),

    both over the anchors that are known; the emission's own features do the rest. w, b and v are
    weights of the emission, which begin as those of a mix by inverse squared errors. The location
    lies among the anchors, so that sampled paths stay bounded.

    Args:
        emission: of one column, or of a vector of all `size` columns; it has
            `around(location, scale, features)`.
        size: C, columns.
        anchors: K, for each column.
        errors: J, how many running errors each anchor has.

    What is passed on is what `contexts.Lags` passes on, `[2 + J, K, C]` flattened.
    """

    def __init__(self, emission: Located, size: int, anchors: int, errors: int = 1) -> None:
        super().__init__()
        if not isinstance(emission, Located):
            raise UserError(f"{type(emission).__name__} has no location that anchors could give")
        if emission.event_shape not in ((), (size,)):
            raise UserError(
                f"{type(emission).__name__} has event shape {list(emission.event_shape)}: Anchored "
                f"takes an emission of one column or of all {size}"
            )
        self.emission, self.size = emission, whole(size, "size", 1)
        self.anchors, self.errors = whole(anchors, "anchors", 1), whole(errors, "errors", 1)
        self.joint = emission.event_shape != ()
        self.event_shape, self.dtype, self.filler = (size,), emission.dtype, emission.filler
        own = emission.num_features * (1 if self.joint else size)
        self.num_features = 2 * anchors * size + own
        self.emission_context_size = (2 + errors) * anchors * size
        self.location_weights = nn.Parameter(torch.zeros(anchors, size))
        self.error_powers = nn.Parameter(torch.full((errors, size), 2.0 / errors))
        self.scale_weights = nn.Parameter(torch.zeros(errors, anchors, size))
        self.base = nn.Parameter(torch.zeros(own))

    def forward(self, features: Tensor, passed_on: Tensor) -> Distribution:
        """Return the distribution given features and what `contexts.Lags` passes on."""
        by_anchor = 2 * self.anchors * self.size
        location, scale = self.located(features[..., :by_anchor], passed_on)
        own = features[..., by_anchor:] + self.base
        if self.joint:
            return self.emission.around(location, scale, own)
        own = own.unflatten(-1, (self.size, self.emission.num_features))
        return self.emission.around(location, scale, own).to_event(1)

    def located(self, features: Tensor, passed_on: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale `[…, C]`, given features `[…, 2 K C]`."""
        parts = passed_on.unflatten(-1, (2 + self.errors, self.anchors, self.size))
        anchors, known, errors = parts[..., 0, :, :], parts[..., 1, :, :], parts[..., 2:, :, :]
        by_location, by_scale = features.unflatten(-1, (2, self.anchors, self.size)).unbind(-3)
        score = self.location_weights + by_location
        score = score - (self.error_powers.unsqueeze(-2) * errors).sum(-3)
        log_share = score.masked_fill(known == 0, NEVER).log_softmax(-2)
        share = log_share.exp()
        # an anchor that is not known may be anything
        location = (share * torch.where(known > 0, anchors, 0.0)).sum(-2)
        weights = self.scale_weights + (by_scale + log_share).unsqueeze(-3)
        flat = weights.flatten(-3, -2).softmax(-2)
        log_scale = (flat * errors.flatten(-3, -2)).sum(-2)
        return location, log_scale.exp()
