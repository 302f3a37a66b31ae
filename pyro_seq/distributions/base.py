"""The alias `Distribution`: a distribution of Pyro's, or a named group of distributions."""

from __future__ import annotations

from typing import Any

Distribution = Any  # a pyro TorchDistribution, or a dict of them for a Joint
