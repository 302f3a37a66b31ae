"""A dozen small tunes, melody over chords, made by rule, to train on at once.

Each is built as a folk tune is: phrases of four bars, a chord for each bar, rhythms that return, a
cadence at each phrase's end. The melody is then the best of all for those chords, found by dynamic
programming over pairs of notes: chord tones on strong beats, steps rather than leaps, a leap
followed by a step back, other tones only in passing, an arch over the phrase, and the tune's own
habits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_seq._rng import generator
from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_events import ALL_NOTES_OFF
from pyro_seq.music.data.midi_reader import Tune

GRID = 4  # steps a beat
BARS = 4  # of a phrase
MELODY, CHORDS = "melody", "chords"


@dataclass(frozen=True)
class Plan:
    """The key, metre and form of a tune, before its notes are made.

    A letter of the form is a phrase, which a capital ends on the tonic and a small letter on the
    dominant; `aAbA` is AABA.
    """

    tonic: str
    mode: str
    beats_a_bar: int
    form: str
    accompaniment: str
    tempo: int

    @property
    def bar(self) -> int:
        """The number of steps of a bar."""
        return self.beats_a_bar * GRID

    @property
    def steps(self) -> int:
        """The number of steps of the whole tune."""
        return len(self.form) * BARS * self.bar


PLANS = (
    Plan("C", "major", 4, "aAbA", "held", 100),
    Plan("G", "major", 3, "aAbA", "waltz", 128),
    Plan("A", "minor", 4, "aA", "broken", 96),
    Plan("D", "major", 4, "aAbA", "struck", 120),
    Plan("E", "minor", 3, "aAbA", "waltz", 120),
    Plan("F", "major", 4, "abaC", "broken", 100),
    Plan("D", "minor", 4, "aAbA", "held", 96),
    Plan("A", "major", 3, "aA", "waltz", 128),
    Plan("Bb", "major", 4, "aAbA", "struck", 120),
    Plan("G", "minor", 4, "abaC", "broken", 80),
    Plan("E", "major", 3, "abaC", "waltz", 125),
    Plan("B", "minor", 4, "aA", "struck", 100),
)
# where the melody has its tonic
TONICS = {"C": 72, "D": 74, "E": 76, "F": 65, "G": 67, "A": 69, "Bb": 70, "B": 71}
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
DOMINANT, LEADING = 4, 6  # degrees count from 0, the tonic

# The chords of a phrase's first two bars, those of `b` apart, and of its last two.
STEMS = {"major": ((0, 3), (0, 5), (0, 0), (0, 4)), "minor": ((0, 3), (0, 5), (0, 0), (0, 4))}
STEMS_B = {"major": ((5, 2), (3, 0), (5, 3), (3, 1)), "minor": ((2, 6), (5, 2), (3, 0), (2, 5))}
OPEN = {"major": ((0, 4), (3, 4), (1, 4)), "minor": ((0, 4), (3, 4), (5, 4))}
CLOSED = {"major": ((4, 0),), "minor": ((4, 0),)}

# Lengths of a bar's notes in steps, in bars that move and in bars that end a phrase, by beats a
# bar.
RHYTHMS = {
    4: (
        (4, 4, 4, 4),
        (6, 2, 4, 4),
        (4, 2, 2, 4, 4),
        (4, 4, 2, 2, 4),
        (8, 4, 4),
        (2, 2, 2, 2, 4, 4),
        (6, 2, 6, 2),
    ),
    3: ((4, 4, 4), (8, 4), (6, 2, 4), (4, 2, 2, 4), (4, 4, 2, 2), (2, 2, 4, 4)),
}
ENDINGS = {4: ((4, 4, 8), (12, 4), (8, 8)), 3: ((4, 8), (8, 4), (12,))}

# of the melody: from the dominant below the tonic to the tenth above it
LOWEST_DEGREE, DEGREES = -3, 12
# what a move by so many degrees costs
MOVES = (0.9, 0.0, 0.6, 1.5, 2.0, 3.2, 5.0, 3.5, 9.0, 9.0, 9.0, 9.0)
NEVER = 1e3


@dataclass(frozen=True)
class Note:
    """A note of a part, in steps."""

    start: int
    end: int
    pitch: int
    part: str


def demo_tunes(seed: int = 0) -> list[Tune]:
    """Make twelve tunes of 8 or 16 bars in several keys, equal for equal seeds.

    They are in 4/4 and 3/4, on a grid of `GRID` steps a beat.

    A note that is struck again is let go a step before, so that it can be told apart in a roll.
    """
    return [_tune(plan, notes) for plan, notes in _compositions(seed)]


def write_demo_tunes(folder: str | Path, seed: int = 0) -> list[Path]:
    """Write the tunes as MIDI files `01-c-major.mid`, …, and return the paths.

    Melody and chords have a track each.

    `read_tune` reads from each what `demo_tunes` made. Raises `UserError` if the folder cannot be
    written.
    """
    folder = Path(folder)
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for i, (plan, notes) in enumerate(_compositions(seed), start=1):
            paths.append(folder / f"{i:02}-{plan.tonic.lower()}-{plan.mode}.mid")
            _midi(plan, notes).write(str(paths[-1]))
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    return paths


def _compositions(seed: int) -> list[tuple[Plan, list[Note]]]:
    return [(plan, _composed(plan, generator(1_000 * seed + i))) for i, plan in enumerate(PLANS)]


def _tune(plan: Plan, notes: list[Note]) -> Tune:
    notes = sorted(notes, key=lambda note: (note.start, note.pitch))
    start, end = (
        np.array(steps, dtype=np.float64) / GRID
        for steps in zip(*((n.start, n.end) for n in notes), strict=True)
    )
    beats = plan.steps / GRID
    seconds = 60 / plan.tempo
    pitches = np.array([note.pitch for note in notes], dtype=np.uint8)
    return Tune(
        pitches,
        start * seconds,
        end * seconds,
        start,
        end,
        beats * seconds,
        beats,
        float(plan.tempo),
    )


def _midi(plan: Plan, notes: list[Note]) -> Any:
    import pretty_midi

    midi = pretty_midi.PrettyMIDI(resolution=480, initial_tempo=plan.tempo)
    midi.time_signature_changes.append(pretty_midi.TimeSignature(plan.beats_a_bar, 4, 0.0))
    midi.key_signature_changes.append(
        pretty_midi.KeySignature(TONICS[plan.tonic] % 12 + (12 if plan.mode == "minor" else 0), 0.0)
    )
    step = 60 / plan.tempo / GRID
    for part, velocity in ((MELODY, 92), (CHORDS, 58)):
        instrument = pretty_midi.Instrument(program=0, name=part)
        instrument.notes = [
            pretty_midi.Note(velocity, n.pitch, n.start * step, n.end * step)
            for n in notes
            if n.part == part
        ]
        instrument.control_changes.append(
            pretty_midi.ControlChange(ALL_NOTES_OFF, 0, plan.steps * step)
        )
        midi.instruments.append(instrument)
    return midi


# composing


@dataclass(frozen=True)
class Slot:
    """The place of a melody note: bar, number, start and length (steps), and chord."""

    bar: int
    number: int
    start: int
    length: int
    chord: int

    def strong(self, plan: Plan) -> bool:
        """Tell whether the note stands on a strong beat."""
        return (
            self.length >= 2 * GRID
            or self.start % (plan.bar if plan.beats_a_bar == 3 else 2 * GRID) == 0
        )


def _composed(plan: Plan, random: np.random.Generator) -> list[Note]:
    """The notes of a tune: where a phrase returns its first half is the same, and so is the other
    one if it ends alike.
    """
    themes = {
        letter: _Theme.drawn(plan, letter, random) for letter in sorted(set(plan.form.lower()))
    }
    done: dict[str, tuple[list[Slot], list[int]]] = {}
    melody: list[Note] = []
    chords: list[int] = []
    for i, letter in enumerate(plan.form):
        theme, last = themes[letter.lower()], i == len(plan.form) - 1
        slots = theme.slots(plan, closed=letter.isupper(), last=last)
        if letter not in done or last:
            known = done.get(letter.lower(), ([], []))[1]
            first_half = known[: sum(slot.bar < 2 for slot in slots)]
            done[letter] = (
                slots,
                _melody(plan, slots, theme.habits, first_half, closed=letter.isupper()),
            )
        slots, degrees = done[letter]
        melody += _sounded(plan, slots, degrees, i * BARS * plan.bar)
        chords += theme.chords(letter.isupper())
    return _articulated(melody + _accompaniment(plan, chords))


@dataclass(frozen=True, eq=False)
class _Theme:
    """What the phrases of one letter share."""

    stem: tuple[int, ...]
    tails: tuple[tuple[int, ...], tuple[int, ...]]  # open and closed
    rhythms: tuple[tuple[int, ...], ...]
    # of moves, [kind of bar, note of the bar, move]: bars of a rhythm tend to the same shape
    habits: NDArray[np.float64]

    @classmethod
    def drawn(cls, plan: Plan, letter: str, random: np.random.Generator) -> _Theme:
        def one_of(choices: Any) -> Any:
            return choices[int(random.integers(len(choices)))]

        stem = one_of((STEMS_B if letter == "b" else STEMS)[plan.mode])
        moving = [
            RHYTHMS[plan.beats_a_bar][i]
            for i in random.permutation(len(RHYTHMS[plan.beats_a_bar]))[:2]
        ]
        rhythms = (moving[0], moving[1], moving[0], one_of(ENDINGS[plan.beats_a_bar]))
        habits = random.gumbel(size=(3, 8, 2 * DEGREES)) * 0.6
        return cls(stem, (one_of(OPEN[plan.mode]), one_of(CLOSED[plan.mode])), rhythms, habits)

    def chords(self, closed: bool) -> tuple[int, ...]:
        """Of the four bars."""
        return self.stem + self.tails[closed]

    def slots(self, plan: Plan, *, closed: bool, last: bool) -> list[Slot]:
        """The melody's rhythm; the very last bar is one long note."""
        slots = []
        for bar, (rhythm, chord) in enumerate(zip(self.rhythms, self.chords(closed), strict=True)):
            start = bar * plan.bar
            for number, length in enumerate((plan.bar,) if last and bar == BARS - 1 else rhythm):
                slots.append(Slot(bar, number, start, length, chord))
                start += length
        return slots


