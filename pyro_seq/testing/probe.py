"""Run a pair under control: the same latents for another batch, failures said in words."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_seq._pytree import tree_map
from pyro_seq._rng import fork_rng
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.checks import latent_sites, mismatches, sites_by_name, unmasked_log_prob
from pyro_seq.poutine.shared import shared_sites
from pyro_seq.poutine.time_sites import Side, Site, classify

Values = dict[str, Tensor]


class Failure(Exception):
    """An error that a model or guide raised: which side, at which site, and what."""


class _Given(Messenger):
    """Give latents their values."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if (
            msg["name"] in self.values
            and not msg["is_observed"]
            and type(msg["fn"]).__name__ != "_Subsample"
        ):
            msg["value"], msg["done"] = self.values[msg["name"]], True


class _Whereabouts(Messenger):
    """Remember which sample statement runs, or ran last."""

    words = "before its first site"

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        self.words = f"at site {msg['name']!r}"

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        self.words = f"after site {msg['name']!r}"


def one_line(error: BaseException) -> str:
    """Return an error's message in one line.

    It is the first line, or the first two where the first one announces the second.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def traced(
    side: str,
    function: Callable[[SequenceBatch], Any],
    batch: SequenceBatch,
    values: Values | None = None,
    seed: int = 0,
) -> Trace:
    """Trace a side's run, given the values of latents, with other draws from a seed.

    Raises `Failure` in words.
    """
    where, trace = _Whereabouts(), poutine.trace()
    try:
        with fork_rng(seed), where, trace, _Given(values or {}):
            returned = function(batch)
    except Exception as error:
        raise Failure(f"the {side} fails {where.words}: {one_line(error)}") from error
    found = trace.trace
    found.add_node("_RETURN", name="_RETURN", type="return", value=returned)
    return found


class Probe:
    """A pair and a batch, with the latents that a first run samples and all later runs share."""

    def __init__(self, pair: Pair, batch: SequenceBatch) -> None:
        self.pair, self.batch = pair, batch
        self.guide = traced("guide", pair.guide, batch)
        self.values: Values = {
            name: site["value"] for name, site in latent_sites(self.guide).items()
        }
        self.model = self._model()
        self.values |= {name: site["value"] for name, site in latent_sites(self.model).items()}
        try:
            self.places = classify(
                [Side(self.guide, pair.guide), Side(self.model, pair.model)], batch, pair
            )
        except UserError as error:
            raise Failure(str(error)) from error

    def _model(self) -> Trace:
        """Trace the model at the guide's latents; raise `Failure` if it fails.

        Latents of another form, where they are the reason, are named.
        """
        try:
            return traced("model", self.pair.model, self.batch, self.values)
        except Failure as failure:
            wrong: list[str] = []
            with suppress(Failure):  # of which the first one says more
                wrong = mismatches(traced("model", self.pair.model, self.batch), self.guide)
            if wrong:
                raise Failure(wrong[0]) from failure
            raise

    def run(
        self, side: str, batch: SequenceBatch, values: Values | None = None, seed: int = 1
    ) -> Trace:
        """Trace `model` or `guide` on another batch, at the probe's latents or others."""
        return traced(
            side, getattr(self.pair, side), batch, self.values if values is None else values, seed
        )

    def trace(self, side: str) -> Trace:
        """Return the trace of the first run."""
        trace: Trace = getattr(self, side)
        return trace

    def map_rows(self, index: Tensor) -> Values:
        """Return the latents of the sequences at an index."""
        return {
            name: value if name in self.shared else value.index_select(self.row_dim(name), index)
            for name, value in self.values.items()
            if name in self.shared or self._has_rows(name)
        }

    @property
    def shared(self) -> set[str]:
        """Return the names of latents that all sequences share."""
        sides = (self.guide, self.model)
        return {name for trace in sides for name in shared_sites(trace, len(self.batch))}

    def longer(self, steps: int) -> Values:
        """Extend the latents by some steps; those over time repeat the last step."""
        return {name: self._prolonged(name, value, steps) for name, value in self.values.items()}

    def _site(self, name: str) -> Site:
        return sites_by_name(self.guide).get(name) or sites_by_name(self.model)[name]

    def _has_rows(self, name: str) -> bool:
        return bool(self._site(name)["fn"].batch_shape[-1:] == (len(self.batch),))

    def row_dim(self, name: str) -> int:
        """Return the dimension of a latent's value that counts the sequences."""
        return self.values[name].dim() - len(self._site(name)["fn"].event_shape) - 1

    def _prolonged(self, name: str, value: Tensor, steps: int) -> Tensor:
        if not self.is_over_time(name):
            return value
        time = self.row_dim(name) + 1
        last = value.narrow(time, self.batch.num_steps - 1, 1)
        return torch.cat([value, *[last] * steps], time)

    def is_over_time(self, name: str) -> bool:
        """Tell whether a latent's event has an entry for each step, more in a longer batch."""
        return self.places[name].over_time


def densities(trace: Trace, size: int) -> Values:
    """Return the log-density of each site for each sequence `[N]`, in nats.

    Masked steps are left out; a site that all sequences share has the same density for all.
    """
    rows, shared = {}, shared_sites(trace, size)
    for name, site in sites_by_name(trace).items():
        log_prob = unmasked_log_prob(site)
        if site["mask"] is not None:
            log_prob = torch.where(
                torch.as_tensor(site["mask"], device=log_prob.device),
                log_prob,
                log_prob.new_zeros(()),
            )
        own = log_prob.dim() > 0 and log_prob.shape[-1] == size and name not in shared
        rows[name] = (
            log_prob.sum(tuple(range(log_prob.dim() - 1)))
            if own and log_prob.dim() > 1
            else log_prob
        )
        rows[name] = rows[name] if own else log_prob.sum().expand(size)
    return rows


def differs(one: Tensor, other: Tensor) -> Tensor:
    """Tell where two figures differ by more than rounding.

    Rounding is that of their type, or of the type that parameters have by default.
    """
    eps = max(
        torch.finfo(dtype).eps for dtype in (one.dtype, other.dtype, torch.get_default_dtype())
    )
    tolerance = eps**0.6  # 7e-5 in single precision: a thousand roundings
    near = torch.isclose(
        one.double(), other.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )
    return ~near


# other batches


def active_values(
    batch: SequenceBatch, where: Tensor, seed: int, member: str | None = None
) -> SequenceBatch:
    """Exchange the observations at `where` `[N, T]` for those of other active steps.

    Of a named group, one member's observations are exchanged.
    """
    generator = torch.Generator().manual_seed(seed)
    active = batch.mask.flatten().nonzero().squeeze(-1).cpu()
    drawn = active[torch.randint(len(active), where.shape, generator=generator, device="cpu")].to(
        where.device
    )

    def exchanged(values: Tensor) -> Tensor:
        donors = values.flatten(0, 1)[drawn]
        return torch.where(where[(..., *(None,) * (values.dim() - 2))], donors, values)

    other = copy(batch)
    if isinstance(batch.values, dict):
        other.values = {
            name: exchanged(x) if member in (None, name) else x for name, x in batch.values.items()
        }
    else:
        other.values = tree_map(exchanged, batch.values)
    return other


@contextmanager
def evaluating(pair: Pair) -> Iterator[None]:
    """Put the pair into its own scope and evaluation mode inside, without Pyro's validation.

    The random state is kept.
    """
    with (
        warnings.catch_warnings(),
        pair.scope(),
        pair.evaluating(),
        pyro.validation_enabled(False),
        torch.no_grad(),
        fork_rng(0),
    ):
        warnings.simplefilter("ignore")
        yield
