"""Define what a program is, and how its runs are started, resumed and read.

All of that is written here once for text, music, games, SeqGAN and a program of your own.

A program says which settings it has, how its data is read and found again, what a run folder keeps
of the data, and how a run is trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import torch

from pyro_seq.config.fields import flatten, override
from pyro_seq.config.model_settings import KIND, Layer, resolve, resolve_run
from pyro_seq.config.registry import named_by_code
from pyro_seq.config.renamed import refuse_old_names
from pyro_seq.errors import UserError
from pyro_seq.programs.checks import check_resumable, check_training
from pyro_seq.programs.differences import Difference, option_of, places, shown
from pyro_seq.programs.shared import Shared, as_they_are
from pyro_seq.runs import ranks
from pyro_seq.runs.folder import RunFolder
from pyro_seq.train.loop import Callback
from pyro_seq.train.settings import TrainingSettings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Names = Mapping[str, Any]
NOTHING: Names = MappingProxyType({})


class Trained(Protocol):
    """What a training returns."""

    @property
    def step(self) -> int:
        """How many updates were made."""


S = TypeVar("S", bound="DataclassInstance")
D = TypeVar("D")
T = TypeVar("T", bound=Trained)


class OptionsDiffer(UserError):
    """Report other settings, or another source, than a resumed run was begun with."""


class ContentsDiffer(UserError):
    """The data of a run that is resumed is not what the run was begun with."""


@dataclass(frozen=True)
class Request(Generic[S]):
    """What a run is to be started or resumed with.

    Attributes:
        settings: the hyper-parameters.
        source: what to learn from, by the names of the program's options.
        run: the folder.
        seed: of all randomness.
        device: where to compute.
        quiet: no progress on stderr.
        callbacks: of the training, beside those that it has by itself.
        said: when a run is resumed, settings that the user's own words repeat, by dotted name.
        stack: closes, once the training is over, what was opened to read the data.
    """

    settings: S
    source: Names
    run: RunFolder
    seed: int = 0
    device: torch.device | str = "cpu"
    quiet: bool = False
    callbacks: Sequence[Callback] = ()
    said: Names = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)


class Program(ABC, Generic[S, D, T]):
    """A program of settings S that reads data D and trains a T.

    Attributes:
        kind: the word for its runs, in `run.json` and on the command line.
        settings_type: makes all settings from those of the pair (`model=…`): a dataclass.
        defaults: the program's own defaults of a pair's settings.
        presets: bundled settings by name: what differs from the defaults, by dotted name.
        documents: the JSON files that a run folder keeps besides `run.json`.
        by_processes: whether several processes can train one run together.
        places: those values of a `source` that say where data lies: files may have moved when a run
            is resumed, and their contents are compared.
    """

    kind: ClassVar[str]
    settings_type: type[S]
    defaults: ClassVar[Names] = NOTHING
    presets: ClassVar[Mapping[str, Names]] = MappingProxyType({"default": NOTHING})
    documents: ClassVar[tuple[str, ...]]
    by_processes: ClassVar[bool] = False
    places: ClassVar[tuple[str, ...]] = ()

    # what a program says

    @abstractmethod
    def read(self, request: Request[S]) -> D:
        """Read the data of a new run; raises `UserError` for what cannot be learnt from."""

    @abstractmethod
    def describe(self, data: D, request: Request[S]) -> Mapping[str, dict[str, Any]]:
        """Return what a run folder keeps of its data, by the names of `documents`.

        `seed` and `source` of the request are among it.
        """

    @abstractmethod
    def stored_source(self, run: RunFolder) -> tuple[int, dict[str, Any]]:
        """Return the seed and the source that a run was begun with.

        Raises `UserError` if the run's documents are damaged.
        """

    @abstractmethod
    def read_again(self, request: Request[S]) -> D:
        """Read the data of a run that is resumed.

        Raises `ContentsDiffer` if the data is other data now.
        """

    @abstractmethod
    def train(self, data: D, request: Request[S], *, resume: bool = False) -> T:
        """Train, keeping the run in its folder; with `resume`, go on from its last checkpoint."""

    def check(self, settings: S) -> None:
        """Raise `UserError` for settings that do not go together, before any data is read."""
        training = getattr(settings, "training", None)
        if isinstance(training, TrainingSettings):
            check_training(training)

    def check_changes(self, run: RunFolder, settings: S) -> None:
        """Raise `UserError` if a run cannot go on with new durations."""

    def check_device(self, device: torch.device | str) -> None:
        """Raise `UserError` for a device that the program cannot train on."""

    def check_processes(self) -> None:
        """Raise `UserError` for several processes where the program trains in one."""
        if ranks.size() > 1 and not self.by_processes:
            raise UserError(
                f"{self.kind} trains in one process, and here are {ranks.size()}: start it without "
                "torchrun"
            )

    def stages(self, run: RunFolder) -> tuple[RunFolder, ...]:
        """Return the folders of the parts of a training, the last part first."""
        return (run,)

    def shared(self, run: RunFolder) -> Shared:
        """Return what of a run is given away: by default all documents, as they are."""
        return as_they_are(run, self.documents)

    def is_same(self, name: str, own: object, given: object) -> bool:
        """Return whether two values of a setting, or of a `source`, mean the same."""
        return bool(own == given)

    # what every program does

    def folder(self, run_dir: Path | str) -> RunFolder:
        """Return the folder of a run of this kind."""
        return RunFolder(run_dir, self.kind)

    def settings(self, *layers: Layer | Names) -> S:
        """Resolve settings from the defaults and settings by dotted name.

        `model.name` is among them; layers override those before them, in order.

        Raises `UserError` for names that are not known, or not to the chosen pair, and for values
        of the wrong type or out of range.
        """
        return resolve(self.settings_type, layers, self.defaults)

    def stored_settings(self, run: RunFolder, pair: str | None = None) -> S:
        """Return the settings that a run was begun with.

        `pair` is the spec of the run's pair where that is code of the user's own, which the spec
        lets be run.

        Raises `UserError` if the run is missing or damaged, or its pair needs to be named and is
        not.
        """
        return resolve_run(self.settings_type, run.settings(), self.defaults, run.path, pair)

    def start(
        self,
        run_dir: Path,
        settings: S,
        source: Names = NOTHING,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        quiet: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> T:
        """Start a run in a folder, and train it.

        The folder keeps the settings, and where the data lies with its fingerprint. Nothing is
        written before settings and data have been found sound, and nothing stays of a run that is
        refused before its first checkpoint.
        """
        run, quiet = self.folder(run_dir), quiet or not ranks.is_first()
        with ExitStack() as stack:
            with ranks.agreed():
                run.check_free(*self.documents)
                self.check(settings)
                self.check_device(device)
                self.check_processes()
                request = Request(
                    settings, source, run, seed, device, quiet, callbacks, stack=stack
                )
                data = self.read(request)
                documents = dict(self.describe(data, request))
            ranks.check_same({"settings": dict(flatten(settings)), **documents})
            with ranks.agreed():
                stack.enter_context(run.locked())
                run.create(dict(flatten(settings)), documents)
            try:
                return self.train(data, request)
            except Exception:
                if not any(stage.last.exists() for stage in self.stages(run)):
                    run.abandon(*documents)
                raise

    def resume(
        self,
        run_dir: Path,
        changes: Names = NOTHING,
        *,
        repeated: Sequence[Layer] = (),
        seed: int | None = None,
        source: Names = NOTHING,
        pair: str | None = None,
        device: torch.device | str = "cpu",
        quiet: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> T:
        """Resume the run of a folder from its last checkpoint.

        Args:
            run_dir: the folder.
            changes: settings that may change, how long to train, by dotted name.
            repeated: settings given again, in layers: the run's own must be the same.
            seed: the run's own, if it is given again.
            source: where the data lies now, if it has moved, and what else is given again.
            pair: the run's pair, where it is code of the user's own.
            device: where to compute.
            quiet: no progress on stderr.
            callbacks: of the training, beside those that it has by itself.

        Raises `UserError` if the folder holds no run, `OptionsDiffer` if the run was begun with
        other settings or another source, and `ContentsDiffer` if the data is other data now.
        """
        run, quiet = self.folder(run_dir), quiet or not ranks.is_first()
        said = {k: v for layer in repeated if layer.trusted for k, v in layer.changes.items()}
        with ExitStack() as stack:
            with ranks.agreed():
                settings = self.resumed_settings(
                    run_dir, changes, repeated=repeated, seed=seed, source=source, pair=pair
                )
                self.check_device(device)
                self.check_processes()
                stack.enter_context(run.locked())
                for stage in self.stages(run):
                    check_resumable(stage)
                    if stage.last.exists():
                        break
                own_seed, stored = self.stored_source(run)
                moved = {name: source[name] for name in self.places if source.get(name)}
                request = Request(
                    settings, stored | moved, run, own_seed, device, quiet, callbacks, said, stack
                )
                try:
                    data = self.read_again(request)
                except ContentsDiffer as error:
                    raise (_named(error, moved, stored) if moved else error) from None
            ranks.check_same({"settings": dict(flatten(settings))})
            if changes:
                self.check_changes(run, settings)
                document = run.read_json("run.json") | {"settings": dict(flatten(settings))}
                run.write_json("run.json", document)
            return self.train(data, request, resume=True)

    def resumed_settings(
        self,
        run_dir: Path,
        changes: Names = NOTHING,
        *,
        repeated: Sequence[Layer] = (),
        seed: int | None = None,
        source: Names = NOTHING,
        pair: str | None = None,
    ) -> S:
        """Return the settings that the run of a folder is resumed with.

        Arguments and errors are those of `resume`.
        """
        run = self.folder(run_dir)
        for layer in repeated:
            refuse_old_names(layer.changes, layer.source)
        settings = self.stored_settings(run, pair or _spec(repeated))
        differ = [*self._settings_that_differ(settings, changes, repeated)]
        if seed is not None or source:
            differ += self._source_that_differs(run, seed, source)
        if differ:
            options = ", ".join(dict.fromkeys(each.option for each in differ))
            values = "; ".join(
                f"{each.name} = {shown(each.own)}, not {shown(each.given)}" for each in differ
            )
            raise OptionsDiffer(f"{options}: the run in {run} was begun with {values}")
        return override(settings, changes, "--resume")

    def _settings_that_differ(
        self, settings: S, changes: Names, repeated: Sequence[Layer]
    ) -> Iterator[Difference]:
        own = dict(flatten(settings))
        given = {
            name: (value, layer.source)
            for layer in repeated
            for name, value in layer.changes.items()
            if name in own or not (layer.lenient and name.startswith("model."))
        }
        kind, source = given.pop(KIND, (None, ""))
        if kind is not None and source != "--pair" and _whole(kind) != own[KIND]:
            yield Difference(source, KIND, own[KIND], kind)
            given = {name: one for name, one in given.items() if not name.startswith("model.")}
        for name, (value, source) in given.items():
            if name in changes:
                continue
            typed = dict(flatten(override(settings, {name: value}, source)))[name]
            if not self.is_same(name, own[name], typed):
                yield Difference(source, name, own[name], typed)

    def _source_that_differs(
        self, run: RunFolder, seed: int | None, source: Names
    ) -> Iterator[Difference]:
        own_seed, own = self.stored_source(run)
        if seed not in (None, own_seed):
            yield Difference("--seed", "seed", own_seed, seed)
        for name, value in source.items():
            if name in self.places and own[name] and value:
                continue  # what lies there is compared as it is read
            if not self.is_same(name, own[name] or None, value or None):
                yield Difference(option_of(name), name, own[name], value)


def _spec(layers: Sequence[Layer]) -> str | None:
    """Return the pair that the user's own words name by its code, outside of --pair."""
    kinds = [layer.changes[KIND] for layer in layers if KIND in layer.changes and layer.trusted]
    return str(kinds[-1]) if kinds and named_by_code(str(kinds[-1])) else None


def _whole(kind: object) -> object:
    """Return the name of a pair, or its spec with the whole path of its file."""
    where, _, attribute = str(kind).rpartition(":")
    if where.endswith(".py") or "/" in where:
        return f"{Path(where).expanduser().absolute()}:{attribute}"
    return kind


def _named(error: ContentsDiffer, moved: Names, stored: Names) -> ContentsDiffer:
    """Return the error with the options that have named the data, and where that was."""
    was = [shown(stored[name]) for name in moved if places(moved[name]) != places(stored[name])]
    options = ", ".join(map(option_of, moved))
    return ContentsDiffer(f"{options}: {error}" + f" (that was {', '.join(was)})" * bool(was))