def _melody(
    plan: Plan, slots: list[Slot], habits: NDArray[np.float64], known: list[int], *, closed: bool
) -> list[int]:
    """The degrees of a phrase's notes, the first of them `known`, that cost least."""
    degrees = np.arange(DEGREES) + LOWEST_DEGREE
    before, here, after = np.ix_(degrees, degrees, degrees)
    came, goes = here - before, after - here
    shape = (
        1.5 * ((abs(came) >= 3) & (goes != -np.sign(came)))
        + 0.4 * ((came == -goes) & (came != 0))
        + 4.0 * ((came == 0) & (goes == 0))
    )
    not_passing = NEVER * ((abs(came) != 1) | (abs(goes) != 1))
    moves = np.array(MOVES)[abs(degrees[None] - degrees[:, None])]
    move_index = degrees[None] - degrees[:, None] + DEGREES
    fits = [np.isin((degrees - slot.chord) % 7, (0, 2, 4)) for slot in slots]

    def alone(i: int) -> NDArray[np.float64]:
        slot, where = slots[i], i / (len(slots) - 1)
        cost = 0.05 * (degrees - (1.5 + 4.0 * np.sin(np.pi * where))) ** 2 + np.where(
            fits[i], 0.0, NEVER if slot.strong(plan) else 0.3
        )
        if i < len(known):
            cost = cost + NEVER * NEVER * (degrees != known[i])
        # a half may be followed by several others
        if i in (0, len(slots) - 1) or (slot.bar, slots[i + 1].bar) == (1, 2):
            cost = cost + NEVER * ~fits[i]
        return cost + NEVER * (degrees % 7 != 0) if closed and i == len(slots) - 1 else cost

    def step(i: int) -> NDArray[np.float64]:  # to note i, [the note before, note i]
        kind = {0: 0, 1: 1, 2: 0, 3: 2}[slots[i].bar]
        return moves - habits[kind, slots[i].number][move_index] + alone(i)[None]

    best, choices = alone(0)[:, None] + step(1), []
    for i in range(2, len(slots)):
        candidates = best[:, :, None] + shape + (~fits[i - 1])[None, :, None] * not_passing
        if closed and i == len(slots) - 1:
            candidates = candidates + 1.5 * (abs(goes) != 1)
        choices.append(candidates.argmin(0))
        best = candidates.min(0) + step(i)
    path = [int(index) for index in np.unravel_index(int(best.argmin()), best.shape)]
    for choice in reversed(choices):
        path.insert(0, int(choice[path[0], path[1]]))
    return [int(degrees[index]) for index in path]


