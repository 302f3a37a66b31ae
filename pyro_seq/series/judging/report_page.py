"""Write what a model of series is like as one self-contained HTML page.

Pictures and styles are inside of the page as data, and there is no program in it. Its content
security policy forbids everything else, so that opening a report from elsewhere loads nothing and
runs nothing. All words are escaped: names of series and columns are anybody's.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Plot:
    """A picture, with a description for those who do not see it.

    Attributes:
        png: the file's bytes.
        alt: what is to be seen, in a sentence.
        caption: what stands below it.
    """

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table, its cells as they are shown.

    Attributes:
        head: names of the columns.
        rows: cells; the first of a row says what it is of.
        note: what stands below it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        note: a paragraph below that.
        tables: figures.
        pictures: plots, side by side where there is room.
        large: whether the plots are wide ones.
    """

    title: str
    note: str = ""
    tables: Sequence[PageTable] = ()
    pictures: Sequence[Plot] = ()
    large: bool = False


def report_html(
    title: str,
    sections: Sequence[Section],
    *,
    summary: str = "",
    read: str = "",
    settings: Mapping[str, object] | None = None,
) -> str:
    """Write the page; sections without tables and pictures are left out.

    Args:
        title: of the page.
        sections: in order.
        summary: a paragraph below the title.
        read: what the data was taken for, on several lines.
        settings: how the run was trained, by dotted name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page.filters |= {"size": _size, "data": _data}
    return page.get_template("report.html.jinja").render(
        title=title, sections=sections, summary=summary, read=read, settings=settings
    )


def _size(png: bytes) -> tuple[int, ...]:
    """Return a picture's width and height in pixels."""
    return struct.unpack(">II", png[16:24])


def _data(png: bytes) -> str:
    """Return the `data:` address of a picture."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
