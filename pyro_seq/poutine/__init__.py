"""Classify the sites of a trace by steps, and compare a model's sites with a guide's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.poutine.scale_latents import ScaleLatents as ScaleLatents
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
