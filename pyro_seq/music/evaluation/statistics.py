"""Statistics of music that a person understands, and distances between two bodies of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.music.data.midi_writer import lowest_pitch, sustained
from pyro_seq.music.data.piano_rolls import Timing

MOST_NOTES = 10  # at once; more are counted as so many
WIDEST = 12  # semitones of a melodic interval; wider ones are counted as so wide
# beats or seconds: the middles of the bins, which are half an octave wide
LENGTHS = 2.0 ** np.arange(-4, 4.5, 0.5)
LAGS = 32

PITCH_CLASSES = "C C♯ D D♯ E F F♯ G G♯ A A♯ B".split()  # noqa: SIM905 (as a musician writes them)


def statistics(rolls: Sequence[Tensor], timing: Timing) -> dict[str, NDArray[np.float64]]:
    """Compute distributions, and a curve, of rolls `[T, 88]` or `[T, 128]` together.

    - `pitch classes` `[12]`: of every frame's sounding keys, C first.
    - `polyphony` `[11]`: how many keys sound at once, 0 to 10 (or more), by frame.
    - `note lengths` `[17]`: in beats on a grid, else in seconds; bins half an octave wide around
      1/16, …, 1, √2, 2, …, 16, the outer ones with all that is beyond. A note is a run of frames,
      so that what is struck anew without a silent frame counts as one.
    - `melodic intervals` `[25]`: the steps in semitones, -12 (or more) to 12, of the highest
      sounding key from one pitch to the next; 0 is the same pitch after a silence.
    - `repetition` `[32]`: how alike music is to what was heard 1, …, 32 beats (half seconds,
      without a grid) before: the mean over all pairs of frames so far apart of the keys that sound
      in both by those that sound in either (the Jaccard index, from 0 to 1), of those pairs in
      which any does. Not a number where there are no such pairs.

    A distribution adds up to 1, or is 0 throughout where there is nothing to count. Raises
    `UserError` for what is no roll.
    """
    pitches, polyphony, lengths, intervals = (
        np.zeros(12),
        np.zeros(MOST_NOTES + 1),
        np.zeros(len(LENGTHS)),
        np.zeros(2 * WIDEST + 1),
    )
    alike, pairs = np.zeros(LAGS), np.zeros(LAGS)
    for roll in rolls:
        lowest = lowest_pitch(roll)
        sounding = roll.detach().cpu().bool().numpy()
        np.add.at(pitches, (lowest + np.arange(sounding.shape[1])) % 12, sounding.sum(0))
        polyphony += np.bincount(np.minimum(sounding.sum(1), MOST_NOTES), minlength=MOST_NOTES + 1)
        notes = sustained(roll)
        lengths += _note_lengths(notes[:, 1] - notes[:, 0], timing)
        intervals += _melodic_intervals(sounding)
        for i, lag in enumerate(lags(timing)):
            sum_of, number = _likeness(sounding, lag)
            alike[i] += sum_of
            pairs[i] += number
    counted = {
        "pitch classes": pitches,
        "polyphony": polyphony,
        "note lengths": lengths,
        "melodic intervals": intervals,
    }
    shares = {name: counts / max(1.0, counts.sum()) for name, counts in counted.items()}
    return shares | {
        "repetition": np.divide(alike, pairs, out=np.full(LAGS, np.nan), where=pairs > 0)
    }


def lags(timing: Timing) -> list[int]:
    """Return the lags of `repetition` in frames: of beats, or of half seconds."""
    if timing.grid:
        return [timing.grid * n for n in range(1, LAGS + 1)]
    return [max(n, round(timing.rate * n / 2)) for n in range(1, LAGS + 1)]


def _note_lengths(frames: NDArray[np.int64], timing: Timing) -> NDArray[np.float64]:
    length = frames / (timing.grid or timing.rate)
    bins = np.rint(2 * np.log2(length / LENGTHS[0])).astype(int)
    return np.bincount(np.clip(bins, 0, len(LENGTHS) - 1), minlength=len(LENGTHS)).astype(float)


def _melodic_intervals(sounding: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Counts of the top voice's steps, `[25]`."""
    top = np.where(sounding.any(1), sounding.shape[1] - 1 - sounding[:, ::-1].argmax(1), -1)
    top = top[np.flatnonzero(np.diff(top, prepend=-2))]  # each time it changes
    steps = np.diff(top[top >= 0])
    return np.bincount(np.clip(steps, -WIDEST, WIDEST) + WIDEST, minlength=2 * WIDEST + 1).astype(
        float
    )


def _likeness(sounding: NDArray[np.bool_], lag: int) -> tuple[float, int]:
    """The sum of the Jaccard indices of all pairs of frames so far apart in which any key sounds,
    and their number.
    """
    earlier, later = sounding[:-lag], sounding[lag:]
    either = (earlier | later).sum(1)
    any_sounds = either > 0
    return float(((earlier & later).sum(1)[any_sounds] / either[any_sounds]).sum()), int(
        any_sounds.sum()
    )


def distance(
    a: Mapping[str, NDArray[np.float64]], b: Mapping[str, NDArray[np.float64]]
) -> dict[str, float]:
    """Return how far two `statistics` are apart, by name; 0 where they are equal.

    Of distributions the Jensen–Shannon divergence in bits, (KL(p | m) + KL(q | m)) / 2 with m = (p
    + q) / 2, from 0 to 1; of the repetition the mean absolute difference over the lags that both
    know, also from 0 to 1. Not a number where one of them is of nothing.
    """
    far = {}
    for name in a:
        p, q = a[name], b[name]
        if name == "repetition":
            known = np.isfinite(p) & np.isfinite(q)
            far[name] = float(np.abs(p - q)[known].mean()) if known.any() else float("nan")
        else:
            far[name] = _jensen_shannon(p, q) if p.any() and q.any() else float("nan")
    return far


def _jensen_shannon(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    mean = (p + q) / 2

    def divergence(r: NDArray[np.float64]) -> float:
        there = r > 0
        return float((r[there] * np.log2(r[there] / mean[there])).sum())

    return max(0.0, (divergence(p) + divergence(q)) / 2)  # which rounding may make negative


def length_labels() -> list[str]:
    """Return the bins of note lengths, 1/16, …, 1, …, 16; bins between have no name."""
    names = [f"1/{round(1 / length)}" if length < 1 else f"{round(length)}" for length in LENGTHS]
    return [name if i % 2 == 0 else "" for i, name in enumerate(names)]
