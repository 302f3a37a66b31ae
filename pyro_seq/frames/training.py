"""What is measured and shown as a pair learns films."""

from __future__ import annotations

import torch

from pyro_seq.frames.data.films import Films
from pyro_seq.frames.drawing import continue_films, generate
from pyro_seq.frames.model import FilmModel
from pyro_seq.frames.scoring import nats_per_frame
from pyro_seq.frames.show.render import as_rgb, contact_sheet, gif_bytes
from pyro_seq.programs.plotting import enlarged, side_by_side
from pyro_seq.runs.tensorboard import Image

VALIDATED = 4_000  # frames that are scored at a validation, at most
PRIMER, SHOWN = 5, 20  # frames
FUTURES = 3


def validation_nats(model: FilmModel, films: Films) -> dict[str, float]:
    """Return the bound of films that were held out, in nats a frame, all frames counted.

    The bound is the one that the pair was trained by (`TrainingSettings.validation`).
    """
    chosen, left = [], VALIDATED
    for film in films.films:
        if left > 0:
            chosen.append(film[:left])
            left -= len(chosen[-1])
    method, samples = model.settings.training.validation()
    return {"loss": nats_per_frame(model, chosen, method=method, samples=samples).mean}


def previews(model: FilmModel, films: Films | None) -> dict[str, Image]:
    """Return what TensorBoard shows: a new film, and a film beside futures that are drawn of it."""
    new = enlarged(as_rgb(generate(model, SHOWN)[0], model.kind))
    shown = {
        "generated/film": Image(gif_bytes(new)),
        "generated/frames": Image(contact_sheet([new], columns=10)),
    }
    if films is None:
        return shown
    film = films.films[int(torch.randint(len(films), ()))][: PRIMER + SHOWN]
    if len(film) > PRIMER:
        steps = len(film) - PRIMER
        futures = continue_films(model, [film[:PRIMER]], steps, draws=FUTURES)[0]
        rows = [enlarged(as_rgb(pixels, model.kind)) for pixels in (film[PRIMER:], *futures)]
        shown["continued/real beside draws"] = Image(gif_bytes(side_by_side(rows)))
    return shown
