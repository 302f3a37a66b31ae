"""The benchmarks of `series.py`: each set by its protocol, a training, and what is measured."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from common import data_file
from numpy.typing import NDArray

from pyro_seq.series.data.reading import ReadOptions, read_series
from pyro_seq.series.data.schema import SeriesTable
from pyro_seq.series.horizons import cut
from pyro_seq.series.judging.anomalies import anomalies, first_after_learning, windows_of
from pyro_seq.series.judging.evaluation import MODEL, RollingEvaluation, evaluate
from pyro_seq.series.judging.figures import Figures
from pyro_seq.series.judging.filling import fill
from pyro_seq.series.judging.metrics import ColumnPaths, coverage, weighted_quantile_loss
from pyro_seq.series.judging.nab import Labelled, mean_by_file, nab_score, probation
from pyro_seq.series.judging.surprise.p_values import LEAST_P
from pyro_seq.series.model.model import SeriesModel
from pyro_seq.series.program import series_program

Array = NDArray[np.float64]
MASKS = {"point10": (0.144, 0.117), "point50": (0.223, 0.173), "subsequence50": (0.55, 0.351)}


@dataclass
class Run:
    """How a benchmark is run.

    Attributes:
        minutes: of each training.
        words: settings, as `--set` takes them.
        folder: where runs are kept.
        quick: a few steps only.
    """

    minutes: float
    words: Mapping[str, Any]
    folder: Path
    quick: bool = False

    def train(
        self,
        name: str,
        table: SeriesTable,
        horizon: int,
        seed: int,
        others: Mapping[str, Any] = MappingProxyType({}),
    ) -> SeriesModel:
        """A model that has learnt from a table, with settings other than the defaults if any."""
        words = {
            "series.horizon": horizon,
            "training.max_minutes": self.minutes,
            **others,
            **({"training.num_steps": 3} if self.quick else {}),
            **self.words,
        }
        words = {key: value for key, value in words.items() if value is not None}
        settings = series_program.settings(words)
        kept = self.folder / f"{name}-{seed}"
        return series_program.start(kept, settings, {"table": table}, seed=seed, quiet=True)


def table_of(files: Sequence[str], **options: Any) -> SeriesTable:
    """Files of the data as a table."""
    paths = [data_file(f"series/{name}") for name in files]
    return read_series(paths, ReadOptions(**options))


def until(table: SeriesTable, stop: int) -> SeriesTable:
    """A table up to a step; a negative one counts from the end."""
    series = [cut(one, stop if stop > 0 else len(one) + stop) for one in table.series]
    return replace(table, series=series)


# forecasts


def forecasts(
    run: Run,
    name: str,
    train: SeriesTable,
    whole: SeriesTable,
    horizon: int,
    windows: int,
    seed: int,
) -> RollingEvaluation:
    """A training on one table, and forecasts of the last windows of another."""
    model = run.train(name, train, horizon, seed)
    torch.manual_seed(seed)
    return evaluate(
        model, replace(whole, schema=model.schema), horizon=horizon,
        windows=1 if run.quick else windows, nats=False, seed=seed,
    )  # fmt: skip


def figures(found: RollingEvaluation) -> dict[str, float]:
    """The figures of a model and of what it is compared with, all numbers together."""
    result = {}
    for who, columns in found.figures.items():
        one = columns.get("", Figures())
        for name in ("wql9", "mase", "crps_sum"):
            if (value := getattr(one, name)) is not None:
                result[f"{name} {who}"] = value
        for level in (80, 95):
            if (share := getattr(one, f"coverage{level}")) is not None:
                result[f"coverage {level} {who}"] = share.value
    return result


def exchange(run: Run, seed: int) -> dict[str, float]:
    """Five windows of 30 days after the first 6,071."""
    table = until(table_of(["exchange_rate.csv.gz"]), 6_221)
    found = forecasts(run, "exchange", until(table, 6_071), table, 30, 5, seed)
    return figures(found) | normal_floors("exchange", table, 30, 5, season=1, recent=250)


def m4(run: Run, seed: int) -> dict[str, float]:
    """The 48 test hours of 414 series."""
    train = table_of(["m4_hourly_train.csv.gz"], id="id", time="hour", season=(24, 168))
    test = table_of(["m4_hourly_test.csv.gz"], id="id", time="hour", season=(24, 168))
    ends = {one.id: one for one in test.series}
    joined = [
        replace(
            one,
            times=np.concatenate([one.times, ends[one.id].times]),
            values={"value": np.concatenate([one.values["value"], ends[one.id].values["value"]])},
        )
        for one in train.series
    ]
    whole = replace(train, series=joined)
    found = forecasts(run, "m4", train, whole, 48, 1, seed)
    return figures(found) | normal_floors("m4", whole, 48, 1, season=24)


def of_file(name: str, file: str, horizon: int, windows: int, **options: Any) -> Any:
    """A benchmark of the last windows of a file."""

    def benchmark(run: Run, seed: int) -> dict[str, float]:
        table = table_of([file], **options)
        train = until(table, -horizon * windows)
        return figures(forecasts(run, name, train, table, horizon, windows, seed))

    return benchmark


def bike(run: Run, seed: int) -> dict[str, float]:
    """Eight windows of a week, with the weather as it was, and without it."""
    result = {}
    for which in ("with", "without"):
        known = ("holiday", "workingday", "weather", "temp", "atemp", "hum", "windspeed")
        role: dict[str, Any] = {"known": known} if which == "with" else {"ignore": known}
        table = table_of(["bike_hourly.csv.gz"], targets=("users",), **role)
        found = forecasts(run, f"bike-{which}", until(table, -1_344), table, 168, 8, seed)
        result |= (
            figures(found)
            if which == "with"
            else {"wql9 without known": figures(found)["wql9 model"]}
        )
    return result | {"without / with": result["wql9 without known"] / result["wql9 model"]}


def wind(run: Run, seed: int) -> dict[str, float]:
    """Fourteen windows of 48 hours; no path leaves 0…1."""
    table = table_of(["wind_power.csv.gz"], layout="each")
    found = forecasts(run, "wind", until(table, -672), table, 48, 14, seed)
    outside = [((paths < 0) | (paths > 1)).sum() for paths in found.forecast.paths.values()]
    return figures(found) | {"cells outside 0…1": float(sum(outside))}


def normal_floors(
    name: str, table: SeriesTable, horizon: int, windows: int, *, season: int, recent: int = 10**9
) -> dict[str, float]:
    """The value of a season ago with normal errors, s.d. growing as the root of seasons ahead."""
    levels = np.arange(1, 1_000) / 1_000
    z = np.array([statistics.NormalDist().inv_cdf(q) for q in levels])
    ahead = np.arange(1, horizon + 1)
    ago = -(-ahead // season)
    parts = []
    for one in table.series:
        for values in one.values.values():
            for back in range(windows, 0, -1):
                start = len(values) - horizon * back
                history, truth = values[:start], values[start : start + horizon]
                moves = (history[season:] - history[:-season])[-recent:]
                spread = np.sqrt(np.nanmean(moves**2) * ago)
                point = history[start - 1 + ahead - season * ago]
                parts.append((point + z[:, None] * spread, truth))
    paths, truth = (np.stack(part) for part in zip(*parts, strict=True))
    column = ColumnPaths(paths, np.nan_to_num(truth), np.isfinite(truth))
    who = "normal errors" + (f", {recent} days" if recent < 10**9 else "")
    return {
        f"wql9 {who}": weighted_quantile_loss(column),
        f"coverage 80 {who}": coverage(column, 0.8).value,
    }


# gaps, anomalies, categories


# of the pair that fills exactly: factors of all columns, beside levels that wander
FILLING = {
    "model.name": "lgssm",
    "model.latent_size": 24,
    "model.trend": "none",
    "training.learning_rate": 0.01,
    "training.num_steps": 10_000,
    "series.context": 48,
}


def gaps(run: Run, seed: int) -> dict[str, float]:
    """Hidden cells of 72 windows of 48 hours, standardised by the training months, by `lgssm`."""
    table = table_of(["ETTh1.csv.gz"], layout="joint")
    with np.load(data_file("series/ETTh1_gaps.npz")) as file:
        first, masks = int(file["first_row"]), {name: file[name] for name in MASKS}
    one = table.series[0]
    names = [column.name for column in table.schema.of_role("target")]
    spread = {name: float(np.std(one.values[name][: 14 * 30 * 24])) for name in names}
    model = run.train("gaps", until(table, first), 48, seed, FILLING)
    result = {}
    for which, mask in masks.items():
        mask = mask[:2] if run.quick else mask
        gone = mask.reshape(-1, len(names))
        stop = first + len(gone)
        values = {name: cells[first:stop].copy() for name, cells in one.values.items()}
        for c, name in enumerate(names):
            values[name][gone[:, c]] = np.nan
        holed = replace(one, times=one.times[first:stop], values=values)
        torch.manual_seed(seed)
        found = fill(model, SeriesTable(model.schema, [holed]), draws=2 if run.quick else 50)
        errors, inside, linear = [], [], []
        for cells in found:
            truth = one.values[cells.column.name][first:stop][cells.steps]
            low, high = cells.interval(80)
            errors.append(np.abs(truth - cells.point()) / spread[cells.column.name])
            inside.append((truth >= low) & (truth <= high))
            known = np.setdiff1d(np.arange(stop - first), cells.steps)
            between = np.interp(cells.steps, known, holed.values[cells.column.name][known])
            linear.append(np.abs(truth - between) / spread[cells.column.name])
        result[f"mae {which}"] = float(np.concatenate(errors).mean())
        result[f"mae {which} linear"] = float(np.concatenate(linear).mean())
        result[f"coverage 80 {which}"] = float(np.concatenate(inside).mean())
    return result


def nab(run: Run, seed: int) -> dict[str, float]:
    """31 files, each learnt from its first 15 %, 750 rows at most; one threshold for all."""
    labels = json.loads(data_file("series/nab/windows.json").read_text(encoding="utf-8"))
    names = sorted(labels)[:: 10 if run.quick else 1]
    started, every, first = time.perf_counter(), [], []
    of_each = replace(run, minutes=run.minutes / 100)
    for name in names:
        table = table_of([f"nab/{name}"])
        learnt = until(table, probation(len(table.series[0])))
        horizon = min(24, len(learnt.series[0]) // 4)
        # nothing is forecast, so that no pool is needed
        model = of_each.train(f"nab-{name}", learnt, horizon, seed, {"series.pool": False})
        found = anomalies(model, replace(table, schema=model.schema))[0]
        ranges = windows_of(labels, name, [found.id])[found.id]
        rows = [
            (
                int(np.searchsorted(found.times, a)),
                int(np.searchsorted(found.times, b, "right")) - 1,
            )
            for a, b in ranges
        ]
        score = np.nan_to_num(-np.log(np.maximum(found.p, LEAST_P)), nan=-1.0)
        every.append(Labelled(score, rows))
        first.append(Labelled(first_after_learning(score), rows))
    minutes = (time.perf_counter() - started) / 60
    auc, precision = mean_by_file(every)
    scored = nab_score(first)
    return {
        "nab": scored.score,
        "roc auc": auc,
        "average precision": precision,
        "minutes": minutes,
        "threshold": scored.threshold,
        "found": float(scored.found),
        "false alarms": float(scored.false_alarms),
    }


def weather(run: Run, seed: int) -> dict[str, float]:
    """The weather's word each day of 2015, given all columns of the days before."""
    table = table_of(["seattle_weather.csv"], layout="joint")
    start = int(np.searchsorted(table.series[0].times, np.datetime64("2015-01-01")))
    model = run.train("weather", until(table, start), 1, seed)
    nats = nats_of(model, table, "category0", start)
    return {"nats": nats, "nats Markov": markov(table, table, "weather", start, start)}


