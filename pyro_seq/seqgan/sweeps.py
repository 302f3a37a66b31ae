"""Compare quality and diversity of a generator and its twin over temperatures.

A generator that is sampled below temperature 1 says what is likely, better and less varied:
adversarial training that brings no more than that gives a point on the twin's own curve (Caccia et
al. 2020, arXiv 1811.02549). Better is a curve that lies beyond the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.seqgan.evaluation import Comparison, Figures, Split, figures_json

TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
MOST = 100  # temperatures


@dataclass(frozen=True)
class Point:
    """The figures (`quality.quality`) of a generator at a temperature."""

    temperature: float
    figures: Figures


@dataclass(frozen=True)
class Sweep:
    """Curves over temperatures.

    Attributes:
        criterion: the figure that says how good sequences are, and `higher`: whether more of it is
            better.
        units: what a symbol is, in the plural.
        split: which held-out sequences `nll` is of, which says how much of the variety of real ones
            there is.
        num_samples: new sequences of each point.
        curves: points by the name of the weights, at rising temperatures.
    """

    criterion: str
    higher: bool
    units: str
    split: Split
    num_samples: int
    curves: Mapping[str, Sequence[Point]]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a figure that is not finite is null."""
        curves = {
            name: [
                {"temperature": point.temperature, "figures": figures_json(point.figures)}
                for point in points
            ]
            for name, points in self.curves.items()
        }
        return {**vars(self), "curves": curves}


def sweep(
    comparison: Comparison,
    temperatures: Sequence[float],
    num: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sweep:
    """Compute the figures of each generator at each temperature.

    Args:
        comparison: what is judged.
        temperatures: any order; each is taken once.
        num: new sequences of each point.
        seed: of the new sequences, the same for all points.
        progress: where to show how far it is.

    Raises `UserError` for no temperature, too many, and one that is not above 0.
    """
    chosen = sorted(set(temperatures))
    if not 1 <= len(chosen) <= MOST:
        raise UserError(f"a sweep is over 1 to {MOST} temperatures, got {len(chosen)}")
    if not all(0 < temperature < float("inf") for temperature in chosen):
        given = ", ".join(f"{temperature:g}" for temperature in chosen)
        raise UserError(
            f"temperatures must be above 0, where held-out sequences are possible, got {given}"
        )
    curves: dict[str, list[Point]] = {name: [] for name in comparison.generators}
    for name, points in curves.items():
        for temperature in chosen:
            if progress is not None:
                progress.show(f"{name} weights at temperature {temperature:g}")
            points.append(
                Point(
                    temperature, comparison.figures(name, num, temperature=temperature, seed=seed)
                )
            )
    if progress is not None:
        progress.end()
    task = comparison.task
    return Sweep(task.criterion, task.higher, task.units, comparison.split, num, curves)
