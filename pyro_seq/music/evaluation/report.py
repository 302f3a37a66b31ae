"""Build the report of a music run: samples, curves, and comparison with real music."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_seq.config.fields import flatten
from pyro_seq.music.evaluation.report_page import ReportFigure, Sound, report_html
from pyro_seq.music.evaluation.statistics import distance, statistics
from pyro_seq.music.model.training import MusicModel, evaluate, generate, play
from pyro_seq.music.render.plots import curves_png, histograms
from pyro_seq.programs.page import Picture
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.metrics import read_metrics

COMPARED_SECONDS = 30.0  # of each roll whose statistics are compared


@dataclass(frozen=True, eq=False)
class ReportOptions:
    """Options of a listening report.

    Attributes:
        num_samples: pieces to listen to.
        seconds: how long each is, without its primer.
        num_compared: rolls whose statistics are compared with the real ones.
        temperature: of all of them.
        primer: `[T, keys]`, what the pieces go on from, or `None`.
    """

    num_samples: int = 4
    seconds: float = 10.0
    num_compared: int = 32
    temperature: float = 1.0
    primer: Tensor | None = None


def run_report(
    run: RunFolder,
    music: MusicModel,
    pieces: Sequence[Tensor],
    asked: ReportOptions,
    *,
    source: str,
) -> tuple[str, dict[str, Any]]:
    """Return (the page, the distances that it shows), from torch's global random state.

    Args:
        run: the run's folder.
        music: its model.
        pieces: real ones, that it was not trained on.
        asked: what to show.
        source: what the pieces are called.
    """
    by_source = compare_statistics(music, pieces, asked)
    real = by_source["real"]
    distances = {name: distance(real, found) for name, found in by_source.items() if name != "real"}
    unit = "beats" if music.timing.grid else "seconds"
    pictures = histograms(by_source, lag_unit=unit)
    page = report_html(
        f"Music by {music.settings.model.name}",
        summary=f"After {music.step:,} steps of training, beside {source}.",
        settings=dict(flatten(music.settings)),
        curves=_curves(run),
        figures=_figures(music, pieces, source),
        sounds=_sounds(music, asked),
        histograms=[
            Picture(png, f"{name}: {', '.join(by_source)} side by side", name)
            for name, png in pictures.items()
        ],
        distances=distances,
    )
    return page, distances


def compare_statistics(
    music: MusicModel, pieces: Sequence[Tensor], asked: ReportOptions
) -> dict[str, Any]:
    """Return `statistics` of real pieces, samples and the Markov model's samples.

    All last `COMPARED_SECONDS`; samples are from torch's random state.
    """
    frames = max(2, round(COMPARED_SECONDS * music.timing.frames_per_second))
    stretches = [stretch for piece in pieces for stretch in piece.split(frames)]
    generated = list(
        generate(music, frames, num_samples=asked.num_compared, temperature=asked.temperature)
    )
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    markov = list(music.markov.sample(asked.num_compared, frames, generator))
    sources = {"real": stretches, "generated": [roll.cpu() for roll in generated], "Markov": markov}
    return {name: statistics(rolls, music.timing) for name, rolls in sources.items()}


def _curves(run: RunFolder) -> list[Picture]:
    """The losses of training and validation, as far as the metrics file tells."""
    curves: dict[str, list[tuple[int, float]]] = {"training": [], "validation": []}
    for entry in read_metrics(run.metrics):
        try:
            name = {"train": "training", "valid": "validation"}[entry["split"]]
            curves[name].append((int(entry["step"]), float(entry["loss"])))
        except (ValueError, KeyError, TypeError):  # not ours
            continue
    known: Mapping[str, Any] = {name: points for name, points in curves.items() if points}
    return (
        [
            Picture(
                curves_png(known),
                "Learning curves: nats per frame by step",
                "Loss by training step",
            )
        ]
        if known
        else []
    )


def _figures(music: MusicModel, pieces: Sequence[Tensor], source: str) -> list[ReportFigure]:
    scored = evaluate(music, pieces, samples=1)
    how = "exact" if scored.method == "exact" else "at most: negative ELBO"
    figures = [
        ReportFigure(
            f"{music.settings.model.name} on {source}",
            scored.nats_per_frame,
            note=f"{how}; {scored.frames:,} frames",
        )
    ]
    if scored.markov_nats_per_frame is not None:
        note = "each key by itself, given whether it sounded a frame ago"
        figures.append(
            ReportFigure(
                f"first-order Markov model on {source}", scored.markov_nats_per_frame, note=note
            )
        )
    return figures


def _sounds(music: MusicModel, asked: ReportOptions) -> list[Sound]:
    played = play(
        music,
        asked.seconds,
        num_samples=asked.num_samples,
        primer=asked.primer,
        temperature=asked.temperature,
    )
    return [
        Sound(
            f"Sample {i}",
            rendered.wav(),
            rendered.png(),
            primer=rendered.wav(rendered.primer_frames) if rendered.primer_frames else b"",
            midi=rendered.midi(),
        )
        for i, rendered in enumerate(played, 1)
    ]
