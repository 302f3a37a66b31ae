"""What pairs learn of films: a direction by latents, an average without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyro_seq.frames.data.demo import moving_squares
from pyro_seq.frames.drawing import continue_films
from pyro_seq.frames.model import FilmModel
from pyro_seq.frames.program import FilmData, frame_program
from pyro_seq.frames.scoring import nats_per_frame, valid_share
from pyro_seq.train.trainer import Trainer

SIZE, FRAMES = 8, 8
INDEPENDENT = 18.5  # nats a frame, at best, of pixels that are independent given the frame before


def learnt(preset: str, **changed: Any) -> tuple[FilmModel, list[Any]]:
    """Train a preset on squares that turn on a small torus; return it, and films it has not seen.

    The global random state is left as training leaves it.
    """
    torch.manual_seed(0)
    films = moving_squares(300, FRAMES, SIZE)
    settings = frame_program.settings(frame_program.presets[preset], changed)
    data = FilmData(films.shape, films.kind, films)
    pair = frame_program.new_pair(settings, data)
    model = frame_program.model(pair, settings, data, torch.device("cpu"), 0)
    Trainer(pair, frame_program.batches(model, data, seed=0), settings.training, quiet=True).fit()
    pair.train(False)
    return model, moving_squares(60, FRAMES, SIZE, seed=1).films


@pytest.mark.slow
def test_latents_learn_directions_and_pixels_alone_an_average() -> None:
    average, films = learnt("average", **{"training.num_steps": 300})
    found = nats_per_frame(average, films, skip=1, method="exact")
    assert INDEPENDENT < found.mean < INDEPENDENT + 1.5
    assert valid_share(average, films, "square", num_frames=4, continuations=30) < 0.05

    words = {"training.num_steps": 700, "training.kl_steps": 250, "frames.batch_size": 16}
    latent, _ = learnt("squares", **words)
    found = nats_per_frame(latent, films, skip=1, method="filter", samples=16)
    assert np.log(4) - 3 * found.standard_error < found.mean < 4
    futures = continue_films(latent, [film[:3] for film in films], 1, draws=20)
    assert futures.shape == (60, 20, 1, 1, SIZE, SIZE)
    # each of the four next squares is drawn of the same film
    kinds = [len(np.unique(own.reshape(20, -1), axis=0)) for own in futures]
    assert np.median(kinds) >= 4
    likely = valid_share(latent, films, "square", num_frames=1, continuations=60, temperature=0)
    assert likely > 0.5
