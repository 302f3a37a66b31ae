"""Code of the user's own: imported from a file or a module, and its errors in words."""

from __future__ import annotations

import builtins
import hashlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from pyro_seq.errors import UserError, said

PREFIX = "pyro_seq_folder_"  # of packages that stand for users' folders
OWN_FILES: set[str] = set()  # the source files of makers found that are not ours


def import_file(path: Path, spec: str) -> ModuleType:
    """Import a user's file; once for the same contents.

    The file's folder stands in `sys.modules` as a package of a name of its own, and so does
    whatever the file imports from there, at once or when it is called. So two pairs may each have a
    helper of one name. What is installed goes before what lies in the folder.

    Args:
        path: the file, whole.
        spec: what the user named, for errors.

    Raises `UserError` for a file that cannot be read or imported.
    """
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise UserError(f"--pair {spec}: cannot read {path}: {error.strerror}") from None
    name = f"{_package_of(path.parent)}.pair_{_digest(os.fsencode(path), contents)}"
    if name in sys.modules:
        return sys.modules[name]
    found = spec_from_file_location(name, path, loader=_Loader(name, str(path)))
    assert found is not None and found.loader is not None
    module = sys.modules[name] = module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        raise UserError(
            f"--pair {spec}: {path} cannot be imported: {in_words(error, str(path))}"
        ) from None
    return module


def _digest(*contents: bytes) -> str:
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]


def _package_of(folder: Path) -> str:
    """The name of the package that stands for a folder."""
    name = PREFIX + _digest(os.fsencode(folder))
    importlib.invalidate_caches()
    if name not in sys.modules:
        sys.modules[name] = package = ModuleType(name)
        package.__path__ = [str(folder)]
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    return name


class _Loader(SourceFileLoader):
    """Runs a file of a user's folder, whose `import` looks there too; leaves no compiled copy."""

    def exec_module(self, module: ModuleType) -> None:
        look_here = partial(_import, module.__name__.partition(".")[0])
        vars(module)["__builtins__"] = vars(builtins) | {"__import__": look_here}
        super().exec_module(module)

    def set_data(self, path: str, data: bytes, *, _mode: int = 0o666) -> None:  # type: ignore[override]
        pass


class _Finder(MetaPathFinder):
    """Finds what lies in users' folders."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target) if name.startswith(PREFIX) else None
        if found is not None and isinstance(found.loader, SourceFileLoader):
            found.loader = _Loader(name, found.loader.path)
        return found


def _import(
    package: str,
    name: str,
    names: Mapping[str, object] | None = None,
    local: Mapping[str, object] | None = None,
    wanted: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """`__import__` of a module in a user's folder, whose package is `package`."""
    top = name.partition(".")[0]
    if level or find_spec(f"{package}.{top}") is None or _is_installed(top):
        return __import__(name, names, local, wanted or (), level)
    found = __import__(f"{package}.{name}", names, local, wanted or ())
    return found if wanted else getattr(found, top)


def _is_installed(top: str) -> bool:
    """Whether a module or package can be imported; a folder without `__init__.py`, which any may
    be, does not count.
    """
    found = (finder.find_spec(top, None) for finder in sys.meta_path)
    return any(spec is not None and spec.origin is not None for spec in found)


def import_module(name: str, spec: str) -> ModuleType:
    """Import an installed module, or one below the working folder.

    Raises `UserError` if neither can be imported.
    """
    try:
        with working_folder_importable():
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        tried = f"tried the installed packages and {Path.cwd()}"
        raise UserError(
            f"--pair {spec}: module {name!r} cannot be imported: {in_words(error)}; {tried}"
        ) from None


@contextmanager
def working_folder_importable() -> Iterator[None]:
    """Let modules of the working folder be imported inside the context.

    The folder comes last on the path, so that its modules hide none.
    """
    folder = str(Path.cwd())
    sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.reverse()
        sys.path.remove(folder)  # the last one
        sys.path.reverse()


def source_file(maker: Callable[..., object]) -> str | None:
    """Return the file that a class or function is written in, if that is known."""
    try:
        return inspect.getsourcefile(maker)
    except TypeError:
        return None


def fault_of_own_code(error: BaseException) -> str | None:
    """Return the error of a user's pair in one line, `None` for an error of other code.

    The line ends with the place in the user's file.
    """
    files = [
        frame.filename
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in OWN_FILES
    ]
    return f"this pair's code fails: {in_words(error, files[-1])}" if files else None


def in_words(error: BaseException, file: str | None = None) -> str:
    """Say an error in one line, with the last line of `file` that led to it, if any did."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno} of {error.filename}: {error.msg}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    words = " ".join(said(error).split())
    if not isinstance(error, UserError):
        words = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return f"{words} (line {lines[-1]} of {file})" if lines else words
