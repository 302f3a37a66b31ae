"""Make the task of a run from its data, and find it again by `task.json`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.music.data.cache import TuneCache
from pyro_seq.music.data.sources import cache_beside
from pyro_seq.programs.program import ContentsDiffer
from pyro_seq.runs.folder import RunFolder
from pyro_seq.seqgan.settings import SeqGANSettings
from pyro_seq.seqgan.tasks.base import Task
from pyro_seq.seqgan.tasks.music_task import MelodyRendering, read_music_task
from pyro_seq.seqgan.tasks.oracle import oracle_from_file, oracle_from_seed
from pyro_seq.seqgan.tasks.oracle_task import OracleRendering, make_oracle_task
from pyro_seq.seqgan.tasks.text_task import TextRendering, read_text_task

DOCUMENT = "task.json"
PATHS = ("oracle", "corpus")  # data that is one file
PATTERNS = ("train_files", "valid_files", "test_files")  # data that is files, folders and globs
RENDERINGS: dict[str, Any] = {
    "oracle": OracleRendering,
    "text": TextRendering,
    "music": MelodyRendering,
}


def make_task(
    settings: SeqGANSettings,
    data: Mapping[str, Any],
    run_dir: Path,
    *,
    quiet: bool = False,
    cache: TuneCache | None = None,
) -> Task:
    """Make the task that the settings name.

    Args:
        settings: of the run.
        data: `oracle`, the oracle's parameters (else it is drawn by its seed); `corpus`, the text;
            `train_files`, `valid_files` and `test_files`, MIDI files, folders and globs; `demo`,
            whether the package's own tunes take the place of files.
        run_dir: beside which parsed MIDI files are cached.
        quiet: no progress on stderr.
        cache: what keeps parsed MIDI files, if it is known already.

    Raises `UserError` for data that is missing, that the task does not take, or that is too little.
    """
    s, length = settings.task, settings.length
    _check_data(s.kind, data)
    if s.kind == "text":
        return read_text_task(
            Path(data["corpus"]),
            level=s.level,
            unit=s.unit,
            length=length,
            vocabulary_size=s.vocabulary_size,
        )
    if s.kind == "music":
        files = [list(data.get(name) or ()) for name in PATTERNS]
        cache = cache or cache_beside(run_dir)
        options: dict[str, Any] = {
            "cache": cache,
            "progress": Progress(quiet=quiet),
            "demo": bool(data.get("demo")),
        }
        with cache.nothing_left_if_refused():
            return read_music_task(*files, seconds=s.seconds, length=length, **options)
    if data.get("oracle") is not None:
        oracle = oracle_from_file(data["oracle"])
    else:
        sizes = {
            "num_symbols": s.oracle_symbols,
            "embedding_size": s.oracle_size,
            "hidden_size": s.oracle_size,
        }
        oracle = oracle_from_seed(s.oracle_seed, **sizes)
    held_out = {"num_valid": s.num_held_out, "num_test": s.num_held_out}
    return make_oracle_task(
        oracle, length=length, num_train=s.num_train, **held_out, seed=s.oracle_seed
    )


def _check_data(kind: str, data: Mapping[str, Any]) -> None:
    """Raise `UserError` unless there is what the task takes, and nothing else."""
    takes = {"oracle": ("oracle",), "text": ("corpus",), "music": (*PATTERNS, "demo")}[kind]
    for name in (*PATHS, *PATTERNS, "demo"):
        if data.get(name) and name not in takes:
            raise UserError(f"the task {kind} takes no --{name.replace('_', '-')}")
    if kind == "text" and not data.get("corpus"):
        raise UserError("--corpus is missing: the text to learn from")
    if kind == "music" and not data.get("train_files") and not data.get("demo"):
        raise UserError(
            "--train-files are missing: MIDI files to learn from (or --demo, the package's own "
            "tunes)"
        )


def task_of(
    run: RunFolder,
    settings: SeqGANSettings,
    moved: Mapping[str, Any] | None = None,
    *,
    quiet: bool = False,
) -> Task:
    """Return the task of a run, from the data that the run was begun with.

    Raises `UserError` if that data is not there any more, and `ContentsDiffer` if its contents are
    others.
    """
    known = read_document(run)
    data = known["data"] | {name: value for name, value in (moved or {}).items() if value}
    task = make_task(settings, data, run.path, quiet=quiet)
    if fingerprint(task) != known["sha256"]:
        where = (
            data["oracle"]
            or data["corpus"]
            or ", ".join(data["train_files"])
            or "the package's own data"
        )
        raise ContentsDiffer(
            f"{where}: this is not the data that the run in {run.path} was begun with: its "
            "contents differ"
        )
    return task


def fingerprint(task: Task) -> str:
    """Return the SHA-256 of all sequences of a task."""
    digest = hashlib.sha256()
    for part in (task.sequences.train, task.sequences.valid, task.sequences.test):
        digest.update(f"{list(part.shape)}".encode() + part.numpy().tobytes())
    return digest.hexdigest()


def document(task: Task, data: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return what a run folder keeps of its task.

    It holds the data's place, the fingerprint of the sequences, and all that `generate` needs.
    """
    kept: dict[str, Any] = {
        name: None if data.get(name) is None else os.path.abspath(data[name]) for name in PATHS
    }
    kept |= {
        name: [os.path.abspath(pattern) for pattern in data.get(name) or ()] for name in PATTERNS
    }
    return {
        "seed": seed,
        "data": kept | {"demo": bool(data.get("demo"))},
        "sha256": fingerprint(task),
        "first": task.first,
        "rendering": task.rendering.to_json(),
    }


def read_document(run: RunFolder) -> dict[str, Any]:
    """Read task.json; raise `UserError` if it is damaged."""
    found = run.read_json(DOCUMENT)
    try:
        data = found["data"]
        sound = all(data[name] is None or isinstance(data[name], str) for name in PATHS)
        sound &= all(
            isinstance(data[name], list) and all(isinstance(item, str) for item in data[name])
            for name in PATTERNS
        )
        if (
            not sound
            or type(data["demo"]) is not bool
            or type(found["seed"]) is not int
            or not 0 <= found["seed"] < 2**63
        ):
            raise ValueError
        return {
            "first": found["first"],
            "rendering": found["rendering"],
            "sha256": found["sha256"],
            "seed": found["seed"],
            "data": data,
        }
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{run.path / DOCUMENT} is damaged") from None
