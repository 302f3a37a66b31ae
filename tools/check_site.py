"""Check built pages: every link and anchor inside the site, and that nothing comes from a network.

    python tools/check_site.py [FOLDER]     build/site, if no folder is named

Prints a line for each fault, and how many pages, links and anchors were looked at; the exit code
is 1 if there is a fault.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

LOADED = {  # what a browser fetches by itself: tags, and the attributes that name it
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "img": ("src", "srcset"),
    "input": ("src",),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "track": ("src",),
    "video": ("src", "poster"),
}
NOT_FETCHED = ("canonical", "next", "prev", "index", "search", "author", "copyright", "license")
OUTSIDE = re.compile(r"(?:[a-z]+:)?//", re.IGNORECASE)
FETCHED_BY_CSS = re.compile(r"""(?:@import\s*|url\(\s*)["']?((?:https?:)?//[^"')\s]+)""")
FETCHED_BY_SCRIPT = re.compile(
    r"""(?:importScripts|import|fetch)\(\s*["']((?:https?:)?//[^"']+)|\.src\s*=\s*["']((?:https?:)?//[^"']+)"""
)


class Page(HTMLParser):
    """What a page is called by, links to, and loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one tag says."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") in NOT_FETCHED:
            return
        self.loaded += [given[name] for name in LOADED.get(tag, ()) if given.get(name)]
        self.loaded += FETCHED_BY_CSS.findall(given.get("style", ""))

    handle_startendtag = handle_starttag


def faults(folder: Path) -> Iterator[str]:
    """Yield what is wrong with the pages of a site, a line each."""
    pages = {path.resolve(): Page(path) for path in sorted(folder.rglob("*.html"))}
    if not pages:
        yield f"{folder} holds no page"
    for path, page in pages.items():
        name = path.relative_to(folder.resolve())
        for link in page.loaded:
            if OUTSIDE.match(link):
                yield f"{name} loads {link}"
            elif not link.startswith("data:") and not _target(path, link)[0].exists():
                yield f"{name} loads {link}, which is not there"
        for link in page.links:
            if re.match(r"(?:[a-z]+:|//)", link, re.IGNORECASE):
                continue
            target, anchor = _target(path, link)
            if not target.exists():
                yield f"{name} links to {link}, which is not there"
            elif anchor and target in pages and anchor not in pages[target].anchors:
                yield f"{name} links to {link}, an anchor that is not there"
    for path in sorted(folder.rglob("*.css")):
        for link in FETCHED_BY_CSS.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(folder)} loads {link}"
    for path in sorted(folder.rglob("*.js")):
        for links in FETCHED_BY_SCRIPT.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(folder)} loads {''.join(links)}"
    if not (folder / "searchindex.js").exists():
        yield "there is no searchindex.js: search finds nothing"


def _target(page: Path, link: str) -> tuple[Path, str]:
    """The file that a link leads to, and the anchor in it."""
    file, _, anchor = unquote(link).partition("#")
    file = file.partition("?")[0]
    target = (page.parent / file).resolve() if file else page
    return (target / "index.html" if target.is_dir() else target), anchor


def main() -> int:
    """Print the faults of a site, and how much was looked at."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build", "site")
    found = [*faults(folder)]
    pages = [Page(path) for path in folder.rglob("*.html")]
    print("\n".join(found), end="\n" * bool(found))
    print(
        f"{len(pages)} pages, {sum(len(page.links) for page in pages):,} links, "
        f"{sum(len(page.anchors) for page in pages):,} anchors: {len(found)} faults"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
