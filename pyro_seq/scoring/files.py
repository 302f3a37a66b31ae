"""Score many files into one file of results each, by any number of processes."""

from __future__ import annotations

import glob
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_seq._progress import Progress
from pyro_seq._rng import fork_rng, seed_of
from pyro_seq.errors import UserError
from pyro_seq.programs.scored_run import ScoredRows
from pyro_seq.runs import ranks
from pyro_seq.runs.writing import check_writable, clear_left
from pyro_seq.scoring.claims import Claims
from pyro_seq.scoring.results import (
    TABLES,
    Doubts,
    Unscorable,
    of_one_file,
    stamp_of,
    write_sequences,
    write_table,
)
from pyro_seq.text.program import fingerprint

if TYPE_CHECKING:
    from pyro_seq.scoring.scorer import Scorer

LOOK_AGAIN = 1.0  # seconds, for files that other processes are scoring


@dataclass
class Outcome:
    """What became of files, by the names of their results.

    Attributes:
        scored: those that were scored now.
        kept: those whose results were there, of the same run, settings and contents.
        failed: those that could not be scored, each with the reason.
        doubted: those of figures that cannot be relied on, each with the reason.
    """

    scored: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    doubted: dict[str, str] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        """Add what another process has found."""
        self.scored |= other.scored
        self.kept = (self.kept | other.kept) - self.scored
        self.failed |= other.failed
        self.doubted |= other.doubted

    def __contains__(self, name: str) -> bool:
        return name in self.scored or name in self.kept or name in self.failed


def files_of(patterns: Iterable[str | Path]) -> dict[str, Path]:
    """Return the files that patterns name, in order, by where each lies below its pattern.

    A pattern is a file or a glob, `**` for any folders; folders and hidden files are passed over.
    A file lies at its name below its own folder, what a glob finds below the folders that the glob
    names.

    Raises `UserError` for a pattern that names nothing, a folder, and two files of one place.
    """
    found: dict[str, Path] = {}
    for pattern in map(str, patterns):
        literal = os.path.lexists(pattern) or not glob.has_magic(pattern)
        base = Path(pattern).parent if literal else _without_wildcards(pattern)
        matches = [pattern] if literal else sorted(glob.glob(pattern, recursive=True))
        paths = [Path(match) for match in matches if literal or not os.path.isdir(match)]
        folder = os.path.isdir(pattern)
        if not paths or folder or (literal and not os.path.lexists(pattern)):
            what = f"is a folder: name its files, as in {pattern}/*" if folder else "names no file"
            raise UserError(f"--files: {pattern} {what}")
        for path in paths:
            place = str(path.relative_to(base))
            if ".." in Path(place).parts:
                raise UserError(f"--files: {pattern} goes up after a wildcard: name its folder")
            other = found.setdefault(place, path)
            if other != path and not os.path.samefile(other, path):
                raise UserError(
                    f"--files: {other} and {path} would both have the result {place}: score them "
                    "into two folders"
                )
    return found


def _without_wildcards(pattern: str) -> Path:
    """Return the folders at the beginning of a glob, up to the first with a wildcard."""
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


class FilesToScore:
    """Files, and where their results are written.

    Args:
        scorer: the run, and how its likelihood is estimated.
        files: by where their results go, below the folder (`files_of`).
        out_dir: the folder.
        lines: whether each line of a text is a sequence.

    Raises `UserError` where a result would replace an input, or a file of the run.
    """

    def __init__(
        self, scorer: Scorer, files: Mapping[str, Path], out_dir: Path, *, lines: bool = False
    ) -> None:
        self.scorer, self.out_dir, self.lines = scorer, out_dir, lines
        of_rows = isinstance(scorer.opened.run, ScoredRows)
        if lines and of_rows and any(path.suffix == TABLES for path in files.values()):
            raise UserError("--lines is for files of text, and a row of a table is one sequence")
        self.files = {
            name if of_rows and path.suffix == TABLES else f"{name}.jsonl": path
            for name, path in files.items()
        }
        known = {
            "run": scorer.opened.fingerprint,
            "options": dict(scorer.options),
            "seed": scorer.seed,
            "together": scorer.together,
            "column": scorer.column,
            "lines": lines,
        }
        self.settings = repr(sorted(known.items()))
        own = out_dir.resolve()
        if own == scorer.opened.run_dir.resolve():
            raise UserError(f"--out-dir {out_dir} is the run's own folder: name another")
        for path in self.files.values():
            if own in path.resolve().parents:
                raise UserError(f"{path} lies in --out-dir {out_dir}: name another folder")

    def score(self, name: str) -> Doubts | None:
        """Write a file's result, unless there is one of the same run, settings and contents.

        Returns `None` then, else what is to be doubted of the new one.

        Raises `Unscorable` for what is wrong with the file, and `UserError` for all else.
        """
        path, result = self.files[name], self.out_dir / name
        with of_one_file():
            contents = fingerprint(path)
        stamp = hashlib.sha256(f"{self.settings}{contents}".encode()).hexdigest()[:32]
        before = stamp_of(result)
        if before == stamp:
            return None
        if before is None and os.path.lexists(result):
            raise UserError(
                f"{result} is there already and no result of scoring: choose another --out-dir"
            )
        result.parent.mkdir(parents=True, exist_ok=True)
        clear_left(result.parent)

        def unchanged() -> None:
            with of_one_file():
                if fingerprint(path) != contents:
                    raise UserError("it has changed while it was scored")

        told = (result, path, self.scorer, stamp, unchanged)
        with fork_rng(seed_of(self.scorer.seed, contents)):
            if result.suffix == TABLES:
                return write_table(*told)
            return write_sequences(*told, lines=self.lines)


def score_files(
    work: FilesToScore,
    *,
    told: Callable[[str], object] = lambda line: None,
    progress: Progress | None = None,
) -> Outcome:
    """Score files, together with all other processes that do so into the same folder.

    Each process takes the next file that nobody is working on. The processes may be the ranks of
    one `torch.distributed` group, or begun apart; all return once every file is scored, or has
    been tried by this group.

    Args:
        work: the files.
        told: is told, in a line each, which files cannot be scored, by the process that finds it.
        progress: where to show how far this process is.

    Raises `UserError` if results cannot be written.
    """
    with ranks.agreed():
        check_writable(work.out_dir, "--out-dir")
    outcome, left = Outcome(), list(work.files)
    with Claims(work.out_dir) as claims:
        while True:
            found, held = Outcome(), list[str]()
            for i, name in enumerate(left):
                if not claims.take(name, without_locks=i % ranks.size() == ranks.rank()):
                    continue
                if progress is not None and progress.due():
                    progress.show(f"{i:,}/{len(left):,} files; {work.files[name]}")
                try:
                    doubts = work.score(name)
                    (found.kept if doubts is None else found.scored).add(name)
                except Unscorable as error:
                    found.failed[name] = str(error)
                    told(f"{work.files[name]} cannot be scored: {error}")
                    held.append(name)  # so that no other process tries it too
                except UserError as error:
                    if not ranks.is_first():  # which a launcher may end before it hears of it
                        told(str(error))
                    raise
                else:
                    claims.release(name)
                    if doubts:
                        found.doubted[name] = str(doubts)
            if progress is not None:
                progress.end()
            for other in ranks.gathered(found):
                outcome.add(other)
            for name in held:
                claims.release(name)
            left = [name for name in left if name not in outcome]
            if not left:
                return outcome
            time.sleep(LOOK_AGAIN)
