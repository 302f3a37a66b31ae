"""Lags: what the last values, seasons and levels of numeric columns say of the next values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_seq._batch_checks import Values
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts._running import Ring, last_seen, running_means
from pyro_seq.contexts.base import Context
from pyro_seq.contexts.composite import PassedOn
from pyro_seq.errors import UserError, whole

PRIOR = 0.5  # observations that a column's usual move counts for in each running error
LARGEST = 100.0  # running error, in usual moves: bounds what sampled paths can do
LEAST = 1e-20  # weight of a mean: what is left of a single cell after many spans
# anchors' distance from the location, in usual moves: no data of a million steps are further away,
# and sampled paths that run away stay finite
OUTERMOST = 1e6
FURTHEST = 5.0  # logarithm of a ratio of scales that networks see


class _Anchors(NamedTuple):
    """Candidates for the next value `[…, K, C]`, and whether each is known (0 or 1)."""

    values: Tensor
    known: Tensor


class Lags(Context):
    r"""Anchors of the next value, how far each has lately been from the truth, and their features.

    The anchors A_k of a column of `size` are, all from what was seen before the step: the last
    value; exponentially weighted levels (spans `levels`); for each season of s steps the value s
    steps ago (where that was not seen, the last one seen at the same phase), means over the same
    phase (spans `phases`, in seasons), and L plus the mean deviation x - L at the same phase, L the
    last value, each level, and in longer seasons the value a shortest season ago (the additive
    decompositions of Holt and Winters, and of Taylor for two seasons); and, before anything was
    seen, the series' location.
    e_jk is the exponentially weighted mean of |x - A_k| with span j of `errors`, with half an
    observation of the series' scale as its prior.

    Cells that were not seen are skipped: weights decay with time.

    What is passed on to the emission (`emissions.Anchored`) is, `[2 + J, K, size]` flattened: A_k,
    whether A_k is known, and log e_jk. Networks see anchors and errors relative to
    a = sum_k w_k A_k and log e = sum_k w_k log e_k, w_k proportional to e_k^-2: asinh((A_k - a)/e),
    log(e_k/e), log(e_j/e), all kept within bounds, and how much was seen lately; not the location
    and scale, which, where they are measured on a whole series, would tell what comes.

    The first 2 `columns` side inputs are the location and then the scale of each column, in the
    data's units: constant over a series, such as its mean and its mean absolute move.

    Args:
        size: C, entries of the observation `[C]`.
        seasons: their lengths in steps, each at least 2.
        member: the member of a named group that is looked at; `None` for observations that are one
            tensor.
        columns: how many columns have locations and scales among the side inputs; `None` for
            `size`.
        first: which of these is the observation's first entry.
        levels, phases, errors: spans of the running means; a span of n steps has decay 1 - 1/n.

    Raises `UserError` for numbers out of range.
    """

    def __init__(
        self,
        size: int,
        seasons: Sequence[int] = (),
        *,
        member: str | None = None,
        columns: int | None = None,
        first: int = 0,
        levels: Sequence[float] = (4.0, 20.0, 200.0),
        phases: Sequence[float] = (3.0, 10.0),
        errors: Sequence[float] = (10.0, 50.0, 250.0),
    ) -> None:
        super().__init__()
        self.size, self.member = whole(size, "size of Lags", 1), member
        self.seasons = tuple(whole(season, "a season of Lags", 2) for season in seasons)
        self.columns = size if columns is None else columns
        self.first = first
        if not 0 <= first <= self.columns - size:
            raise UserError(
                f"{size} columns from column {first} on do not fit into the {self.columns} whose "
                "location and scale Lags finds in the side inputs"
            )
        for name, spans in (("levels", levels), ("phases", phases), ("errors", errors)):
            if not spans or min(spans) < 1:
                raise UserError(f"{name} of Lags must be spans of at least 1, got {list(spans)}")
            decays = torch.tensor([1 - 1 / span for span in spans])
            self.register_buffer(f"_{name}", decays, persistent=False)
        self._rings = [Ring(season) for season in self.seasons]
        self.anchors = self._names(levels, phases)
        self.num_errors = len(errors)
        self.num_features = size * (2 * len(self.anchors) + len(errors) + 1)
        self.emission_context_size = size * len(self.anchors) * (2 + len(errors))

    _levels: Tensor
    _phases: Tensor
    _errors: Tensor

    def _names(self, levels: Sequence[float], phases: Sequence[float]) -> tuple[str, ...]:
        names = ["last", *(f"level {span:g}" for span in levels)]
        for s in self.seasons:
            names += [f"season {s}", *(f"phase {s}, {span:g}" for span in phases)]
            around = ["last", *(f"level {span:g}" for span in levels)]
            around += [f"season {self.seasons[0]}"] if s != self.seasons[0] else []
            names += [f"{level} + phase {s}" for level in around]
        return (*names, "location")

    def emission_only(self) -> Context:
        """Return the same context, with features for the emission alone."""
        return PassedOn(self)

    def initial(self, *lead: int) -> dict[str, Any]:
        """Return the state in which nothing was seen."""

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(*lead, *sizes, self.size, dtype=self._place.dtype).to(self.device)

        levels, phases = len(self._levels), len(self._phases)
        kept = [2 + 2 * phases + levels + bool(i) for i in range(len(self.seasons))]
        errors = (self.num_errors, len(self.anchors) - 1)
        return {
            "last": zeros(),
            "seen": zeros(),
            "levels": zeros(levels),
            "level_weights": zeros(levels),
            "errors": zeros(*errors),
            "error_weights": zeros(*errors),
            # of each step of the last season: the last value at its phase; weights, sums of values
            # and sums of deviations at its phase
            "seasons": tuple(
                ring.state(zeros(ring.length, size), len(lead))
                for ring, size in zip(self._rings, kept, strict=True)
            ),
        }

    def features(self, state: Any, inputs: Tensor | None) -> Tensor:
        """Compute c_t: for networks, and for the emission; see the class.

        Raises `UserError` without the locations and scales among the side inputs.
        """
        fronts = self._fronts(state)
        return self._features(state, self._anchored(state, fronts), inputs)

    def observe(self, state: Any, observation: Values, seen: Values | None = None) -> Any:
        """Return the state after x_t `[*lead, C]`, of which the cells of `seen` were seen."""
        x = self._of_member(observation).to(self._place.dtype)
        cells = torch.ones_like(x) if seen is None else self._of_member(seen).to(x.dtype)
        x = torch.where(cells > 0, x, torch.zeros_like(x))
        fronts = self._fronts(state)
        anchors = self._anchored(state, fronts)
        deviations = self._deviations(x, cells, state, fronts)
        counted = cells.unsqueeze(-2) * anchors.known
        missed = (x.unsqueeze(-2) - anchors.values).abs() * counted
        return {
            "last": torch.where(cells > 0, x, state["last"]),
            "seen": torch.maximum(state["seen"], cells),
            "levels": _moved(state["levels"], cells * x, self._levels),
            "level_weights": _moved(state["level_weights"], cells, self._levels),
            "errors": _moved(state["errors"], missed, self._errors, 2),
            "error_weights": _moved(state["error_weights"], counted, self._errors, 2),
            "seasons": tuple(
                ring.moved(kept, self._at_phase(front, x, cells, deviation))
                for ring, kept, front, deviation in zip(
                    self._rings, state["seasons"], fronts, deviations, strict=True
                )
            ),
        }

    def over(self, batch: SequenceBatch, state: Any) -> tuple[Tensor, Any]:
        """Compute c_{1:T}, by products with triangular matrices and running maxima."""
        x = self._of_member(batch.values).to(self._place.dtype)
        seen = self._of_member(batch.seen)
        cells = seen.to(x.dtype)
        x = torch.where(seen, x, torch.zeros_like(x))
        run: dict[str, Any] = {
            "last": last_seen(x, seen, state["last"]),
            "seen": torch.maximum(cells.cummax(1).values, state["seen"].unsqueeze(1))
            if x.shape[1]
            else cells,
            "levels": running_means(x, state["levels"], self._levels),
            "level_weights": running_means(cells, state["level_weights"], self._levels),
        }
        streams = {name: _from(state[name], run[name]) for name in run}
        previous = {name: stream[:, :-1] for name, stream in streams.items()}
        rings: list[Tensor] = []
        fronts: list[Tensor] = []
        for ring, kept in zip(self._rings, state["seasons"], strict=True):
            level, known = self._around(previous, fronts)
            deviations = _deviations(x, cells, level, known)
            rings.append(self._phase_stream(ring.entries(kept), x, seen, deviations))
            fronts.append(rings[-1][:, : x.shape[1]])
        anchors = self._anchored(previous, fronts)
        counted = cells.unsqueeze(-2) * anchors.known
        missed = (x.unsqueeze(-2) - anchors.values).abs() * counted
        for name, errors in (("errors", missed), ("error_weights", counted)):
            means = running_means(errors.flatten(2), state[name].flatten(-2), self._errors)
            streams[name] = _from(state[name], means.unflatten(-1, errors.shape[2:]))
            previous[name] = streams[name][:, :-1]
        features = self._features(previous, anchors, batch.inputs)
        rows = torch.arange(len(batch), device=batch.device)
        after: dict[str, Any] = {
            name: stream[rows, batch.lengths] for name, stream in streams.items()
        }
        last = [
            batch.lengths.unsqueeze(-1) + torch.arange(s, device=batch.device) for s in self.seasons
        ]
        after["seasons"] = tuple(
            ring.state(stream[rows.unsqueeze(-1), index], 1)
            for ring, stream, index in zip(self._rings, rings, last, strict=True)
        )
        return features, after

    # one step, or all of them

    def _fronts(self, state: Mapping[str, Any]) -> list[Tensor]:
        """Return what is known of the next step's phase in each season, `[…, R, C]`."""
        return [ring.oldest(kept) for ring, kept in zip(self._rings, state["seasons"], strict=True)]

    def _of_member(self, tree: Any) -> Tensor:
        """Return the looked-at member of a named group, or the one tensor."""
        return tree if self.member is None else tree[self.member]

    def _around(
        self, state: Mapping[str, Tensor], before: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return what deviations at a phase are from `[…, P, C]`, and whether each is known.

        They are the last value, the levels, and what was seen at the step's phase of the first of
        the shorter seasons, if there are any.
        """
        level, known = _ratio(state["levels"], state["level_weights"])
        values, flags = [state["last"].unsqueeze(-2), level], [state["seen"].unsqueeze(-2), known]
        if before:
            slowest = len(self._phases)  # of its weights, which come after the last value
            values.append(before[0][..., :1, :])
            flags.append((before[0][..., slowest : slowest + 1, :] > LEAST).to(level.dtype))
        return torch.cat(values, -2), torch.cat(flags, -2)

    def _deviations(
        self, x: Tensor, cells: Tensor, state: Mapping[str, Tensor], fronts: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return for each season how far x is from what its deviations are from."""
        around = [self._around(state, fronts[:i]) for i in range(len(fronts))]
        return [_deviations(x, cells, *both) for both in around]

    def _at_phase(self, front: Tensor, x: Tensor, cells: Tensor, deviations: Tensor) -> Tensor:
        """Return what is kept of a phase `[…, R, C]` after x: one more of its means."""
        last, sums = front[..., :1, :], front[..., 1:, :]
        seen = cells.unsqueeze(-2)
        new = self._phase_terms(x, cells, deviations)
        decays = self._phase_decays(new.shape[-2]).unsqueeze(-1)
        moved = decays * sums + (1 - decays) * new
        last = torch.where(seen > 0, x.unsqueeze(-2), last)
        return torch.cat([last, moved], -2)

    def _phase_terms(self, x: Tensor, cells: Tensor, deviations: Tensor) -> Tensor:
        """Return what the means over a phase are means of: cells, values, deviations."""
        phases = len(self._phases)
        each = [*[cells.unsqueeze(-2)] * phases, *[x.unsqueeze(-2)] * phases]
        return torch.cat([*each, deviations], -2)

    def _phase_decays(self, terms: int) -> Tensor:
        """Return the decay of each of `_phase_terms`; deviations have the slowest."""
        slowest = self._phases[-1:].expand(terms - 2 * len(self._phases))
        return torch.cat([self._phases, self._phases, slowest])

    def _phase_stream(self, ring: Tensor, x: Tensor, seen: Tensor, deviations: Tensor) -> Tensor:
        """Return what is kept of each step's phase, from a season before the first step on.

        It is `[N, s + T, R, C]`: entry t is what is known of the phase before step t.
        """
        n, steps, size = x.shape
        season, kept = ring.shape[1], ring.shape[2]
        blocks = -(-steps // season)

        def by_phase(tensor: Tensor) -> Tensor:
            """Return `[N, T, …]` as `[N s, blocks, …]`."""
            padding = tensor.new_zeros(n, blocks * season - steps, *tensor.shape[2:])
            padded = torch.cat([tensor, padding], 1)
            folded = padded.view(n, blocks, season, *tensor.shape[2:]).transpose(1, 2)
            return folded.reshape(n * season, blocks, *tensor.shape[2:])

        first = ring.flatten(0, 1)
        last = last_seen(by_phase(x), by_phase(seen), first[:, 0])
        terms = by_phase(self._phase_terms(x, seen.to(x.dtype), deviations))
        decays, parts = self._phase_decays(terms.shape[2]), []
        for decay in decays.unique():
            which = (decays == decay).nonzero().flatten()
            given = terms[:, :, which].flatten(2)
            before = first[:, 1 + which].flatten(1).unsqueeze(1)
            means = running_means(given, before, decay.view(1)).squeeze(2)
            parts.append((which, means.unflatten(-1, (len(which), size))))
        order = torch.cat([which for which, _ in parts]).argsort()
        sums = torch.cat([part for _, part in parts], 2)[:, :, order]
        stream = torch.cat([last.unsqueeze(2), sums], 2)
        unfolded = stream.view(n, season, blocks, kept, size).transpose(1, 2)
        return torch.cat([ring, unfolded.reshape(n, blocks * season, kept, size)[:, :steps]], 1)

    def _anchored(self, state: Mapping[str, Any], fronts: Sequence[Tensor]) -> _Anchors:
        """Return all anchors but the location, from what is known of the step's phases."""
        level, known = self._around(state, ())
        phases = len(self._phases)
        values, flags = [level], [known]
        for i, front in enumerate(fronts):
            last, weights, sums, deviations = front.split(
                [1, phases, phases, front.shape[-2] - 1 - 2 * phases], -2
            )
            means, once = _ratio(sums, weights)
            deviation, ever = _ratio(deviations, weights[..., -1:, :])
            level, known = self._around(state, fronts[:i])
            values += [last, means, level + deviation]
            flags += [ever, once, ever * known]
        return _Anchors(torch.cat(values, -2), torch.cat(flags, -2))

    def _features(self, state: Mapping[str, Tensor], found: _Anchors, inputs: Any) -> Tensor:
        """Return the features for networks, and then what is passed on."""
        lead = found.values.shape[:-2]
        # side inputs are those of all particles
        location, scale = (x.expand(*lead, *x.shape[-2:]) for x in self._statics(inputs))
        anchors = torch.cat([found.values, location], -2)
        reach = OUTERMOST * scale
        anchors = torch.minimum(torch.maximum(anchors, location - reach), location + reach)
        nothing = 1 - state["seen"].unsqueeze(-2)
        known = torch.cat([found.known, nothing], -2)
        spans = 1 - self._errors.view(-1, 1, 1)
        usual = scale.unsqueeze(-3)
        prior = PRIOR * spans
        mean = (state["errors"] + prior * usual) / (state["error_weights"] + prior)
        logs = torch.minimum(mean, LARGEST * usual).log()
        logs = torch.cat([logs, usual.log().expand(*logs.shape[:-2], 1, self.size)], -2)
        middle = logs[..., self.num_errors // 2, :, :]
        weights = (-2 * middle).masked_fill(known == 0, -torch.inf).softmax(-2)
        centre = (weights * anchors).sum(-2, keepdim=True)
        typical = (weights.unsqueeze(-3) * logs).sum(-2)  # [..., J, C]
        log_unit = typical[..., self.num_errors // 2, :].unsqueeze(-2)
        near = torch.cat(
            [
                _within(((anchors - centre) / log_unit.exp()).asinh(), 2 * FURTHEST) * known,
                _within(middle - log_unit, FURTHEST) * known,
                _within(typical - log_unit, FURTHEST),
                state["level_weights"][..., :1, :],
            ],
            -2,
        )
        passed_on = torch.cat([anchors.unsqueeze(-3), known.unsqueeze(-3), logs], -3)
        return torch.cat([near.flatten(-2), passed_on.flatten(-3)], -1)

    def _statics(self, inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the columns' locations and scales `[…, 1, C]`."""
        if inputs is None or inputs.shape[-1] < 2 * self.columns:
            got = "none" if inputs is None else f"{inputs.shape[-1]}"
            raise UserError(
                f"Lags finds the location and scale of {self.columns} columns in the first "
                f"{2 * self.columns} side inputs, the batch has {got}"
            )
        given = inputs[..., : 2 * self.columns].to(self._place.dtype)
        location, scale = given.unflatten(-1, (2, 1, self.columns)).unbind(-3)
        own = slice(self.first, self.first + self.size)
        # padding has no scale
        return location[..., own], torch.where(scale > 0, scale, 1.0)[..., own]


def _within(feature: Tensor, most: float) -> Tensor:
    return feature.clamp(-most, most)


def _ratio(sums: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums over weights, and whether there was weight enough (0 or 1); else 0."""
    enough = weights > LEAST
    return torch.where(enough, sums / weights.clamp(min=LEAST), 0.0), enough.to(sums.dtype)


def _deviations(x: Tensor, cells: Tensor, level: Tensor, known: Tensor) -> Tensor:
    """Return how far x `[…, C]` is from each level `[…, P, C]` that is known; 0 where unseen."""
    return (x.unsqueeze(-2) - level) * cells.unsqueeze(-2) * known


def _moved(mean: Tensor, x: Tensor, decays: Tensor, events: int = 1) -> Tensor:
    """Return running means `[…, J, *event]` after one more x `[…, *event]`."""
    decay = decays.view(-1, *(1,) * events)
    return decay * mean + (1 - decay) * x.unsqueeze(-1 - events)


def _from(before: Tensor, steps: Tensor) -> Tensor:
    """Return a state over time from before the first step on, `[N, T + 1, …]`."""
    return torch.cat([before.unsqueeze(1), steps], 1)
