"""Music as sound: as long as it should be, in tune, without clipping or clicks, and what a sound
font needs.
"""

from __future__ import annotations

import importlib.util
import io
import sys
import types
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_writer import to_midi
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.render import audio
from pyro_seq.music.render.audio import PEAK, synthesise, wav_bytes

TIMING = Timing(rate=10)


def midi_of(*keys: int, frames: int = 10, velocity: int = 80) -> Any:
    roll = torch.zeros(frames, 128)
    roll[:, list(keys)] = 1
    midi = to_midi(roll, TIMING)
    for note in midi.instruments[0].notes:
        note.velocity = velocity
    return midi


@pytest.mark.parametrize("seconds", [0, 0.00001, 0.5, 1, 1.2345, 3])
@pytest.mark.parametrize("sample_rate", [8_000, 22_050, 44_100])
def test_it_is_as_long_as_it_should_be(
    monkeypatch: pytest.MonkeyPatch, seconds: float, sample_rate: int
) -> None:
    monkeypatch.setattr(audio, "SAMPLE_RATE", sample_rate)
    sound = synthesise(midi_of(60, 64), seconds)
    assert sound.shape == (round(seconds * sample_rate),) and sound.dtype == np.float32


def test_it_does_not_clip_however_many_sound() -> None:
    sound = synthesise(midi_of(*range(128), velocity=127), 1.0)
    assert np.abs(sound).max() == pytest.approx(PEAK) and np.isfinite(sound).all()


def test_silence_stays_silence() -> None:
    for midi in (midi_of(), pretty_midi.PrettyMIDI()):
        sound = synthesise(midi, 1.0)
        assert sound.shape == (22_050,) and not sound.any()


def test_it_is_only_scaled_down() -> None:
    soft, loud = (
        np.abs(synthesise(midi_of(60, velocity=velocity), 1.0)).max() for velocity in (40, 100)
    )
    assert 0.01 < soft < loud < PEAK


@pytest.mark.parametrize("pitch", [33, 60, 69, 93])
def test_it_is_in_tune(pitch: int) -> None:
    sound = synthesise(midi_of(pitch, frames=20), 2.0)
    loudest = np.abs(np.fft.rfft(sound)).argmax() / 2.0
    assert loudest == pytest.approx(440 * 2 ** ((pitch - 69) / 12), abs=1)


def test_pitches_that_cannot_be_heard_make_no_false_tones(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(audio, "SAMPLE_RATE", 8_000)
        assert not synthesise(midi_of(127), 1.0).any()
    # 4,186 Hz, of which two partials can be heard
    spectrum = np.abs(np.fft.rfft(synthesise(midi_of(108, frames=20), 2.0)))
    far = [i for i in range(len(spectrum)) if min(abs(i / 2 - 4_186), abs(i / 2 - 8_372)) > 200]
    assert spectrum[far].max() < 0.02 * spectrum.max()


def test_notes_sound_when_they_should_and_end_without_a_click() -> None:
    roll = torch.zeros(30, 88)
    roll[10:15, 30] = 1
    sound = synthesise(to_midi(roll, TIMING), 3.0)
    assert not sound[:22_049].any() and np.abs(sound[22_050:33_000]).max() > 0.05
    assert not sound[int(1.6 * 22_050) :].any()  # died away a tenth of a second later
    steps = np.abs(np.diff(sound))
    sounding, ending = steps[26_000:32_000].max(), steps[int(1.49 * 22_050) :].max()
    assert ending <= sounding
    cut = synthesise(to_midi(torch.ones(30, 88), TIMING), 1.0)  # in the middle of all notes
    assert cut[-1] == 0 and np.abs(np.diff(cut))[-100:].max() < 0.2


def test_drums_are_left_out() -> None:
    midi = midi_of(60)
    midi.instruments[0].is_drum = True
    assert not synthesise(midi, 1.0).any()


def test_what_cannot_be_heard() -> None:
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="a piece cannot last"):
            synthesise(midi_of(60), seconds)


def test_sound_fonts_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the sound font .*missing.sf2: No such file"):
        synthesise(midi_of(60), 1.0, sound_font=tmp_path / "missing.sf2")
    with pytest.raises(UserError, match="cannot read the sound font"):
        synthesise(midi_of(60), 1.0, sound_font=tmp_path)
    path = tmp_path / "font.sf2"
    for content in (b"", b"RIFF", b"RIFF\0\0\0\0WAVEfmt "):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=r"font.sf2 is no sound font: a file of kind .sf2 or .sf3"
        ):
            synthesise(midi_of(60), 1.0, sound_font=path)


