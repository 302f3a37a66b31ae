"""Bundled settings of SeqGAN runs that differ from the defaults, by dotted name."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {  # those of LantaoYu/SeqGAN: hours on a CPU
        "task.pretrained_by": "criterion",
        "training.num_steps": 18_750,  # 120 epochs of 10,000 sentences
        "training.schedule": "constant",
        "training.warmup": 0.0,
        "discriminator.filter_sizes": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20),
        "discriminator.num_filters": (100, 200, 200, 200, 200, 100, 100, 100, 100, 100, 160, 160),
        "discriminator.pretrain_rounds": 50,
    },
    # the paper's network on an oracle drawn by its seed, within ten minutes on two cores
    "quick": {
        "task.pretrained_by": "criterion",
        "task.batch_size": 16,
        "task.num_held_out": 2_000,
        "training.num_steps": 14_000,
        "training.schedule": "cosine",
        "training.valid_every": 1_000,
        "training.precision": "float32",
        "discriminator.samples": 1_000,
        "discriminator.pretrain_rounds": 5,
        "adversarial.discriminator_rounds": 1,
        "adversarial.discriminator_epochs": 1,
        "adversarial.learning_rate": 2e-2,
        "adversarial.schedule": "linear",
        "adversarial.rollouts": 4,
        "adversarial.num_steps": 40,
        "adversarial.valid_samples": 2_000,
    },
    "melodies": {  # Nottingham's folk tunes, a quarter of an hour on one core
        "task.kind": "music",
        "model.hidden_size": 128,
        "model.output_dropout": 0.2,
        "training.learning_rate": 4e-3,
        "training.num_steps": 2_000,
        "discriminator.learning_rate": 1e-3,
        "discriminator.samples": 1_000,
        "discriminator.pretrain_rounds": 5,
        "adversarial.discriminator_rounds": 1,
        "adversarial.discriminator_epochs": 1,
        "adversarial.learning_rate": 1e-3,
        "adversarial.baseline": "leave_one_out",
        "adversarial.rollouts": 8,
        "adversarial.num_steps": 100,
        "adversarial.valid_samples": 1_000,
    },
}
