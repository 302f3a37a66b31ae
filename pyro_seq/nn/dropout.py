"""Dropout over sequences, with one mask for all steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn


class SequenceDropout(nn.Module):
    """Dropout with one mask for all steps of a sequence, in training only.

    Gal & Ghahramani 2016, arXiv 1512.05287.

    Each feature of each sequence of `[*lead, T, F]` is zeroed with probability `p` at every step,
    or else scaled by 1 / (1 - p). So a recurrence misses the same features at all steps.
    Computation step by step, in chunks of one step, needs `same_features`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a dropout probability must lie in [0, 1), got {p}")
        self.p = p
        self._holding = self._for_all = False
        self._held: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop some of the features of `[..., T, F]`, the same at all steps of a sequence."""
        if not self.training or self.p == 0:
            return x
        mask, lead = self._held, x.shape[-3 if self._for_all else 0 : -2]
        if mask is None or mask.shape[:-2] != lead:
            mask = x.new_empty(*lead, 1, x.shape[-1]).bernoulli_(1 - self.p).div_(1 - self.p)
            self._held = mask if self._holding else None
        return x * mask

    @contextmanager
    def hold(self, *, for_all: bool = False) -> Iterator[None]:
        """Give all calls inside the mask of the first call; see `same_features`."""
        self._holding, self._held, self._for_all = True, None, for_all
        try:
            yield
        finally:
            self._holding, self._held, self._for_all = False, None, False

    def extra_repr(self) -> str:
        """Return the text that `repr` shows."""
        return f"p={self.p}"


@contextmanager
def same_features(module: nn.Module, *, for_all: bool = False) -> Iterator[None]:
    """Make every `SequenceDropout` of a module drop the same features in all calls inside.

    Such calls are those of the steps of one sequence.

    Args:
        module: a model or a guide.
        for_all: whether all particles of a sequence, in dimensions to the left of the sequences',
            miss the same features, so that weights compare latents and not networks.
    """
    with ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, SequenceDropout):
                stack.enter_context(part.hold(for_all=for_all))
        yield


@contextmanager
def without_dropout(module: object) -> Iterator[None]:
    """Put a module's parts into evaluation mode inside, and restore each part's mode on exit.

    PyTorch's recurrent networks keep their mode and lose their dropout, since some of their kernels
    propagate gradients in training mode only. An argument that is no module is left as it is.
    """
    parts = list(module.modules()) if isinstance(module, nn.Module) else []
    modes = [(part, part.training) for part in parts]
    rates = [(part, part.dropout) for part in parts if isinstance(part, nn.RNNBase)]
    for part in parts:
        if not isinstance(part, nn.RNNBase):
            part.training = False
    for recurrent, _ in rates:
        recurrent.dropout = 0.0
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for recurrent, rate in rates:
            recurrent.dropout = rate
