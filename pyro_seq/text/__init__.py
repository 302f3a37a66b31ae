"""Text: vocabularies, windows, training, scores, authorship attribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.text.attribution import attribute as attribute
    from pyro_seq.text.model import TextModel as TextModel
    from pyro_seq.text.model import TextSettings as TextSettings
    from pyro_seq.text.model import text_settings as text_settings
    from pyro_seq.text.program import text_program as text_program
    from pyro_seq.text.scoring import evaluate as evaluate
    from pyro_seq.text.training import generate as generate
    from pyro_seq.text.training import read_corpora as read_corpora
    from pyro_seq.text.vocabulary import Vocabulary as Vocabulary
    from pyro_seq.text.windows import TextWindows as TextWindows
    from pyro_seq.text.words import WordVocabulary as WordVocabulary
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
