"""Evaluations and sweeps: a generator beside its pretrained twin and real sequences, as figures,
and as pictures.
"""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.programs.plotting import SERIES
from pyro_seq.runs.checkpoint import load_tree
from pyro_seq.runs.folder import RunFolder
from pyro_seq.seqgan.evaluation import Comparison, evaluate
from pyro_seq.seqgan.metrics.figure_names import better, figure_name, named_with_unit
from pyro_seq.seqgan.metrics.quality import generated, likelihood, quality
from pyro_seq.seqgan.plots.curve import learning_curves_png, validations, write_curves
from pyro_seq.seqgan.plots.sweep import COLOURS, sweep_png
from pyro_seq.seqgan.sweeps import Point, Sweep, sweep
from pyro_seq.seqgan.tasks.base import Measurement


@pytest.fixture(scope="module")
def comparison(seqgan_run: Path) -> Comparison:
    return Comparison.of(seqgan_run)


def painted(png: bytes, colour: str) -> np.ndarray:
    """Where a picture has a colour, `[height, width]`."""
    pixels = np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.asarray((np.abs(pixels - wanted) <= 2).all(-1))


# evaluation


def test_figures_are_those_of_each_generator_at_its_temperature(comparison: Comparison) -> None:
    found = evaluate(comparison, 50, temperature=0.5, seed=4)
    assert list(found.figures) == ["best", "pretrained", "real"] and (
        found.num_real,
        found.references,
    ) == (12, 12)
    for name, generator in comparison.generators.items():
        torch.manual_seed(4)
        expected = quality(
            generator.pair, comparison.task, comparison.task.sequences.test, 50, temperature=0.5
        )
        assert found.figures[name] == expected and next(iter(found.figures[name])) == "nll_oracle"
    assert found.figures["real"] == comparison.task.judge(
        comparison.task.sequences.valid, comparison.task.sequences.test
    )
    assert (
        json.loads(json.dumps(found.to_json(), allow_nan=False))["figures"]["best"]["nll"]["value"]
        == found.figures["best"]["nll"].value
    )


def test_validation_sequences_as_references(seqgan_run: Path, comparison: Comparison) -> None:
    other = Comparison.of(seqgan_run, split="valid")
    assert torch.equal(other.references, comparison.task.sequences.valid)
    nll, _ = likelihood(other.generators["best"].pair, comparison.task.sequences.valid)
    assert other.figures("best", 5)["nll"] == nll


def test_pretrained_weights_alone(seqgan_run: Path, tmp_path: Path) -> None:
    """Where they are asked for, and where adversarial training has not begun."""
    assert list(Comparison.of(seqgan_run, weights="pretrained").generators) == ["pretrained"]
    folder = Path(shutil.copytree(seqgan_run, tmp_path / "run"))
    for name in ("best.safetensors", "last.safetensors"):
        (folder / name).unlink()
    alone = Comparison.of(folder)
    assert list(alone.generators) == ["pretrained"]
    assert list(evaluate(alone, 4).figures) == ["pretrained", "real"]


def test_figures_that_are_not_finite_are_null_in_json(comparison: Comparison) -> None:
    point = Point(1.0, {"nll": Measurement(math.inf, math.nan), "nll_oracle": Measurement(1.0)})
    found = Sweep("nll_oracle", False, "tokens", "test", 3, {"best": [point]}).to_json()
    assert found["curves"]["best"][0]["figures"] == {
        "nll": {"value": None, "standard_error": None},
        "nll_oracle": {"value": 1.0, "standard_error": None},
    }


def test_likelihood_at_a_temperature_is_that_of_what_is_sampled(seqgan_run: Path) -> None:
    """Mean NLL of a generator's own sequences at a temperature is the mean of its entropy there,
    within the errors of both.
    """
    pair = Comparison.of(seqgan_run).generators["best"].pair
    for temperature in (0.2, 1.0, 3.0):
        nll, entropy = likelihood(
            pair, generated(pair, 4_000, 6, temperature=temperature), temperature=temperature
        )
        assert nll.standard_error is not None and entropy.standard_error is not None
        assert abs(nll.value - entropy.value) < 4 * (nll.standard_error + entropy.standard_error)


def test_names() -> None:
    assert [figure_name(name) for name in ("nll", "bleu_4", "self_bleu_2")] == [
        "NLL_test",
        "BLEU-4",
        "self-BLEU-2",
    ]
    assert (
        named_with_unit("nll", "valid", "characters") == "NLL_valid, nats a character"
        and named_with_unit("bleu_2", "test", "x") == "BLEU-2"
    )
    assert [
        better(name)[:6]
        for name in ("nll_oracle", "bleu_3", "self_bleu_3", "mse_pitch", "distinct")
    ] == [
        "lower ",
        "higher",
        "best a",
        "lower ",
        "best a",
    ]


# sweeps


