"""Find a pair's code: shipped, of an installed package, or named by module or file.

A spec is `module:attribute` or `file.py:attribute`.

Whoever calls `find_recipe` with a spec has its code run. What is read from a file (a run folder, a
configuration) is not to be followed by itself: `named_by_code` tells.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pyro_seq.errors import UserError, did_you_mean, said
from pyro_seq.guides import DMMGuide, ISEQGuide, SRNNGuide, VRNNGuide
from pyro_seq.models import DMM, HMM, ISEQ, RNN, SRNN, VRNN

GROUP = "pyro_seq.pairs"  # of entry points

# the modules of a folder that came with a pair's, by name
_BESIDE: dict[Path, dict[str, ModuleType]] = {}
OWN_FILES: set[str] = set()  # the source files of makers found that are not ours

# model and guide by name; no guide for a model without latents
SHIPPED: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {
    "rnn": (RNN, None),
    "iseq": (ISEQ, ISEQGuide),
    "srnn": (SRNN, SRNNGuide),
    "vrnn": (VRNN, VRNNGuide),
    "dmm": (DMM, DMMGuide),
    "hmm": (HMM, None),
}


@dataclass(frozen=True)
class Recipe:
    """How a pair is made: a maker of a model, or of a model and a guide.

    A shipped pair has its model's class and its guide's class.

    Attributes:
        kind: the name, or the spec with the whole path of its file.
        maker: a class or function.
        guide: of a shipped pair, its guide's class.
        source: `shipped`, or where it comes from.
        folder: where modules of its own lie, if it is read from a file or the working folder.
    """

    kind: str
    maker: Callable[..., Any]
    guide: Callable[..., Any] | None = None
    source: str = "shipped"
    folder: Path | None = None

    @property
    def shipped(self) -> bool:
        """Whether the pair is one of this package's own."""
        return self.source == "shipped"

    @property
    def description(self) -> str:
        """The first line of the maker's docstring, empty without a docstring."""
        text = inspect.cleandoc(self.maker.__doc__ or "")
        return text.splitlines()[0] if text else ""

    @property
    def callables(self) -> tuple[Callable[..., Any], ...]:
        """The callables that make the pair."""
        return (self.maker,) if self.guide is None else (self.maker, self.guide)

    @contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Turn errors of a user's code inside into a `UserError` of one line.

        Inside, the code can import modules that lie beside it.

        The line says what, and where in that code.
        """
        try:
            with importable_from(self.folder):
                yield
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            if self.shipped:
                raise
            raise UserError(
                f"the pair {self.kind!r} {doing}: {_in_words(error, _file_of(self.maker))}"
            ) from error


def named_by_code(kind: str) -> bool:
    """Tell whether a name is a spec, whose code would be imported from anywhere."""
    return ":" in kind


def find_recipe(kind: str) -> Recipe:
    """Return the recipe of a name or a spec; the code of a spec is imported.

    So is the code of an installed package.

    Raises `UserError` for a name that is not known, a file or module that cannot be imported, and
    an attribute that is not there or makes nothing.
    """
    if named_by_code(kind):
        return _from_spec(kind)
    if kind in SHIPPED:
        model, guide = SHIPPED[kind]
        return Recipe(kind, model, guide)
    found = installed()
    if kind not in found:
        if kind.endswith(".py") or "/" in kind:
            raise UserError(
                f"{kind!r} lacks what makes the pair: a pair of your own is named "
                "path/to/file.py:attribute"
            )
        raise UserError(f"unknown pair {kind!r}{did_you_mean(kind, [*SHIPPED, *found])}")
    if len(found[kind]) > 1:
        packages = ", ".join(package_of(entry) for entry in found[kind])
        raise UserError(
            f"several installed packages have a pair {kind!r}: {packages}; name it as "
            "module:attribute with --pair"
        )
    (entry,) = found[kind]
    try:
        maker = entry.load()
    except Exception as error:
        raise UserError(
            f"the pair {kind!r} of {package_of(entry)} cannot be imported: {_in_words(error)}"
        ) from None
    return _found(kind, maker, package_of(entry), f"the pair {kind!r} of {package_of(entry)}")


def installed() -> dict[str, list[EntryPoint]]:
    """Return the entry points of installed packages by name; nothing is imported.

    Names of shipped pairs are left out.
    """
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        if entry.name not in SHIPPED:
            found.setdefault(entry.name, []).append(entry)
    return found


def package_of(entry: EntryPoint) -> str:
    """Return the package that an entry point comes with."""
    return (
        f"package {entry.dist.name} {entry.dist.version}"
        if entry.dist
        else f"module {entry.value.partition(':')[0]}"
    )


def _from_spec(spec: str) -> Recipe:
    where, _, attribute = spec.rpartition(":")
    if not where or not attribute.isidentifier():
        raise UserError(
            f"--pair {spec}: a pair of your own is named path/to/file.py:attribute or "
            "module:attribute"
        )
    if where.endswith(".py") or "/" in where:
        path = Path(where).expanduser().absolute()
        module, kind, source, folder = (
            _import_file(path, spec),
            f"{path}:{attribute}",
            f"file {path}",
            path.parent,
        )
    else:
        module, kind, source, folder = (
            _import_module(where, spec),
            spec,
            f"module {where}",
            Path.cwd(),
        )
    if not hasattr(module, attribute):
        own = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        ]
        raise UserError(
            f"--pair {spec}: {source} has no {attribute!r}{did_you_mean(attribute, own)}"
        )
    maker = getattr(module, attribute)
    return _found(kind, maker, source, f"--pair {spec}: {attribute!r}", folder)


def _found(kind: str, maker: Any, source: str, what: str, folder: Path | None = None) -> Recipe:
    """The recipe of a maker that is not ours; raises `UserError` if it can be none."""
    if isinstance(maker, nn.Module):
        raise UserError(
            f"{what} is a module already made; a pair is named by the class or function that "
            "makes "
            "it"
        )
    if not callable(maker):
        raise UserError(
            f"{what} is a {type(maker).__name__}, not a class or function that makes a model, or "
            "a "
            "model and a guide"
        )
    OWN_FILES.update({_file_of(maker)} - {None})  # type: ignore[arg-type]
    return Recipe(kind, maker, source=source, folder=folder)


def fault_of_own_code(error: BaseException) -> str | None:
    """Return the error of a user's pair in one line, `None` for an error of other code.

    The line ends with the place in the user's file.
    """
    files = [
        frame.filename
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in OWN_FILES
    ]
    return f"this pair's code fails: {_in_words(error, files[-1])}" if files else None


def _import_file(path: Path, spec: str) -> Any:
    """The module of a file, under a name that no other module has; run once for the same contents.

    While it is imported, modules beside it can be too, where no installed one has their name.
    """
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise UserError(f"--pair {spec}: cannot read {path}: {error.strerror}") from None
    digest = hashlib.sha256(os.fsencode(path) + b"\0" + contents).hexdigest()
    name = f"pyro_seq_pair_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = importlib.util.spec_from_file_location(name, path, loader=_Uncached(name, str(path)))
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module
    try:
        with importable_from(path.parent):
            loader.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        raise UserError(
            f"--pair {spec}: {path} cannot be imported: {_in_words(error, str(path))}"
        ) from None
    return module


class _Uncached(importlib.machinery.SourceFileLoader):
    """Leaves no compiled copies beside the user's file."""

    def set_data(self, path: str, data: bytes, *, _mode: int = 0o666) -> None:  # type: ignore[override]
        pass


