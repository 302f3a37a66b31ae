"""Start and resume music runs in their folders; the bundled presets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.music.data.cache import TuneCache
from pyro_seq.music.data.sources import (
    REMARKS,
    Found,
    arrays_among,
    cache_beside,
    fingerprint,
    held_out,
    read_demo,
    read_music,
    remarks,
)
from pyro_seq.music.evaluation.markov import MarkovKeys
from pyro_seq.music.model.model import DOCUMENT, document, read_document, run_settings
from pyro_seq.music.model.presets import PRESETS
from pyro_seq.music.model.training import (
    KIND,
    MusicModel,
    MusicSettings,
    Pieces,
    music_settings,
    train,
)
from pyro_seq.programs.lifecycle import (
    begin_run,
    changed,
    check_can_go_on,
    check_training,
    keep_changes,
)
from pyro_seq.runs.folder import RunFolder

__all__ = [
    "KIND",
    "PRESETS",
    "begin",
    "go_on",
    "read_pieces",
    "read_pieces_json",
    "settings_from",
    "settings_of",
]

DOCUMENTS = (DOCUMENT, "pieces.json", REMARKS)
settings_from = music_settings


def begin(
    run_dir: Path,
    settings: MusicSettings,
    data: Mapping[str, Any],
    *,
    seed: int,
    quiet: bool = False,
    **options: Any,
) -> MusicModel:
    """Start a run in a folder and train it.

    The folder keeps the settings, where the pieces lie with their fingerprint, their tempo and
    Markov model, and which files were skipped or mended. Nothing is written before settings and
    pieces have been found sound but for the cache of parsed files, and nothing stays of a run that
    is refused, nor what it has brought to that cache.

    Args:
        run_dir: the folder.
        settings: hyper-parameters.
        data: what to learn from: `train` and `valid`, files, folders and globs; `valid_fraction`,
            how many of the training pieces are kept for validation where no others are given;
            `demo`, whether the package's own tunes take the place of files; `start_from`, the
            folder of another run, if the first weights are to be the best of that.
        seed: of all randomness.
        quiet: no progress on stderr.
        options: of `train`.
    """
    run = RunFolder(run_dir, KIND)
    run.check_free(*DOCUMENTS)
    check_training(settings.training)
    cache = cache_beside(run_dir)
    with cache.nothing_left_if_refused():
        pieces, noted = read_pieces(settings, data, cache, quiet=quiet)
        markov = MarkovKeys.fit(pieces.train)
        kept = {
            "seed": seed,
            "demo": bool(data.get("demo")),
            "start_from": None
            if data.get("start_from") is None
            else os.path.abspath(data["start_from"]),
            "valid_fraction": data["valid_fraction"],
            "files": {
                name: [os.path.abspath(pattern) for pattern in data.get(name) or ()]
                for name in ("train", "valid")
            },
            "sha256": fingerprint([*pieces.train, *pieces.valid]),
        }
        documents = (
            dict(zip(DOCUMENTS, (document(pieces.tempo, markov), kept), strict=False)) | noted
        )
        options |= {
            "run": run,
            "start_from": _run_in(kept["start_from"]),
            "markov": markov,
            "seed": seed,
            "quiet": quiet,
        }
        if noted:
            Progress(quiet=quiet).say(
                f"which files were skipped or mended, and why, is in {run.path / REMARKS}"
            )
        return begin_run(run, settings, documents, lambda: train(pieces, settings, **options))


def go_on(
    run_dir: Path,
    changes: Mapping[str, Any],
    *,
    fixed: Sequence[str] = (),
    train_files: Sequence[str] = (),
    valid_files: Sequence[str] = (),
    pair: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> MusicModel:
    """Resume the run of a folder from its last checkpoint.

    Args:
        run_dir: the folder.
        changes: settings that may change, how long to train, by dotted name.
        fixed: names of options that were given though a run's settings cannot change: refused.
        train_files, valid_files: where the pieces lie now, if they have moved.
        pair: the run's pair, where it is code of the user's own.
        quiet: no progress on stderr.
        options: of `train`.

    Raises `UserError` if the folder holds no run, or the pieces are not those that the run was
    begun with.
    """
    run, settings = RunFolder(run_dir, KIND), settings_of(run_dir, changes, fixed=fixed, pair=pair)
    with run.locked():
        check_can_go_on(run)
        seed, digest, data = read_pieces_json(run)
        for name, moved in (("train", train_files), ("valid", valid_files)):
            if moved and not data[name]:
                raise UserError(f"{moved[0]}: the run in {run_dir} was begun without such files")
            data[name] = list(moved) or data[name]
        _, markov = read_document(run, settings.rolls.keys)
        pieces = same_pieces(settings, data, digest, run_dir, quiet=quiet)
        if changes:
            keep_changes(run, settings)
        options |= {
            "run": run,
            "start_from": _run_in(data["start_from"]),
            "markov": markov,
            "seed": seed,
            "quiet": quiet,
        }
        return train(pieces, settings, resume=True, **options)


def _run_in(folder: str | None) -> RunFolder | None:
    """The run of a folder, if there is one to start from."""
    return None if folder is None else RunFolder(Path(folder), KIND)


def settings_of(
    run_dir: Path, changes: Mapping[str, Any], *, fixed: Sequence[str] = (), pair: str | None = None
) -> MusicSettings:
    """Return the settings that a run is resumed with; arguments are those of `go_on`."""
    return changed(run_settings(RunFolder(run_dir, KIND), pair), changes, fixed)


def read_pieces(
    settings: MusicSettings, data: Mapping[str, Any], cache: TuneCache, *, quiet: bool
) -> tuple[Pieces, dict[str, Any]]:
    """Read (the pieces of a run, the document of skipped and repaired files, if any).

    `data` is what `begin` takes.

    Raises `UserError` if there is nothing to learn from.
    """
    rolls, progress = settings.rolls, Progress(quiet=quiet)
    fraction = data["valid_fraction"]
    if not 0 <= fraction < 1:
        raise UserError(f"the fraction kept for validation must lie in [0, 1), got {fraction}")
    if data.get("demo"):
        found, held = read_demo(rolls), Found([])
    else:
        found = read_music(data["train"], "train", rolls, cache=cache, progress=progress)
        # arrays bring validation pieces of their own
        patterns = data.get("valid") or arrays_among(data["train"])
        held = (
            read_music(patterns, "valid", rolls, cache=cache, progress=progress)
            if patterns
            else Found([])
        )
    pieces, valid = found.pieces, held.pieces
    if not valid:
        chosen = set(held_out(len(pieces), fraction))
        valid = [piece for i, piece in enumerate(pieces) if i in chosen]
        pieces = [piece for i, piece in enumerate(pieces) if i not in chosen]
    if not any(map(len, pieces)):
        raise UserError("there are no frames of music to train on")
    return Pieces(pieces, valid, found.tempo), remarks((found, held))


def same_pieces(
    settings: MusicSettings, data: Mapping[str, Any], digest: str, run_dir: Path, *, quiet: bool
) -> Pieces:
    """Read the pieces of a run again.

    Raises `UserError` as `read_pieces`, and if the pieces are others now.
    """
    cache = cache_beside(run_dir)
    with cache.nothing_left_if_refused():
        pieces, _ = read_pieces(settings, data, cache, quiet=quiet)
    if fingerprint([*pieces.train, *pieces.valid]) != digest:
        where = ", ".join(data["train"]) or "the package's own tunes"
        raise UserError(
            f"{where}: these are not the pieces that the run in {run_dir} was begun with: their "
            "contents differ"
        )
    return pieces


def read_pieces_json(run: RunFolder) -> tuple[int, str, dict[str, Any]]:
    """Read (seed, the pieces' fingerprint, arguments of `read_pieces`) of a run.

    Raises `UserError` if the document is damaged.
    """
    found = run.read_json("pieces.json")
    try:
        files = {
            name: [str(pattern) for pattern in found["files"][name]] for name in ("train", "valid")
        }
        seed, fraction, demo = int(found["seed"]), float(found["valid_fraction"]), found["demo"]
        first = found.get("start_from")
        sound = (
            type(demo) is bool
            and bool(files["train"]) is not demo
            and (first is None or isinstance(first, str))
        )
        if not 0 <= seed < 2**63 or not 0 <= fraction < 1 or not sound:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise UserError(f"{run.path / 'pieces.json'} is damaged") from None
    return (
        seed,
        str(found.get("sha256")),
        {**files, "valid_fraction": fraction, "demo": demo, "start_from": first},
    )
