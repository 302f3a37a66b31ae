"""Updates of a pair by `pyro.infer.SVI`, the objective in nats per observation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI

from pyro_seq._pytree import tree_detach, tree_map
from pyro_seq._schema import Number, Optional, Whole
from pyro_seq._threads import find_useful, go_on_with, is_open
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.elbo import ElboTerms, FreeBits_ELBO, Recorder, make_elbo
from pyro_seq.infer.multi_sample import WeightedELBO
from pyro_seq.nn.precision import full_precision
from pyro_seq.pairs.pair import Pair, Stochastic
from pyro_seq.poutine.scale_latents import ScaleLatents, scales_summed_out
from pyro_seq.runs import ranks
from pyro_seq.runs.stateful import Entry, Stateful, attributes
from pyro_seq.train.divergence import diverged
from pyro_seq.train.optimizer import JointOptimiser, NonFiniteValue
from pyro_seq.train.preflight import WholeData, dry_run, find_parameters, whole_data
from pyro_seq.train.ranks import Wishes
from pyro_seq.train.schedules import kl_strength
from pyro_seq.train.settings import TrainingSettings


class Batches(Protocol):
    """An endless stream of training batches that can be saved and resumed.

    For pairs with latents that all sequences share it also has `num_sequences` and
    `num_observations`: how many sequences (or windows) and steps the data hold, of which its
    batches are minibatches.
    """

    def draw(self) -> tuple[SequenceBatch, bool]:
        """Draw the next batch, and whether it goes on where the one before ended.

        States are carried over where it does.
        """

    def state(self) -> Any:
        """Return where the stream stands, as a tree of tensors and plain values."""

    def load_state(self, state: Any) -> None:
        """Restore a `state()`."""


class SVIUpdates:
    """Update a pair by `pyro.infer.SVI`.

    Updates maximise (1/n) (E_q[log p(x | z)] - beta KL) over a batch's n observations; beta and all
    else are the settings'. Where all sequences share latents, a batch of N sequences is one of the
    whole data's (`SequenceBatch.of_total`), and n are the observations of all of these. Where
    several processes share a batch, n and the sum are those of all of its rows: gradients, figures
    and `wishes` are added up over the ranks in one message.

    Args:
        pair: model and guide; all is done inside its scope.
        settings: of the objective and the optimiser.
        elbo: the objective, in place of the settings'.
    """

    optimiser: JointOptimiser

    def __init__(self, pair: Pair, settings: TrainingSettings, elbo: ELBO | None = None) -> None:
        self.pair, self.settings = pair, settings
        self.elbo: Any = elbo or make_elbo(
            settings.objective,
            num_particles=settings.num_particles,
            free_bits=settings.free_bits,
            renyi_alpha=settings.renyi_alpha,
            resample_below=settings.resample_below,
        )
        self.recorder = Recorder(self.elbo)
        # of the untrained pair, its divergence at full strength
        self.first_loss: float | None = None
        self.recent_loss = math.nan  # a moving average
        self._step, self._summed_out_scaled = 0, False
        self._data: WholeData | None = None  # where latents are shared by all sequences
        self.observations: float = 0  # of the latest batch, all ranks' rows together
        self._terms: ElboTerms | None = None
        self.idle = False  # whether this rank's row is another's, and does not count
        self.pace = ranks.Pace()
        self.wishes: Callable[[], Wishes] = Wishes  # of this rank, which ride along
        self.heard: Wishes | None = None  # of all
        # particles one after the other are each back-propagated by themselves, so they cannot share
        # a part of the graph
        self._shares = getattr(self.elbo, "num_particles", 1) == 1 or getattr(
            self.elbo, "vectorize_particles", False
        )

    def prepare(self, batches: Batches) -> list[str]:
        """Make the optimiser, and return the names of parameters that have no gradient.

        Both come from a look at the first batch, which leaves no other trace.
        """
        with dry_run(self.pair, batches) as batch:
            self._data = whole_data(self.pair, batches, batch)
            if self._data is not None and ranks.size() > 1:
                raise UserError(
                    "all sequences share latents of this pair, which one process trains: start it "
                    "without torchrun"
                )
            batch = self._of_data(batch)
            parameters, without = find_parameters(self.pair, self.elbo, batch)
            self._summed_out_scaled = scales_summed_out(
                self.elbo, self.pair.model, self.pair.guide, batch, self.kl_strength(0)
            )
        self.recorder.take()
        self.optimiser = JointOptimiser.of(parameters, self.settings)
        self.run_as(self.pair.model, self.pair.guide)
        return without

    def rehearse(self, batches: Batches) -> None:
        """Find out how many threads a step can use, on the first batch, which leaves no trace.

        Of several processes each keeps the number that it was started with.
        """
        if ranks.size() > 1 or not is_open():
            return
        with dry_run(self.pair, batches) as batch, suppress(NonFiniteValue):
            batch, svi = self._of_data(batch), self._svi

            def step() -> None:
                once = batch.with_cache() if self._shares else batch
                svi.loss_and_grads(svi.model, svi.guide, once)

            with pyro.validation_enabled(False):
                find_useful(step)
        self.recorder.take()

    def states(self) -> dict[str, Stateful]:
        """Return what a checkpoint holds of the updates, by name.

        The number of threads is among them, since sums are rounded by it.
        """
        threads = Entry(torch.get_num_threads, go_on_with, lambda: Whole(1))
        return attributes(self, first_loss=Optional(Number())) | {"threads": threads}

    def run_as(self, model: Stochastic, guide: Stochastic) -> None:
        """Run these in place of the pair's model and guide, such as in another precision."""
        self._svi = SVI(
            model,
            guide,
            self.optimiser,
            loss=self.elbo.loss,
            loss_and_grads=self._loss_and_grads,
        )

    def update(self, batch: SequenceBatch, step: int, factor: float) -> dict[str, float]:
        """Make one update, after `step` others, at a factor of the learning rate.

        Returns its figures in nats per observation. Raises `NonFiniteValue`, before the weights are
        changed.
        """
        self.optimiser.scale_learning_rate(factor)
        self._step, batch = step, self._of_data(batch)
        loss = self._svi.step(batch.with_cache() if self._shares else batch)
        parts, n = self._terms, max(1, self.observations)
        figures = {
            "loss": loss,
            **(parts.per(n) if parts else {}),
            "gradient_norm": self.optimiser.gradient_norm,
        }
        if step == 0:
            self.first_loss = max(loss, -figures.get("elbo", -loss))
        self.recent_loss = (
            loss if math.isnan(self.recent_loss) else 0.9 * self.recent_loss + 0.1 * loss
        )
        return figures

    def _of_data(self, batch: SequenceBatch) -> SequenceBatch:
        """Return a minibatch of all data, unless it says itself of how many sequences it is."""
        if self._data is None or batch.total is not None:
            return batch
        return batch.of_total(self._data.sequences)

    def _observations(self, batch: SequenceBatch) -> float:
        """Return how many observations a batch's objective is of.

        Where latents are shared, they are those of all data, a number that is the same for all
        batches: else sequences in batches of few steps would count for more beside the prior.
        """
        if self._data is not None:
            return self._data.observations
        share = 1.0 if batch.total is None else batch.total / max(1, len(batch))
        return batch.num_observations * share

    def _loss_and_grads(self, model: Stochastic, guide: Stochastic, batch: SequenceBatch) -> float:
        with (
            ScaleLatents(
                self.kl_strength(self._step), summed_out=self._summed_out_scaled
            ) as scaled,
            self._shared(batch),
        ):
            loss = self.elbo.loss_and_grads(model, scaled.noting(guide), batch)
        where = None if math.isfinite(loss) else self.recorder.first_non_finite() or "the loss"
        self.observations, self._terms = self._observations(batch), self.recorder.take()
        if ranks.size() > 1:
            loss = self._add_up(loss)
        per_observation = 1.0 / max(1, self.observations)
        # not a scale of the densities: not every objective is linear in them
        self.optimiser.gradient_scale = per_observation
        if not math.isfinite(loss):
            raise NonFiniteValue(next(filter(None, ranks.gathered(where)), "the loss"))
        return loss * per_observation

    @contextmanager
    def _shared(self, batch: SequenceBatch) -> Iterator[None]:
        """Evaluate the objective inside as one rank's share of the whole batch's."""
        with ExitStack() as stack:
            if self.idle:
                stack.enter_context(poutine.mask(mask=False))
            if ranks.size() > 1 and isinstance(self.elbo, FreeBits_ELBO):
                self.elbo.over_ranks = partial(ranks.total, patience=self.pace.patience)
                stack.callback(setattr, self.elbo, "over_ranks", None)
            yield

    def _add_up(self, loss: float) -> float:
        """Add gradients, figures and wishes up over the ranks; return the loss of all."""
        mine, n = self._terms, 0 if self.idle else self.observations
        terms = (0.0, 0.0) if mine is None else (mine.log_likelihood, mine.kl)
        numbers = [loss, float(n), *terms, *self.wishes()]
        parameters = list(self.optimiser.parameters.values())
        loss, observed, likelihood, kl, *wishes = ranks.add_up(parameters, numbers, self.pace)
        self.observations, self.heard = observed, Wishes(*wishes)
        self._terms = None if mine is None else ElboTerms(likelihood, kl)
        return loss

    def carried(self, states: object) -> Any:
        """Return the states that a window which goes on starts from, of those the sides returned.

        Of several weighted draws one is drawn by its weight.
        """
        if not isinstance(self.elbo, WeightedELBO):
            return states
        return self.elbo.chosen_states(states, self.pair.model, self.pair.guide)

    def kl_strength(self, step: int) -> float:
        """Return beta after `step` updates."""
        s = self.settings
        return kl_strength(step, schedule=s.kl_schedule, start=s.kl_start, steps=s.kl_steps)

    def diverged(self) -> bool:
        """Return whether the moving average of the loss is far beyond the first one."""
        return not math.isnan(self.recent_loss) and diverged(self.recent_loss, self.first_loss)


class Carried:
    """A model or guide run in a precision, which keeps the state that it returned last.

    The (detached) state is for the window that follows.
    """

    def __init__(self, inner: Callable[[SequenceBatch], Any], precision: str) -> None:
        self.wrapped_side, self.precision, self.state = inner, getattr(torch, precision), None

    def __call__(self, batch: SequenceBatch) -> object:
        """Run the side, and keep its state."""
        mixed = self.precision != torch.float32
        with torch.autocast(batch.device.type, dtype=self.precision) if mixed else nullcontext():
            outcome = self.wrapped_side(batch)
        self.state = tree_map(full_precision, tree_detach(getattr(outcome, "state", None)))
        return outcome
