"""Define the music program.

It has pieces by their files, folders and globs, and what a run folder keeps of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.music.data.cache import TuneCache
from pyro_seq.music.data.sources import (
    REMARKS,
    Music,
    arrays_among,
    cache_beside,
    find_music,
    fingerprint,
    held_out,
    read_demo,
    remarks,
)
from pyro_seq.music.evaluation.markov import MarkovKeys, key_counts
from pyro_seq.music.evaluation.score_files import ScoredMusic
from pyro_seq.music.model.model import (
    DEFAULTS,
    DOCUMENT,
    document,
    new_pair,
    read_document,
    timing_of,
)
from pyro_seq.music.model.parts import encode_frames
from pyro_seq.music.model.presets import PRESETS
from pyro_seq.music.model.training import (
    MusicModel,
    MusicSettings,
    Pieces,
    nats_per_frame,
    previews,
)
from pyro_seq.pairs.pair import Pair
from pyro_seq.programs.pair_program import PairProgram
from pyro_seq.programs.program import ContentsDiffer, Request
from pyro_seq.programs.shared import Shared
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.mapped import Columns, MappedCache
from pyro_seq.train.minibatches import Piece, PieceBatches
from pyro_seq.train.trainer import Hooks

PIECES = "pieces.json"
HELD = 2**28  # bytes of rolls that are laid out at once: drawing from notes takes longer
# settings of minibatches, on which rolls do not depend
NOT_OF_ROLLS: dict[str, Any] = {"transpose": 0, "batch_size": 1, "window": 0}
VALIDATED = 100_000  # frames of the validation pieces that are scored during training, at most


@dataclass(frozen=True, eq=False)
class MusicData:
    """Hold the pieces to learn from.

    Beside them stand their Markov model, the document of skipped and mended files, and the folder
    of the run whose best weights are the first ones, if there is one.
    """

    pieces: Pieces
    markov: MarkovKeys
    start_from: Path | None = None
    noted: Mapping[str, Any] = field(default_factory=dict)


class MusicProgram(PairProgram[MusicSettings, MusicData, MusicModel]):
    """Train pairs on music.

    What is learnt from is `train_files` and perhaps `valid_files`: files, folders and globs.
    `valid_fraction` says how many of the training pieces are kept for validation where no others
    are given. `demo` says whether the package's own tunes take the place of files; `start_from` is
    the folder of another run, if the first weights are to be the best of that.

    Beside a run folder lies the cache of parsed files; what a run that is refused has brought to
    that is taken back.
    """

    kind = "midi"
    settings_type = MusicSettings
    defaults = DEFAULTS
    presets = PRESETS
    documents = (DOCUMENT, PIECES, REMARKS)
    places = ("train_files", "valid_files")

    def read(self, request: Request[MusicSettings]) -> MusicData:
        """See `Program`."""
        cache = cache_beside(request.run.path)
        request.stack.enter_context(cache.nothing_left_if_refused())
        source, quiet = request.source, request.quiet
        mapped = MappedCache.beside(request.run.path, Progress(quiet=quiet))
        pieces, noted = read_pieces(request.settings, source, cache, quiet=quiet, mapped=mapped)
        if noted:
            Progress(quiet=quiet).say(
                f"which files were skipped or mended, and why, is in {request.run.path / REMARKS}"
            )
        assert pieces.counts is not None
        markov = MarkovKeys.of_counts(pieces.counts)
        return MusicData(pieces, markov, source.get("start_from"), noted)

    def describe(self, data: MusicData, request: Request[MusicSettings]) -> dict[str, Any]:
        """See `Program`."""
        source, pieces, first = request.source, data.pieces, data.start_from
        kept = {
            "seed": request.seed,
            "demo": bool(source.get("demo")),
            "start_from": None if first is None else os.path.abspath(first),
            "valid_fraction": source.get("valid_fraction", 0.1),
            "files": {
                name: [os.path.abspath(pattern) for pattern in source.get(f"{name}_files") or ()]
                for name in ("train", "valid")
            },
            "sha256": pieces.sha256,
        }
        return {DOCUMENT: document(pieces.tempo, data.markov), PIECES: kept} | dict(data.noted)

    def stored_source(self, run: RunFolder) -> tuple[int, dict[str, Any]]:
        """See `Program`."""
        seed, _, source = _read_pieces_json(run)
        return seed, source

    def read_again(self, request: Request[MusicSettings]) -> MusicData:
        """See `Program`."""
        _, markov = read_document(request.run, request.settings.rolls.keys)
        pieces = self._pieces_again(request)
        return MusicData(pieces, markov, request.source["start_from"])

    def _pieces_again(self, request: Request[MusicSettings]) -> Pieces:
        run, source, cache = request.run, request.source, cache_beside(request.run.path)
        mapped = MappedCache.beside(run.path, Progress(quiet=request.quiet))
        with cache.nothing_left_if_refused():
            pieces, _ = read_pieces(
                request.settings, source, cache, quiet=request.quiet, mapped=mapped
            )
        if pieces.sha256 != _read_pieces_json(run)[1]:
            where = ", ".join(source["train_files"]) or "the package's own tunes"
            raise ContentsDiffer(
                f"{where}: these are not the pieces that the run in {run} was begun with: their "
                "contents differ"
            )
        return pieces

    def pieces_of(self, run_dir: Path, settings: MusicSettings) -> Pieces:
        """Read the pieces of a run once more, those to validate on as rolls.

        Raises `UserError` if they are others now.
        """
        run = self.folder(run_dir)
        seed, source = self.stored_source(run)
        pieces = self._pieces_again(Request(settings, source, run, seed))
        return replace(pieces, valid=[piece[:] for piece in pieces.valid])

    def is_same(self, name: str, own: Any, given: Any) -> bool:
        """See `Program`; folders are the same by their whole paths."""
        if name == "start_from" and own is not None and given is not None:
            return os.path.realpath(own) == os.path.realpath(given)
        return super().is_same(name, own, given)

    def start_from(self, data: MusicData) -> RunFolder | None:
        """See `PairProgram`."""
        return None if data.start_from is None else self.folder(data.start_from)

    def stored_data(self, run: RunFolder, settings: MusicSettings) -> MusicData:
        """See `PairProgram`: no pieces, but their tempo and their Markov model."""
        tempo, markov = read_document(run, settings.rolls.keys)
        return MusicData(Pieces((), (), tempo), markov)

    def new_pair(self, settings: MusicSettings, data: MusicData) -> Pair:
        """See `PairProgram`."""
        return new_pair(settings, data.pieces.train, data.pieces.counts)

    def model(
        self, pair: Pair, settings: MusicSettings, data: MusicData, device: torch.device, step: int
    ) -> MusicModel:
        """See `PairProgram`."""
        timing = timing_of(settings.rolls, data.pieces.tempo)
        return MusicModel(pair, settings, timing, data.markov, device, step)

    def batches(self, model: MusicModel, data: MusicData, *, seed: int) -> PieceBatches:
        """See `PairProgram`."""
        rolls = model.settings.rolls
        return PieceBatches(
            data.pieces.train,
            batch_size=rolls.batch_size,
            window=rolls.window,
            transpose=rolls.transpose,
            seed=seed,
            device=model.device,
            observe=partial(encode_frames, model.settings.frames),
        )

    def hooks(self, model: MusicModel, data: MusicData, progress: Progress) -> Hooks:
        """Return the hooks of a training, as `PairProgram` says.

        The best weights are those of the exact likelihood, or the bound, of the validation pieces,
        of at most `VALIDATED` frames of them.
        """
        valid, (method, samples) = [], model.settings.training.validation()
        left = VALIDATED
        for piece in data.pieces.valid:
            if left > 0 and len(piece):
                valid.append(piece[:left])
                left -= len(valid[-1])
        return Hooks(
            validate=(
                lambda: {"loss": nats_per_frame(model, valid, method=method, samples=samples)}
            )
            if valid
            else None,
            samples=lambda: previews(model, data.pieces.train),
            units="frames",
            bits="bits/frame",
        )

    def introduce(self, model: MusicModel, data: MusicData, pair: str) -> Iterator[str]:
        """See `PairProgram`."""
        frames, held_out = (
            f"{sum(map(len, part)):,} frames of {len(part):,} pieces"
            for part in (data.pieces.train, data.pieces.valid)
        )
        yield f"{frames} to train on, {held_out} to validate on; {pair}"

    def shared(self, run: RunFolder) -> Shared:
        """See `Program`: tempo and Markov model; where the pieces lay, if they are the demo's."""
        _, source = self.stored_source(run)
        documents = {DOCUMENT: run.read_json(DOCUMENT)}
        if source["demo"]:
            documents[PIECES] = run.read_json(PIECES) | {"start_from": None}
        return Shared(
            documents,
            data=[*source["train_files"], *source["valid_files"]],
            commands=[
                "midi generate --run-dir DIR --out-dir samples",
                "midi evaluate --run-dir DIR --eval-files FILES",
                "score --run-dir DIR FILE",
            ],
            python="from pyro_seq.music import generate, music_program\n\n"
            'music = music_program.load("DIR")\n'
            "roll = next(generate(music, 200))  # frames, keys",
        )

    def scored_run(
        self, run_dir: Path, device: torch.device, pair: str | None = None
    ) -> ScoredMusic:
        """Return a run as `pyroseq score` asks for it."""
        return ScoredMusic(self.load(run_dir, device, pair=pair))


