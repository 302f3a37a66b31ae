"""MIDI: what reading takes over bare pretty_midi, and how much sooner a second start is ready.

- parsing: the 781 training tunes of Nottingham by `read_tune` (checks, notes, beats), against
  `pretty_midi.PrettyMIDI` alone;
- starting: `read_rolls` on the same files with an empty cache, and again with the one that it left.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path

import common
import pretty_midi

from pyro_seq.music.data.cache import TuneCache
from pyro_seq.music.data.midi_reader import find_files, read_tune
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.data.rolls import read_rolls

FOLDER = "midi/nottingham/train"


def bare(paths: list[Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of key signatures on second tracks
        for path in paths:
            pretty_midi.PrettyMIDI(str(path))


def main() -> None:
    """Time parsing, then starting."""
    options = common.parse_arguments(__doc__)
    paths = find_files([common.data_file(FOLDER)])
    paths = paths[:40] if options.quick else paths
    rounds = 2 if options.quick else 5

    print(f"parsing {len(paths)} files")
    turns = {
        "pretty_midi": lambda: bare(paths),
        "pyro_seq": lambda: [read_tune(path) for path in paths],
    }
    spent = common.medians(common.in_turns(turns, rounds=rounds))
    common.report(
        "MIDI parsing, pyro_seq over pretty_midi, seconds",
        spent["pyro_seq"] / spent["pretty_midi"],
        at_most=0.8,
    )

    print(f"piano rolls of {len(paths)} files, 32 frames a second")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"

        def first() -> None:
            shutil.rmtree(cache, ignore_errors=True)
            read_rolls(paths, Timing(), cache=TuneCache(cache))

        starts = {
            "first start": first,
            "second start": lambda: read_rolls(paths, Timing(), cache=TuneCache(cache)),
        }
        spent = common.medians(common.in_turns(starts, rounds=rounds))
    common.report(
        "MIDI start, first over second, seconds",
        spent["first start"] / spent["second start"],
        at_least=2,
    )


if __name__ == "__main__":
    main()
