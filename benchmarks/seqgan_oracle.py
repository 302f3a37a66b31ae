"""SeqGAN on the paper's own oracle: maximum likelihood, then adversarial training by several
recipes; with NLL_test beside NLL_oracle.

    python benchmarks/seqgan_oracle.py                          every recipe of RECIPES from each
    seed's pretraining python benchmarks/seqgan_oracle.py --recipes paper --seeds 0 1 2 --run-dir
    runs/oracle python benchmarks/seqgan_oracle.py --recipes tuned_mle

NLL_oracle, nats a token of generated sentences under the oracle, is what the literature reports,
and sharpening or repeating lowers it alone; NLL_test is how likely the generator holds held-out
sentences of the oracle. Both are swept over temperatures for every model and for its own pretrained
twin, and compared at equal NLL_test. A run folder that is there already is gone on with, so that
hours can be spent in pieces. The oracle's own sentences have 5.753 of both.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import data_file, kept_in, parsed, parser_of_runs, report

from pyro_seq.config.fields import flatten, parse_words
from pyro_seq.seqgan.metrics.quality import quality
from pyro_seq.seqgan.program import PRETRAINING, seqgan_program
from pyro_seq.seqgan.stored_task import task_of

TEMPERATURES = (1.0, 0.9, 0.8, 0.7)
SAMPLES = 4_000

# maximum likelihood of the paper's network until it knows its sentences by heart, as there: the
# weights with the lowest NLL_oracle
MLE: dict[str, Any] = {
    "task.pretrained_by": "criterion",
    "task.batch_size": 16,
    "task.num_held_out": SAMPLES,
    "training.num_steps": 40_000,
    "training.schedule": "cosine",
    "training.valid_every": 5_000,
    "training.sample_every": 0,
    "adversarial.schedule": "linear",
    "adversarial.rollouts": 4,
    "adversarial.discriminator_rounds": 1,
    "adversarial.discriminator_epochs": 1,
    "adversarial.num_steps": 60,
    "adversarial.valid_every": 10,
    "adversarial.valid_samples": 2_000,
    "adversarial.sample_every": 0,
    "discriminator.samples": 1_000,
    "discriminator.pretrain_rounds": 5,
}
# maximum likelihood of a larger network for held-out sentences: weight decay, and the average of
# the weights
TUNED_MLE = MLE | {
    "task.pretrained_by": "nll",
    "task.embedding_size": 64,
    "model.hidden_size": 128,
    "training.learning_rate": 4e-3,
    "training.schedule": "linear",
    "training.weight_decay": 0.3,
    "training.ema_decay": 0.999,
    "training.num_steps": 10_000,
    "training.valid_every": 1_000,
}
RECIPES: dict[str, dict[str, Any]] = {
    "decayed": {"adversarial.learning_rate": 3e-2},
    "slower": {"adversarial.learning_rate": 2e-2},
    "constant": {
        "adversarial.learning_rate": 1e-2,
        "adversarial.schedule": "constant",
        "adversarial.num_steps": 100,
    },
    "strong_discriminator": {
        "adversarial.schedule": "constant",
        "adversarial.num_steps": 100,
        "discriminator.learning_rate": 1e-3,
        "discriminator.pretrain_rounds": 3,
    },
    "leave_one_out": {"adversarial.baseline": "leave_one_out", "discriminator.learning_rate": 1e-3},
    "rank": {"adversarial.baseline": "leave_one_out", "adversarial.reward": "rank"},
    "maligan": {
        "adversarial.rollouts": 0,
        "adversarial.baseline": "leave_one_out",
        "adversarial.reward": "maligan",
    },
}


def pretrained(folder: Path, settings: Mapping[str, Any], seed: int, oracle: Path) -> Path:
    """A run of maximum likelihood alone, which recipes start from."""
    alone = seqgan_program.settings(
        settings, {"adversarial.num_steps": 0, "discriminator.pretrain_rounds": 0}
    )
    if (folder / "run.json").exists():
        seqgan_program.resume(folder, {})
    else:
        seqgan_program.start(folder, alone, {"oracle": oracle}, seed=seed)
    return folder


def adversarial(folder: Path, start: Path, settings: Mapping[str, Any]) -> Path:
    """A run by a recipe that goes on from a pretraining."""
    if not (folder / "run.json").exists():
        run = seqgan_program.folder(folder)
        with run.locked():
            run.create(
                dict(flatten(seqgan_program.settings(settings))),
                {"task.json": seqgan_program.folder(start).read_json("task.json")},
            )
        shutil.copytree(start / PRETRAINING, folder / PRETRAINING)
    seqgan_program.resume(folder, {})
    return folder


def swept(
    folder: Path, weights: Any, temperatures: tuple[float, ...] = TEMPERATURES
) -> dict[float, dict[str, float]]:
    """NLL_test, NLL_oracle and the share of distinct sentences by temperature."""
    generator = seqgan_program.load(folder, weights=weights)
    task = task_of(seqgan_program.folder(folder), generator.settings, quiet=True)
    found = {}
    for temperature in temperatures:
        torch.manual_seed(0)
        figures = quality(
            generator.pair, task, task.sequences.test, SAMPLES, temperature=temperature
        )
        found[temperature] = {
            name: figures[name].value for name in ("nll", "nll_oracle", "entropy", "distinct")
        }
    return found


def margin(model: dict[float, dict[str, float]], twin: dict[float, dict[str, float]]) -> float:
    """How far NLL_oracle lies below the twin's at equal NLL_test, at the temperature where that is
    most; negative where it lies above.

    Between its temperatures the twin's curve is linear; where its NLL_test does not reach, it says
    nothing.
    """
    points = sorted((point["nll"], point["nll_oracle"]) for point in twin.values())
    xs, ys = zip(*points, strict=True)
    inside = [point for point in model.values() if xs[0] <= point["nll"] <= xs[-1]]
    return max(
        (float(np.interp(point["nll"], xs, ys)) - point["nll_oracle"] for point in inside),
        default=float("nan"),
    )


def shown(name: str, found: dict[float, dict[str, float]]) -> None:
    """A line for each temperature."""
    for temperature, figures in found.items():
        line = "  ".join(f"{figure} {value:.3f}" for figure, value in figures.items())
        print(f"  {name:<28} temperature {temperature:.1f}  {line}", flush=True)


def main() -> None:
    """Pretrain each seed, then play every recipe."""
    parser = parser_of_runs(__doc__)
    parser.add_argument(
        "--recipes", nargs="*", default=["tuned_mle", *RECIPES], choices=["tuned_mle", *RECIPES]
    )
    arguments = parsed(parser)
    oracle = data_file("seqgan/oracle_target_params.npz")
    changes = parse_words(arguments.words)
    with kept_in(arguments.run_dir) as root:
        best: dict[str, list[float]] = {}
        for seed in arguments.seeds:
            if "tuned_mle" in arguments.recipes:
                tuned = swept(
                    pretrained(root / f"tuned-mle-{seed}", TUNED_MLE | changes, seed, oracle),
                    "pretrained",
                    (1.0,),
                )
                shown(f"tuned MLE, seed {seed}", tuned)
                best.setdefault("tuned MLE: NLL_test", []).append(tuned[1.0]["nll"])
            start = pretrained(root / f"mle-{seed}", MLE | changes, seed, oracle)
            twin = swept(start, "pretrained")
            shown(f"MLE, seed {seed}", twin)
            best.setdefault("MLE: NLL_oracle", []).append(twin[1.0]["nll_oracle"])
            for name in (name for name in arguments.recipes if name in RECIPES):
                began = time.monotonic()
                folder = adversarial(root / f"{name}-{seed}", start, MLE | RECIPES[name] | changes)
                took = (time.monotonic() - began) / 60
                found = swept(folder, "best")
                shown(f"{name}, seed {seed}", found)
                print(
                    (
                        f"  {name}, seed {seed}: {took:.1f} minutes; below its twin's curve by "
                        f"{margin(found, twin):+.3f} at most"
                    ),
                    flush=True,
                )
                best.setdefault(f"{name}: NLL_oracle", []).append(found[1.0]["nll_oracle"])
        for what, values in best.items():
            spread = (
                f" ± {statistics.stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
            )
            bar = 7.6 if "NLL_test" in what else 9.04 if what.startswith("MLE") else 8.73
            report(
                f"{what}, mean of {len(values)} seeds{spread}", statistics.mean(values), at_most=bar
            )


if __name__ == "__main__":
    main()
