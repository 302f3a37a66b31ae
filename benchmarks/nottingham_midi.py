"""Folk tunes from MIDI files: train with the default settings for ten minutes, score the test
tunes, and compare what is played with them.

    python benchmarks/nottingham_midi.py                       the pair rnn
    python benchmarks/nottingham_midi.py srnn iseq --minutes 5
    python benchmarks/nottingham_midi.py rnn --set rolls.grid=4

Nats per frame (32 a second) of the test tunes, beside a first-order Markov model of each key fitted
on the same training tunes; a pair with latents is scored by importance (`--samples` particles) and
by its ELBO. Then how far the statistics of `--rolls` samples of 30 seconds are from those of the
test tunes, for the model and for the Markov model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from common import data_file, machine, report

from pyro_seq.config.fields import parse_words
from pyro_seq.music.data.sources import read_music
from pyro_seq.music.evaluation.report import ReportOptions, compare_statistics
from pyro_seq.music.evaluation.statistics import distance
from pyro_seq.music.model.training import MusicModel, evaluate, music_settings
from pyro_seq.music.program import music_program


def main() -> None:
    """Train and measure each pair in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pairs", nargs="*", default=["rnn"])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--set", dest="words", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--samples", type=int, default=16, help="particles")
    parser.add_argument(
        "--rolls", type=int, default=32, help="samples of 30 seconds whose statistics are compared"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--run-dir", type=Path, help="a folder to keep the runs in; a temporary one if not given"
    )
    options = parser.parse_args()
    folder = data_file("midi/nottingham")
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for pair in options.pairs:
            settings = music_settings(
                {"model.name": pair, "training.max_minutes": options.minutes},
                parse_words(options.words),
            )
            data = {
                "train_files": [str(folder / "train")],
                "valid_files": [str(folder / "valid")],
                "valid_fraction": 0.0,
            }
            began = time.monotonic()
            music = music_program.start(
                (options.run_dir or Path(temporary)) / pair, settings, data, seed=options.seed
            )
            took = (time.monotonic() - began) / 60
            print(
                f"{pair}: {music.step:,} steps in {took:.1f} minutes with reading and validation, "
                f"seed {options.seed}"
            )
            measure(music, folder, options.samples, options.rolls)


def measure(music: MusicModel, folder: Path, samples: int, rolls: int) -> None:
    """The figures of a trained model."""
    pair = music.settings.model.name
    pieces = read_music([folder / "test"], "test", music.settings.rolls).pieces
    torch.manual_seed(0)
    scored = evaluate(music, pieces, samples=samples)
    markov = scored.markov_nats_per_frame
    report(
        f"{pair}, test tunes, nats per frame, {scored.method}",
        scored.nats_per_frame,
        at_most=markov,
    )
    if scored.method != "exact":
        report(
            f"{pair}, the same, negative ELBO",
            evaluate(music, pieces, method="elbo", samples=1).nats_per_frame,
            at_most=markov,
        )
    if markov is not None:
        report("Markov model of each key, the same", markov)
    by_source = compare_statistics(music, pieces, ReportOptions(num_compared=rolls))
    far = {name: distance(by_source["real"], by_source[name]) for name in ("generated", "Markov")}
    for name, value in far["generated"].items():
        report(f"{pair}, {name}: distance from the test tunes", value, at_most=far["Markov"][name])


if __name__ == "__main__":
    main()
