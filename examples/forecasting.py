"""Forecasts of a table's column by a Kalman filter, judged beside the value of a week ago.

python examples/forecasting.py [--csv sales.csv --time day --value sold --season 7] [--steps 120]

Without a CSV, the visitors of three shops that come with the package. No program here: pandas
reads, `LGSSM` (level, slope, season; its likelihood exact) learns the logarithms, and
`continuation` draws futures. Missing days stay missing.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pyro_seq import Pair, SequenceBatch, Trainer, TrainingSettings, continuation, score
from pyro_seq.emissions import Normal
from pyro_seq.models import LGSSM
from pyro_seq.series.demo import demo_frame
from pyro_seq.series.judging.metrics import crps_of_samples

DRAWS = 300


def series(options):
    """Columns side by side [T, N], NaN where nothing was seen."""
    if options.csv is None:
        return demo_frame().pivot(index="day", columns="shop", values="visitors")
    frame = pd.read_csv(options.csv, parse_dates=[options.time])
    return frame.set_index(options.time)[[options.value]].asfreq("D")


def batch_of(values, location, scale):
    """Standardised logarithms [N, T], the cells that are NaN marked as missing."""
    logs = (np.log1p(values).T - location) / scale
    gone = torch.from_numpy(np.isnan(logs).copy())
    return SequenceBatch(torch.from_numpy(np.nan_to_num(logs)).float(), missing=gone)


class Rows:
    """A stream of one batch: all series, a window of `length` steps at another place each time."""

    def __init__(self, batch, length):
        self.batch, self.length = batch, min(length, batch.num_steps)

    def draw(self):
        start = int(torch.randint(self.batch.num_steps - self.length + 1, ()))
        steps = slice(start, start + self.length)
        missing = self.batch.missing_cells[:, steps]
        return SequenceBatch(self.batch.values[:, steps], missing=missing), False

    def state(self):
        return {}

    def load_state(self, state):
        pass


def learn(batch, season, steps):
    torch.manual_seed(0)
    model = LGSSM(Normal(), seasons=(season,), trend="damped")
    model.start_from(batch)
    settings = TrainingSettings(num_steps=steps, learning_rate=0.03)
    pair = Pair(model)
    Trainer(pair, Rows(batch, 26 * season), settings, quiet=True).fit()
    return pair


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--time", default="day")
    parser.add_argument("--value", default="value")
    parser.add_argument("--season", type=int, default=7)
    parser.add_argument("--weeks", type=int, default=8, help="seasons at the end to be judged on")
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args(words)

    frame, horizon = series(options), options.season
    values, learnt = frame.to_numpy(float), len(frame) - options.weeks * options.season
    logs = np.log1p(values[:learnt])
    location = np.nanmean(logs, 0)[:, None]
    scale = np.nanstd(logs, 0)[:, None]
    train = batch_of(values[:learnt], location, scale)
    pair = learn(train, options.season, options.steps)
    found = score(pair, train)
    print(
        f"{len(train)} series, {learnt} steps to learn from: {found.total.sum():.1f} nats, "
        f"exact: {found.exact}"
    )

    torch.manual_seed(1)
    ours, naive, inside = [], [], []
    for start in range(learnt, len(frame), horizon):  # weeks that were not learnt from
        past = batch_of(values[:start], location, scale)
        drawn = continuation(pair, past, horizon, draws=DRAWS).view(-1, DRAWS, horizon).numpy()
        paths = np.expm1(drawn * scale[:, None] + location[:, None]).clip(0)  # [N, P, H]
        truth, last = values[start : start + horizon].T, values[start - horizon : start].T
        seen = ~(np.isnan(truth) | np.isnan(last))
        samples = paths.transpose(0, 2, 1)[seen]
        ours.append(crps_of_samples(samples, truth[seen]).mean())
        naive.append(abs(truth - last)[seen].mean())  # the CRPS of one number
        low, high = np.quantile(samples, [0.1, 0.9], axis=1)
        inside.append(((low <= truth[seen]) & (truth[seen] <= high)).mean())
    for name, each in (
        ("CRPS", ours),
        ("CRPS of the last season", naive),
        ("gain", np.subtract(naive, ours)),
        ("inside the interval of 80 %", inside),
    ):
        print(f"{name}: {np.mean(each):.3f} ± {np.std(each, ddof=1) / len(each) ** 0.5:.3f}")

    total = paths.sum(-1)
    for name, one in zip(frame.columns, total, strict=True):
        low, middle, high = np.quantile(one, [0.1, 0.5, 0.9])
        print(f"{name}, the last week in all: {middle:.0f} ({low:.0f} to {high:.0f})")


if __name__ == "__main__":
    main()
