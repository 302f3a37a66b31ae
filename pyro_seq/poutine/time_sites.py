"""Classify the sites of a model or guide by steps: one classification for all tools."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger

from pyro_seq.batch import ALL_STEPS, STEP_MARK, SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.probe import prolonged, trace_model

NUMBER = re.compile(r"(?<=_)(0|[1-9]\d*)(?=_|$)")
HOW_TO_MARK = (
    f"mark it, infer={{{STEP_MARK!r}: t}} ({ALL_STEPS!r} for an event [T, …], None for a site of "
    "the whole sequence)"
)

Shapes = dict[str, tuple[int, ...]]  # event shapes by site
Site = Mapping[str, Any]  # what a trace holds under a site's name, as Pyro's message has it


def sample_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    """Yield the random sites of a trace, without plates and deterministic values."""
    for name, site in trace.nodes.items():
        infer = site.get("infer") or {}
        if site["type"] == "sample" and not is_subsample(site) and not infer.get("_deterministic"):
            yield name, site


def is_subsample(site: Site) -> bool:
    """Tell whether a site is that of a plate, which says what is taken of its sequences."""
    return type(site["fn"]).__name__ == "_Subsample"


class Stem(NamedTuple):
    """What stands before and after the step in a site's name: (`x_`, `_notes`) of `x_3_notes`."""

    before: str
    after: str

    def at(self, t: int | str) -> str:
        """Return the name of the site of step t."""
        return f"{self.before}{t}{self.after}"

    @property
    def member(self) -> str:
        """The observation's name in a group: `notes` of `x_3_notes`, `y` of `y_3`."""
        return self.after.strip("_") or self.before.strip("_")

    def of(self, tree: object) -> Any:
        """Return the observation's part of a tree like a batch's values."""
        return tree[self.member] if isinstance(tree, dict) else tree


def stems_of(name: str) -> Iterator[tuple[Stem, int]]:
    """Yield all ways to read a number in a name as a step: (the stem, the number)."""
    for found in NUMBER.finditer(name):
        yield Stem(name[: found.start()], name[found.end() :]), int(found[0])


class Place(NamedTuple):
    """Where in time a site stands: at one step, over all of them, or for the whole sequence.

    Args:
        step: the step, counted from 0; `None` for a site of no one step.
        over_time: whether the site's event has an entry for each step.
        stem: of a site of one step, the part of its name that the sites of other steps share;
            `None` where the name does not show it.
    """

    step: int | None = None
    over_time: bool = False
    stem: Stem | None = None


WHOLE, OVER_TIME = Place(), Place(over_time=True)
Places = dict[str, Place]


class Side(NamedTuple):
    """One run of a model or guide: its trace, the function, and the marks that the trace lost."""

    trace: Trace
    function: Callable[[SequenceBatch], Any] | None = None
    marks: Mapping[str, Any] = {}


