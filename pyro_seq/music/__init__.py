"""Music: MIDI files as piano rolls, models of them, samples, figures and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.music.data.midi_reader import read_tune as read_tune
    from pyro_seq.music.data.piano_rolls import read_polyphonic as read_polyphonic
    from pyro_seq.music.data.rolls import Rolls as Rolls
    from pyro_seq.music.data.rolls import read_rolls as read_rolls
    from pyro_seq.music.data.sources import read_music as read_music
    from pyro_seq.music.evaluation.scoring import evaluate as evaluate
    from pyro_seq.music.evaluation.statistics import statistics as statistics
    from pyro_seq.music.model.model import MusicModel as MusicModel
    from pyro_seq.music.model.model import MusicSettings as MusicSettings
    from pyro_seq.music.model.model import music_settings as music_settings
    from pyro_seq.music.model.training import Pieces as Pieces
    from pyro_seq.music.model.training import generate as generate
    from pyro_seq.music.program import music_program as music_program
    from pyro_seq.music.render.audio import synthesise as synthesise
    from pyro_seq.music.render.plots import roll_png as roll_png
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
