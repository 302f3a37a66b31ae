"""Scale the divergence: latents on both sides, but for those that are summed out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger

from pyro_seq.errors import UserError
from pyro_seq.poutine.step_densities import is_enumerated


class ScaleLatents(Messenger):
    """`poutine.scale` on the latent sites alone.

    Around a guide and a model (replayed against the guide) the handler scales the divergence of an
    ELBO and leaves the likelihood as it is. Latents of the model alone, marked to be summed out,
    have no divergence and are not scaled, unless `summed_out`.

    Args:
        scale: the divergence's strength.
        summed_out: whether latents that are summed out are scaled as well: those of a prior that is
            a mixture over them.
    """

    def __init__(self, scale: float, *, summed_out: bool = False) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"a scale must be greater than 0, got {scale}")
        self.scale, self.summed_out = scale, summed_out
        self._in_guide = False
        # what its sites say of inference, which the model's sites are given as they are replayed
        self._of_guide: list[Any] = []

    def noting(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        """Return the guide, with its sites remembered to tell them from the model's own latents.

        All that is evaluated inside must use the returned guide.
        """

        def noted(*args: object, **kwargs: object) -> object:
            self._in_guide, self._of_guide = True, []
            try:
                return guide(*args, **kwargs)
            finally:
                self._in_guide = False

        noted.wrapped_side = guide  # type: ignore[attr-defined]
        return noted

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"]:
            return
        if self._in_guide:
            self._of_guide.append(msg["infer"])
        elif (
            is_enumerated(msg)
            and not self.summed_out
            and not any(msg["infer"] is known for known in self._of_guide)
        ):
            return
        msg["scale"] = self.scale * msg["scale"]


def scales_summed_out(
    elbo: ELBO,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batch: object,
    strength: float,
) -> bool:
    """Tell whether latents that `TraceEnum_ELBO` sums out are scaled with the others.

    One evaluation on a batch decides.

    A sum over latents has one scale: 1 where observations depend on the latents, the divergence's
    where only other latents do, as in a mixture prior. Raises `UserError` where both depend on
    them, since the divergence cannot be separated then.
    """
    if strength == 1.0 or not isinstance(elbo, TraceEnum_ELBO):
        return False
    for summed_out in (False, True):
        try:
            with torch.no_grad(), ScaleLatents(strength, summed_out=summed_out) as scaled:
                elbo.loss(model, scaled.noting(guide), batch)
            return summed_out
        except ValueError as error:
            if "poutine.scale" not in str(error):
                raise
    raise UserError(
        "observations and latents of the guide depend on the same latents that are summed out, so "
        "the divergence has no strength of its own to be annealed: training.kl_schedule=constant"
    )
