"""Names and units of a generator's figures, and which way is better."""

from __future__ import annotations

import re

NAMES = {
    "nll_oracle": "NLL_oracle",
    "mse_pitch": "MSE of pitch",
    "distinct": "distinct sequences",
    "symbol_entropy": "entropy of symbols",
    "entropy": "entropy given the past",
}
LOWER, HIGHER, AS_REAL = "lower is better", "higher is better", "best as of real ones"
BETTER = {"nll": LOWER, "nll_oracle": LOWER, "mse_pitch": LOWER, "bleu": HIGHER}
NATS = ("nll", "nll_oracle", "entropy", "symbol_entropy")
BLEU = re.compile(r"(self_)?bleu_(\d+)")


def figure_name(name: str, split: str = "test") -> str:
    """Return the displayed name of a figure of `quality.quality`.

    `split` names the held-out sequences of the likelihood.
    """
    if name == "nll":
        return f"NLL_{split}"
    if found := BLEU.fullmatch(name):
        return f"{'self-' if found[1] else ''}BLEU-{found[2]}"
    return NAMES.get(name, name.replace("_", " "))


def unit_of(name: str, units: str) -> str:
    """Return the unit of a figure (`nats a token`); empty for a mere number."""
    if name in NATS:
        return f"nats a {units.removesuffix('s')}"
    return "semitones²" if name == "mse_pitch" else ""


def better(name: str) -> str:
    """Say whether more of a figure is better, or less, or neither."""
    return BETTER.get("bleu" if name.startswith("bleu_") else name, AS_REAL)


def named_with_unit(name: str, split: str, units: str) -> str:
    """Return the label of an axis that shows a figure."""
    unit = unit_of(name, units)
    return figure_name(name, split) + (f", {unit}" if unit else "")
