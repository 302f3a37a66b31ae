"""Start and resume text runs in their folders; the bundled presets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_seq.errors import UserError
from pyro_seq.programs.lifecycle import (
    begin_run,
    changed,
    check_can_go_on,
    check_training,
    keep_changes,
)
from pyro_seq.runs.folder import RunFolder
from pyro_seq.text.model import run_settings, stored_vocabulary
from pyro_seq.text.training import KIND, TextModel, TextSettings, read_corpora, text_settings, train
from pyro_seq.text.vocabulary import read_bytes

DOCUMENTS = ("vocabulary.json", "corpora.json")
settings_from = text_settings

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


def begin(
    run_dir: Path, settings: TextSettings, corpora: Mapping[str, Any], *, seed: int, **options: Any
) -> TextModel:
    """Start a run in a folder and train it; `corpora` are arguments of `read_corpora`.

    The folder keeps the settings, the vocabulary, and where the corpora lie with their
    fingerprints. Nothing is written before settings and corpora have been found sound, and nothing
    stays of a run whose pair is refused before its first step.
    """
    run = RunFolder(run_dir, KIND)
    run.check_free(*DOCUMENTS)
    check_training(settings.training)
    read = read_corpora(settings.text, **corpora)
    _check_window(len(read.train), settings, corpora["train"])
    files = {name: corpora[name] for name in ("train", "valid") if corpora.get(name) is not None}
    data = {
        "seed": seed,
        "valid_fraction": corpora["valid_fraction"],
        "files": {
            name: {"path": str(Path(path).resolve()), "sha256": fingerprint(path)}
            for name, path in files.items()
        },
    }
    documents = dict(zip(DOCUMENTS, (read.vocabulary.to_json(), data), strict=True))
    return begin_run(
        run, settings, documents, lambda: train(read, settings, run, seed=seed, **options)
    )


def go_on(
    run_dir: Path,
    changes: Mapping[str, Any],
    *,
    fixed: Sequence[str] = (),
    corpus: Path | None = None,
    valid: Path | None = None,
    pair: str | None = None,
    **options: Any,
) -> TextModel:
    """Resume the run of a folder from its last checkpoint.

    Args:
        run_dir: the folder.
        changes: settings that may change, how long to train, by dotted name.
        fixed: names of options that were given though a run's settings cannot change: refused.
        corpus, valid: where the training and validation corpora lie now, if they have moved.
        pair: the run's pair, where it is code of the user's own.
        options: of `train`.

    Raises `UserError` if the folder holds no run, or a corpus is not the one that the run was begun
    with.
    """
    run, settings = RunFolder(run_dir, KIND), settings_of(run_dir, changes, fixed=fixed, pair=pair)
    with run.locked():
        check_can_go_on(run)
        seed, fraction, files = _read_corpora_json(run)
        for name, moved in (("train", corpus), ("valid", valid)):
            if moved is not None and name not in files:
                raise UserError(
                    f"{moved}: the run in {run_dir} was begun without a corpus to validate on"
                )
            if moved is not None:
                files[name] = (moved, files[name][1])
        for name, (path, digest) in files.items():
            if fingerprint(path) != digest:
                raise UserError(
                    f"{path} is not the {name} corpus that the run in {run_dir} was begun with: "
                    "its contents differ"
                )
        vocabulary = stored_vocabulary(run, settings)
        paths = {name: path for name, (path, _) in files.items()}
        read = read_corpora(settings.text, valid_fraction=fraction, vocabulary=vocabulary, **paths)
        if changes:
            keep_changes(run, settings)
        return train(read, settings, run, seed=seed, resume=True, **options)


def settings_of(
    run_dir: Path, changes: Mapping[str, Any], *, fixed: Sequence[str] = (), pair: str | None = None
) -> TextSettings:
    """Return the settings that a run is resumed with; arguments are those of `go_on`."""
    return changed(run_settings(RunFolder(run_dir, KIND), pair), changes, fixed)


def _read_corpora_json(run: RunFolder) -> tuple[int, float, dict[str, tuple[Path, str]]]:
    """(seed, fraction kept for validation, path and fingerprint of each corpus) that a run was
    begun with.
    """
    document = run.read_json("corpora.json")
    try:
        files = {
            name: (Path(entry["path"]), str(entry["sha256"]))
            for name, entry in document["files"].items()
        }
        seed, fraction = int(document["seed"]), float(document["valid_fraction"])
        if (
            not {"train"} <= set(files) <= {"train", "valid"}
            or not 0 <= seed < 2**63
            or not 0 <= fraction < 1
        ):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise UserError(f"{run.path / 'corpora.json'} is damaged") from None
    return seed, fraction, files


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    for chunk in read_bytes(Path(path)):
        digest.update(chunk)
    return digest.hexdigest()


def _check_window(length: int, settings: TextSettings, path: Path) -> None:
    window = settings.text.window
    if settings.text.unit == "line":
        return
    if length < window:
        raise UserError(
            f"{path} leaves {length:,} symbols to train on, fewer than one window of {window:,}: "
            "lower text.window"
        )
