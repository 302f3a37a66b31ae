"""SeqGAN on Nottingham melodies: BLEU-4 on test windows after maximum likelihood and after
adversarial training, over seeds.

    python benchmarks/seqgan_music.py [--seeds 0 1 2] [--run-dir runs/melodies] [--set
    adversarial.num_steps=50]

Melodies of the 781 / 98 / 98 tunes under midi/nottingham, a note every 0.4 s, windows of 30; the
preset `melodies`. Weights are chosen on validation windows, figures are of 4,000 generated windows
against the test windows. What real windows score stands beside them, and so does the pretrained
twin at lower temperatures, which is what adversarial training has to be measured against: it
sharpens, too.
"""

from __future__ import annotations

import statistics
import time

import torch
from common import data_file, kept_in, parsed, parser_of_runs, report

from pyro_seq.config.fields import parse_words
from pyro_seq.seqgan.metrics.quality import quality
from pyro_seq.seqgan.presets import PRESETS
from pyro_seq.seqgan.program import seqgan_program
from pyro_seq.seqgan.stored_task import task_of

SAMPLES = 4_000
SHOWN = ("bleu_2", "bleu_3", "bleu_4", "self_bleu_4", "mse_pitch", "nll", "entropy")


def main() -> None:
    """Train each seed, then judge it beside its twin."""
    parser = parser_of_runs(__doc__)
    arguments = parsed(parser)
    folder = data_file("midi/nottingham")
    settings = seqgan_program.settings(PRESETS["melodies"], parse_words(arguments.words))
    data = {f"{split}_files": [str(folder / split)] for split in ("train", "valid", "test")}
    gains, best = [], []
    with kept_in(arguments.run_dir) as root:
        for seed in arguments.seeds:
            run, began = root / f"melodies-{seed}", time.monotonic()
            if (run / "run.json").exists():
                seqgan_program.resume(run, {})
            else:
                seqgan_program.start(run, settings, data, seed=seed)
            task = task_of(seqgan_program.folder(run), settings, quiet=True)
            print(
                f"seed {seed}: {(time.monotonic() - began) / 60:.1f} minutes; MIDI in "
                f"{run / 'samples'}"
            )
            if seed == arguments.seeds[0]:
                real = task.judge(task.sequences.valid, task.sequences.test)
                print(
                    "  real (validation) windows   ",
                    "  ".join(f"{name} {real[name].value:.3f}" for name in SHOWN if name in real),
                )
            found = {}
            for weights, temperature in (
                ("pretrained", 1.0),
                ("pretrained", 0.9),
                ("pretrained", 0.8),
                ("best", 1.0),
            ):
                torch.manual_seed(0)
                generator = seqgan_program.load(run, weights=weights)  # type: ignore[arg-type]
                figures = quality(
                    generator.pair, task, task.sequences.test, SAMPLES, temperature=temperature
                )
                found[weights, temperature] = figures["bleu_4"].value
                line = "  ".join(f"{name} {figures[name].value:.3f}" for name in SHOWN)
                print(
                    (
                        f"  {weights:<10} temperature {temperature:.1f}  {line}  (bleu_4 ± "
                        f"{figures['bleu_4'].standard_error:.4f})"
                    ),
                    flush=True,
                )
            best.append(found["best", 1.0])
            gains.append(found["best", 1.0] - found["pretrained", 1.0])
    spread = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    report(f"BLEU-4 after adversarial training, mean of {len(best)} seeds", statistics.mean(best))
    report(
        f"gain over maximum likelihood alone, mean of {len(gains)} seeds ± {spread:.4f}",
        statistics.mean(gains),
        at_least=0.0,
    )


if __name__ == "__main__":
    main()
