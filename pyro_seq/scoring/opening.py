"""Open a run to score with it, whatever its kind, and tell one run's figures from another's."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import pyro_seq
from pyro_seq._rng import preserve_rng_state
from pyro_seq.errors import UserError
from pyro_seq.frames.program import frame_program
from pyro_seq.music.program import music_program
from pyro_seq.programs.scored_run import ScoredRun
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.plain_files import open_plain
from pyro_seq.series.program import series_program
from pyro_seq.text.program import text_program


def open_run(run_dir: Path | str, device: torch.device, pair: str | None = None) -> ScoredRun:
    """Load the run of a folder, by the program that its kind names.

    `pair` names the run's pair where that is code of the user's own. Raises `UserError` for a run
    that is missing, damaged, or of a kind that cannot be scored.
    """
    path, kind = Path(run_dir), RunFolder.kind_of(run_dir)
    programs = (frame_program, music_program, series_program, text_program)
    for program in programs:
        if program.kind == kind:
            return program.scored_run(path, device, pair)
    raise UserError(
        f"{run_dir} holds a run of kind {kind!r}, and only runs of kind "
        f"{', '.join(program.kind for program in programs)} can be scored"
    )


def fingerprint_of_run(run_dir: Path | str, pair: str | None = None) -> str:
    """Return a SHA-256 of what a run's figures follow from.

    That are its weights, its documents, the file of a pair of the user's own (not what the file
    imports), and the version of this package. Raises `UserError` for a folder without weights.
    """
    run = RunFolder(run_dir, RunFolder.kind_of(run_dir))
    weights = run.best if run.best.exists() else run.last
    files = [*sorted(run.path.glob("*.json")), weights]
    code = Path((pair or "").rpartition(":")[0])
    digest = hashlib.sha256(f"pyro_seq {pyro_seq.__version__}".encode())
    try:
        for path in [*files, *([code] if code.suffix == ".py" else [])]:
            digest.update(b"\n" + path.name.encode(errors="surrogateescape") + b"\n")
            contents = hashlib.sha256()
            with open_plain(path) as file:
                while chunk := file.read(2**20):
                    contents.update(chunk)
            digest.update(contents.digest())
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot read {error.filename or run.path}: {reason}") from None
    return digest.hexdigest()


class RunToOpen:
    """A run that is loaded where it is first used: pickled, it is its settings alone.

    Wherever it is unpickled, the folder is read again, and must hold what it held.

    Args:
        run_dir: the folder.
        device: where to compute.
        pair: the run's pair, where it is code of the user's own.

    Attributes:
        fingerprint: of the run, when this object was made (`fingerprint_of_run`).
    """

    def __init__(self, run_dir: Path | str, device: str = "cpu", pair: str | None = None) -> None:
        self.run_dir, self.device, self.pair = Path(run_dir).absolute(), device, pair
        self.fingerprint = fingerprint_of_run(run_dir, pair)

    @cached_property
    def run(self) -> ScoredRun:
        """The run with its weights; raises `UserError` if it is not what it was."""
        with preserve_rng_state():  # weights are drawn before they are read
            opened = open_run(self.run_dir, torch.device(self.device), self.pair)
        if fingerprint_of_run(self.run_dir, self.pair) != self.fingerprint:
            raise UserError(
                f"the run in {self.run_dir} is not what it was when its scoring began: its weights "
                "or settings differ; let its training end, and begin the scoring anew"
            )
        return opened

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "run"}
