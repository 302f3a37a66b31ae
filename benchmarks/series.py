"""Series: train on the real data sets by their protocols, and print what was measured beside bars.

    python benchmarks/series.py exchange m4 --seeds 3 --minutes 10
    python benchmarks/series.py defaults            every set and the seven classics, no settings
    python benchmarks/series.py --quick nab         that it runs, not what it shows

Figures are medians over the seeds. Forecasts without a model are made again in the same run; those
with normal errors are published as "floors", and show that the figures are the usual ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from common import kept_in, parsed, parser_of
from series_sets import BENCHMARKS, MASKS, Run

from pyro_seq.config.fields import parse_words
from pyro_seq.series.judging.evaluation import MODEL

Bars = Mapping[str, tuple[float, float]]  # (bar, stretch) by figure; at most, if not said otherwise
AT_LEAST = ("without / with", "nab", "roc auc", "average precision")
CALIBRATED = {"coverage 80": (0.80, 0.07, 0.04), "coverage 95": (0.95, 0.04, 0.02)}

BARS: dict[str, Bars] = {
    "exchange": {"wql9 model": (0.0078, 0.0071), "crps_sum model": (0.0060, 0.0048)},
    "m4": {"wql9 model": (0.0330, 0.0280), "mase model": (1.19, 0.95)},
    "hospital": {"wql9 model": (0.0575, 0.0532)},
    "nn5": {"wql9 model": (0.175, 0.161)},
    "ettH1": {"wql9 model": (0.210, 0.195)},
    "bike": {"wql9 model": (0.270, 0.195), "without / with": (1.15, 1.4)},
    "wind": {"wql9 model": (0.456, 0.43), "cells outside 0…1": (0, 0)},
    "gaps": {f"mae {name}": bars for name, bars in MASKS.items()},
    "nab": {
        "nab": (45, 58),
        "roc auc": (0.60, 0.62),
        "average precision": (0.25, 0.28),
        "minutes": (10, 10),
    },
    "weather": {"nats": (1.06, 1.03)},
    "occupancy": {"nats": (0.056, 0.045)},
}


def show(name: str, measured: Sequence[dict[str, float]]) -> None:
    """A line for each figure: its median over the seeds, bar and stretch, and whether they hold."""
    bars = BARS.get(name, {})
    print(f"\n{name}: median of {len(measured)} (lowest … highest)")
    print(f"  {'figure':<44}{'measured':>10}{'':>24}  {'bar':>9}  {'stretch':>9}")
    for figure in measured[0]:
        found = sorted(one[figure] for one in measured)
        middle = statistics.median(found)
        span = f"({found[0]:.4f} … {found[-1]:.4f})" if len(found) > 1 else ""
        bar, stretch, met = "", "", ""
        if figure in bars:
            one, two = bars[figure]
            bar, stretch = f"{one:g}", f"{two:g}"
            sign = -1 if figure in AT_LEAST else 1
            met = (
                "stretch"
                if sign * middle <= sign * two
                else ("met" if sign * middle <= sign * one else "MISSED")
            )
        elif figure.rpartition(" ")[2] == MODEL and figure.startswith("coverage"):
            target, near, nearer = CALIBRATED[figure.rpartition(" ")[0]]
            bar, stretch = f"±{near:g}", f"±{nearer:g}"
            off = abs(middle - target)
            met = "stretch" if off <= nearer else "met" if off <= near else "MISSED"
        elif figure.endswith("beside the better naive"):
            bar, stretch = "1.05", "1"
            met = "stretch" if middle < 1 else "met" if middle <= 1.05 else "MISSED"
        print(f"  {figure:<44}{middle:>10.4f}{span:>24}  {bar:>9}  {stretch:>9}  {met}", flush=True)


def main() -> None:
    """Run the benchmarks that are named."""
    parser = parser_of(__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(BENCHMARKS), metavar="NAME",
                        help=", ".join(BENCHMARKS))  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each training")
    parser.add_argument("--set", dest="words", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--run-dir", type=Path, help="where to keep the runs")
    options = parsed(parser)
    words = parse_words(options.words)
    with kept_in(options.run_dir) as folder:
        for name in options.names:
            measured = []
            for seed in range(1 if options.quick else options.seeds):
                run = Run(options.minutes, words, folder, options.quick)
                measured.append(BENCHMARKS[name](run, seed))
            show(name, measured)


if __name__ == "__main__":
    main()
