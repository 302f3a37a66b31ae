"""Piano rolls as MIDI files, `to_midi`; reading such a file gives the very same roll."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_events import ALL_NOTES_OFF
from pyro_seq.music.data.piano_rolls import LOWEST, Timing

if TYPE_CHECKING:
    from pretty_midi import PrettyMIDI

# pretty_midi keeps the time of every tick, and other readers refuse a table of more than ten
# million
MAX_TICKS = 9_999_999
TICKS_A_BEAT = 480  # about; a multiple of the frames of a beat is taken
MOST_TICKS_A_BEAT = 32_767  # 15 bits of a file's header
MOST_MICROSECONDS = 2**24 - 1  # a beat lasts at most so long in a MIDI file
# seconds, where a roll has no beats and some are made up for it
SHORTEST_BEAT, BEAT, LONGEST_BEAT = 0.4, 0.5, 1.0

SOFTEST, LOUDEST = 40, 110
VELOCITY, MELODY = 70, 8  # of a note on average, and what the highest voice has more
DOWNBEAT, ON_BEAT, OFF_BEAT = 10, 6, -3  # what a note's place in the bar adds to its velocity
ARCH = 5.0  # what the middle of a phrase has more, and its ends less
BEATS_A_BAR = 4
PHRASE_BEATS, PHRASE_SECONDS = 16, 8.0


@dataclass(frozen=True)
class Clock:
    """The time of a MIDI file.

    Attributes:
        resolution: ticks a beat.
        tempo: microseconds a beat.
        frame: ticks a frame of the roll, a whole number.
    """

    resolution: int
    tempo: int
    frame: int

    @property
    def tick(self) -> float:
        """The seconds of a tick."""
        return self.tempo / (1e6 * self.resolution)

    @classmethod
    def of(cls, timing: Timing, frames: int = 0) -> Clock:
        """Return the clock for a roll: the grid's beats, or beats of about half a second.

        These last whole frames.

        MIDI knows tempi in whole microseconds a beat. Of the beats that could be made up, the one
        is taken that this moves least: then a million frames are off by less than one.

        Raises `UserError` for a timing that MIDI cannot say.
        """
        if timing.grid:
            a_beat, tempo, what = (
                timing.grid,
                6e7 / max(timing.tempo, 1e-9),
                f"a tempo of {timing.tempo:g} beats a minute",
            )
        else:
            rate = max(timing.rate, 1e-9)
            shortest = max(1, int(np.ceil(SHORTEST_BEAT * rate)))
            a_beat = min(
                range(
                    shortest, max(shortest, min(int(LONGEST_BEAT * rate), MOST_TICKS_A_BEAT)) + 1
                ),
                key=lambda n: (
                    round(abs(n * 1e6 / rate - round(n * 1e6 / rate)) * rate / n, 9),
                    abs(n / rate - BEAT),
                ),
            )
            tempo, what = a_beat * 1e6 / rate, f"a rate of {timing.rate:g} frames a second"
        if not (1 <= round(tempo) <= MOST_MICROSECONDS and 0 < a_beat <= MOST_TICKS_A_BEAT):
            least = 6e7 / MOST_MICROSECONDS
            raise UserError(
                f"MIDI cannot say {what}, {a_beat} frames a beat: at least {least:.2f} beats a "
                "minute, of fewer frames, can be"
            )
        frame = max(1, min(TICKS_A_BEAT // a_beat, (MAX_TICKS - 1) // max(1, frames)))
        return cls(resolution=a_beat * frame, tempo=round(tempo), frame=frame)


def lowest_pitch(roll: Tensor) -> int:
    """Return the MIDI pitch of a roll's first key.

    Raises `UserError` unless the roll is `[T, 88]` or `[T, 128]`.
    """
    if roll.dim() != 2 or roll.shape[1] not in LOWEST:
        wanted = " or ".join(f"[T, {keys}]" for keys in LOWEST)
        raise UserError(f"a piano roll is {wanted}, not {list(roll.shape)}")
    return LOWEST[roll.shape[1]]


def sustained(roll: Tensor) -> NDArray[np.int64]:
    """Return the notes `[N, 3]` of a roll: (first frame, frame after the last, key).

    Each run of a key's frames is one note.

    They are in the order of their first frames, low keys first.
    """
    sounding = np.pad(roll.detach().cpu().bool().numpy().T, ((0, 0), (1, 1))).astype(np.int8)
    change = np.diff(sounding, axis=1)
    # key by key in the order of time, as are the ends: the n-th end is the n-th beginning's
    keys, first = np.nonzero(change == 1)
    after = np.nonzero(change == -1)[1]
    notes = np.stack([first, after, keys], 1)
    return notes[np.lexsort((keys, first))]


def velocities(roll: Tensor, notes: NDArray[np.int64], timing: Timing) -> NDArray[np.int64]:
    """Return how hard each note is struck `[N]`, from 40 to 110, equal for equal rolls.

    Phrases of 16 beats (8 seconds, where there is no grid) swell to their middle, beats are
    accented, the first of four most, and the highest of the notes that sound as one begins is
    louder by `MELODY`.
    """
    first, keys = notes[:, 0], notes[:, 2]
    length = PHRASE_BEATS * timing.grid if timing.grid else PHRASE_SECONDS * timing.rate
    struck = VELOCITY + ARCH * (2 * np.sin(np.pi * (first % length) / length) - 1)
    if timing.grid:
        in_bar = first % (BEATS_A_BAR * timing.grid)
        struck += np.where(
            in_bar == 0, DOWNBEAT, np.where(in_bar % timing.grid == 0, ON_BEAT, OFF_BEAT)
        )
    highest = roll.shape[1] - 1 - roll.detach().cpu().bool().numpy()[:, ::-1].argmax(1)
    struck += MELODY * (keys == highest[first])
    return np.clip(np.rint(struck), SOFTEST, LOUDEST).astype(np.int64)


def to_midi(roll: Tensor, timing: Timing, *, program: int = 0) -> PrettyMIDI:
    """Convert a roll to MIDI; notes begin and end on ticks that are whole frames.

    Silence at the end is kept by an "all notes off" (control change 123) where the piece ends,
    which comes with every piece. The notes are where `midi_files.read_tune` and `roll_of` find the
    same roll again; of nothing but silence they make no tune.

    Args:
        roll: `[T, 88]` or `[T, 128]`; what is not 0 sounds.
        timing: when its frames sound; the tempo of the file is the grid's.
        program: the General MIDI instrument, from 0 (a grand piano) to 127.

    Raises `UserError` for a roll, timing or instrument that there is not.
    """
    import pretty_midi

    lowest = lowest_pitch(roll)
    if not 0 <= program <= 127:
        raise UserError(f"program {program} is outside MIDI's range, 0 to 127")
    clock = Clock.of(timing, len(roll))
    # pretty_midi cuts microseconds off to a whole number when it writes: a hair more makes it the
    # one that is meant
    midi = pretty_midi.PrettyMIDI(
        resolution=clock.resolution, initial_tempo=6e7 / (clock.tempo + 1e-4)
    )
    piano = pretty_midi.Instrument(program)
    second = clock.frame * clock.tick  # of a frame
    notes = sustained(roll)
    for (first, after, key), struck in zip(
        notes.tolist(),
        velocities(roll, notes, timing),
        strict=True,
    ):
        piano.notes.append(
            pretty_midi.Note(int(struck), lowest + key, first * second, after * second)
        )
    piano.control_changes.append(pretty_midi.ControlChange(ALL_NOTES_OFF, 0, len(roll) * second))
    midi.instruments.append(piano)
    return midi
