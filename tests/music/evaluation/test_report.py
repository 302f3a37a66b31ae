"""The report on music: what is in it, that nothing else is, and that a browser shows and plays
it.
"""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_writer import to_midi
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.evaluation.report_page import Picture, ReportFigure, Sound, report_html
from pyro_seq.music.evaluation.statistics import distance, statistics
from pyro_seq.music.render.audio import synthesise, wav_bytes
from pyro_seq.music.render.plots import curves_png, histograms, roll_png

TIMING = Timing(grid=4, tempo=120)
HOSTILE = "<script>alert('x')</script> & \"quotes\""
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def piece(seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.zeros(48, 88).index_put(
        (torch.arange(48), torch.randint(30, 60, (48,), generator=random)), torch.ones(())
    )


@pytest.fixture(scope="module")
def page() -> str:
    """A page with everything in it."""
    real, new = piece(0), piece(1)
    primer = real[:16]
    whole = torch.cat([primer, new])
    sounds = [
        Sound(
            HOSTILE,
            sound(whole),
            roll_png(whole, TIMING, primer_frames=16),
            HOSTILE,
            primer=sound(primer),
            midi=b"MThd",
        ),
        Sound("Sample 2", sound(new), roll_png(new, TIMING)),
    ]
    found = {"real": statistics([real], TIMING), "generated": statistics([new], TIMING)}
    return report_html(
        HOSTILE,
        summary=HOSTILE,
        settings={"model.name": HOSTILE, "model.hidden_size": 1200, "training.learning_rate": 1e-3},
        curves=[Picture(curves_png({"training": [(1, 5.0), (2, 4.0)]}), HOSTILE, HOSTILE)],
        figures=[
            ReportFigure("model", 3.14159, note=HOSTILE),
            ReportFigure("nothing", float("nan")),
            ReportFigure("impossible", float("inf")),
        ],
        sounds=sounds,
        histograms=[
            Picture(png, f"Histograms of {name}") for name, png in histograms(found).items()
        ],
        distances={"generated": distance(found["real"], found["generated"])},
    )


def sound(roll: torch.Tensor) -> bytes:
    return wav_bytes(synthesise(to_midi(roll, TIMING), TIMING.seconds(len(roll))))


class Reader(HTMLParser):
    """The elements of a page, with their attributes, and its text; every element must be closed
    where it belongs.
    """

    VOID = ("meta", "link", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_it_needs_nothing_else_and_runs_nothing(page: str) -> None:
    reader = Reader(page)
    addresses = [
        value
        for _, found in reader.elements
        for name, value in found.items()
        if name in ("src", "href", "srcset", "action")
    ]
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert (
        "url(" not in page
        and "@import" not in page
        and not reader.all("script")
        and not reader.all("iframe")
    )
    assert not [name for _, found in reader.elements for name in found if name.startswith("on")]
    assert "default-src 'none'" in next(
        found["content"] for found in reader.all("meta") if found.get("http-equiv")
    )
    assert len(page) < 2_000_000  # 21 seconds of sound at 59 kB are 1.2 MB of it


def test_all_words_are_shown_as_they_are(page: str) -> None:
    reader = Reader(page)
    # window title, heading, summary, setting, caption, note of a figure, of a sound, and its title
    assert reader.text.count(HOSTILE) == 8
    assert HOSTILE in [image["alt"] for image in reader.all("img")]
    assert (
        "3.142" in reader.text
        and "–" in reader.text
        and "∞" in reader.text
        and "nan" not in reader.text
        and "1,200" in reader.text
    )
    assert [link["download"] for link in reader.all("a")] == [
        "script-alert--x----script-----quotes.mid"
    ]


def test_it_can_be_read_without_seeing_it(page: str) -> None:
    reader = Reader(page)
    assert reader.all("html") == [{"lang": "en"}]
    assert all(
        image["alt"] and int(image["width"]) > 100 and int(image["height"]) > 100
        for image in reader.all("img")
    )
    assert [player["aria-label"] for player in reader.all("audio")] == [
        f"{HOSTILE}: Primer",
        f"{HOSTILE}: Primer and continuation",
        "Sample 2",
    ]
    headings = [int(tag[1]) for tag, _ in reader.elements if tag in ("h1", "h2", "h3")]
    assert headings[0] == 1 and headings.count(1) == 1 and max(np.diff(headings)) <= 1
    assert all(found["scope"] in ("row", "col") for found in reader.all("th"))


def test_parts_of_which_there_is_nothing_are_left_out() -> None:
    reader = Reader(report_html("Nothing yet"))
    assert reader.text.replace("\n", "").endswith("Nothing yet") and not reader.all("section")


def test_pictures_and_sounds_that_are_none() -> None:
    with pytest.raises(UserError, match="the picture for 'a curve' is no PNG"):
        report_html("x", curves=[Picture(b"GIF89a", "a curve")])
    with pytest.raises(UserError, match="no WAV"):
        report_html("x", sounds=[Sound("a", b"ID3", roll_png(piece(), TIMING))])


class Browser:
    """Chromium, driven by its DevTools protocol over a pair of pipes: JSON messages that end with a
    zero byte.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.to_browser, self.from_browser = to_browser, from_browser
        self.session: str | None = None
        self.number = 0
        self.events: list[dict[str, Any]] = []
        self.received = b""

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; events on the way are kept."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        os.write(
            self.to_browser,
            json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode()
            + b"\0",
        )
        while (answer := self.receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self, seconds: float = 60) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self.received:
            ready, _, _ = select.select([self.from_browser], [], [], max(0, end - time.monotonic()))
            data = os.read(self.from_browser, 2**16) if ready else b""
            assert data, "chromium does not answer"
            self.received += data
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)

    def evaluate(self, script: str) -> Any:
        """What a program in the page comes to, in the end if it is a promise."""
        found = self.ask(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, path: Path) -> None:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Log", "Runtime", "Network", "Page"):
            self.ask(f"{domain}.enable")
        self.ask("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def screenshot(self, width: int) -> Image.Image:
        """The top of the page at a width."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        png = self.ask("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(png)))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium to show the page: none is installed")
    read_commands, to_browser = os.pipe()
    from_browser, write_answers = os.pipe()
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--mute-audio",
        "--no-first-run",
        "--hide-scrollbars",
    ]
    options += [
        f"--user-data-dir={folder}",
        "--autoplay-policy=no-user-gesture-required",
        "--remote-debugging-pipe",
    ]
    # the descriptors that Chromium expects
    shell = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'
    command = ["bash", "-c", shell, "bash", CHROMIUM, *options]
    pipes = (read_commands, write_answers)
    with subprocess.Popen(
        command, pass_fds=pipes, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        for pipe in pipes:
            os.close(pipe)
        try:
            yield Browser(to_browser, from_browser)
        finally:
            os.close(to_browser)
            os.close(from_browser)
            process.terminate()


PLAY = """(async () => {
  const audio = document.querySelectorAll('audio')[1];
  await audio.play();
  while (audio.currentTime < 0.3) await new Promise(next => setTimeout(next, 20));
  audio.pause();
  return [audio.currentTime, audio.duration];
})()"""


def test_a_browser_shows_and_plays_it(page: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    with browser(tmp_path / "profile") as chromium:
        chromium.open(path)
        assert chromium.evaluate(
            "[...document.images].every(image => image.complete && image.naturalWidth > 100)"
        )
        played, duration = chromium.evaluate(PLAY)
        assert played >= 0.3 and duration == pytest.approx(TIMING.seconds(64), abs=0.01)
        for width in (1100, 400):
            picture = np.asarray(chromium.screenshot(width).convert("L"))
            assert picture.shape[1] == width and picture.std() > 10
            # nothing sticks out
            assert chromium.evaluate("document.documentElement.scrollWidth") == width
        happened = chromium.events
    assert not [
        event
        for event in happened
        if event["method"]
        in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    ]
    assert not [event for event in happened if event["method"] == "Network.loadingFailed"]
    asked = [
        event["params"]["request"]["url"]
        for event in happened
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert asked and all(url.startswith(("file:", "data:")) for url in asked)
