"""One torch optimiser over all parameters of a pair, as `pyro.infer.SVI` expects it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_seq._schema import MOST, Fields, Kind, Like, Row, TensorOf, Whole

if TYPE_CHECKING:  # the settings know the schedules
    from pyro_seq.train.settings import TrainingSettings


class NonFiniteValue(ArithmeticError):
    """A gradient or a loss is infinite or NaN; the message says which."""


class JointOptimiser(PyroOptim):
    """AdamW over all parameters, with a global gradient norm, penalties, averaged weights.

    `SVI` calls it with the set of parameters that a step touched, as it does with Pyro's own
    optimisers, of which there would be one for each parameter. A step begins with the gradients
    that stand on the parameters times `gradient_scale` (1/n turns those of a sum into those of a
    mean). The gradient of the penalties is added, `r (l1 |w|_1 + l2/2 |w|_2^2)` over weight
    matrices (parameters of at least two dimensions), where r rises from 0 to 1 over the first
    `penalty_steps`. The gradient is rescaled so that its norm over all parameters is at most
    `clip_norm`. AdamW follows (decoupled `weight_decay`, on weight matrices). Then comes the
    average a <- decay * a + (1 - decay) * w, with decay min(ema_decay, (1 + n)/(10 + n)) at the
    n-th step, so that it forgets the beginning. Gradients are gone after a step, and before the
    first.

    Args:
        parameters: unconstrained parameters by name, in a fixed order.
        learning_rate, betas: of Adam.
        clip_norm: the largest global gradient norm, 0 for no limit.
        l1, l2: the penalties' strengths, reached linearly over `penalty_steps` (0: from the first
            step).
        ema_decay: the average's decay, 0 for none.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        *,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        clip_norm: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        penalty_steps: int = 0,
        ema_decay: float = 0.0,
    ) -> None:
        self.parameters, self.learning_rate = parameters, learning_rate
        self.clip_norm, self.l1, self.l2 = clip_norm, l1, l2
        self.penalty_steps, self.ema_decay = penalty_steps, ema_decay
        self.steps, self.gradient_norm, self.gradient_scale = 0, 0.0, 1.0
        self._known = {id(p) for p in parameters.values()}
        self.matrices = [p for p in parameters.values() if p.dim() >= 2]
        others = [p for p in parameters.values() if p.dim() < 2]
        groups = [
            {"params": self.matrices, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        kept = [group for group in groups if group["params"]]
        self.optimiser = torch.optim.AdamW(
            kept, lr=learning_rate, betas=betas, eps=1e-8, fused=True
        )
        self.averages = [p.detach().clone() for p in parameters.values()] if ema_decay > 0 else []
        self.optimiser.zero_grad()

    @classmethod
    def of(cls, parameters: dict[str, Tensor], settings: TrainingSettings) -> JointOptimiser:
        """Return the optimiser that the settings of a training describe."""
        s = settings
        return cls(
            parameters,
            learning_rate=s.learning_rate,
            betas=(s.beta1, s.beta2),
            weight_decay=s.weight_decay,
            clip_norm=s.clip_norm,
            l1=s.l1,
            l2=s.l2,
            penalty_steps=s.penalty_steps,
            ema_decay=s.ema_decay,
        )

    def __call__(self, params: Iterable[Tensor], *args: object, **kwargs: object) -> None:
        """Make a step with the gradients of the parameters."""
        if any(id(p) not in self._known for p in params):
            raise RuntimeError(
                "a parameter appeared after the first step: register all parameters on the first "
                "batch"
            )
        with torch.no_grad():
            self._scale_and_clip()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.steps += 1
        if self.averages:
            decay = min(self.ema_decay, (1 + self.steps) / (10 + self.steps))
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, list(self.parameters.values()), 1.0 - decay)

    def _scale_and_clip(self) -> None:
        """The gradients scaled, penalised and clipped; raises `NonFiniteValue`."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if not gradients:
            self.gradient_norm = 0.0
            return
        scale = self.gradient_scale
        if self.l1 > 0 or self.l2 > 0:
            torch._foreach_mul_(gradients, scale)
            scale = 1.0
            self._penalise()
        norms = [norm.to(gradients[0].device) for norm in torch._foreach_norm(gradients)]
        self.gradient_norm = scale * float(torch.linalg.vector_norm(torch.stack(norms)))
        if not math.isfinite(self.gradient_norm):
            raise NonFiniteValue(self._first_non_finite())
        if self.clip_norm > 0:
            # as torch.nn.utils.clip_grad_norm_ has it
            scale *= min(1.0, self.clip_norm / (self.gradient_norm + 1e-6))
        if scale != 1.0:  # one pass over memory for both
            torch._foreach_mul_(gradients, scale)

    def _penalise(self) -> None:
        strength = min(1.0, self.steps / self.penalty_steps) if self.penalty_steps else 1.0
        for p in self.matrices:
            if p.grad is not None:
                p.grad.add_(p.sign(), alpha=strength * self.l1).add_(p, alpha=strength * self.l2)

    def _first_non_finite(self) -> str:
        for name, p in self.parameters.items():
            if p.grad is not None and not p.grad.isfinite().all():
                return f"the gradient of parameter {name!r}"
        return "the gradient norm"

    def scale_learning_rate(self, factor: float) -> None:
        """Set the learning rate to `factor` times its base."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate * factor

    @property
    def current_learning_rate(self) -> float:
        """The learning rate of the latest step."""
        return float(self.optimiser.param_groups[0]["lr"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averages into the parameters inside, if there are any."""
        kept = [p.detach().clone() for p in self.parameters.values()] if self.averages else []
        self._assign(self.averages)
        try:
            yield
        finally:
            self._assign(kept)

    def _assign(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for p, value in zip(self.parameters.values(), values, strict=False):
                p.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as a tree of tensors and numbers."""
        moments = self.optimiser.state_dict()["state"]
        return {"steps": self.steps, "moments": moments, "averages": list(self.averages)}

    def describe_state(self) -> Kind:
        """Return the kind of a `state_dict()` of these parameters that a step can be made with."""
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        moments = {i: _moments_of(parameter) for i, parameter in enumerate(parameters)}
        averages = Row(*(Like(average) for average in self.averages))
        # a parameter that has had no gradient so far has no moments
        return Fields({"steps": Whole(), "moments": Fields({}, may=moments), "averages": averages})

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from a `state_dict()`.

        Raises `ValueError`, and changes nothing, if the state is damaged or of other parameters.
        """
        self.describe_state().check(state, "the optimiser")
        whole = self.optimiser.state_dict()
        self.optimiser.load_state_dict(
            {"state": state["moments"], "param_groups": whole["param_groups"]}
        )
        self.steps = state["steps"]
        for average, value in zip(self.averages, state["averages"], strict=True):
            average.copy_(value)


def _moments_of(parameter: Tensor) -> Kind:
    """The kind of AdamW's moments of a parameter."""
    moments = {"exp_avg": Like(parameter), "exp_avg_sq": Like(parameter, low=0.0)}
    return Fields({"step": TensorOf(low=0, high=MOST), **moments})
