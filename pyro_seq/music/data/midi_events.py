"""Read the events of one track of a MIDI file: notes, tempi and ends of notes.

Of all other events it is only found where they end.

No event is looked at twice, and none takes memory but notes and tempi, so that the time is that of
the bytes, whatever they say. What `mido` reads with `clip=True` is read in the same way; what it
refuses for the sake of events that are never used is passed over.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from pyro_seq.errors import UserError

MOST_NUMBER = 2**32  # about, of a number in a file: a million of them add up to an int64

SYSTEM_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}
META, SYSEX = 0xFF, (0xF0, 0xF7)
END_OF_TRACK, SET_TEMPO = 0x2F, 0x51
ALL_SOUND_OFF, ALL_NOTES_OFF = 120, 123  # the controls that end the notes of their channel

CLIPPED = "data bytes above 127, taken for 127"
NO_TEMPO = "tempi of no time a beat or of too few bytes, passed over"
NOT_ENDED = "notes that are never ended, left out"
RUNNING_ON = "events without a status behind a system event, taken for those of the last channel"


@dataclass
class TrackEvents:
    """The notes and tempi of a track.

    Attributes:
        notes: rows (start, end, pitch, velocity, channel), in ticks, in the order in which notes
            end.
        sounding: by channel and pitch, the (start, velocity) of the notes that have not ended yet.
        tempi: (tick, microseconds a beat).
        silences: by channel, the tick of its last "all notes off".
        mended: what was not as it should be, and how often.
    """

    notes: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    sounding: defaultdict[int, dict[int, list[tuple[int, int]]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    tempi: list[tuple[int, int]] = field(default_factory=list)
    silences: dict[int, int] = field(default_factory=dict)
    mended: Counter[str] = field(default_factory=Counter)

    def end(self, channel: int, pitch: int, tick: int) -> None:
        """End a pitch by a note-off: all notes of it that were struck before.

        What is struck at this very tick goes on, but not alone.
        """
        notes = self.sounding[channel].pop(pitch)
        before = [
            (start, tick, pitch, velocity, channel) for start, velocity in notes if start < tick
        ]
        self.notes += before
        if before and len(before) < len(notes):
            self.sounding[channel][pitch] = notes[len(before) :]

    def end_all(self, channel: int, tick: int) -> None:
        """End all notes that sound on a channel."""
        for pitch, notes in self.sounding.pop(channel, {}).items():
            self.notes += [
                (start, tick, pitch, velocity, channel) for start, velocity in notes if start < tick
            ]


class EventReader:
    """Read the events of a track, one after another, in stretches.

    Attributes:
        at: the offset of the next event.
        tick: when the last one was.
        status: the running status; 0 for none.
        broken: whether a system event has come since the last status of a channel.
        ended: whether the last event was an end of track.
        events: what was kept.
    """

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self.tick = self.status = 0
        self.broken = self.ended = False
        self.events = TrackEvents()

    def read(self, stop: int) -> None:
        """Read events up to offset `stop`, or an end of track.

        Raises `UserError`, with a reason that names no track, for what is no event, and
        `IndexError` where the data ends within one.
        """
        data, events = self.data, self.events
        at, tick, status = self.at, self.tick, self.status
        sounding = events.sounding
        self.ended = False
        while at < stop and not self.ended:
            delta = data[at]
            at += 1
            if delta > 0x7F:
                delta, at = number(data, at - 1)
            byte = data[at]
            if byte > 0x7F:
                at += 1
                if byte >= 0xF0:
                    at = self._system_event(at, byte, tick + delta)
                    tick += delta
                    self.at = at
                    continue
                status, self.broken = byte, False
            elif not status:
                raise UserError("there is data where an event should begin")
            elif self.broken:
                events.mended[RUNNING_ON] += 1
            kind = status & 0xF0
            first = data[at]
            if kind in (0xC0, 0xD0):
                second = 0
                at += 1
            else:
                second = data[at + 1]
                at += 2
            tick += delta
            if (first | second) > 0x7F:
                events.mended[CLIPPED] += (first > 0x7F) + (second > 0x7F)
                first, second = min(first, 0x7F), min(second, 0x7F)
            if kind <= 0x90:
                pitches = sounding[status & 0x0F]
                if kind == 0x90 and second:
                    if first in pitches:
                        pitches[first].append((tick, second))
                    else:
                        pitches[first] = [(tick, second)]
                elif first in pitches:
                    events.end(status & 0x0F, first, tick)
            elif kind == 0xB0 and first in (ALL_SOUND_OFF, ALL_NOTES_OFF):
                events.end_all(status & 0x0F, tick)
                if first == ALL_NOTES_OFF:
                    events.silences[status & 0x0F] = tick
            self.at = at
        self.tick, self.status = tick, status

    def _system_event(self, at: int, status: int, tick: int) -> int:
        """The offset behind an event of no channel whose `status` stands before `at`."""
        # a meta event does not end the running status, which is mido's way
        data, self.broken = self.data, self.broken or status != META
        kind = None
        if status == META:
            kind = data[at]
            length, at = number(data, at + 1)
        elif status in SYSEX:
            length, at = number(data, at)
        elif status in SYSTEM_BYTES:
            length = SYSTEM_BYTES[status]
        else:
            raise UserError(f"there is an event 0x{status:02X}, which MIDI does not know")
        if at + length > len(data):
            raise IndexError
        self.ended = kind == END_OF_TRACK
        if kind == SET_TEMPO:
            tempo = int.from_bytes(data[at : at + 3], "big") if length >= 3 else 0
            if tempo:
                self.events.tempi.append((tick, tempo))
            else:
                self.events.mended[NO_TEMPO] += 1
        return at + length


def number(data: bytes, at: int) -> tuple[int, int]:
    """Read a variable-length number: (its value, the offset behind it)."""
    value = 0
    while True:
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
        if value >= MOST_NUMBER:
            raise UserError("there is a number that is larger than MIDI has any")
