"""Write the results of a music training as one self-contained HTML page.

Pictures and sounds are inside of the page as data, styles too, and there is no program in it. Its
content security policy forbids everything else, so that opening a report from elsewhere loads
nothing and runs nothing. A second of mono sound at 22 kHz takes 59 kB.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyro_seq.errors import UserError
from pyro_seq.programs.page import PNG, Picture, page_templates


@dataclass(frozen=True)
class Sound:
    """A piece of music to hear and to see.

    Attributes:
        title: its name.
        wav: the sound, the primer and its continuation where there is a primer; a file's bytes.
        png: its piano roll.
        note: a sentence about it.
        primer: the sound of the primer alone; empty where there is none.
        midi: the piece as a MIDI file, to be downloaded; or empty.
    """

    title: str
    wav: bytes
    png: bytes
    note: str = ""
    primer: bytes = b""
    midi: bytes = b""


@dataclass(frozen=True)
class ReportFigure:
    """A number among the results.

    Attributes:
        name: of what.
        value: the number.
        unit: what it counts.
        note: how it was found.
    """

    name: str
    value: float
    unit: str = "nats per frame"
    note: str = ""


def report_html(
    title: str,
    *,
    summary: str = "",
    settings: Mapping[str, object] | None = None,
    curves: Sequence[Picture] = (),
    figures: Sequence[ReportFigure] = (),
    sounds: Sequence[Sound] = (),
    histograms: Sequence[Picture] = (),
    distances: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Write the page; parts without content are left out, all words are escaped.

    Args:
        title: of the page.
        summary: a paragraph below it.
        settings: how the run was trained, by dotted name.
        curves: learning curves.
        figures: what was measured.
        sounds: the samples.
        histograms: statistics of real and generated music.
        distances: how far from real music each kind is, by statistic:
            `{"generated": {"polyphony": 0.1, …}, "Markov": …}`.

    Raises `UserError` for a picture that is no PNG or a sound that is no WAV.
    """
    page = page_templates(Path(__file__).parent)
    filters = (_shown, _rounded, _size, _data, _file_name)
    page.filters |= {function.__name__.removeprefix("_"): function for function in filters}
    distances = distances or {}
    return page.get_template("report.html.jinja").render(
        title=title,
        summary=summary,
        settings=settings,
        curves=curves,
        figures=figures,
        sounds=sounds,
        histograms=histograms,
        distances=distances,
        statistics=dict.fromkeys(name for far in distances.values() for name in far),
    )


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if type(value) is int else repr(value)


def _rounded(value: float | None, places: int) -> str:
    if value is None or math.isnan(value):
        return "–"
    shown = f"{value:,.{places}f}" if math.isfinite(value) else f"{value}".replace("inf", "∞")
    return shown.replace("-", "−")


def _size(png: bytes, alt: str) -> tuple[int, ...]:
    """Return a picture's width and height in pixels."""
    if png[:8] != PNG or len(png) < 24:
        raise UserError(f"the picture for {alt!r} is no PNG")
    return struct.unpack(">II", png[16:24])


def _data(content: bytes, kind: str) -> str:
    """Return the `data:` address of a file's bytes."""
    if kind == "audio/wav" and (content[:4] != b"RIFF" or content[8:12] != b"WAVE"):
        raise UserError("a sound for the report is no WAV file")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _file_name(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title).strip("-") or "music"