@pytest.fixture
def font(tmp_path: Path) -> Path:
    """A file that looks like a sound font from outside."""
    path = tmp_path / "font.sf2"
    path.write_bytes(b"RIFF\x08\0\0\0sfbkLIST")
    return path


def test_without_fluidsynth_it_says_what_to_install(
    font: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # not there, or another package of that name
    for absent in (None, types.ModuleType("fluidsynth")):
        monkeypatch.setitem(sys.modules, "fluidsynth", absent)
        with pytest.raises(
            UserError, match="a sound font needs FluidSynth: pip install pyfluidsynth"
        ):
            synthesise(midi_of(60), 1.0, sound_font=font)


class Synth:
    """Stands in for FluidSynth's: a constant tone while a key is down."""

    def __init__(self, gain: float, samplerate: float) -> None:
        self.rate, self.down, self.deleted = samplerate, 0, False

    def sfload(self, path: str) -> int:
        return -1 if Path(path).stat().st_size < 20 else 1

    def get_setting(self, name: str) -> float:
        assert name == "synth.sample-rate"
        return self.rate

    def program_select(self, *channel_font_bank_preset: int) -> int:
        return 0

    def noteon(self, channel: int, pitch: int, velocity: int) -> None:
        self.down += 1

    def noteoff(self, channel: int, pitch: int) -> None:
        self.down -= 1

    def cc(self, channel: int, number: int, value: int) -> None:
        pass

    def get_samples(self, number: int) -> np.ndarray:
        return np.full(2 * number, min(1_000 * self.down, 30_000), np.int16)

    def delete(self) -> None:
        self.deleted = True


@pytest.fixture
def fluidsynth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for pyfluidsynth, as pretty_midi sees it too."""
    module: Any = types.ModuleType("fluidsynth")
    module.Synth = Synth
    monkeypatch.setitem(sys.modules, "fluidsynth", module)
    inner = sys.modules["pretty_midi.fluidsynth"]
    monkeypatch.setattr(inner, "_HAS_FLUIDSYNTH", True)
    monkeypatch.setattr(inner, "fluidsynth", module, raising=False)


def test_a_sound_font_is_played(font: Path, fluidsynth: None) -> None:
    with pytest.raises(UserError, match="FluidSynth cannot use the sound font"):
        synthesise(midi_of(60), 1.0, sound_font=font)
    font.write_bytes(font.read_bytes() + b"more")
    sound = synthesise(midi_of(60, 64, frames=10), 1.5, sound_font=font)
    assert (
        sound.shape == (33_075,)
        and np.allclose(sound[:22_049], 3 * 2 * 1_000 / 2**15)
        and not sound[22_051:].any()
    )
    assert not synthesise(midi_of(), 1.0, sound_font=font).any()
    loud = synthesise(midi_of(*range(60), frames=10), 1.5, sound_font=font)
    assert np.abs(loud).max() == pytest.approx(PEAK)


def test_the_real_fluidsynth() -> None:
    font = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")
    if importlib.util.find_spec("fluidsynth") is None or not font.exists():
        pytest.skip("needs pyfluidsynth and a General MIDI sound font")
    sound = synthesise(midi_of(69, frames=20), 2.5, sound_font=font)
    assert sound.shape == (55_125,) and 0.01 < np.abs(sound).max() <= PEAK
    spectrum = np.abs(np.fft.rfft(sound))
    assert spectrum.argmax() / 2.5 == pytest.approx(440, abs=3)


def test_a_wav_file_holds_the_samples() -> None:
    samples = np.array([0, 0.5, -0.5, 1, -1, 2, -2], dtype=np.float32)
    with wave.open(io.BytesIO(wav_bytes(samples))) as file:
        assert file.getparams()[:4] == (1, 2, 22_050, 7)
        assert np.frombuffer(file.readframes(7), "<i2").tolist() == [
            0,
            16_384,
            -16_384,
            32_767,
            -32_767,
            32_767,
            -32_767,
        ]
    assert len(wav_bytes(np.zeros(0))) == 44
