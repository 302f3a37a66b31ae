"""Take a picture of every page in headless Chromium: wide and narrow, dark and light.

    python tools/screenshots.py [SITE [PICTURES [PAGE ...]]]     build/site, build/screenshots, all

Prints a line for each page that can be scrolled sideways, for each message on its console, and for
each thing that it wants from a network; the exit code is 1 if there is one, and 0 with a reason
where Chromium or websocket-client is missing.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTHS = {"wide": 1280, "narrow": 400}  # pixels
THEMES = ("light", "dark")
HIGHEST = 6000  # pixels of a picture
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60  # seconds for an answer
WIDER = """
(() => {
  const wide = document.documentElement.scrollWidth, room = document.documentElement.clientWidth;
  if (wide <= room) return "";
  const found = [...document.querySelectorAll("article *")].filter(
    each => each.getBoundingClientRect().right > room + 1);
  const last = found.at(-1);
  return `${wide} > ${room}` + (last ? `: ${last.tagName} ${last.className}` : "");
})()
"""


class Browser:
    """A headless Chromium, spoken to over its own protocol of remote control."""

    def __init__(self, program: str, folder: Path) -> None:
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
            "--allow-file-access-from-files",
            "--remote-debugging-port=0",
            "--remote-allow-origins=*",
            f"--user-data-dir={folder}",
        )
        self.process = subprocess.Popen(
            [program, *options, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.socket = self._connected(folder / "DevToolsActivePort")
        self.numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def _connected(self, file: Path) -> Any:
        """The connection to the browser's first page, once there is one."""
        import websocket

        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if file.exists() and (lines := file.read_text().split()):
                with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json") as answer:
                    pages = [each for each in json.load(answer) if each["type"] == "page"]
                if pages:
                    return websocket.create_connection(
                        pages[0]["webSocketDebuggerUrl"], timeout=PATIENCE
                    )
            time.sleep(0.1)
        raise TimeoutError("Chromium did not start")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its answer; what happens in between is kept in `events`."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return dict(message["result"])
            self.events.append(message)

    def wait_for(self, method: str) -> None:
        """Wait until something happens, unless it has happened already."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def close(self) -> None:
        """End the browser."""
        self.socket.close()
        self.process.terminate()
        self.process.wait()


def messages(events: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what a page said on its console, and what it asked of a network."""
    for event in events:
        given = event.get("params", {})
        if event.get("method") == "Runtime.consoleAPICalled":
            yield " ".join(str(each.get("value", "")) for each in given["args"])
        elif event.get("method") == "Runtime.exceptionThrown":
            yield str(given["exceptionDetails"].get("text"))
        elif event.get("method") == "Log.entryAdded":
            yield f"{given['entry']['text']} {given['entry'].get('url', '')}"
        elif event.get("method") == "Network.requestWillBeSent":
            url = given["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:", "about:")):
                yield f"wants {url}"


def look(browser: Browser, page: Path, width: int, theme: str, picture: Path) -> list[str]:
    """Take a picture of one page, and return what is wrong with it."""
    browser.events.clear()
    browser.ask(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    browser.ask(
        "Emulation.setEmulatedMedia",
        features=[{"name": "prefers-color-scheme", "value": theme}],
    )
    browser.ask("Page.navigate", url=page.resolve().as_uri())
    browser.wait_for("Page.loadEventFired")
    wider = browser.ask("Runtime.evaluate", expression=WIDER)["result"]["value"]
    size = browser.ask("Page.getLayoutMetrics")["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": width, "height": min(size["height"], HIGHEST), "scale": 1}
    shot = browser.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(base64.b64decode(shot["data"]))
    return [f"scrolls sideways, {wider}"] * bool(wider) + sorted({*messages(browser.events)})


def main() -> int:
    """Look at every page, and say what is wrong."""
    given = sys.argv[1:]
    site = Path(given[0]) if given else Path("build", "site")
    pictures = Path(given[1]) if given[1:] else Path("build", "screenshots")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        print("no screenshots: Chromium is not here")
        return 0
    try:
        import websocket  # noqa: F401
    except ImportError:
        print("no screenshots: websocket-client is not here (pip install websocket-client)")
        return 0
    pages = [site / page for page in given[2:]] or sorted(site.rglob("*.html"))
    faults = taken = 0
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(program, Path(folder))
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                browser.ask(f"{domain}.enable")
            for page in pages:
                name = page.relative_to(site).with_suffix("")
                for (size, width), theme in itertools.product(WIDTHS.items(), THEMES):
                    picture = pictures / f"{size}-{theme}" / f"{name}.png"
                    for fault in look(browser, page, width, theme, picture):
                        print(f"{name}, {size}, {theme}: {fault}")
                        faults += 1
                    taken += 1
        finally:
            browser.close()
    print(f"{taken} pictures of {len(pages)} pages in {pictures}: {faults} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
