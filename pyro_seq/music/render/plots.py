"""Plots as PNG: a piano roll, learning curves, histograms side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_writer import BEATS_A_BAR, lowest_pitch, sustained
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.evaluation.statistics import LAGS, PITCH_CLASSES, WIDEST, length_labels
from pyro_seq.programs.plotting import (
    GRID,
    INK,
    MARK,
    SERIES,
    dress,
    entitle,
    new_figure,
    png_bytes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PRIMER, MUSIC = "#8b93a3", "#1767a8"
BLACK_KEYS = (1, 3, 6, 8, 10)
MARGIN = 2  # semitones above and below what sounds
MOST_LINES = 160  # beats or bars beyond which they are no lines but a grey area


def roll_png(
    roll: Tensor,
    timing: Timing,
    *,
    title: str = "",
    primer_frames: int = 0,
) -> bytes:
    """Plot a roll, pitch over seconds, with lines at beats and bars of four beats.

    Lines are drawn where there is a grid.

    Args:
        roll: `[T, 88]` or `[T, 128]`; what is not 0 sounds.
        timing: when its frames sound.
        title: above the picture.
        primer_frames: so many frames at the beginning were given, and are shown in grey, up to a
            line.

    Raises `UserError` for what is no roll, or a primer that is longer.
    """
    lowest = lowest_pitch(roll)
    if not 0 <= primer_frames <= len(roll):
        raise UserError(f"a primer of {primer_frames} frames does not fit a roll of {len(roll)}")
    notes = sustained(roll)
    notes[:, 2] += lowest
    low, high = _range(notes[:, 2])
    figure, axes = _figure(9.0, min(4.5, 1.1 + 0.055 * (high - low)))
    for pitch in range(low, high + 1):
        if pitch % 12 in BLACK_KEYS:
            axes.axhspan(pitch - 0.5, pitch + 0.5, color="#f1f3f6", linewidth=0, zorder=0)
    _beats(axes, timing, len(roll))
    _bars(axes, notes, 0, primer_frames, PRIMER, timing)
    _bars(axes, notes, primer_frames, len(roll), MUSIC, timing)
    if 0 < primer_frames < len(roll):
        primer = timing.seconds(primer_frames)
        axes.axvline(primer, color=MARK, linewidth=1.3, zorder=4)
        above: dict[str, Any] = {
            "va": "bottom",
            "fontsize": 8,
            "transform": axes.get_xaxis_transform(),
        }
        axes.text(primer, 1.01, "primer  ", ha="right", color="#5d6676", **above)
        axes.text(primer, 1.01, "  continuation", ha="left", color=MUSIC, **above)
    axes.set(
        xlim=(0, timing.seconds(len(roll)) or 1.0), ylim=(low - 0.5, high + 0.5), xlabel="seconds"
    )
    named = [pitch for pitch in range(low, high + 1) if pitch % 12 == 0]
    if len(named) < 2:
        named = [pitch for pitch in range(low, high + 1) if pitch % 12 in (0, 4, 7)]
    axes.set_yticks(named, [PITCH_CLASSES[pitch % 12] + str(pitch // 12 - 1) for pitch in named])
    entitle(axes, title, pad=16 if 0 < primer_frames < len(roll) else 6)
    return png_bytes(figure)


def _range(pitches: NDArray[np.int64]) -> tuple[int, int]:
    """The lowest and the highest pitch of a picture: what sounds and a margin, more than an octave
    in all.
    """
    low, high = (int(pitches.min()), int(pitches.max())) if len(pitches) else (57, 72)
    margin = MARGIN if high - low >= 8 else MARGIN + 4  # a few notes are no wall
    return max(0, low - margin), min(127, high + margin)


def _bars(
    axes: Axes, notes: NDArray[np.int64], start: int, end: int, colour: str, timing: Timing
) -> None:
    """What notes (first frame, frame after the last, pitch) sound from frame `start` to `end`, as
    bars.

    Each is a hair shorter than it sounds, so that neighbours stay apart.
    """
    from matplotlib.collections import PolyCollection

    gap = timing.seconds(int(notes[:, 1].max(initial=0))) / 900
    corners = []
    for first, after, pitch in notes[(notes[:, 0] < end) & (notes[:, 1] > start)].tolist():
        left, right = timing.seconds(max(first, start)), timing.seconds(min(after, end))
        right = max((left + right) / 2, right - gap)
        corners.append(
            [
                (left, pitch - 0.42),
                (right, pitch - 0.42),
                (right, pitch + 0.42),
                (left, pitch + 0.42),
            ]
        )
    axes.add_collection(
        PolyCollection(corners, facecolor=colour, edgecolor="none", zorder=3), autolim=False
    )


def _beats(axes: Axes, timing: Timing, frames: int) -> None:
    for every, colour in ((timing.grid, GRID), (timing.grid * BEATS_A_BAR, "#c6ccd6")):
        if every and frames / every <= MOST_LINES:
            for frame in range(every, frames, every):
                axes.axvline(timing.seconds(frame), color=colour, linewidth=0.7, zorder=1)


def curves_png(curves: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """Plot learning curves, (step, value) by name, without values that are not finite.

    The first values of a training can be so far above the others that these would be one flat line:
    the picture is cut off there.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(5.0, 3.0)
    tops, bottoms = [], []
    for i, (name, points) in enumerate(curves.items()):
        finite = np.array(
            [(step, value) for step, value in points if np.isfinite(value)], dtype=float
        ).reshape(-1, 2)
        few = len(finite) <= 60
        style: dict[str, Any] = {
            "color": SERIES[(i + 1) % len(SERIES)],
            "label": name,
            "linewidth": 1.6,
        }
        axes.plot(finite[:, 0], finite[:, 1], marker="o" if few else "", markersize=3, **style)
        if len(finite):
            tops.append(float(np.quantile(finite[:, 1], 0.95)))
            bottoms.append(float(finite[:, 1].min()))
            tops.append(float(finite[len(finite) // 4 :, 1].max()))
    if tops:
        margin = 0.06 * (max(tops) - min(bottoms)) or 0.5
        axes.set_ylim(min(bottoms) - margin, max(tops) + margin)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set(xlabel="step", ylabel="nats per frame")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    return png_bytes(figure)


def histograms(
    by_source: Mapping[str, Mapping[str, NDArray[np.float64]]],
    *,
    lag_unit: str = "beats",
) -> dict[str, bytes]:
    """Plot each of `statistics`, with all sources (real, generated, …) side by side.

    Args:
        by_source: the statistics by the name of what they are of.
        lag_unit: what lags and lengths of notes are counted in: beats; else seconds.
    """
    pictures = {}
    for name in next(iter(by_source.values()), {}):
        figure, axes = _figure(3.7, 2.4)
        series = {source: found[name] for source, found in by_source.items()}
        if name == "repetition":
            lag = np.arange(1, LAGS + 1) * (1 if lag_unit == "beats" else 0.5)
            for i, (source, values) in enumerate(series.items()):
                axes.plot(
                    lag,
                    values,
                    color=SERIES[i % len(SERIES)],
                    label=source,
                    linewidth=1.5 if i else 3.0,
                )  # real music's may lie below
            axes.set(
                xlabel=f"{lag_unit} before", ylabel="likeness", ylim=(0, None), xlim=(0, lag[-1])
            )
        else:
            for i, (source, values) in enumerate(series.items()):
                bar = 0.84 / len(series)
                middle = np.arange(len(values)) + bar * (i - (len(series) - 1) / 2)
                axes.bar(
                    middle, values, bar, color=SERIES[i % len(SERIES)], label=source, linewidth=0
                )
            ticks, label = _ticks(name, lag_unit, len(next(iter(series.values()))))
            axes.set_xticks(list(ticks), list(ticks.values()))
            axes.set(xlabel=label, ylabel="share")
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        if len(series) > 1:
            figure.legend(
                *axes.get_legend_handles_labels(),
                frameon=False,
                fontsize=8,
                labelcolor=INK,
                ncols=3,
                loc="outside upper right",
            )
        pictures[name] = png_bytes(figure)
    return pictures


def _ticks(name: str, unit: str, bins: int) -> tuple[dict[int, str], str]:
    """Names of bins, and of the axis."""
    if name == "pitch classes":
        return dict(enumerate(PITCH_CLASSES)), "pitch class"
    if name == "melodic intervals":
        return {
            i + WIDEST: f"{i:+d}".replace("-", "−") if i else "0"
            for i in range(-WIDEST, WIDEST + 1, 3)
        }, "semitones"
    if name == "note lengths":
        return {i: label for i, label in enumerate(length_labels()) if label}, unit
    return {i: str(i) if i < bins - 1 else f"{i}+" for i in range(bins)}, "notes at once"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure and its only axes."""
    figure = new_figure(width, height)
    return figure, dress(figure.add_subplot())