def occupancy(run: Run, seed: int) -> dict[str, float]:
    """Whether a room is occupied, given the minutes before and what sensors say of this one."""
    options: dict[str, Any] = {"targets": ("Occupancy",), "time": "", "kinds": {"Occupancy": "yes"}}
    options["known"] = ("Temperature", "Humidity", "Light", "CO2", "HumidityRatio")
    options["ignore"] = ("date",)
    train, test = (
        table_of([f"occupancy_{which}.csv.gz"], **options) for which in ("train", "test")
    )
    model = run.train("occupancy", train, 1, seed)
    nats = nats_of(model, test, "yes", 1)
    end = len(train.series[0])
    return {"nats": nats, "nats Markov": markov(train, test, "Occupancy", end, 1)}


def markov(train: SeriesTable, test: SeriesTable, name: str, end: int, start: int) -> float:
    """The same of a Markov chain of the values before a step of training, each pair seen once
    more.
    """
    past = train.series[0].values[name][:end].astype(int)
    came = test.series[0].values[name].astype(int)
    counts = np.ones((max(past.max(), came.max()) + 1,) * 2)
    np.add.at(counts, (past[:-1], past[1:]), 1)
    shares = counts / counts.sum(1, keepdims=True)
    return float(-np.log(shares[came[start - 1 : -1], came[start:]]).mean())