def _pitch(plan: Plan, degree: int, raised: bool = False) -> int:
    octave, step = divmod(degree, 7)
    return TONICS[plan.tonic] + 12 * octave + SCALES[plan.mode][step] + raised


def _sounded(plan: Plan, slots: list[Slot], degrees: list[int], start: int) -> list[Note]:
    """The melody's notes. Over a minor key's dominant the seventh degree is raised, and the sixth
    beside it, as in the melodic scale.
    """
    notes = []
    for i, (slot, degree) in enumerate(zip(slots, degrees, strict=True)):
        beside = {d % 7 for d in degrees[max(0, i - 1) : i + 2]}
        minor_dominant = plan.mode == "minor" and slot.chord == DOMINANT
        raised = minor_dominant and (
            degree % 7 == LEADING or (degree % 7 == LEADING - 1 and LEADING in beside)
        )
        begin = start + slot.start
        notes.append(Note(begin, begin + slot.length, _pitch(plan, degree, raised), MELODY))
    return notes


def _accompaniment(plan: Plan, chords: list[int]) -> list[Note]:
    """A bass and three voices, which move from chord to chord as little as they can, in the plan's
    manner; the last chord is held.
    """
    notes, voices, bar = [], [53, 57, 60], plan.bar
    for i, chord in enumerate(chords):
        start = i * bar
        tones = [
            _pitch(plan, chord + d, plan.mode == "minor" and chord == DOMINANT and d == 2) % 12
            for d in (0, 2, 4)
        ]
        voices = _voiced(tones, voices)
        root, fifth = 36 + (tones[0] - 4) % 12 + 4, 36 + (tones[2] - 4) % 12 + 4
        manner = "held" if i == len(chords) - 1 else plan.accompaniment
        played: list[tuple[int, int, list[int]]]
        if manner == "waltz":
            played = [(0, 4, [root]), (4, 3, voices), (8, 3, voices)]
        elif manner == "struck":
            played = [(0, 4, [root]), (4, 2, voices), (8, 4, [fifth]), (12, 2, voices)]
        elif manner == "broken":
            played = [(0, bar, [root])] + [
                (2 * k, 2, [voices[(0, 2, 1, 2)[k % 4]]]) for k in range(bar // 2)
            ]
        else:
            played = [(0, bar, [root, *voices])]
        notes += [
            Note(start + at, start + at + length, pitch, CHORDS)
            for at, length, pitches in played
            for pitch in pitches
        ]
    return notes


def _voiced(tones: list[int], before: list[int]) -> list[int]:
    """The three tones in the close position, between E3 and D4 or so, that lies nearest to the
    voices before.
    """
    positions = [sorted(low + (tone - low) % 12 for tone in tones) for low in range(50, 57)]
    return min(
        positions,
        key=lambda position: sum(abs(a - b) for a, b in zip(position, before, strict=True)),
    )


def _articulated(notes: list[Note]) -> list[Note]:
    """The notes, each let go a step before its pitch is struck again; what both parts strike at
    once is the melody's.
    """
    ordered = sorted(notes, key=lambda note: (note.pitch, note.start, note.part == MELODY))
    apart = []
    for note, following in pairwise([*ordered, None]):
        if note is None or (
            following is not None and (following.pitch, following.start) == (note.pitch, note.start)
        ):
            continue
        end = (
            note.end
            if following is None or following.pitch != note.pitch
            else min(note.end, following.start - 1)
        )
        apart.append(Note(note.start, max(end, note.start + 1), note.pitch, note.part))
    return sorted(apart, key=lambda note: (note.start, note.pitch))
