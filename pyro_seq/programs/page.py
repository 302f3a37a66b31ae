"""Self-contained pages: pictures as data, and the templates that pages are made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """A picture, with a description for those who do not see it.

    Attributes:
        png: the file's bytes.
        alt: what is to be seen, in a sentence.
        caption: what stands below it.
    """

    png: bytes
    alt: str
    caption: str = ""


def page_templates(folder: Path, *, html: bool = True) -> Environment:
    """Return the templates of a folder; values must all be given, and those of HTML are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
