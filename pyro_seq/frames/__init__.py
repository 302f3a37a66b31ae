"""Films: sequences of pictures from files, models of them, and what these models draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.frames.data.films import Films as Films
    from pyro_seq.frames.data.reading import read_films as read_films
    from pyro_seq.frames.drawing import continue_films as continue_films
    from pyro_seq.frames.drawing import generate as generate
    from pyro_seq.frames.model import FilmModel as FilmModel
    from pyro_seq.frames.program import frame_program as frame_program
    from pyro_seq.frames.scoring import evaluate as evaluate
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
