"""Write the pages of the reference before Sphinx reads the others: `docs/reference/generated/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import api_pages
import command_pages
import setting_pages
from sphinx.util.nodes import make_refnode

if TYPE_CHECKING:
    from docutils.nodes import Element, reference
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

FOLDER = Path("reference", "generated")


def pages() -> dict[str, str]:
    """Return every generated page by its name."""
    return {**api_pages.pages(), **command_pages.pages(), **setting_pages.pages()}


def _write(app: Sphinx) -> None:
    """Write what has changed, and drop pages of what is no longer there."""
    folder = Path(app.srcdir) / FOLDER
    wanted = {folder / f"{name}.rst": text for name, text in pages().items()}
    for old in set(folder.rglob("*.rst")) - set(wanted):
        old.unlink()
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def _by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element
) -> reference | None:
    """Find a type by its bare name, which is all that an annotation for type checkers has."""
    path, _, name = node["reftarget"].rpartition(".")
    if node["refdomain"] != "py" or (path and not path.startswith("pyro_seq.")):
        return None
    objects = env.get_domain("py").get_objects()
    found = {(page, anchor) for full, _, _, page, anchor, _ in objects if full.endswith(f".{name}")}
    if len(found) != 1:
        return None
    page, anchor = found.pop()
    return make_refnode(app.builder, node["refdoc"], page, anchor, [content])


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages as soon as Sphinx has been configured."""
    app.connect("builder-inited", _write)
    app.connect("missing-reference", _by_last_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
