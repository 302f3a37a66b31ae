"""Build the report of a run on films: what is real, drawn again, continued, filled, on the way.

Films, styles and pictures are inside of the page as data, and there is no program in it. Its
content security policy forbids everything else, so that opening a report from elsewhere loads
nothing and runs nothing. All words are escaped: names of films are anybody's.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyro_seq.config.fields import flatten
from pyro_seq.frames.data.films import Film, Films
from pyro_seq.frames.drawing import between, continue_films, fill, generate, hidden_frames
from pyro_seq.frames.model import FilmModel
from pyro_seq.frames.scoring import MeanOfFilms, evaluate, has_latents
from pyro_seq.frames.show.render import as_rgb, contact_sheet, gif_bytes
from pyro_seq.programs.page import page_templates
from pyro_seq.programs.plotting import enlarged, side_by_side

PRIMER = 5  # frames that are gone on from
LONGEST = 25  # frames of a film that are shown
DRAWS, WAYS = 4, 5
COLUMNS = 12


@dataclass(frozen=True)
class Shown:
    """A film on the page: a GIF with what is to be seen, and all its frames as a PNG below."""

    caption: str
    gif: bytes
    sheet: bytes

    @property
    def gif_data(self) -> str:
        """The film as the address of data."""
        return f"data:image/gif;base64,{base64.b64encode(self.gif).decode()}"

    @property
    def sheet_data(self) -> str:
        """The frames as the address of data."""
        return f"data:image/png;base64,{base64.b64encode(self.sheet).decode()}"


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    title: str
    note: str
    films: Sequence[Shown]


def report_html(
    models: Sequence[FilmModel], films: Films, *, skip: int = 0, rule: str | None = None
) -> str:
    """Return the page of a run on films, with other runs beside it, as HTML.

    Args:
        models: the run's, and those of other runs on the same kind of films.
        films: real ones, that it was not trained on.
        skip: the first frames of each film, which are not counted in nats.
        rule: by which frames are valid.
    """
    real = [film[:LONGEST] for film in films.films]
    names = [model.settings.model.name for model in models]
    parts = [
        Part(
            "Real films",
            "What was not learnt from.",
            [_shown("real", real[:DRAWS], films.kind)],
        ),
        _continued(models, real, names),
        *(_of_latents(model, real) for model in models if has_latents(model)),
        _filled(models, real, names),
        Part(
            "New films",
            _begun(models[0], "Drawn from the beginning."),
            [
                _shown(f"{name}: {DRAWS} new films", list(_new(model, real)), films.kind)
                for name, model in zip(names, models, strict=True)
            ],
        ),
    ]
    template = page_templates(Path(__file__).parent).get_template("report.html.jinja")
    return template.render(
        title=f"Films by {' and '.join(names)}",
        summary=f"After {models[0].step:,} steps of training, beside {len(films):,} real films.",
        head=["run", "nats a frame: bound", "nearer bound", "squared error", "valid frames"],
        rows=[
            _row(name, model, films, skip, rule) for name, model in zip(names, models, strict=True)
        ],
        parts=parts,
        settings=[
            (name, [(key, str(value)) for key, value in flatten(model.settings)])
            for name, model in zip(names, models, strict=True)
        ],
    )


def _row(name: str, model: FilmModel, films: Films, skip: int, rule: str | None) -> list[str]:
    found = evaluate(model, films, skip=skip, rule=rule)
    return [
        name,
        *(_figure(nats) for nats in (found.bound, found.importance, found.squared_error)),
        "–" if found.valid is None else f"{found.valid:.1%}",
    ]


def _figure(nats: MeanOfFilms) -> str:
    return f"{nats.mean:,.3f} ± {nats.standard_error:.3f}"


def _shown(caption: str, films: Sequence[Film], kind: str) -> Shown:
    """Return films side by side as a GIF, and in rows as a sheet."""
    rows = [enlarged(as_rgb(film, kind)) for film in films]
    small = [enlarged(as_rgb(film, kind), 48) for film in films]
    return Shown(caption, gif_bytes(side_by_side(rows)), contact_sheet(small, columns=COLUMNS))


def _continued(models: Sequence[FilmModel], real: Sequence[Film], names: Sequence[str]) -> Part:
    film = real[0]
    primer = film[: min(PRIMER, len(film) - 1)]
    steps = len(film) - len(primer)
    shown = []
    for name, model in zip(names, models, strict=True):
        drawn = continue_films(model, [primer], steps, draws=DRAWS)[0]
        futures = [np.concatenate([primer, future]) for future in drawn]
        shown.append(
            _shown(f"{name}: the real film, then {DRAWS} futures", [film, *futures], model.kind)
        )
    note = f"The first {len(primer)} frames are given, and the others are drawn."
    return Part("Continued", note, shown)


def _of_latents(model: FilmModel, real: Sequence[Film]) -> Part:
    name, kind = model.settings.model.name, model.kind
    first, second = real[0], real[min(1, len(real) - 1)]
    again = between(model, first, first, 2)
    shown = [_shown(f"{name}: real, and drawn again twice", [first, *again], kind)]
    steps = min(len(first), len(second))
    ways = between(model, first[:steps], second[:steps], WAYS)
    caption = f"{name}: from a film (left) to another (right) in latent space"
    shown.append(_shown(caption, list(ways), kind))
    return Part(
        "Reconstructed and interpolated",
        _begun(model, "Latents are inferred from whole films, and films are drawn given them."),
        shown,
    )


def _filled(models: Sequence[FilmModel], real: Sequence[Film], names: Sequence[str]) -> Part:
    film = real[0]
    hidden = hidden_frames(None, len(film))
    shown = []
    for name, model in zip(names, models, strict=True):
        drawn = fill(model, film, hidden, draws=DRAWS - 1)
        shown.append(_shown(f"{name}: real, then {DRAWS - 1} draws", [film, *drawn], model.kind))
    note = (
        f"Frames {hidden.start + 1} to {hidden.stop} are hidden, and drawn given those before and "
        "after them."
    )
    return Part("Filled in", note, shown)


def _begun(model: FilmModel, note: str) -> str:
    """Return a note on films that a model draws from the beginning, with what to expect of it."""
    if model.settings.frames.map_channels:
        return note
    return (
        f"{note} Without maps (frames.map_channels) a first frame is drawn pixel by pixel, since "
        "nothing says where a thing may be before there is a frame: films begin with noise."
    )


def _new(model: FilmModel, real: Sequence[Film]) -> Film:
    return generate(model, len(real[0]), num_films=DRAWS)
