"""Plot several melodies side by side, over the same keys and seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from pyro_seq.music.data.midi_writer import sustained
from pyro_seq.music.data.piano_rolls import KEYS, LOWEST
from pyro_seq.music.evaluation.statistics import PITCH_CLASSES
from pyro_seq.music.render.plots import BLACK_KEYS, MUSIC
from pyro_seq.programs.plotting import INK, dress, new_figure, png_bytes
from pyro_seq.seqgan.tasks.melodies import REST, roll_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# inches: of a column, of a panel, and of what stands around them
WIDTH, PANEL_HEIGHT, EDGES = 4.2, 1.2, 0.35
MARGIN, LEAST_RANGE = 2, 16  # semitones around what sounds, and of a picture at least
GAP = 0.06  # of a step: by so much a bar is shorter than its note, so that neighbours stay apart


def melodies_png(
    titled: Sequence[tuple[str, Tensor | None]],
    seconds: float,
    *,
    columns: int = 2,
    colours: Sequence[str] = (),
) -> bytes:
    """Plot melodies as panels, row by row: pitch over seconds.

    Equal neighbouring symbols are one bar, a rest is left white.

    Args:
        titled: each melody `[T]` with its title; where `None` stands for a melody its place stays
            empty.
        seconds: how long a step lasts.
        columns: panels side by side.
        colours: of the notes, by column; else all have one.
    """
    columns = max(1, min(columns, len(titled)))
    rows = max(1, math.ceil(len(titled) / columns))
    figure = new_figure(WIDTH * columns, PANEL_HEIGHT * rows + EDGES)
    shown = [symbols for _, symbols in titled if symbols is not None]
    low, high = _range(shown)
    end = seconds * max(map(len, shown), default=1)
    for i in range(rows * columns):
        title, symbols = titled[i] if i < len(titled) else ("", None)
        axes = figure.add_subplot(rows, columns, i + 1)
        if symbols is None:
            axes.set_axis_off()
            continue
        _panel(axes, symbols, seconds, low, high, colours[i % columns] if colours else MUSIC)
        axes.set_xlim(0, end)
        if title:
            axes.set_title(title, loc="left", fontsize=8, color=INK, pad=3, parse_math=False)
        below = i + columns
        axes.tick_params(
            labelbottom=below >= len(titled) or titled[below][1] is None, labelleft=i % columns == 0
        )
    figure.supxlabel("seconds", fontsize=8, color=INK)
    return png_bytes(figure)


def _range(melodies: Sequence[Tensor]) -> tuple[int, int]:
    """The lowest and the highest key of a picture: what sounds in any melody and a margin, an
    octave and a third at least.
    """
    keys = [key for symbols in melodies for key in symbols.tolist() if key != REST]
    # an octave from the middle C on
    low, high = (min(keys) - MARGIN, max(keys) + MARGIN) if keys else (39, 51)
    missing = max(0, LEAST_RANGE - (high - low))
    return max(0, low - missing // 2), min(KEYS - 1, high + (missing + 1) // 2)


def _panel(axes: Axes, symbols: Tensor, seconds: float, low: int, high: int, colour: str) -> None:
    from matplotlib.collections import PolyCollection

    lowest = LOWEST[KEYS]
    for key in range(low, high + 1):
        if (lowest + key) % 12 in BLACK_KEYS:
            axes.axhspan(key - 0.5, key + 0.5, color="#f1f3f6", linewidth=0, zorder=0)
    bars = []
    for first, after, key in sustained(roll_of(symbols)).tolist():
        left, right = first * seconds, (after - GAP) * seconds
        bars.append(
            [(left, key - 0.45), (right, key - 0.45), (right, key + 0.45), (left, key + 0.45)]
        )
    axes.add_collection(
        PolyCollection(bars, facecolor=colour, edgecolor="none", zorder=3, snap=False),
        autolim=False,
    )
    axes.set_ylim(low - 0.5, high + 0.5)
    named = [key for key in range(low, high + 1) if (lowest + key) % 12 == 0]
    for key in named:
        axes.axhline(key - 0.5, color="#c6ccd6", linewidth=0.6, zorder=1)
    if len(named) < 2:
        named = [key for key in range(low, high + 1) if (lowest + key) % 12 in (0, 7)]
    axes.set_yticks(
        named, [PITCH_CLASSES[(lowest + key) % 12] + str((lowest + key) // 12 - 1) for key in named]
    )
    dress(axes, size=7, length=2)