@torch.no_grad()
def nats_of(model: SeriesModel, table: SeriesTable, member: str, start: int) -> float:
    """The mean -log p(x_t | what came before) of a member of the observations, from a step on."""
    pair: Any = model.pair
    batch = model.batch_of(table.series[:1], 0, len(table.series[0])).with_cache()
    with pair.scope(), pair.evaluating():
        equations = pair.model
        contexts, _ = equations.context.over(batch, equations.state_before(batch)["context"])
        h, carried = equations.hidden_states(batch)
        features, _ = equations.decode(h, None, carried)
        law = equations.emit(features, contexts)[member]
        values = equations.emission.prepare(batch.values, batch.mask)[member]
        log_prob: torch.Tensor = law.log_prob(values)
    return -float(log_prob[0, start:].double().mean())


CLASSICS = {
    "air_passengers": 12, "co2_weekly": 52, "lynx": 10, "monthly_milk_incomplete": 12,
    "nile": 10, "seatbelts": 12, "sunspots_yearly": 11,
}  # fmt: skip


def defaults(run: Run, seed: int) -> dict[str, float]:
    """Every set and the classics without an option: wQL9 beside the better of the naive two."""
    files = {
        "exchange": ("exchange_rate.csv.gz", 30), "m4": ("m4_hourly_train.csv.gz", 48),
        "hospital": ("hospital.csv.gz", 12), "nn5": ("nn5.csv.gz", 56),
        "ettH1": ("ETTh1.csv.gz", 48), "bike": ("bike_hourly.csv.gz", 168),
        "wind": ("wind_power.csv.gz", 48), "weather": ("seattle_weather.csv", 14),
        "occupancy": ("occupancy_train.csv.gz", 60),
    }  # fmt: skip
    return _beside_naive(run, seed, files) | classics(run, seed)


