"""Define the program of films: what is learnt from, and what a run folder keeps of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pyro_seq._progress import Progress
from pyro_seq._schema import Fields, Flag, Items, Number, Whole, Word, check
from pyro_seq.config.model_settings import Layer
from pyro_seq.errors import UserError
from pyro_seq.frames.data.demo import moving_squares
from pyro_seq.frames.data.films import KINDS, MOST_CHANNELS, UNITS, Films, Shape, fingerprint
from pyro_seq.frames.data.reading import has_splits, read_films
from pyro_seq.frames.model import FilmModel, new_pair, pixel_of
from pyro_seq.frames.presets import PRESETS
from pyro_seq.frames.scoring import ScoredFilms
from pyro_seq.frames.settings import DEFAULTS, MODEL, FilmSettings
from pyro_seq.frames.training import previews, validation_nats
from pyro_seq.pairs.pair import Pair
from pyro_seq.programs.pair_program import PairProgram
from pyro_seq.programs.program import ContentsDiffer, Names, Request
from pyro_seq.programs.shared import Shared
from pyro_seq.runs.folder import RunFolder
from pyro_seq.train.minibatches import PieceBatches
from pyro_seq.train.trainer import Hooks

DOCUMENT = "frames.json"
FILES, VALID, FRACTION, DEMO = "train_data", "valid_data", "valid_fraction", "demo"
MOST_EXTENT = 2**20
SHOWN_SKIPPED = 8
DEMO_FILMS = 400  # to learn from; a tenth as many are kept for validation


@dataclass(frozen=True, eq=False)
class FilmData:
    """Hold the films to learn from and to validate on, or as much as a run folder keeps of them."""

    shape: Shape
    kind: str
    train: Films | None = None
    valid: Films | None = None


class FrameProgram(PairProgram[FilmSettings, FilmData, FilmModel]):
    """Train pairs on films.

    What is learnt from is `train_data`, files and folders (`data.reading.read_films`), and perhaps
    `valid_data`; or `demo`, films of moving squares that the program makes itself. `valid_fraction`
    says how many of the films are kept for validation where no others are given.
    """

    kind = "frames"
    settings_type = FilmSettings
    defaults = DEFAULTS
    presets = PRESETS
    documents = (DOCUMENT,)
    described_by = f"run.json and {DOCUMENT}"
    places = (FILES, VALID)

    def settings(self, *layers: Layer | Names) -> FilmSettings:
        """Resolve settings as `Program` does; the pair is one with latents where none is named."""
        return super().settings(MODEL, *layers)

    def read(self, request: Request[FilmSettings]) -> FilmData:
        """See `Program`."""
        data = _read(request.source)
        assert data.train is not None
        pixel_of(request.settings.frames, data.kind)
        progress = Progress(quiet=request.quiet)
        for line in skipped_lines([data.train, data.valid]):
            progress.say(line)
        return data

    def describe(self, data: FilmData, request: Request[FilmSettings]) -> dict[str, Any]:
        """See `Program`."""
        source = request.source
        document = {
            "seed": request.seed,
            "source": {
                name: [os.path.abspath(path) for path in source.get(name) or ()]
                for name in (FILES, VALID)
            }
            | {DEMO: bool(source.get(DEMO)), FRACTION: source.get(FRACTION, 0.1)},
            "sha256": fingerprint(data.train, data.valid),
            "shape": list(data.shape),
            "pixels": data.kind,
        }
        return {DOCUMENT: document}

    def document(self, run: RunFolder) -> dict[str, Any]:
        """Read what a run folder keeps of its films; raises `UserError` if that is damaged."""
        found, path = run.read_json(DOCUMENT), run.path / DOCUMENT
        check(found, _DESCRIBED, path, otherwise="is damaged")
        if found["shape"][0] > MOST_CHANNELS:
            raise UserError(f"{path} is damaged: frames have at most {MOST_CHANNELS} channels")
        return found

    def stored_source(self, run: RunFolder) -> tuple[int, dict[str, Any]]:
        """See `Program`."""
        found = self.document(run)
        source = found["source"]
        return found["seed"], source | {name: tuple(source[name]) for name in (FILES, VALID)}

    def read_again(self, request: Request[FilmSettings]) -> FilmData:
        """See `Program`."""
        kept, source = self.document(request.run), request.source
        data = _read(source)
        if fingerprint(data.train, data.valid) != kept["sha256"]:
            where = ", ".join(map(str, source[FILES])) or "the demo's films"
            raise ContentsDiffer(
                f"{where}: these are not the films that the run in {request.run} was begun with: "
                "their contents differ"
            )
        return data

    def stored_data(self, run: RunFolder, settings: FilmSettings) -> FilmData:
        """See `PairProgram`: the size and kind of frames, and no films."""
        found = self.document(run)
        colours, height, width = found["shape"]
        return FilmData((colours, height, width), found["pixels"])

    def new_pair(self, settings: FilmSettings, data: FilmData) -> Pair:
        """See `PairProgram`."""
        return new_pair(settings, data.shape, data.kind)

    def model(
        self, pair: Pair, settings: FilmSettings, data: FilmData, device: torch.device, step: int
    ) -> FilmModel:
        """See `PairProgram`."""
        return FilmModel(pair, settings, data.shape, data.kind, device, step)

    def batches(self, model: FilmModel, data: FilmData, *, seed: int) -> PieceBatches:
        """See `PairProgram`: stretches of films, from which each film begins anew."""
        assert data.train is not None
        settings = model.settings.frames
        return PieceBatches(
            [torch.from_numpy(film) for film in data.train.films],
            batch_size=settings.batch_size,
            window=settings.window,
            seed=seed,
            device=model.device,
            observe=model.observed,
        )

    def hooks(self, model: FilmModel, data: FilmData, progress: Progress) -> Hooks:
        """See `PairProgram`: the bound of films that were held out, and films in TensorBoard."""
        held_out = data.valid
        return Hooks(
            validate=None if held_out is None else partial(validation_nats, model, held_out),
            samples=lambda: previews(model, held_out or data.train),
            units="frames",
            bits="bits/frame",
        )

    def introduce(self, model: FilmModel, data: FilmData, pair: str) -> Iterator[str]:
        """See `PairProgram`."""
        assert data.train is not None
        colours, height, width = data.shape
        each = f"{height} x {width} pixels" + (f" of {colours} channels" if colours > 1 else "")
        held = 0 if data.valid is None else len(data.valid)
        yield (
            f"{len(data.train):,} films to train on, {held:,} to validate on, "
            f"{sum(map(len, data.train.films)):,} frames of {each}, {UNITS[data.kind]}; {pair}"
        )

    # films for a run

    def films_for(
        self, run_dir: Path | str, paths: Sequence[Path | str] = (), split: str = "test"
    ) -> Films:
        """Return films as a run takes them: of paths, or without any its validation films.

        Raises `UserError` for films of another size or kind, and where there are none.
        """
        run = self.folder(run_dir)
        run.settings()  # says what is wrong with the folder
        kept = self.document(run)
        if paths:
            colours, height, width = kept["shape"]
            return read_films(paths, split, shape=(colours, height, width), kind=kept["pixels"])
        advice = "name films by --eval-data"
        _, source = self.stored_source(run)
        if not source[FILES] and not source[DEMO]:
            raise UserError(f"the run in {run} was shared without its films: {advice}")
        try:
            data = _read(source)
        except UserError as error:
            raise UserError(f"{error}; {advice}") from None
        if fingerprint(data.train, data.valid) != kept["sha256"]:
            raise UserError(f"the films of the run in {run} have changed since: {advice}")
        if data.valid is None:
            raise UserError(f"the run in {run} has kept no films for validation: {advice}")
        return data.valid

    def shared(self, run: RunFolder) -> Shared:
        """See `Program`: the size and kind of frames."""
        found = self.document(run)
        source = found["source"]
        return Shared(
            {DOCUMENT: found | {"source": source | {FILES: [], VALID: []}}},
            data=[*source[FILES], *source[VALID]],
            commands=[
                "frames generate --run-dir DIR --out-dir films",
                "frames evaluate --run-dir DIR --eval-data FILE",
                "score --run-dir DIR FILE",
            ],
            python="from pyro_seq.frames import frame_program, generate\n\n"
            'model = frame_program.load("DIR")\n'
            "films = generate(model, 20, num_films=4)  # films, frames, channels, height, width",
        )

    def scored_run(
        self, run_dir: Path, device: torch.device, pair: str | None = None
    ) -> ScoredFilms:
        """Return a run as `pyroseq score` asks for it."""
        return ScoredFilms(self.load(run_dir, device, pair=pair))


frame_program = FrameProgram()

_DESCRIBED = Fields(
    {
        "seed": Whole(0, 2**63 - 1),
        "source": Fields(
            {FILES: Items(Word()), VALID: Items(Word()), DEMO: Flag(), FRACTION: Number(0, 1)}
        ),
        "sha256": Word(pattern="[0-9a-f]{64}"),
        "shape": Items(Whole(1, MOST_EXTENT), least=3, most=3),
        "pixels": Word(*KINDS),
    }
)


def skipped_lines(groups: Sequence[Films | None]) -> Iterator[str]:
    """Yield a line for each file that was skipped, up to a few, and how many more there were."""
    skipped = {name: why for films in groups if films for name, why in films.skipped.items()}
    for name, why in list(skipped.items())[:SHOWN_SKIPPED]:
        yield f"skipped {name}: {why}"
    if len(skipped) > SHOWN_SKIPPED:
        yield f"skipped {len(skipped) - SHOWN_SKIPPED:,} more files"


def _read(source: Mapping[str, Any]) -> FilmData:
    """Read the films of a source; raises `UserError` where there is nothing to learn from."""
    fraction = source.get(FRACTION, 0.1)
    if not 0 <= fraction < 1:
        raise UserError(f"the fraction kept for validation must lie in [0, 1), got {fraction}")
    if source.get(DEMO):
        films = moving_squares(DEMO_FILMS + DEMO_FILMS // 10)
        places = [*range(len(films))]
        train, valid = (films.chosen(part) for part in (places[:DEMO_FILMS], places[DEMO_FILMS:]))
        return FilmData(films.shape, films.kind, train, valid)
    paths, others = source.get(FILES) or (), source.get(VALID) or ()
    films = read_films(paths, "train")
    if not others and has_splits(paths):
        others = [path for path in paths if has_splits([path])]
    if others:
        valid = read_films(others, "valid", shape=films.shape, kind=films.kind)
        return FilmData(films.shape, films.kind, films, valid)
    held = set(_held_out(len(films), fraction))
    train, kept = (
        films.chosen([i for i in range(len(films)) if (i in held) == wanted])
        for wanted in (False, True)
    )
    train = Films(train.films, train.kind, train.names, films.skipped)
    return FilmData(films.shape, films.kind, train, kept if len(kept) else None)


def _held_out(count: int, fraction: float) -> list[int]:
    """Return the places of films kept for validation, evenly spread; one at least is left."""
    kept = min(round(count * fraction), count - 1)
    return [int((i + 0.5) * count / kept) for i in range(kept)]
