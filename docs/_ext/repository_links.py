"""Show files of the repository as pages, and lead links to these files to the pages.

A page that holds `{include} ../FILE.md` and nothing else is that file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

INCLUDE = re.compile(r"```\{include\} \.\./(\S+)\n```\n")
PAGES = {  # a file of the repository: the page that shows it
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "start.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}


def lead(text: str, folder: str, up: str = "") -> str:
    """Lead the links of a page to the site's pages.

    Args:
        text: the page.
        folder: where its file stands in the repository: `docs`, `benchmarks`, or nothing.
        up: the way from the page to the site's root.
    """

    def found(link: re.Match[str]) -> str:
        path, anchor = link[1], link[2] or ""
        target = (Path("/", folder) / path).resolve().relative_to("/").as_posix()
        page = PAGES.get(target) or (target.startswith("docs/") and target.removeprefix("docs/"))
        return f"]({up}{page}{anchor})" if page else link[0]

    return re.sub(r"\]\(([\w./-]+\.md)(#[\w-]+)?\)", found, text)


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    included = INCLUDE.fullmatch(source[0])
    if included:
        file = Path(app.srcdir).parent / included[1]
        app.env.note_dependency(file)
        folder = Path(included[1]).parent.as_posix()
        source[0] = lead(file.read_text(encoding="utf-8"), folder.strip("."))
    else:
        folder = Path("docs", docname).parent.as_posix()
        source[0] = lead(source[0], folder, "../" * docname.count("/"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Rewrite pages as they are read."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
