"""Tiny Shakespeare: train on the first 1,003,854 characters, score the last 111,540 exactly, and
say how that compares.

    python benchmarks/tiny_shakespeare.py                       the default settings, 5 minutes
    python benchmarks/tiny_shakespeare.py --preset best         the bundled preset, for as long as
    it says python benchmarks/tiny_shakespeare.py --model srnn --minutes 5

The weights kept are those with the lowest loss on the validation text, as in the figures that it is
compared with, and the text is then scored in one pass from its beginning, as
`pyroseq text evaluate` does. The comparison: a hand-written PyTorch LSTM of 256 units after 5
minutes on two cores (1.540), and nanoGPT's transformer of 10.65 M parameters on an A100 (1.4697).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import data_file, machine, report

from pyro_seq.config.fields import parse_words
from pyro_seq.config.model_settings import Layer
from pyro_seq.text.program import PRESETS, text_program
from pyro_seq.text.training import evaluate, text_settings

TRAIN_CHARACTERS = 1_003_854
BARS = {"default": 1.54, "best": 1.47}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="default", choices=sorted(BARS))
    parser.add_argument("--model", choices=("rnn", "iseq", "srnn"))
    parser.add_argument(
        "--minutes", type=float, help="of training; default 5, or what the preset says"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--run-dir", type=Path, help="where to keep the run; a temporary folder if not given"
    )
    parser.add_argument("--set", dest="words", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()

    text = data_file("text/tinyshakespeare.txt").read_text(encoding="utf-8")
    minutes = arguments.minutes or (5.0 if arguments.preset == "default" else None)
    changes: dict[str, Any] = {"training.max_minutes": minutes} | (
        {"model.name": arguments.model} if arguments.model else {}
    )
    settings = text_settings(
        Layer(PRESETS[arguments.preset], lenient=True), changes, parse_words(arguments.words)
    )
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        train, valid = Path(folder) / "train.txt", Path(folder) / "valid.txt"
        train.write_text(text[:TRAIN_CHARACTERS], encoding="utf-8")
        valid.write_text(text[TRAIN_CHARACTERS:], encoding="utf-8")
        run_dir = arguments.run_dir or Path(folder) / "run"
        began = time.monotonic()
        trained = text_program.start(
            run_dir,
            settings,
            {"train_corpus": train, "valid_corpus": valid, "valid_fraction": 0.0},
            seed=arguments.seed,
        )
        took = (time.monotonic() - began) / 60
        scored = evaluate(text_program.load(run_dir), valid)
    parameters = sum(p.numel() for p in trained.model.parameters())
    size = (
        f"{parameters / 1e6:.2f} M parameters, {trained.step} steps in {took:.1f} minutes on "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{settings.model.name}, preset {arguments.preset}: {size}")
    kind = (
        "exact"
        if scored.method == "exact"
        else (
            f"{scored.method}, {scored.samples} samples, standard error "
            f"{scored.standard_error:.1f} nats"
        )
    )
    print(
        f"validation: {scored.nats_per_character:.4f} nats, {scored.bits_per_character:.4f} bits "
        f"per character ({kind})"
    )
    if settings.model.name == "rnn":
        report(
            "validation nats per character",
            scored.nats_per_character,
            at_most=BARS[arguments.preset],
        )


if __name__ == "__main__":
    main()
