"""Files scored by several processes: `python tests/helpers/scored_files.py FOLDER RUN FILES` prints
what came of each way, a JSON object.

Everything heavy is imported once, by scoring a text; each process is a fork of this one, which has
one thread.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401 (before processes are forked)
import torch
from ranked import Work, be, on_ranks

from pyro_seq.runs import ranks
from pyro_seq.scoring.files import FilesToScore, files_of, score_files
from pyro_seq.scoring.scorer import Scorer


def scored(
    out: Path, run: Path, patterns: list[str], *, then: Callable[[int], Any] | None = None
) -> Any:
    """What came of files, in the words of one process; `then` is told which of its files
    comes next."""
    work = FilesToScore(Scorer(run, samples=2, together=4), files_of(patterns), out)
    reader: Any = work.scorer.opened.run
    score_file, count = reader.score_file, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if then is not None:
            then(count)
        return score_file(*args, **kwargs)

    reader.score_file = counted
    told: list[str] = []
    outcome = score_files(work, told=told.append)
    found = {name: sorted(getattr(outcome, name)) for name in ("scored", "kept", "failed")}
    return {**found, "told": told, "own": count}


def launchers(folder: Path, *works: Work) -> list[Any]:
    """What processes return that know nothing of each other."""
    name, children = f"apart-{len(list(folder.iterdir()))}", []
    for number, work in enumerate(works):
        child = os.fork()
        if not child:
            be(number, 1, folder / name, work)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-*.json"))]


def die(count: int = 0) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Do all of it, and print what came of it."""
    folder, run, patterns = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    places = folder / "places"
    places.mkdir()
    torch.set_num_threads(1)
    Scorer(run, samples=2).scored(["the cat"])

    def go(out: str, then: Callable[[int], Any] | None = None) -> Work:
        return lambda: scored(folder / out, run, patterns, then=then)

    found: dict[str, Any] = {}
    for number in (1, 2, 3):
        found[f"{number} ranks"] = on_ranks(places, number, go(f"{number}"))

    def die_at(count: int) -> None:
        """Rank 0 ends in its third file, rank 1 in its first."""
        if count == 3 - 2 * ranks.rank():
            die()

    found["killed"] = on_ranks(places, 2, go("killed", die_at))
    found["left"] = {
        path.name: path.stat().st_mtime_ns for path in (folder / "killed").glob("[!.]*.*")
    }
    found["again"] = on_ranks(places, 2, go("killed"))
    found["apart"] = launchers(places, go("apart"), go("apart"))
    found["one dies"] = launchers(
        places, go("dies", lambda count: time.sleep(0.2 * (count == 1))), go("dies", die)
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