def test_a_sweep_is_an_evaluation_at_each_temperature(comparison: Comparison) -> None:
    found = sweep(comparison, [2.0, 0.5, 2], 40, seed=1)
    for name, points in found.curves.items():
        assert [point.temperature for point in points] == [0.5, 2.0]
        assert [point.figures for point in points] == [
            comparison.figures(name, 40, temperature=t, seed=1) for t in (0.5, 2.0)
        ]
    entropy = [
        [point.figures["entropy"].value for point in points] for points in found.curves.values()
    ]
    assert all(low < high for low, high in entropy), "colder is less varied"
    assert (found.criterion, found.higher, found.units) == ("nll_oracle", False, "tokens")


@pytest.mark.parametrize(
    "temperatures",
    [[], [0.0], [1.0, -1.0], [math.nan], [math.inf], list(np.linspace(0.1, 2, 200))],
    ids=len,
)
def test_temperatures_that_are_none(comparison: Comparison, temperatures: list[float]) -> None:
    with pytest.raises(UserError, match="temperatures"):
        sweep(comparison, temperatures, 4)


def drawn(*, higher: bool = False, wrong: float = 1.0, best: bool = True) -> bytes:
    def points(shift: float) -> list[Point]:
        return [
            Point(t, {"nll": Measurement(7 + t, 0.1), "y": Measurement(9 - t + shift, 0.1)})
            for t in (0.5, 1.0, 2.0)
        ]

    curves = {
        "best": [*points(-2), Point(9.0, {"nll": Measurement(wrong), "y": Measurement(9.0)})],
        "pretrained": points(0),
    }
    return sweep_png(
        Sweep(
            "y",
            higher,
            "tokens",
            "test",
            10,
            curves if best else {"pretrained": curves["pretrained"]},
        ),
    )


def test_the_picture_of_a_sweep_has_both_curves() -> None:
    png = drawn(wrong=math.inf)
    rows = {
        name: np.flatnonzero(painted(png, colour)[:, :400].any(1)).mean()
        for name, colour in COLOURS.items()
    }
    assert rows["pretrained"] < rows["best"], "the one with less of the criterion is below"
    assert png == drawn(wrong=math.nan), "what is not finite is left out"
    assert png != drawn() and not painted(drawn(best=False), COLOURS["best"]).any()
    assert sweep_png(Sweep("y", True, "tokens", "test", 10, {})).startswith(b"\x89PNG")


# curves


def course(start: int, values: list[float], **more: Any) -> list[dict[str, Any]]:
    return [
        {"step": start + 10 * i, "nll": value, "y": value + 1, "y_error": 0.1, **more}
        for i, value in enumerate(values)
    ]


def test_the_picture_of_a_training_has_both_parts_and_figures() -> None:
    png = learning_curves_png(
        course(10, [900.0, 9.0, 8.0, 7.5]),
        course(0, [7.5, 7.0, 6.0]),
        criterion="y",
        units="tokens",
    )
    for colour in SERIES[1:3]:
        there = painted(png, colour)
        width = there.shape[1]
        assert there[:, : width // 2].any() and there[:, width // 2 :].any()
        heights = np.flatnonzero(there.any(1))
        assert heights[-1] - heights[0] > 100, "not one flat line below the 900 of the beginning"


@pytest.mark.parametrize(
    ("before", "after"),
    [([], []), ([7.0], []), ([], [7.0]), ([math.nan, 7.0], [math.inf]), ([7.0, 7.0], [7.0])],
)
def test_a_picture_of_any_training(before: list[float], after: list[float]) -> None:
    assert learning_curves_png(
        course(1, before), course(0, after), criterion="y", units="tokens"
    ).startswith(b"\x89PNG")


def test_a_picture_of_a_training_without_its_criterion() -> None:
    assert learning_curves_png(
        course(1, [math.nan, 7.0], y=None), course(0, [math.inf]), criterion="absent", units="x"
    ).startswith(b"\x89PNG")


def test_curves_of_a_run_with_damaged_metrics(seqgan_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(seqgan_run, tmp_path / "run"))
    run, pretraining = (
        RunFolder(folder, "seqgan"),
        RunFolder(folder / "pretraining", "seqgan-pretraining"),
    )
    assert [entry["step"] for entry in validations(run)] == [0, 2, 4] and len(
        validations(pretraining)
    ) == 2
    with run.metrics.open("ab") as file:
        file.write(
            b'[3]\n{"step": "x", "split": "valid"}\n'
            + b"[" * 100_000
            + b'\n\xff\n{"step": 5, "split": "valid", "nll": "x"}\n{"st'
        )
    pretraining.metrics.unlink()
    assert [entry["step"] for entry in validations(run)] == [0, 2, 4, 5] and validations(
        pretraining
    ) == []
    write_curves(run, pretraining, "nll_oracle", "tokens")
    assert (
        load_tree(run.last)["step"] == 4
        and (folder / "curves.png").read_bytes() != (seqgan_run / "curves.png").read_bytes()
    )
