"""Builds the API reference: a page for each module of the package, made from its docstrings by
pdoc. Every warning is an error.

    python tools/api_reference.py [FOLDER [MODULE ...]]     build/api, if no folder is named; every
                                                            module, if none is named

The pages load nothing from a network. Docstrings are Markdown, with `Args:` sections as Google
writes them; an equation is written as a reader of the source wants it, so a `<` in it is a
less-than sign here and never begins a tag.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import shutil
import sys
import typing
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import pdoc.doc
import pdoc.render

import pyro_seq

# packages that a checkout keeps beside the core, where the core's path does not lead
BESIDE = ("pyro_seq.models", "pyro_seq.guides")
LEFT_OUT = ("pyro_seq.cli", "pyro_seq.text.data")  # described by --help; no Python in it


def modules(wanted: Sequence[str] = ()) -> dict[str, pdoc.doc.Module]:
    """These modules by name, or every documented one, packages before what is in them."""
    names = {"pyro_seq", *BESIDE}
    for package in sorted(names):
        found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        names |= {module.name for module in found if not module.name.startswith(LEFT_OUT)}
    return {name: pdoc.doc.Module.from_name(name) for name in wanted or sorted(names)}


def resolve_annotations(documented: dict[str, pdoc.doc.Module]) -> None:
    """Puts the types of each named tuple's fields in the place of their names, which its
    constructor, made elsewhere, cannot look up.
    """
    for module in documented.values():
        for kind in vars(module.obj).values():
            if (
                isinstance(kind, type)
                and issubclass(kind, tuple)
                and kind.__module__.startswith("pyro_seq")
            ):
                kind.__new__.__annotations__ = typing.get_type_hints(kind)


def drop_boilerplate(members: Iterable[pdoc.doc.Doc]) -> None:
    """Takes away what Python and PyTorch say of any constructor and of any field: a class's
    docstring covers its constructor.
    """
    for member in members:
        if isinstance(member, pdoc.doc.Class):
            drop_boilerplate(member.members.values())
        elif member.name == "__init__" or member.docstring.startswith("Alias for field number"):
            member.__dict__["docstring"] = ""


def as_markdown(docstring: str) -> str:
    """A docstring without what Markdown would take for a tag; code keeps its signs, which Markdown
    escapes by itself.
    """
    lines = []
    for line in docstring.split("\n"):
        pieces = [line] if line.startswith("    ") else re.split(r"(`[^`]*`)", line)
        lines.append(
            "".join(
                piece if piece.startswith(("`", "    ")) else piece.replace("<", "&lt;")
                for piece in pieces
            )
        )
    return "\n".join(lines)


def build(target: Path, names: Sequence[str] = ()) -> int:
    """Writes the pages of these modules, or of all, into a folder that is made anew; returns how
    many there are.
    """
    documented = modules(names)
    for module in documented.values():  # names are imported at their first use, which this is
        for name in getattr(module.obj, "__all__", ()):
            getattr(module.obj, name)
    resolve_annotations(documented)
    # also those of a package whose `__all__` is about what it offers, not what it is made of
    for name, module in documented.items():
        drop_boilerplate(module.members.values())
        module.__dict__["submodules"] = [
            inner for other, inner in documented.items() if other.rpartition(".")[0] == name
        ]
    pdoc.render.configure(
        docformat="google", show_source=False, footer_text=f"pyro_seq {pyro_seq.__version__}"
    )
    to_html = pdoc.render.env.filters["to_html"]
    pdoc.render.env.filters["to_html"] = lambda docstring: to_html(as_markdown(docstring))
    shutil.rmtree(target, ignore_errors=True)
    for name, module in documented.items():
        page = target.joinpath(*name.split(".")).with_suffix(".html")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(pdoc.render.html_module(module, documented), encoding="utf-8")
    (target / "index.html").write_text(pdoc.render.html_index(documented), encoding="utf-8")
    (target / "search.js").write_text(pdoc.render.search_index(documented), encoding="utf-8")
    return len(documented)


def main() -> int:
    """Builds the reference and says where it is."""
    target = (
        Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "build" / "api"
    )
    warnings.simplefilter("error")
    count = build(target, sys.argv[2:])
    print(f"{count} modules: {target / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
