"""MIDI as sound, by a small synthesiser or by a sound font, and WAV files."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError

if TYPE_CHECKING:
    from pretty_midi import PrettyMIDI

SAMPLE_RATE = 22_050
PEAK = 0.9  # the loudest sample there may be
FADE = 0.02  # seconds in which the sound dies away where the piece is cut off
ATTACK, RELEASE = 0.004, 0.09  # seconds in which a note comes, and dies away once its key is let go
# the amplitude of a note struck as hard as can be, before the loudest moment of the piece decides
GAIN = 0.3
PARTIALS = 10
# FluidSynth clips at 16 bits, so the rest of the loudness comes after it
FONT_GAIN, FONT_LOUDER = 0.8, 3.0
NYQUIST = 0.49  # of the sample rate: partials above it would come back as false tones

WHAT_TO_INSTALL = (
    "pip install pyfluidsynth, and the FluidSynth library (apt install "
    "libfluidsynth3, or brew install fluid-synth)"
)


def synthesise(
    midi: PrettyMIDI, seconds: float, *, sound_font: Path | None = None
) -> NDArray[np.float32]:
    """Return the sound of a piece, `[round(seconds * SAMPLE_RATE)]`, mono.

    Samples lie between -0.9 and 0.9: the sound is only scaled down, so silence stays silence.

    Without a sound font every note is a struck string: partials f, 2f, … that die away, the higher
    the faster. Drums and pitch bends are then left out, and so is a pitch above half the sample
    rate. With one (`.sf2`, `.sf3`) FluidSynth plays.

    Raises `UserError` if the sound font cannot be used or FluidSynth is not installed, or for a
    length that cannot be.
    """
    if not 0 <= seconds < float("inf"):
        raise UserError(f"a piece cannot last {seconds:g} seconds")
    length = round(seconds * SAMPLE_RATE)
    sound = (
        _struck_strings(midi, length) if sound_font is None else _by_sound_font(midi, sound_font)
    )
    sound = np.pad(sound[:length], (0, max(0, length - len(sound))))
    fade = min(length, int(FADE * SAMPLE_RATE))
    if fade:
        sound[-fade:] *= np.linspace(1, 0, fade)
    loudest = float(np.abs(sound).max(initial=0))
    return (sound * (PEAK / loudest if loudest > PEAK else 1)).astype(np.float32)


def _struck_strings(midi: PrettyMIDI, length: int) -> NDArray[np.float64]:
    """The sum of all notes, `[length]`."""
    sound = np.zeros(length)
    by_pitch: dict[int, list[Any]] = {}
    for instrument in midi.instruments:
        for note in [] if instrument.is_drum else instrument.notes:
            by_pitch.setdefault(note.pitch, []).append(note)
    release = 0.5 + 0.5 * np.cos(np.linspace(0, np.pi, int(RELEASE * SAMPLE_RATE)))
    for pitch, notes in by_pitch.items():
        spans = [(round(note.start * SAMPLE_RATE), round(note.end * SAMPLE_RATE)) for note in notes]
        string = _string(
            pitch, min(length, max(end - start for start, end in spans)) + len(release)
        )
        for note, (start, end) in zip(notes, spans, strict=True):
            held = min(end, length) - start  # the key, in samples
            if held > 0:
                heard = string[: held + len(release)].copy()
                heard[held:] *= release
                rest = sound[start : start + len(heard)]
                rest += GAIN * (note.velocity / 127) ** 1.5 * heard[: len(rest)]
    return sound


def _string(pitch: int, length: int) -> NDArray[np.float64]:
    """A string struck at sample 0 and never damped, `[length]`."""
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    time = np.arange(length) / SAMPLE_RATE
    sound = np.zeros(length)
    for k in range(1, PARTIALS + 1):
        if k * frequency < NYQUIST * SAMPLE_RATE:
            # a second: short strings and high partials die fast
            decay = (0.6 + 0.5 * k) * (frequency / 262) ** 0.5
            sound += k**-1.4 * np.exp(-decay * time) * np.sin(2 * np.pi * k * frequency * time)
    return sound * np.minimum(1, time / ATTACK)


def synthesiser_for(path: Path) -> Any:
    """Return FluidSynth's class that plays a sound font.

    Raises `UserError` if the file is none, or FluidSynth is not installed.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError as error:
        raise UserError(f"cannot read the sound font {path}: {error.strerror}") from None
    if head[:4] != b"RIFF" or head[8:] != b"sfbk":
        raise UserError(f"{path} is no sound font: a file of kind .sf2 or .sf3 is wanted")
    try:
        from fluidsynth import Synth
    except ImportError:  # also where it finds no library, or is another package of that name
        raise UserError(f"a sound font needs FluidSynth: {WHAT_TO_INSTALL}") from None
    return Synth


def _by_sound_font(midi: PrettyMIDI, path: Path) -> NDArray[np.float64]:
    """The piece as FluidSynth plays it, of a length that its notes decide."""
    make = synthesiser_for(path)
    if not any(instrument.notes for instrument in midi.instruments):
        return np.zeros(0)
    synthesizer = make(gain=FONT_GAIN, samplerate=float(SAMPLE_RATE))
    try:
        font = synthesizer.sfload(str(path))
        if font == -1:  # it says why on stderr
            raise UserError(
                f"FluidSynth cannot use the sound font {path}: it is damaged, or of a kind that "
                "this FluidSynth does not know"
            )
        return FONT_LOUDER * midi.fluidsynth(synthesizer=synthesizer, sfid=font, normalize=False)
    finally:
        synthesizer.delete()


def wav_bytes(samples: NDArray[np.floating[Any]]) -> bytes:
    """Encode samples `[n]` between -1 and 1 as a WAV file: mono, 16 bits a sample."""
    whole = np.rint(np.clip(samples, -1, 1) * 32_767).astype("<i2")
    opened = io.BytesIO()
    with wave.open(opened, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(whole.tobytes())
    return opened.getvalue()