class Marks(Messenger):
    """Remember the marks of the sites inside, which `poutine.replay` loses."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Any] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if STEP_MARK in msg["infer"]:
            self.found[msg["name"]] = msg["infer"][STEP_MARK]

    def around(self, function: Callable[[SequenceBatch], Any]) -> Callable[[SequenceBatch], Any]:
        """Return the function with its marks remembered."""

        def marked(batch: SequenceBatch) -> object:
            with self:
                return function(batch)

        return marked


# of traces: beside them, since they may be the user's
_PLACES: WeakKeyDictionary[Trace, Places] = WeakKeyDictionary()


def places_of(trace: Trace, num_steps: int | None = None) -> Places:
    """Return the place of each site of a trace, as `classify` or the trace alone tells."""
    if trace not in _PLACES:
        arguments = trace.nodes.get("_INPUT", {}).get("args", ())
        batch = next(
            (argument for argument in arguments if isinstance(argument, SequenceBatch)), None
        )
        if num_steps is None:
            num_steps = 0 if batch is None else batch.num_steps
        _PLACES[trace] = _Classification([Side(trace)], batch, num_steps, None).places()
    return _PLACES[trace]


def classify(sides: Sequence[Side], batch: SequenceBatch, pair: Pair | None = None) -> Places:
    """Classify the sites of runs on a batch, the model's last; remembered for their traces.

    The rules, in this order:

    The rules, in this order:

    1. A mark, `infer={"time": t}`, `"all"` or `None` (the whole sequence), on either side.
       `with batch.active(t)` marks the sites inside, and a declared pair marks all of its sites.
    2. A distribution that knows its steps (`step_log_prob`), for an event of T entries.
    3. Names `…_{t}…` that exist for every step, and events of T entries. Neither is proof: a group
       may have T members, and a vector T entries. So the function is run on one sequence of T + 1
       steps, and the names or events that grow belong to steps. Observations that are the batch's
       own values need no such run. Where a function cannot run on T + 1 steps, or does not change
       with them, names are trusted.
    4. All other sites belong to the whole sequence.

    Raises `UserError` where two readings are left. The result of the run of T + 1 steps is cached
    on the pair.
    """
    places = _Classification(sides, batch, batch.num_steps, pair).places()
    for side in sides:
        _PLACES[side.trace] = places
    return places


class _Classification:
    """One classification: all sites by name, and what is known of longer sequences."""

    def __init__(
        self, sides: Sequence[Side], batch: SequenceBatch | None, num_steps: int, pair: Pair | None
    ) -> None:
        self.sides, self.batch, self.num_steps, self.pair = sides, batch, num_steps, pair
        self.longest = num_steps if batch is None or not len(batch) else int(batch.lengths.max())
        self.sites: dict[str, list[Any]] = {}
        self.marks: dict[str, Any] = {}
        for side in sides:
            for name, site in sample_sites(side.trace):
                self.sites.setdefault(name, []).append(site)
                if STEP_MARK in (site["infer"] or {}):
                    self.marks.setdefault(name, site["infer"][STEP_MARK])
            self.marks.update(side.marks)
        self._numbers: dict[tuple[bool, Stem], dict[int, str]] = {}
        for name in self.sites:
            for stem, number in stems_of(name):
                marked = name in self.marks
                self._numbers.setdefault((marked, stem), {})[number] = name
                if marked and self.marks[name] == number:  # beside which others may be unmarked
                    self._numbers.setdefault((False, stem), {})[number] = name
        self._longer: dict[int, Shapes | None] = {}
        self._counting: dict[Stem, bool] = {}

    def places(self) -> Places:
        return {
            name: self._marked(name) if name in self.marks else self._unmarked(name)
            for name in self.sites
        }

    def _marked(self, name: str) -> Place:
        mark = self.marks[name]
        if mark is None:
            return WHOLE
        if mark == ALL_STEPS:
            if not self._has_all_steps(name):
                shape = list(self.sites[name][0]["fn"].event_shape)
                over = f"over all {self.num_steps} steps"
                raise UserError(
                    f"site {name!r} is marked as {over}, and its event has shape {shape}"
                )
            return OVER_TIME
        if isinstance(mark, bool) or not isinstance(mark, int) or not 0 <= mark < self.num_steps:
            steps = f"0 … {self.num_steps - 1}"
            raise UserError(
                f"site {name!r} is marked {mark!r}, which is no step of {steps}: {HOW_TO_MARK}"
            )
        for stem, number in stems_of(name):
            if number == mark and self._counts_steps(stem):
                return Place(mark, stem=stem)
        return Place(mark)

    def _counts_steps(self, stem: Stem) -> bool:
        """Tell whether the numbers of all marked sites of a stem are the steps of their marks."""
        if stem not in self._counting:
            sites = self._numbers[True, stem].items()
            self._counting[stem] = all(self.marks[name] == t for t, name in sites)
        return self._counting[stem]

    def _unmarked(self, name: str) -> Place:
        over_time = self._has_all_steps(name)
        if over_time and (self._knows_its_steps(name) or self._is_all_values(name)):
            return OVER_TIME
        read = [(stem, t) for stem, t in stems_of(name) if self._for_every_step(stem)]
        if not read and not over_time:
            return WHOLE
        longer = self._of_longer(name)
        if longer is None:
            if len(read) > 1 or (read and over_time and self.sides[0].function is not None):
                raise _untold(name, "the number in its name may be a step or one of a group")
            if read:
                return Place(read[0][1], stem=read[0][0])
            return OVER_TIME if over_time and self.sites[name][0]["is_observed"] else WHOLE
        grown = [(stem, t) for stem, t in read if stem.at(self.num_steps) in longer]
        if len(grown) > 1:
            raise _untold(name, "more than one number in its name grows")
        if grown:
            return Place(grown[0][1], stem=grown[0][0])
        return (
            OVER_TIME if over_time and longer.get(name, ())[:1] == (self.num_steps + 1,) else WHOLE
        )

    def _knows_its_steps(self, name: str) -> bool:
        return any(hasattr(site["fn"], "step_log_prob") for site in self.sites[name])

    def _has_all_steps(self, name: str) -> bool:
        return any(site["fn"].event_shape[:1] == (self.num_steps,) for site in self.sites[name])

    def _for_every_step(self, stem: Stem) -> bool:
        """Tell whether a stem has a site for each step up to T, and none beyond."""
        numbers = self._numbers[False, stem].keys()
        return numbers >= set(range(self.longest)) and max(numbers) < self.num_steps

    def _is_all_values(self, name: str) -> bool:
        """Tell whether a site observes the batch's values, or those of a member."""
        values = None if self.batch is None else self.batch.values
        every = list(values.values()) if isinstance(values, dict) else [values]
        return any(
            site["is_observed"] and site["value"] is x for site in self.sites[name] for x in every
        )

    def _of_longer(self, name: str) -> Shapes | None:
        """Return the sites of this one's side on a longer sequence, if it runs."""
        index = max(i for i, side in enumerate(self.sides) if name in side.trace)
        if index not in self._longer:
            self._longer[index] = self._shapes(self.sides[index])
        return self._longer[index]

    def _shapes(self, side: Side) -> Shapes | None:
        function, batch, now = side.function, self.batch, _shapes(side.trace)
        if function is None or batch is None or not len(batch):
            return None
        runs = {} if self.pair is None else self.pair.longer_runs
        key = (id(function), self.num_steps, self.longest, frozenset(now.items()))
        if key not in runs:
            longer = _run_longer(function, batch)
            observes = any(site["is_observed"] for _, site in sample_sites(side.trace))
            runs[key] = None if observes and longer == now else longer  # a model of one length
        return runs[key]


def _run_longer(function: Callable[[SequenceBatch], Any], batch: SequenceBatch) -> Shapes | None:
    """Return the event shapes of a side's sites on one sequence of one more step.

    Returns `None` where that run fails.
    """
    try:
        longer = trace_model(function, prolonged(batch))
    except Exception:  # a side of the user's that has one length
        return None
    return _shapes(longer)


def _untold(name: str, why: str) -> UserError:
    return UserError(f"which step site {name!r} belongs to cannot be told: {why}: {HOW_TO_MARK}")


def _shapes(trace: Trace) -> Shapes:
    return {name: tuple(site["fn"].event_shape) for name, site in sample_sites(trace)}