def _import_module(name: str, spec: str) -> Any:
    """An installed module, or one below the working folder."""
    try:
        with importable_from(Path.cwd()):
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        tried = f"tried the installed packages and {Path.cwd()}"
        raise UserError(
            f"--pair {spec}: module {name!r} cannot be imported: {_in_words(error)}; {tried}"
        ) from None


@contextmanager
def importable_from(folder: Path | None) -> Iterator[None]:
    """Make modules of a folder importable inside; the folder comes last, to hide none.

    Modules that were imported so from another folder are out of the way meanwhile: two pairs may
    each have a helper of one name beside them. Such names are taken out again afterwards, since
    neither helper is the one that whoever asks later means. With `None` nothing changes.
    """
    if folder is None:
        yield
        return
    path, own = sys.path.copy(), _BESIDE.setdefault(folder, {})
    others = {
        name: module
        for other in _BESIDE
        if other != folder
        for name, module in _BESIDE[other].items()
    }
    hidden = _taken_out(others)
    sys.modules.update(
        {name: module for name, module in own.items() if _top(name) not in sys.modules}
    )
    known = set(sys.modules)
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        new = {name: module for name, module in [*sys.modules.items()] if name not in known}
        beside = {_top(name) for name, module in new.items() if _lies_in(folder, name, module)}
        sys.path[:] = path
        beside = {package for package in beside if not _is_found(package)}
        own.update({name: module for name, module in new.items() if _top(name) in beside})
        both = {_top(name) for name in own} & {_top(name) for name in others}
        _taken_out({name: module for name, module in own.items() if _top(name) in both})
        sys.modules.update(
            {name: module for name, module in hidden.items() if _top(name) not in both}
        )


def _taken_out(modules: Mapping[str, ModuleType]) -> dict[str, ModuleType]:
    """Those of some modules that stand under their names, which they do no longer."""
    standing = {name: module for name, module in modules.items() if sys.modules.get(name) is module}
    for name in standing:
        del sys.modules[name]
    return standing


def _top(name: str) -> str:
    """What stands before the first dot."""
    return name.partition(".")[0]


def _lies_in(folder: Path, name: str, module: ModuleType) -> bool:
    """Whether a module, or package, is the one of that name in the folder."""
    place, spec = folder.joinpath(*name.split(".")), getattr(module, "__spec__", None)
    if spec is None:
        return False
    found = [
        Path(where) for where in (spec.origin, *(spec.submodule_search_locations or ())) if where
    ]
    return any(place in (where, where.parent, where.parent / _top(where.name)) for where in found)


def _is_found(package: str) -> bool:
    """Whether a module or package of that name can be imported; a folder without `__init__.py`,
    which any may be, does not count.
    """
    specs = (finder.find_spec(package, None) for finder in sys.meta_path)
    return any(spec is not None and spec.origin is not None for spec in specs)


def _file_of(maker: Any) -> str | None:
    try:
        return inspect.getsourcefile(maker)
    except TypeError:
        return None


def _in_words(error: BaseException, file: str | None = None) -> str:
    """An error in one line, with the last line of `file` that led to it, if any did."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno} of {error.filename}: {error.msg}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    where = f" (line {lines[-1]} of {file})" if lines else ""
    words = " ".join(said(error).split())
    return (
        words
        if isinstance(error, UserError)
        else f"{type(error).__name__}: {words}"
        if words
        else type(error).__name__
    ) + where
