"""Find a pair's code: shipped, of an installed package, or named by module or file.

A spec is `module:attribute` or `file.py:attribute`.

Whoever calls `find_pair` with a spec has its code run. What is read from a file (a run folder, a
configuration) is not to be followed by itself: `named_by_code` tells.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from torch import nn

from pyro_seq.config.shipped import (
    DMMSettings,
    HMMSettings,
    ISEQSettings,
    LGSSMSettings,
    ModelSettings,
    RNNSettings,
    SLDSSettings,
    SRNNSettings,
    VRNNSettings,
)
from pyro_seq.config.user_code import (
    OWN_FILES,
    import_file,
    import_module,
    in_words,
    source_file,
    working_folder_importable,
)
from pyro_seq.errors import UserError, did_you_mean
from pyro_seq.guides import DMMGuide, ISEQGuide, SLDSGuide, SRNNGuide, VRNNGuide
from pyro_seq.models import DMM, HMM, ISEQ, LGSSM, RNN, SLDS, SRNN, VRNN

GROUP = "pyro_seq.pairs"  # of entry points

Maker = Callable[..., object]


@dataclass(frozen=True)
class PairEntry:
    """How a pair is made: a maker of a model, or of a model and a guide.

    A shipped pair has its model's class and its guide's class.

    Attributes:
        kind: the name, or the spec with the whole path of its file.
        maker: a class or function.
        guide: of a shipped pair, its guide's class.
        settings: of a shipped pair, the class of its settings.
        source: `shipped`, or where it comes from.
        from_module: whether modules of the working folder can be imported while its code runs.
    """

    kind: str
    maker: Maker
    guide: Maker | None = None
    settings: type[ModelSettings] | None = None
    source: str = "shipped"
    from_module: bool = False

    @property
    def shipped(self) -> bool:
        """Whether the pair is one of this package's own."""
        return self.source == "shipped"

    @property
    def title(self) -> str:
        """Return the title of a pair.

        The title of a shipped pair stands in its settings; that of another pair is the first line
        of its maker's docstring, empty if there is none.
        """
        if self.settings is not None:
            return str(fields(self.settings)[0].metadata["text"])
        return inspect.cleandoc(self.maker.__doc__ or "").partition("\n")[0]

    @property
    def callables(self) -> tuple[Maker, ...]:
        """The callables that make the pair."""
        return (self.maker,) if self.guide is None else (self.maker, self.guide)

    @contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Turn an error of code that is not ours into a `UserError` of one line.

        The line says what failed, and where in that code.
        """
        try:
            with working_folder_importable() if self.from_module else nullcontext():
                yield
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            if self.shipped:
                raise
            raise UserError(
                f"the pair {self.kind!r} {doing}: {in_words(error, source_file(self.maker))}"
            ) from error


SHIPPED = {
    entry.kind: entry
    for entry in (
        PairEntry("rnn", RNN, None, RNNSettings),
        PairEntry("iseq", ISEQ, ISEQGuide, ISEQSettings),
        PairEntry("srnn", SRNN, SRNNGuide, SRNNSettings),
        PairEntry("vrnn", VRNN, VRNNGuide, VRNNSettings),
        PairEntry("dmm", DMM, DMMGuide, DMMSettings),
        PairEntry("hmm", HMM, None, HMMSettings),
        PairEntry("lgssm", LGSSM, None, LGSSMSettings),
        PairEntry("slds", SLDS, SLDSGuide, SLDSSettings),
    )
}


def named_by_code(kind: str) -> bool:
    """Tell whether a name is a spec, whose code would be imported from anywhere."""
    return ":" in kind


def find_pair(kind: str) -> PairEntry:
    """Return the recipe of a name or a spec; the code of a spec is imported.

    So is the code of an installed package.

    Raises `UserError` for a name that is not known, a file or module that cannot be imported, and
    an attribute that is not there or makes nothing.
    """
    if named_by_code(kind):
        return _from_spec(kind)
    if kind in SHIPPED:
        return SHIPPED[kind]
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
            f"the pair {kind!r} of {package_of(entry)} cannot be imported: {in_words(error)}"
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


def _from_spec(spec: str) -> PairEntry:
    where, _, attribute = spec.rpartition(":")
    if not where or not attribute.isidentifier():
        raise UserError(
            f"--pair {spec}: a pair of your own is named path/to/file.py:attribute or "
            "module:attribute"
        )
    from_module = not (where.endswith(".py") or "/" in where)
    if from_module:
        module, kind, source = import_module(where, spec), spec, f"module {where}"
    else:
        path = Path(where).expanduser().absolute()
        module, kind, source = import_file(path, spec), f"{path}:{attribute}", f"file {path}"
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
    return _found(kind, maker, source, f"--pair {spec}: {attribute!r}", from_module)


def _found(
    kind: str, maker: object, source: str, what: str, from_module: bool = False
) -> PairEntry:
    """The recipe of a maker that is not ours; raises `UserError` if it can be none."""
    if isinstance(maker, nn.Module):
        raise UserError(
            f"{what} is a module already made; a pair is named by the class or function that "
            "makes it"
        )
    if not callable(maker):
        raise UserError(
            f"{what} is a {type(maker).__name__}, not a class or function that makes a model, or "
            "a model and a guide"
        )
    file = source_file(maker)
    if file is not None:
        OWN_FILES.add(file)
    return PairEntry(kind, maker, source=source, from_module=from_module)
