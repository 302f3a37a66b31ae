"""In which types networks compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def full_precision(x: Tensor) -> Tensor:
    """A network's output as at least float32: products may be taken in bfloat16, densities may
    not.
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def in_own_type(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward pre-hook: the inputs of a module in the floating-point type of its weights."""
    dtype = next(module.parameters()).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) else x for x in inputs)


# entries of a weight matrix from which bfloat16 gains more than casting costs: an LSTM of 182 units
WORTH_CASTING = 2**17


def fast_precision(device: torch.device, largest: int) -> torch.dtype:
    """bfloat16 where the device multiplies matrices faster in it (a GPU that has it, a CPU with
    matrix tiles), else float32.

    `largest` is the number of entries of the largest weight matrix: small ones are not worth
    casting.
    """
    if largest < WORTH_CASTING:
        return torch.float32
    if device.type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return (
        torch.bfloat16 if device.type == "cpu" and tiles is not None and tiles() else torch.float32
    )


def has_bfloat16_lstm(device: torch.device) -> bool:
    """Whether PyTorch's LSTM runs in bfloat16 on a device: on a CPU it is oneDNN's, which needs
    AVX-512.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
