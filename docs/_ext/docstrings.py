"""Read docstrings as Markdown, which they are written in, where autodoc expects reStructuredText.

Only what docstrings here are made of is translated: code in backticks, indented blocks, lists,
emphasis. A name in backticks that is public becomes a link to its entry in the reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from public_names import entries

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
EMPHASIS = re.compile(r"(?<![\w*\\])(\*{1,2})(\w[^*`\n]*?)\1(?!\w)")
ALIASES = ("Alias for field number", "Initialize internal Module state")  # not our words


def as_rst(docstring: str) -> str:
    """Translate a docstring, but for the heads of its sections, which napoleon reads."""
    lines = docstring.expandtabs().rstrip().split("\n")
    return "\n".join(line for block in _blocks(lines) for line in block)


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Yield the paragraphs of a docstring as reStructuredText, and the empty lines between."""
    in_section = False
    for empty, group in groupby(lines, key=lambda line: not line.strip()):
        block = list(group)
        if empty:
            yield block
            continue
        if in_section := bool(SECTION.fullmatch(block[0])) or (
            in_section and block[0].startswith(" ")
        ):
            yield _section(block)
        elif block[0].startswith(("    ", "|")):
            yield ["::", "", *(f"    {line}" for line in block), ""]
        else:
            yield _paragraph("\n".join(block)).split("\n")


def _section(block: list[str]) -> list[str]:
    """The items of `Args:` and the like: each one's name as it stands, what is said of it not."""
    items: list[str] = []
    for line in block:
        if SECTION.fullmatch(line) or re.match(r"    \S", line) or not items:
            items.append(line)
        else:
            items[-1] += "\n" + line
    out = []
    for item in items:
        head = re.match(r"    [\w*, ]+: ?|\s*", item)
        assert head is not None
        rest = item[head.end() :]
        out.append(item if SECTION.fullmatch(item) else head[0] + inline(rest))
    return "\n".join(out).split("\n")


def _paragraph(text: str) -> str:
    """A paragraph, and the list that may follow it without an empty line."""
    text = re.sub(r"(?m)^(?![-*] |\d+\. | )(.*)\n(?=[-*] |1\. )", r"\1\n\n", text)
    bullets = re.sub(r"(?m)^\* ", "- ", text)
    return inline(bullets)


def inline(text: str) -> str:
    """Translate what stands within a paragraph: code, emphasis, and signs that mean something."""
    pieces = re.split(r"(`[^`]+`)", text)
    out = ""
    for before, piece in enumerate(pieces):
        if piece.startswith("`"):
            code = " ".join(piece.strip("`").split())
            start = r"\ " if re.search(r"[^\s(\[{'\"/<-]$", out) else ""
            end = r"\ " if pieces[before + 1][:1].isalnum() else ""
            out += start + _code(code) + end
        else:
            out += _text(piece)
    return out


def _code(code: str) -> str:
    name = code.removesuffix("()")
    target = entries().get(name) or entries().get(f"pyro_seq.{name}")
    return f":py:obj:`{name} <{target}>`" if target else f"``{code}``"


def _text(text: str) -> str:
    text = text.replace("\\", "\\\\")
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        kept.append(found[0])
        return "\0"

    text = EMPHASIS.sub(keep, text)
    text = re.sub(r"([*|`]|(?<=\w)_(?!\w))", r"\\\1", text)
    return re.sub("\0", lambda _: kept.pop(0), text)


def _translate(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Translate a docstring in its place, before napoleon reads it."""
    text = "\n".join(lines)
    lines[:] = [] if text.startswith(ALIASES) else as_rst(text).split("\n")
    if what in ("attribute", "data", "property") and lines:
        lines[:0] = ["..", ""]  # else napoleon takes what stands before a colon for a type


def setup(app: Sphinx) -> dict[str, bool]:
    """Have autodoc hand each docstring over before napoleon reads it."""
    app.connect("autodoc-process-docstring", _translate, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
