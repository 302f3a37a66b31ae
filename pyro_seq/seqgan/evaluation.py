"""Evaluate a run's generator beside its pretrained twin and real sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_seq.seqgan.metrics.quality import quality
from pyro_seq.seqgan.program import Generator, Weights, seqgan_program
from pyro_seq.seqgan.stored_task import task_of
from pyro_seq.seqgan.tasks.base import Measurement, Task

Split = Literal["valid", "test"]
Figures = Mapping[str, Measurement]


@dataclass(frozen=True)
class Comparison:
    """Generators of a run, with the sequences that judge them.

    Attributes:
        generators: by the name of their weights.
        task: of the run.
        split: which held-out sequences are the references, of `valid` and `test`.
    """

    generators: Mapping[str, Generator]
    task: Task
    split: Split

    @classmethod
    def of(
        cls,
        run_dir: Path,
        *,
        weights: Weights = "best",
        split: Split = "test",
        device: torch.device | str = "cpu",
        pair: str | None = None,
        quiet: bool = True,
        **moved: object,
    ) -> Comparison:
        """Open a run's generator and its pretrained twin, unless they are the same.

        Args:
            run_dir: the folder.
            weights: `best`, or `pretrained`; a run whose adversarial training has not begun has the
                second alone.
            split: what the references are.
            device: where the generators lie.
            pair: the generator's spec, where it is code of the user's own.
            quiet: no progress on stderr.
            moved: where the run's data lies now, if it has moved, by the names of `make_task`.

        Raises `UserError` as `seqgan_program.load` and `task_of` do.
        """
        run = seqgan_program.folder(run_dir)
        twin = seqgan_program.load(run_dir, device, pair=pair, weights="pretrained")
        generators = {"pretrained": twin}
        if weights == "best" and (run.best.exists() or run.last.exists()):
            generators = {
                "best": seqgan_program.load(run_dir, device, pair=pair),
                "pretrained": twin,
            }
        return cls(generators, task_of(run, twin.settings, moved, quiet=quiet), split)

    @property
    def references(self) -> Tensor:
        """The held-out sequences `[m, T]`."""
        sequences: Tensor = getattr(self.task.sequences, self.split)
        return sequences

    def figures(self, name: str, num: int, *, temperature: float = 1.0, seed: int = 0) -> Figures:
        """Return the figures of `num` new sequences of a generator, the criterion first.

        They are those of `quality.quality`, with the NLL of the references.
        """
        torch.manual_seed(seed)
        return self._ordered(
            quality(
                self.generators[name].pair, self.task, self.references, num, temperature=temperature
            )
        )

    def real(self, num: int) -> tuple[Figures, int]:
        """Return the task's figures of at most `num` real sequences, and their number.

        These sequences are held out too, and are no references.
        """
        others = self.task.sequences.valid if self.split == "test" else self.task.sequences.test
        return self._ordered(self.task.judge(others[:num], self.references)), min(num, len(others))

    def _ordered(self, figures: Figures) -> Figures:
        return {self.task.criterion: figures[self.task.criterion], **figures}


@dataclass(frozen=True)
class Evaluation:
    """The figures of a run.

    Attributes:
        split: which held-out sequences are the references, and `references`: how many there are.
        num_samples: sequences that were generated.
        temperature: of the generators.
        units: what a symbol is, in the plural.
        steps: of training, by the name of weights; those of adversarial training of the `best`.
        figures: by name of the weights and figure; of `real` ones, where that says something, too.
        num_real: how many real ones were judged; figures of more or fewer sequences may not be
            comparable.
    """

    split: Split
    references: int
    num_samples: int
    temperature: float
    units: str
    steps: Mapping[str, int]
    figures: Mapping[str, Figures]
    num_real: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a figure that is not finite is null."""
        return {
            **vars(self),
            "figures": {name: figures_json(figures) for name, figures in self.figures.items()},
        }


def evaluate(
    comparison: Comparison, num: int, *, temperature: float = 1.0, seed: int = 0
) -> Evaluation:
    """Compute all figures of a run's generators and of real sequences, with standard errors.

    Args:
        comparison: what is judged.
        num: sequences of each generator.
        temperature: of all generators, also of their likelihoods.
        seed: of the new sequences, the same for each generator.
    """
    found = {
        name: comparison.figures(name, num, temperature=temperature, seed=seed)
        for name in comparison.generators
    }
    found["real"], num_real = comparison.real(num)
    return Evaluation(
        split=comparison.split,
        references=len(comparison.references),
        num_samples=num,
        temperature=temperature,
        units=comparison.task.units,
        steps={name: generator.step for name, generator in comparison.generators.items()},
        figures=found,
        num_real=num_real,
    )


def figures_json(figures: Figures) -> dict[str, Any]:
    """Return figures as plain values, those that are not finite as null."""
    finite = {
        name: [x if x is None or math.isfinite(x) else None for x in figure]
        for name, figure in figures.items()
    }
    return {
        name: {"value": value, "standard_error": error} for name, (value, error) in finite.items()
    }
