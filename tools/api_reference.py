"""Builds the API reference from the docstrings, as HTML pages that load nothing from elsewhere; every warning is an error.

python -P tools/api_reference.py [FOLDER]        the folder is build/api if not given
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import typing
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import pyro_seq

BESIDE = ("pyro_seq.models", "pyro_seq.guides")  # packages that a checkout keeps beside the core, where the core's path does not lead
LEFT_OUT = ("pyro_seq.cli", "pyro_seq.data")  # described by --help; no Python in it


def modules() -> list[str]:
    """The package, its modules and its packages, which bring their own modules, by name."""
    found = pkgutil.iter_modules(pyro_seq.__path__, "pyro_seq.")
    return list(dict.fromkeys(["pyro_seq", *BESIDE, *(module.name for module in found if not module.name.startswith(LEFT_OUT))]))


def resolve_named_tuples() -> None:
    """Give the constructors of named tuples types in place of names, which pdoc would look up in Python's own module."""
    inner = [module.name for module in pkgutil.walk_packages(pyro_seq.__path__, "pyro_seq.") if not module.name.startswith(LEFT_OUT)]
    for name in inner:
        for member in vars(importlib.import_module(name)).values():
            if isinstance(member, type) and issubclass(member, tuple) and hasattr(member, "_fields"):
                member.__new__.__annotations__ = typing.get_type_hints(member)


def build(folder: Path) -> list[Path]:
    """Write a page for each module; raises the first warning."""
    pdoc.render.configure(docformat="google", show_source=False, footer_text=f"pyro_seq {pyro_seq.__version__}")
    resolve_named_tuples()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*modules(), output_directory=folder)
    return sorted(folder.rglob("*.html"))


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "build" / "api"
    print(f"{len(build(target))} pages in {target}")
