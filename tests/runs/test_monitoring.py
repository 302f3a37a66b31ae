"""What a person sees of a run: progress on stderr, the metrics file, TensorBoard."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyro_seq._progress import Progress, count, duration
from pyro_seq.errors import UserError
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.render.audio import wav_bytes
from pyro_seq.music.render.plots import roll_png
from pyro_seq.runs import tensorboard as monitoring
from pyro_seq.runs.metrics import MetricsFile
from pyro_seq.runs.tensorboard import Audio, EventWriter, Image

Limit = Callable[[int], AbstractContextManager[None]]


# metrics


def test_metrics_are_lines_of_json(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "m")
    metrics.write(step=1, split="train", loss=0.1)
    metrics.write(step=2, split="train", loss=float("nan"), kl=float("inf"), norm=float("-inf"))
    assert (tmp_path / "m").read_text().count("\n") == 2  # there before the file is closed
    metrics.close()
    first, second = (json.loads(line) for line in (tmp_path / "m").read_text().splitlines())
    assert first == {"step": 1, "split": "train", "loss": 0.1}
    assert second == {"step": 2, "split": "train", "loss": None, "kl": None, "norm": None}


def test_metrics_go_on_after_the_last_checkpoint(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "m")
    metrics.write(step=1)
    size = metrics.flush()
    metrics.write(step=2)
    metrics.close()
    metrics = MetricsFile(tmp_path / "m", size)
    metrics.write(step=3)
    metrics.close()
    assert (tmp_path / "m").read_text() == '{"step": 1}\n{"step": 3}\n'


def test_metrics_that_were_cut_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("x")
    with pytest.raises(UserError, match="shorter than the run's checkpoint says"):
        MetricsFile(tmp_path / "m", 2)
    assert (tmp_path / "m").read_text() == "x"


@pytest.mark.parametrize("there", [True, False])
def test_metrics_that_are_a_link_are_refused(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "diary").write_text("dear diary")
    (tmp_path / "m").symlink_to(tmp_path / "diary")
    with pytest.raises(UserError, match=r"cannot write .*/m: m is a symbolic link; remove it$"):
        MetricsFile(tmp_path / "m")
    assert (
        (tmp_path / "diary").read_text() == "dear diary"
        if there
        else not (tmp_path / "diary").exists()
    )


def test_metrics_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        MetricsFile(tmp_path / "m")


# events


def read_events(folder: Path) -> EventAccumulator:
    return EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}
    ).Reload()


def test_events_are_what_tensorboard_reads(tmp_path: Path) -> None:
    before = threading.active_count()
    events = EventWriter(tmp_path / "tensorboard")
    events.scalars(1, {"loss": 2.5, "kl": 0.5})
    events.scalars(2, {"loss": float("nan")})
    events.histograms(
        2,
        {
            "w": torch.tensor([[1.0, 2.0], [3.0, 3.0]]),
            "empty": torch.zeros(0),
            "wrong": torch.tensor([float("inf")]),
        },
    )
    events.samples(2, {"generated": "a\n<b>"})
    assert threading.active_count() == before
    events.close()
    read = read_events(tmp_path / "tensorboard")
    assert [e.step for e in read.Scalars("loss")] == [1, 2]
    assert read.Scalars("loss")[0].value == 2.5
    assert read.Tags()["histograms"] == ["w"]
    histogram = read.Histograms("w")[0].histogram_value
    assert (histogram.num, histogram.min, histogram.max, histogram.sum) == (4, 1, 3, 9)
    text = read.Tensors("generated/text_summary")[0].tensor_proto.string_val[0]
    assert text == b"    a\n    <b>"  # indented, so that Markdown shows it as it is


def test_pictures_and_sounds_are_what_tensorboard_shows(tmp_path: Path) -> None:
    sound = wav_bytes(np.zeros(441))
    picture = roll_png(torch.zeros(4, 88), Timing())
    events = EventWriter(tmp_path)
    events.samples(3, {"a/roll": Image(picture), "a/sound": Audio(sound)})
    events.close()
    read = read_events(tmp_path)
    (image,), (audio,) = read.Images("a/roll"), read.Audio("a/sound")
    assert (image.step, image.encoded_image_string) == (3, picture)
    assert PIL.Image.open(io.BytesIO(picture)).size == (image.width, image.height)
    assert (audio.step, audio.encoded_audio_string, audio.content_type) == (3, sound, "audio/wav")
    assert (audio.sample_rate, audio.length_frames) == (22_050, 441)


def test_events_after_the_checkpoint_are_superseded(tmp_path: Path) -> None:
    for start, values in ((0, (1.0, 2.0, 3.0)), (2, (30.0, 40.0))):
        events = EventWriter(tmp_path, start)
        for i, value in enumerate(values):
            events.scalars(start + 1 + i, {"loss": value})
        events.close()
    assert [(e.step, e.value) for e in read_events(tmp_path).Scalars("loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
        (4, 40.0),
    ]


def test_events_are_on_the_disk_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring, "FLUSH_SECONDS", 0.0)
    events = EventWriter(tmp_path)
    events.scalars(1, {"loss": 2.5})
    assert [e.value for e in read_events(tmp_path).Scalars("loss")] == [2.5]
    events.close()


def test_without_a_folder_events_are_nothing() -> None:
    events = EventWriter(None)
    events.scalars(1, {"a": 1.0})
    events.histograms(1, {"a": torch.zeros(1)})
    events.samples(1, {"a": "b"})
    events.flush()
    events.close()


def test_full_disk_is_noticed_by_the_write_that_meets_it(
    tmp_path: Path, file_size_limit: Limit
) -> None:
    metrics, events = MetricsFile(tmp_path / "m"), EventWriter(tmp_path / "tensorboard")
    events.scalars(1, {"loss": 1.0})
    with file_size_limit(0):
        with pytest.raises(UserError, match=r"cannot write .*m: File too large"):
            metrics.write(step=1)
        with pytest.raises(UserError, match=r"cannot write .*tfevents.*: File too large"):
            events.close()
        metrics.close()  # says nothing more
        events.close()
        with pytest.raises(UserError, match=r"cannot write .*tfevents"):
            EventWriter(tmp_path / "tensorboard")


def test_events_in_a_folder_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()
    with pytest.raises(UserError, match="cannot write"):
        EventWriter(tmp_path / "tensorboard")


# progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_rewritten_in_place_on_a_terminal() -> None:
    stream = Terminal()
    progress = Progress(stream=stream)
    assert progress.due()
    progress.show("a long line")
    assert not progress.due()
    progress.show("short")
    progress.say("stays")
    progress.end()
    assert stream.getvalue() == "\ra long line\rshort      \r     \rstays\n"


def test_progress_is_lines_elsewhere() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream)
    progress.show("one")
    progress.say("two")
    progress.end()
    assert stream.getvalue() == "one\ntwo\n"


def test_quiet_progress_writes_nothing() -> None:
    stream = Terminal()
    progress = Progress(quiet=True, stream=stream)
    assert not progress.due()
    progress.show("one")
    progress.say("two")
    assert stream.getvalue() == ""


class Broken(Terminal):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_progress_that_cannot_be_written_falls_silent() -> None:
    closed = io.StringIO()
    for progress in (Progress(stream=Broken()), Progress(stream=closed)):
        closed.close()
        assert progress.due()
        progress.say("one")
        assert not progress.due()


def test_without_stderr_there_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    progress = Progress()
    assert not progress.due()
    progress.say("one")


def test_durations_and_counts_read_well() -> None:
    assert [duration(s) for s in (-1, 0.4, 59.6, 3599, 7389)] == [
        "0:00",
        "0:00",
        "1:00",
        "59:59",
        "2:03:09",
    ]
    assert [count(n) for n in (0, 950, 35_120, 1_200_000, 2e9)] == [
        "0",
        "950",
        "35.1k",
        "1.2M",
        "2G",
    ]


def test_counts_are_rounded_before_their_unit_is_chosen() -> None:
    numbers = (
        999.4,
        999.6,
        999_499,
        999_600,
        9.994e8,
        9.996e8,
        9.996e11,
        1.5e16,
        -999_600,
        float("inf"),
    )
    assert [count(n) for n in numbers] == [
        "999",
        "1k",
        "999k",
        "1M",
        "999M",
        "1G",
        "1T",
        "15000T",
        "-1M",
        "inf",
    ]