def classics(run: Run, seed: int) -> dict[str, float]:
    """The seven classics without an option."""
    files = {name: (f"classics/{name}.csv", horizon) for name, horizon in CLASSICS.items()}
    return _beside_naive(run, seed, files)


def _beside_naive(run: Run, seed: int, files: Mapping[str, tuple[str, int]]) -> dict[str, float]:
    result, better = {}, 0
    for name, (file, horizon) in files.items():
        table = table_of([file])
        found = forecasts(run, f"default-{name}", until(table, -horizon), table, horizon, 1, seed)
        one = {who: columns.get("") for who, columns in found.figures.items()}
        if one[MODEL] is None:
            continue
        naive = [one[who] for who in ("last value", "seasonal naive")]
        least = min(float(figure.wql9 or np.nan) for figure in naive if figure is not None)
        ratio = float(one[MODEL].wql9 or np.nan) / least
        result[f"{name}: wql9 beside the better naive"] = ratio
        better += ratio < 1
    return result | {"share better than both": better / max(len(result), 1)}


BENCHMARKS: dict[str, Callable[[Run, int], dict[str, float]]] = {
    "exchange": exchange,
    "m4": m4,
    "hospital": of_file("hospital", "hospital.csv.gz", 12, 1),
    "nn5": of_file("nn5", "nn5.csv.gz", 56, 1),
    "ettH1": of_file("ettH1", "ETTh1.csv.gz", 48, 20, layout="each"),
    "bike": bike,
    "wind": wind,
    "gaps": gaps,
    "nab": nab,
    "weather": weather,
    "occupancy": occupancy,
    "classics": classics,
    "defaults": defaults,
}