music_program = MusicProgram()


def read_pieces(
    settings: MusicSettings,
    source: Mapping[str, Any],
    cache: TuneCache,
    *,
    quiet: bool,
    mapped: MappedCache | None = None,
) -> tuple[Pieces, dict[str, Any]]:
    """Return (what a run learns from and validates on, the document of skipped files, if any).

    The document also names files that were mended; `source` is as `MusicProgram` says. Rolls that
    together take more than `HELD` bytes are laid out as they are drawn, and the notes of many files
    are kept by `mapped`.

    Raises `UserError` if there is nothing to learn from.
    """
    rolls, progress, mapped = settings.rolls, Progress(quiet=quiet), mapped or MappedCache()
    fraction, files = source.get("valid_fraction", 0.1), source.get("train_files") or ()
    if not 0 <= fraction < 1:
        raise UserError(f"the fraction kept for validation must lie in [0, 1), got {fraction}")
    kept: dict[str, Any] = {"cache": cache, "mapped": mapped, "progress": progress}
    found: Music[Any]
    if source.get("demo"):
        found, held = read_demo(rolls), Music[Any]([])
    else:
        found = find_music(files, "train", rolls, **kept)
        # arrays bring validation pieces of their own
        patterns = source.get("valid_files") or arrays_among(files)
        held = find_music(patterns, "valid", rolls, **kept) if patterns else Music([])
    pieces, valid = found.pieces, held.pieces
    if sum(map(len, [*pieces, *valid])) * rolls.keys <= HELD:
        pieces, valid = [piece[:] for piece in pieces], [piece[:] for piece in valid]
    if not valid:
        chosen = set(held_out(len(pieces), fraction))
        valid = [piece for i, piece in enumerate(pieces) if i in chosen]
        pieces = [piece for i, piece in enumerate(pieces) if i not in chosen]
    if not any(map(len, pieces)):
        raise UserError("there are no frames of music to train on")
    parts = {"train": found, "valid": held}
    keys = {name: part.key for name, part in parts.items() if part.pieces}
    key = f"summary 1 {keys} {fraction} {astuple(replace(rolls, **NOT_OF_ROLLS))}"
    summary = _summary(pieces, valid, key if all(keys.values()) else "", mapped)
    return Pieces(pieces, valid, found.tempo, *summary), remarks((found, held))


