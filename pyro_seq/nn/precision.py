"""Floating-point types in which networks compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def full_precision(x: Tensor) -> Tensor:
    """Return a network's output as at least float32.

    Products may be taken in bfloat16, densities may not.
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def in_parameter_dtype(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast a module's inputs to the floating-point type of its weights, as a forward pre-hook."""
    dtype = next(module.parameters()).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) else x for x in inputs)


# entries of a weight matrix from which bfloat16 gains more than casting costs: an LSTM of 182 units
WORTH_CASTING = 2**17


def fast_precision(device: torch.device, largest: int) -> torch.dtype:
    """Return bfloat16 where the device multiplies matrices faster in it, else float32.

    Such devices are a GPU that has the type, and a CPU with matrix tiles.

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
    """Tell whether PyTorch's LSTM runs in bfloat16 on a device.

    On a CPU the LSTM is oneDNN's, which needs AVX-512.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
