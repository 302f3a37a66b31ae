"""Bundled settings of SeqGAN runs, by dotted name: what differs from the defaults."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {  # those of LantaoYu/SeqGAN: hours on a CPU
        "training.num_steps": 18_750,  # 120 epochs of 10,000 sentences
        "training.schedule": "constant",
        "training.warmup": 0.0,
        "discriminator.filter_sizes": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20),
        "discriminator.num_filters": (100, 200, 200, 200, 200, 100, 100, 100, 100, 100, 160, 160),
        "discriminator.pretrain_rounds": 50,
    },
    "quick": {},
}
