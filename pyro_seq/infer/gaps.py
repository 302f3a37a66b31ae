"""Draw gaps given all observations, by moves that leave the posterior invariant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_seq._cells import any_cell, blank_missing
from pyro_seq._pytree import tree_leaves, tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.infer.smc.conditional_filter import Filled, Move, moved
from pyro_seq.infer.smc.conditional_paths import PathMoves
from pyro_seq.infer.stepping.declared import DeclaredStepper, stepper_of
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.observation_sites import observed_stems, sampled_stems
from pyro_seq.poutine.probe import trace_model
from pyro_seq.poutine.step_densities import is_enumerated, sample_sites
from pyro_seq.poutine.time_sites import Side, classify

# in the paths and observations of all particles that are kept at once: bounds memory
PATH_NUMBERS = 2**25
ROUNDS = 2  # of moves after the first draw
BLOCK_PARTICLES = 16  # at most, of a block: it is short
BLOCKS = 8  # of steps that are moved by themselves in a round, of pairs that are run as whole paths
FEW = 5  # effective particles, on average over the sequences, below which they are


def draw_gaps(
    pair: Pair, batch: SequenceBatch, missing: object, samples: int, *, every_row: bool = False
) -> Iterator[tuple[Tensor, Filled]]:
    """Draw z and x_missing given x_observed; yield (rows, their draws) until all are done.

    The first path of each sequence is one of `samples` particles with latents from the prior, drawn
    by weight; its bias falls as 1/samples. Each round of moves after it is a step of a Markov chain
    (particle Gibbs: Andrieu, Doucet & Holenstein 2010) that keeps the path among its particles and
    leaves the posterior invariant, however few particles there are, and reduces the bias by a
    factor of about 1/samples:

    1. latents and missing observations together; those latents that are not in a gap come half from
       the guide, which has seen a guess;
    2. the latents, proposed by the guide, which has seen the path's values; these count as
       observed, so that the guide may be as sure;
    3. the missing observations, given the latents.

    Args:
        pair: any model and guide, in its scope and in evaluation mode.
        batch: N sequences, zeros in their gaps.
        missing: `[N, T, *event]`, the cells in the gaps, a tree like the values.
        samples: particles.
        every_row: whether latents are drawn of rows without gaps as well.
    """
    k = max(2, samples)  # of a move: the path and another one
    declared = isinstance(stepper_of(pair), DeclaredStepper)
    kind: type[_Chain] = _DeclaredChain if declared else _Chain
    for rows in kind.groups(pair, batch, missing, k, every_row):
        gaps = tree_map(lambda cells, rows=rows: cells[rows], missing)
        chain = kind(pair, batch.select(rows), gaps, k)
        guess, path = chain.move("prior", draws=2)
        for _ in range(ROUNDS):
            for move in chain.kinds:
                path = chain.move(move, path, guess.values)[0]
            path = chain.move_blocks(path)
        yield rows, path


class _Chain:
    """The moves of sequences that miss the same steps, of any pair."""

    @staticmethod
    def groups(
        pair: Pair, batch: SequenceBatch, missing: Any, k: int, every_row: bool
    ) -> Iterator[Tensor]:
        """Return rows that are worked on together: such as miss the same steps."""
        patterns, which = any_cell(missing).unique(dim=0, return_inverse=True)
        size = max(1, stepper_of(pair).steps_at_once // (k * batch.num_steps))
        for index, pattern in enumerate(patterns):
            if every_row or pattern.any():
                yield from (which == index).nonzero().flatten().split(size)

    def __init__(self, pair: Pair, batch: SequenceBatch, missing: Any, k: int) -> None:
        steps = any_cell(missing)[0].nonzero().flatten().tolist()
        one = batch.select(slice(1))
        gaps = one.sampling(steps)
        trace = trace_model(pair.model, gaps)
        places = classify([Side(trace, pair.model)], gaps, pair)
        stems = observed_stems(trace) or sampled_stems(trace)
        fills = {stem.at(t) for stem in stems for t in steps}
        latents = {
            name: site
            for name, site in sample_sites(trace)
            if not site["is_observed"] and name not in fills
        }
        self.kinds: list[Move] = ["prior"]
        if latents:
            guided = _proposes(pair, one, latents)
            self.kinds = ["mixed", "guide", "values"] if guided else ["prior", "values"]
        self.paths = PathMoves(pair, batch, steps, stems, k, missing)
        few = min(k, BLOCK_PARTICLES)
        self.blocks = PathMoves(pair, batch, steps, stems, few, missing, places)
        self.hard = False

    def move(
        self, kind: Move, path: Filled | None = None, guess: Any = None, draws: int = 1
    ) -> list[Filled]:
        """Move the path as `conditional_filter.moved` does."""
        found = self.paths.moved(kind, path, guess, draws)
        if path is None:
            self.hard = self.paths.effective < FEW
        return found

    def move_blocks(self, path: Filled) -> Filled:
        """Move the path by blocks of steps, there and back, where whole paths fail."""
        t = self.paths.batch.num_steps
        size = -(-t // BLOCKS)
        for start in [*range(0, t, size), *range(t - size, -size, -size)] if self.hard else ():
            path = self.blocks.moved_block(path, range(start, start + size))
        return path


class _DeclaredChain(_Chain):
    """The moves of sequences of a declared model, by a particle filter."""

    @staticmethod
    def groups(
        pair: Pair, batch: SequenceBatch, missing: Any, k: int, every_row: bool
    ) -> Iterator[Tensor]:
        """Return any rows, as many as the memory takes paths of."""
        model: Any = pair.model
        numbers = batch.num_steps * model.latent_size
        numbers += sum(x[0].numel() for x in tree_leaves(batch.values))
        rows = (any_cell(missing).any(-1) | every_row).nonzero().flatten()
        yield from rows.split(max(1, PATH_NUMBERS // (k * numbers))) if len(rows) else ()

    def __init__(self, pair: Pair, batch: SequenceBatch, missing: Any, k: int) -> None:
        stepper = stepper_of(pair)
        stepper.check(batch.with_missing(missing))
        model: Any = pair.model
        self.pair, self.batch, self.missing, self.k = pair, batch, missing, k
        self.by_steps = stepper.proposes_by_step("guide")
        self.kinds = ["prior"]
        if model.latent_size:
            of_path = {"z": None}
            guided = self.by_steps or _proposes(pair, batch.select(slice(1)), of_path)
            joint: Move = "mixed" if self.by_steps else "prior"
            self.kinds = [joint, "guide", "values"] if guided else [joint, "values"]
        self.paths = PathMoves(pair, batch, [], [], k)

    def move_blocks(self, path: Filled) -> Filled:
        """Return the path unmoved: a particle filter resamples at each step by itself."""
        return path

    def move(
        self, kind: Move, path: Filled | None = None, guess: Any = None, draws: int = 1
    ) -> list[Filled]:
        """Move the path as `conditional_filter.moved` does."""
        if kind != "guide" or self.by_steps:
            return moved(self.pair, self.batch, self.missing, self.k, kind, path, guess, draws)
        assert path is not None
        model: Any = self.pair.model
        in_path = model.layout == "path"
        named = (
            {"z": path.latents}
            if in_path
            else {f"z_{t}": z for t, z in enumerate(path.latents.unbind(-2))}
        )
        found = self.paths.moved(kind, path._replace(latents=named), draws=draws)
        return [one._replace(latents=as_path(one.latents)) for one in found]


def _proposes(pair: Pair, batch: SequenceBatch, latents: dict[str, Any]) -> bool:
    """Tell whether a guide proposes latents; enumerated ones that it lacks the prior proposes."""
    proposed = {name for name, _ in sample_sites(trace_model(pair.guide, batch))}
    return bool(proposed) and not any(
        site is not None and is_enumerated(site) and name not in proposed
        for name, site in latents.items()
    )


def as_path(latents: dict[str, Any]) -> Tensor:
    """Return a declared model's latents `[…, T, Z]`, from `z` or from `z_0, z_1, …`."""
    path: Tensor = (
        latents["z"]
        if "z" in latents
        else torch.stack([latents[f"z_{t}"] for t in range(len(latents))], -2)
    )
    return path


def blanked(batch: SequenceBatch, missing: Any) -> SequenceBatch:
    """Return the batch with zeros at its missing cells, which count as observed."""
    return batch.with_values(blank_missing(batch.values, missing))
