"""Write the results of a music training as one self-contained HTML page.

Pictures and sounds are inside of the page as data, styles too, and there is no program in it. Its
content security policy forbids everything else, so that opening a report from elsewhere loads
nothing and runs nothing. A second of mono sound at 22 kHz takes 59 kB.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pyro_seq.errors import UserError

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; base-uri "
    "'none'; form-action 'none'"
)
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
class Figure:
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
    settings: Mapping[str, Any] | None = None,
    curves: Sequence[Picture] = (),
    figures: Sequence[Figure] = (),
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
    parts = [
        _details("How it was trained", _settings(settings)) if settings else "",
        _section("Learning curves", _gallery(curves)) if curves else "",
        _section("How likely the music is", _figures(figures)) if figures else "",
        _section("Listen", "".join(map(_sound, sounds))) if sounds else "",
        _section("What the music is like", _gallery(histograms) + _distances(distances or {}))
        if histograms or distances
        else "",
    ]
    paragraph = f'<p class="summary">{escape(summary)}</p>' if summary else ""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            (
                '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta '
                'name="color-scheme" content="light dark">'
            ),
            (
                f'<title>{escape(title)}</title>\n<link rel="icon" '
                f'href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>'
            ),
            f"<header><h1>{escape(title)}</h1>{paragraph}</header>\n<main>",
            *filter(None, parts),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>"


def _details(heading: str, content: str) -> str:
    summary = f"<summary><h2>{escape(heading)}</h2></summary>"
    return f"<section><details>\n{summary}\n{content}\n</details></section>"


def _table(name: str, head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Cells are HTML already; the columns from the second on that hold numbers are set to the
    right.
    """

    def cell(i: int, text: str) -> str:
        return f'<th scope="row">{text}</th>' if i == 0 else f"<td{_number(i, numbers)}>{text}</td>"

    columns = "".join(
        f'<th scope="col"{_number(i, numbers)}>{text}</th>' for i, text in enumerate(head)
    )
    body = "\n".join(
        "<tr>" + "".join(cell(i, text) for i, text in enumerate(row)) + "</tr>" for row in rows
    )
    # so that what does not fit can be reached by keyboard
    region = f'role="region" tabindex="0" aria-label="{name}"'
    return (
        '<div class="wide" '
        f"{region}><table><thead><tr>{columns}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _number(column: int, numbers: int) -> str:
    return ' class="number"' if 1 <= column <= numbers else ""


def _settings(settings: Mapping[str, Any]) -> str:
    shown = {
        name: value
        if isinstance(value, str)
        else f"{value:,}"
        if type(value) is int
        else repr(value)
        for name, value in settings.items()
    }
    return _table(
        "Settings",
        ("Setting", "Value"),
        ((f"<code>{escape(name)}</code>", escape(value)) for name, value in shown.items()),
    )


def _figures(figures: Sequence[Figure]) -> str:
    rows = ((escape(f.name), _rounded(f.value, 3), escape(f.unit), escape(f.note)) for f in figures)
    return _table("Figures", ("Of", "Value", "Unit", "How"), rows, numbers=1)


def _distances(distances: Mapping[str, Mapping[str, float]]) -> str:
    if not distances:
        return ""
    names = list(dict.fromkeys(name for far in distances.values() for name in far))
    rows = (
        (escape(name), *(_rounded(far.get(name, math.nan), 4) for far in distances.values()))
        for name in names
    )
    what = (
        "How far from real music, from 0 (alike) to 1: the Jensen–Shannon divergence in bits; "
        "of repetition, the mean absolute difference."
    )
    return f'<p class="note">{what}</p>' + _table(
        "Distances", ("Statistic", *map(escape, distances)), rows, numbers=len(distances)
    )


def _rounded(value: float, places: int) -> str:
    return (
        f"{value:,.{places}f}".replace("-", "−")
        if math.isfinite(value)
        else "–"
        if math.isnan(value)
        else "∞"
        if value > 0
        else "−∞"
    )


def _gallery(pictures: Sequence[Picture]) -> str:
    shown = (
        f"<figure>{_image(p.png, p.alt)}"
        + (f"<figcaption>{escape(p.caption)}</figcaption>" if p.caption else "")
        for p in pictures
    )
    return (
        '<div class="gallery">' + "</figure>\n".join(shown) + "</figure></div>" if pictures else ""
    )


def _sound(sound: Sound) -> str:
    title = escape(sound.title)
    players = (
        [(sound.primer, "Primer"), (sound.wav, "Primer and continuation")]
        if sound.primer
        else [(sound.wav, "")]
    )
    file = (
        "".join(character if character.isalnum() else "-" for character in sound.title).strip("-")
        or "music"
    )
    lines = [
        f'<article class="sound">\n<h3>{title}</h3>',
        f'<p class="note">{escape(sound.note)}</p>' if sound.note else "",
        f'<div class="wide" role="region" tabindex="0" aria-label="Piano roll of {title}">',
        _image(sound.png, f"Piano roll of {sound.title}") + "</div>",
        '<div class="players">'
        + "".join(_player(wav, title, label) for wav, label in players)
        + "</div>",
        f'<p><a download="{file}.mid" href="{_data(sound.midi, "audio/midi")}">MIDI file</a></p>'
        if sound.midi
        else "",
        "</article>\n",
    ]
    return "\n".join(filter(None, lines))


def _player(wav: bytes, title: str, label: str) -> str:
    """A player of a sound; the title is HTML already."""
    above, name = (f"<span>{label}</span>", f"{title}: {label}") if label else ("", title)
    return (
        f'<div class="player">{above}<audio controls preload="metadata" aria-label="{name}" '
        f'src="{_data(wav, "audio/wav")}"></audio></div>'
    )


def _image(png: bytes, alt: str) -> str:
    if png[:8] != PNG or len(png) < 24:
        raise UserError(f"the picture for {alt!r} is no PNG")
    width, height = struct.unpack(">II", png[16:24])
    return (
        f'<img src="{_data(png, "image/png")}" alt="{escape(alt)}" width="{width}" '
        f'height="{height}" decoding="async">'
    )


def _data(content: bytes, kind: str) -> str:
    if kind == "audio/wav" and (content[:4] != b"RIFF" or content[8:12] != b"WAVE"):
        raise UserError("a sound for the report is no WAV file")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# Contrasts are 4.5 to 1 or more in both schemes. Pictures are drawn on white; in the dark they are
# inverted, and their hues turned back.
STYLE = """
:root { --paper: #fbfbfa; --card: #fff; --ink: #23272f; --soft: #5b6472;
  --line: #dfe3e8; --link: #1767a8 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181d; --card: #1b1f25; --ink: #e6e8eb; --soft: #a2abb8;
  --line: #343b45; --link: #7db8e8 }
  img { filter: invert(.9) hue-rotate(180deg) }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem clamp(.9rem, 4vw, 2.5rem) 4rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word }
h1 { font-size: clamp(1.5rem, 5vw, 2.1rem); line-height: 1.2; margin: .5rem 0 }
h2 { font-size: 1.25rem; margin: 0 0 .8rem }
h3 { font-size: 1.05rem; margin: 0 0 .3rem }
p { margin: .3rem 0 .7rem }
.summary, figcaption, p.note, .player > span { color: var(--soft) }
.summary { max-width: 44rem }
section { margin-top: 2.2rem }
summary { cursor: pointer }
summary h2 { display: inline }
details[open] > summary { margin-bottom: .8rem }
.gallery { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)) }
figure, .sound { margin: 0; padding: .9rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem }
figure { max-width: 40rem }
figcaption { font-size: .9rem; margin-top: .4rem }
img { display: block; width: 100%; height: auto; border-radius: .3rem }
.sound { margin-bottom: 1rem }
.wide { overflow-x: auto }
.wide img { min-width: 34rem }
.players { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; margin-top: .7rem }
.player { flex: 1 1 16rem; max-width: 28rem }
.player > span { display: block; font-size: .9rem }
article > p:last-child { margin: .6rem 0 0 }
audio { display: block; width: 100%; min-width: 0 }
table { border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums }
.gallery + .note { margin-top: 1.4rem }
th, td { text-align: left; vertical-align: baseline;
  padding: .35rem clamp(.7rem, 2vw, 1.2rem) .35rem 0;
  border-bottom: 1px solid var(--line) }
thead th { color: var(--soft); font-weight: 600 }
tbody th { font-weight: 500; min-width: 7rem }
code { overflow-wrap: anywhere }
details td { overflow-wrap: anywhere; min-width: 7rem }
.number { text-align: right; white-space: nowrap }
a { color: var(--link) }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
"""
