"""The alias `Distribution`: a distribution of Pyro's, or a named group of distributions."""

from __future__ import annotations

from typing import Any

import torch

Shape = torch.Size | list[int] | tuple[int, ...]
Distribution = Any  # a pyro TorchDistribution, or a dict of them for a Joint
