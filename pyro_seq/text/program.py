"""Define the text program.

It has corpora by their files, a vocabulary in the run folder, and the bundled presets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.pairs.pair import Pair
from pyro_seq.programs.pair_program import PairProgram
from pyro_seq.programs.program import ContentsDiffer, Request
from pyro_seq.programs.shared import Shared
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.mapped import MappedCache
from pyro_seq.text.data.symbols import fingerprint
from pyro_seq.text.model import DEFAULTS, TextModel, TextSettings, new_pair, stored_vocabulary
from pyro_seq.text.score_files import ScoredText
from pyro_seq.text.training import Corpora, previews, read_corpora, validate, vocabulary_of
from pyro_seq.text.windows import LineBatches, TextWindows
from pyro_seq.train.trainer import Hooks

VOCABULARY, CORPORA = "vocabulary.json", "corpora.json"
FILES = {"train": "train_corpus", "valid": "valid_corpus"}  # the options of a run's corpora


# settings that differ from the defaults, by dotted name
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # the best we know for a corpus of about a million characters; what it reaches is in
    # benchmarks/README.md
    "best": {
        "model.hidden_size": 768,
        "model.output_dropout": 0.5,
        "training.learning_rate": 4e-3,
        "training.num_steps": 5_000,
        "training.valid_every": 250,
    },
    "quick": {  # for a minute, or for a corpus of some hundred thousand characters
        "model.hidden_size": 256,
        "model.input_dropout": 0.1,
        "model.output_dropout": 0.3,
        "text.batch_size": 32,
        "training.valid_every": 250,
    },
}


class TextProgram(PairProgram[TextSettings, Corpora, TextModel]):
    """Train pairs on text.

    What is learnt from is `train_corpus`, and perhaps `valid_corpus`, `valid_fraction` and
    `vocab_corpus`, the arguments of `read_corpora`.
    """

    kind = "text"
    settings_type = TextSettings
    defaults = DEFAULTS
    documents = (VOCABULARY, CORPORA)
    described_by = f"run.json and {VOCABULARY}"
    places = ("train_corpus", "valid_corpus", "vocab_corpus")
    presets = PRESETS

    def read(self, request: Request[TextSettings]) -> Corpora:
        """See `Program`."""
        settings, source = request.settings.text, request.source
        corpora = read_corpora(
            settings,
            source["train_corpus"],
            valid=source.get("valid_corpus"),
            valid_fraction=source.get("valid_fraction", 0.1),
            vocabulary_from=source.get("vocab_corpus"),
            cache=_cache(request),
        )
        length, window = len(corpora.train), settings.window
        if settings.unit != "line" and length < window:
            raise UserError(
                f"{source['train_corpus']} leaves {length:,} symbols to train on, fewer than one "
                f"window of {window:,}: lower text.window"
            )
        return corpora

    def describe(self, data: Corpora, request: Request[TextSettings]) -> dict[str, Any]:
        """See `Program`."""
        source = request.source
        files = {name: Path(source[of]) for name, of in FILES.items() if source.get(of) is not None}
        cache = MappedCache.beside(request.run.path)  # what is wrong with it was said
        corpora = {
            "seed": request.seed,
            "valid_fraction": source.get("valid_fraction", 0.1),
            "files": {
                name: {"path": str(path.resolve()), "sha256": fingerprint(path, cache)}
                for name, path in files.items()
            },
        }
        return {VOCABULARY: data.vocabulary.to_json(), CORPORA: corpora}

    def stored_source(self, run: RunFolder) -> tuple[int, dict[str, Any]]:
        """See `Program`."""
        seed, fraction, files = _read_corpora_json(run)
        paths = {of: files[name][0] if name in files else None for name, of in FILES.items()}
        return seed, paths | {
            "valid_fraction": fraction,
            "vocab_corpus": run.path / VOCABULARY,  # which holds all that it was read for
        }

    def read_again(self, request: Request[TextSettings]) -> Corpora:
        """Read the corpora of a run that is resumed, as `Program` says.

        Corpora are compared by their fingerprints, a corpus of the vocabulary by the vocabulary
        that it makes.
        """
        run, source, settings = request.run, request.source, request.settings
        paths = {name: source[of] for name, of in FILES.items() if source[of] is not None}
        cache = _cache(request)
        for name, (_, digest) in _read_corpora_json(run)[2].items():
            if fingerprint(Path(paths[name]), cache) != digest:
                raise ContentsDiffer(
                    f"{paths[name]} is not the {name} corpus that the run in {run} was begun with: "
                    "its contents differ"
                )
        vocabulary, corpus = stored_vocabulary(run, settings), source["vocab_corpus"]
        if corpus != run.path / VOCABULARY:
            made = vocabulary_of(corpus, settings.text, cache)
            if made.to_json() != vocabulary.to_json():
                raise ContentsDiffer(
                    f"{corpus} does not make the vocabulary that the run in {run} was begun with: "
                    "its characters differ"
                )
        fraction = source["valid_fraction"]
        return read_corpora(
            settings.text, **paths, valid_fraction=fraction, vocabulary=vocabulary, cache=cache
        )

    def stored_data(self, run: RunFolder, settings: TextSettings) -> Corpora:
        """See `PairProgram`: the vocabulary, and nothing to learn from."""
        none = np.zeros(0, dtype=np.int64)
        return Corpora(stored_vocabulary(run, settings), none, none)

    def new_pair(self, settings: TextSettings, data: Corpora) -> Pair:
        """See `PairProgram`."""
        return new_pair(settings, data.vocabulary)

    def model(
        self, pair: Pair, settings: TextSettings, data: Corpora, device: torch.device, step: int
    ) -> TextModel:
        """See `PairProgram`."""
        return TextModel(pair, data.vocabulary, settings, device, step)

    def batches(self, model: TextModel, data: Corpora, *, seed: int) -> TextWindows | LineBatches:
        """See `PairProgram`: lines, or windows of a document."""
        s, device = model.settings.text, model.device
        if data.vocabulary.line_end:
            end, size = data.vocabulary.end, s.batch_size
            return LineBatches(
                data.train, end, batch_size=size, seed=seed, device=device, ends=data.ends
            )
        return TextWindows(
            data.train,
            batch_size=s.batch_size,
            window=s.window,
            carry=s.carry and model.carries,
            seed=seed,
            device=device,
        )

    def hooks(self, model: TextModel, data: Corpora, progress: Progress) -> Hooks:
        """See `PairProgram`."""
        char = model.settings.text.level == "char"
        return Hooks(
            validate=(lambda: validate(model, data.valid, progress=progress.later()))
            if len(data.valid)
            else None,
            samples=lambda: previews(model, data),
            units="characters" if char else "bytes",
            bits="bpc" if char else "bits/byte",
        )

    def introduce(self, model: TextModel, data: Corpora, pair: str) -> Iterator[str]:
        """See `PairProgram`."""
        s, lines = model.settings.text, data.vocabulary.line_end
        units = "characters" if s.level == "char" else "bytes"
        among = " (each line's end among them)" if lines else ""
        yield (
            f"{len(data.train):,} {units} to train on, {len(data.valid):,} to validate on{among}, "
            f"{len(data.vocabulary):,} symbols; {pair}"
        )
        if s.carry and not lines and not model.carries:
            yield (
                "this pair returns no state, so text.carry has no effect: each window is learnt as "
                "a sequence of its own"
            )

    def shared(self, run: RunFolder) -> Shared:
        """See `Program`: the vocabulary."""
        files = _read_corpora_json(run)[2].values()
        return Shared(
            {VOCABULARY: run.read_json(VOCABULARY)},
            data=[path for path, _ in files],
            commands=[
                "text generate --run-dir DIR --length 500",
                "text evaluate --run-dir DIR --eval-corpus FILE",
                "score --run-dir DIR FILE",
            ],
            python="from pyro_seq.text import generate, text_program\n\n"
            'text = text_program.load("DIR")\n'
            "print(next(generate(text, length=500)))",
        )

    def scored_run(
        self, run_dir: Path, device: torch.device, pair: str | None = None
    ) -> ScoredText:
        """Return a run as `pyroseq score` asks for it."""
        return ScoredText(self.load(run_dir, device, pair=pair))


text_program = TextProgram()


def _cache(request: Request[TextSettings]) -> MappedCache:
    """Return where what is made of large texts is kept."""
    return MappedCache.beside(request.run.path, Progress(quiet=request.quiet))


def _read_corpora_json(run: RunFolder) -> tuple[int, float, dict[str, tuple[Path, str]]]:
    """Return (seed, fraction kept for validation, path and fingerprint of each corpus) that a run
    was begun with.
    """
    document = run.read_json(CORPORA)
    try:
        files = {
            name: (Path(entry["path"]), str(entry["sha256"]))
            for name, entry in document["files"].items()
        }
        seed, fraction = int(document["seed"]), float(document["valid_fraction"])
        if (
            not {"train"} <= set(files) <= set(FILES)
            or not 0 <= seed < 2**63
            or not 0 <= fraction < 1
        ):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise UserError(f"{run.path / CORPORA} is damaged") from None
    return seed, fraction, files