def _summary(
    pieces: Sequence[Piece], valid: Sequence[Piece], key: str, mapped: MappedCache
) -> tuple[str, Tensor]:
    """Return (the pieces' fingerprint, how often keys sound in those to train on), which take a
    look at all rolls, from the cache if they have a key there.
    """

    def make(columns: Columns) -> None:
        counts = key_counts(piece[:] for piece in pieces)
        columns.add("counts", counts.view(-1).numpy())
        digest = fingerprint([*pieces, *valid])
        columns.add("sha256", np.frombuffer(bytes.fromhex(digest), np.uint8))

    what = f"what is known of all {len(pieces) + len(valid):,} pieces"
    kept = mapped.kept(key, make, what=what, size=2**16) if key else None
    if kept is None:
        return fingerprint([*pieces, *valid]), key_counts(piece[:] for piece in pieces)
    counts = torch.from_numpy(kept["counts"].copy())
    return kept["sha256"].tobytes().hex(), counts.view(3, -1, 2)


def _read_pieces_json(run: RunFolder) -> tuple[int, str, dict[str, Any]]:
    """Return (seed, the pieces' fingerprint, the source) that a run was begun with; raises
    `UserError` if its document is damaged.
    """
    found = run.read_json(PIECES)
    try:
        files = {
            f"{name}_files": [str(pattern) for pattern in found["files"][name]]
            for name in ("train", "valid")
        }
        seed, fraction, demo = int(found["seed"]), float(found["valid_fraction"]), found["demo"]
        first = found.get("start_from")
        sound = (
            type(demo) is bool
            and bool(files["train_files"]) is not demo
            and (first is None or isinstance(first, str))
        )
        if not 0 <= seed < 2**63 or not 0 <= fraction < 1 or not sound:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise UserError(f"{run.path / PIECES} is damaged") from None
    return (
        seed,
        str(found.get("sha256")),
        {**files, "valid_fraction": fraction, "demo": demo, "start_from": first},
    )
