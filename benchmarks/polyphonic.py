"""Polyphonic music: train a preset on JSB chorales or Nottingham, and score its test pieces in nats
per frame, types (a) and (b).

    python benchmarks/polyphonic.py jsb-dmm                       the bundled preset, for as long as
    it says python benchmarks/polyphonic.py nottingham-rnn --set training.max_minutes=20 --seed 1
    python benchmarks/polyphonic.py --list
    python benchmarks/polyphonic.py jsb-dmm --run-dir runs/dmm --refine 150    scores what was
    trained there, each piece's guide refined by so many gradient steps

(a) is the importance-sampled log-likelihood (`--samples` particles), (b) the negative ELBO, both
summed over all pieces and divided by the number of frames; a pair without latents has one exact
figure. A preset trained by a particle filter's bound has that bound, of as many particles as in
training, in the place of (b). Weights are chosen on the validation pieces; test pieces are scored
once, at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from common import data_file, machine, report

from pyro_seq.config.fields import flatten, parse_words
from pyro_seq.infer.likelihood.scoring import Method
from pyro_seq.music.data.piano_rolls import read_polyphonic
from pyro_seq.music.evaluation.markov import MarkovKeys
from pyro_seq.music.model.presets import PRESETS
from pyro_seq.music.model.training import MusicModel, Pieces, music_settings, nats_per_frame
from pyro_seq.music.program import MusicData, music_program
from pyro_seq.programs.program import Request
from pyro_seq.programs.restore import load_pair
from pyro_seq.runs.folder import RunFolder
from pyro_seq.train.settings import TrainingSettings

FILES = {"jsb": "polyphonic/jsb_chorales.npz", "nottingham": "polyphonic/nottingham.npz"}
NAMES = [name for name in PRESETS if name.partition("-")[0] in FILES]
BARS = {  # the published figures to reach: type (b), exact or the filter's, then type (a)
    "jsb-dmm": (6.80, None),
    "jsb-best": (6.70, 6.29),
    "jsb-rnn": (8.20, None),
    "jsb-vrnn-fivo": (6.60, None),
    "nottingham-vrnn-fivo": (2.58, None),
    "nottingham-chords-fivo": (2.58, None),
    "jsb-chords": (5.34, None),
    "nottingham-best": (2.86, 2.68),
    "nottingham-rnn": (3.22, None),
}
REFINED_BARS = {"jsb-dmm": (6.70, None)}  # with the guide refined for each piece


def parsed() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", nargs="?", choices=sorted(NAMES))
    parser.add_argument("--list", action="store_true", help="the presets with their settings")
    parser.add_argument("--set", dest="words", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--samples", type=int, default=1_000, help="particles of type (a)")
    parser.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="STEPS",
        help="train nothing: score the run in --run-dir, the guide refined by so many steps",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--run-dir",
        type=Path,
        help="where to keep the run with its curve; a temporary folder if not given",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint of --run-dir"
    )
    return parser, parser.parse_args()


def main() -> None:
    """Train, then score."""
    parser, arguments = parsed()
    if arguments.list or arguments.preset is None:
        print(json.dumps({name: PRESETS[name] for name in NAMES}, indent=2))
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    splits = read_polyphonic(data_file(FILES[arguments.preset.partition("-")[0]]))
    settings = music_settings(PRESETS[arguments.preset], parse_words(arguments.words))
    print(machine(), flush=True)
    if arguments.resume and arguments.run_dir is None:
        parser.error("--resume goes on with a run: name its folder, --run-dir")
    if arguments.refine:
        if arguments.run_dir is None:
            parser.error("--refine scores a run that was trained: name its folder, --run-dir")
        music = loaded(arguments.run_dir, Pieces(splits["train"], splits["valid"]))
        print(f"{arguments.run_dir}: step {music.step}, the guide refined by {arguments.refine}")
        score_splits(
            arguments,
            music,
            splits,
            settings.training,
            REFINED_BARS.get(arguments.preset, (None, None)),
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(arguments.run_dir or Path(folder) / "run", "midi")
        if not arguments.resume:
            with run.locked():
                run.create(dict(flatten(settings)), {})
        began = time.monotonic()
        pieces = Pieces(splits["train"], splits["valid"])
        data = MusicData(pieces, MarkovKeys.fit(pieces.train))
        request = Request(settings, {}, run, arguments.seed)
        music = music_program.train(data, request, resume=arguments.resume)
        took = (time.monotonic() - began) / 60
    pair, steps = music.pair, music.step
    size = sum(p.numel() for module in pair.modules().values() for p in module.parameters()) / 1e6
    print(
        f"{arguments.preset}: {settings.model.name}, {size:.2f} M parameters, {steps} steps in "
        f"{took:.1f} minutes, seed {arguments.seed}"
    )
    figures = dataclasses.asdict(settings.model)
    print(", ".join(f"{name} {value}" for name, value in figures.items()))
    score_splits(
        arguments, music, splits, settings.training, BARS.get(arguments.preset, (None, None))
    )


def loaded(folder: Path, pieces: Pieces) -> MusicModel:
    """Return the best weights of a run that this benchmark has trained, or is training."""
    run = music_program.folder(folder)
    settings = music_program.stored_settings(run)
    data = MusicData(pieces, MarkovKeys.fit(pieces.train))
    pair, step = load_pair(
        run, lambda: music_program.new_pair(settings, data), settings.model.name, "cpu"
    )
    return music_program.model(pair, settings, data, torch.device("cpu"), step)


def score_splits(
    arguments: argparse.Namespace,
    music: MusicModel,
    splits: Mapping[str, Sequence[torch.Tensor]],
    training: TrainingSettings,
    bars: tuple[float | None, float | None],
) -> None:
    """Print the figures of validation and test pieces beside the bars."""
    (bound, sampled), refine = bars, arguments.refine
    exact = not getattr(music.pair.model, "latent_size", 0)
    torch.manual_seed(arguments.seed)
    method: Method
    method, particles = training.validation()
    if exact:
        kind, method, particles = "exact", "exact", 1
    elif method == "filter":
        kind = f"the filter's bound, {particles} particles"
    else:
        kind, particles = "(b)", 16
    for split in ("valid", "test"):
        figure = nats_per_frame(
            music, splits[split], method=method, samples=particles, refine=refine
        )
        report(
            f"{split}, nats per frame, {kind}", figure, at_most=bound if split == "test" else None
        )
    if not exact:
        figure = nats_per_frame(
            music,
            splits["test"],
            method="importance",
            samples=arguments.samples,
            refine=refine,
        )
        report(f"test, nats per frame, (a), {arguments.samples} particles", figure, at_most=sampled)


if __name__ == "__main__":
    main()
