"""The code in README.md and docs/ runs."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest

from pyro_seq.cli import main

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TRAINING = (
    "README.md",
    "globals.md",
    "plain-pyro.md",
    "series.md",
    "start.md",
)  # for seconds
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
LINKED = [*PAGES, CONTRIBUTING, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
# a line of a page that fits on a screen; the page on architecture is for who works on the package
WIDEST = 150
FRAME = {"index.md", "start.md", "gallery.md"}  # pages of the site that README stands for
INCLUDING = [page for page in PAGES if page.read_text(encoding="utf-8").startswith("```{include}")]
SHOWN = [page for page in [*PAGES, CONTRIBUTING] if page not in INCLUDING]
SHOWN.remove(ROOT / "docs" / "architecture.md")


def python_blocks(page: Path) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def pyroseq_lines(page: Path) -> list[str]:
    blocks = re.findall(
        r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return [
        line.removeprefix("$ pyroseq ")
        for block in blocks
        for line in block.splitlines()
        if line.startswith("$ pyroseq ")
    ]


def test_there_is_code_to_run() -> None:
    assert sum(len(python_blocks(page)) for page in PAGES) >= 3


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page.name in TRAINING else [], id=page.name)
        for page in PAGES
        if python_blocks(page)
    ],
)
def test_code_runs_from_top_to_bottom(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    for number, block in enumerate(python_blocks(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


BLOCK = re.compile(r"^```(?:python|\{code-cell\} ipython3)\n(?::.*\n)*(.*?)^```", re.M | re.S)
SCRIPTS = [
    script
    for folder in ("benchmarks", "examples", "tools")
    for script in ROOT.glob(f"{folder}/*.py")
]


@pytest.mark.parametrize("source", [*PAGES, *SCRIPTS], ids=lambda path: path.name)
def test_what_it_imports_of_the_package_is_there(source: Path) -> None:
    """Code that takes minutes runs in `make test-all` alone, so names that moved show here."""
    text = source.read_text(encoding="utf-8")
    code = "\n".join(BLOCK.findall(text)) if source.suffix == ".md" else text
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_seq"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_page_on_own_pairs_shows_its_example() -> None:
    assert (ROOT / "examples" / "topic.py").read_text(encoding="utf-8") in python_blocks(
        ROOT / "docs" / "custom-pairs.md"
    )


def test_commands_of_the_page_on_own_pairs_run(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, but for sizes: from the check to the sample."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(corpus, tmp_path / "corpus.txt")
    monkeypatch.chdir(tmp_path)
    lines = pyroseq_lines(ROOT / "docs" / "custom-pairs.md")
    assert [line.split()[:2] for line in lines] == [["pairs", "check"]] * 2 + [
        ["text", "train"],
        ["text", "evaluate"],
        ["text", "generate"],
        ["text", "train"],
        ["pairs", "list"],
    ]
    for line in lines:
        words = shlex.split(line.replace("3000", "4"))
        if words[:2] == ["text", "train"] and "--resume" not in words:
            sizes = [
                "text.window=6",
                "text.batch_size=4",
                "text.embedding_size=3",
                "training.num_steps=2",
                "training.valid_every=2",
            ]
            words += [word for size in sizes for word in ("--set", size)]
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0, line


def links(page: Path) -> list[tuple[Path, str]]:
    """The files of this repository that a page links to, each with the heading that it names, if
    any.
    """
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    targets = [target.partition("#") for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)]
    return [
        ((page.parent / file).resolve() if file else page, heading) for file, _, heading in targets
    ]


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them: lower case, without punctuation, hyphens for
    spaces.
    """
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target, heading in links(page):
        assert target.exists(), f"{page.name} links to {target}"
        assert not heading or heading in anchors(target), (
            f"{page.name} links to {target.name}#{heading}, a heading that is not there"
        )


def test_readme_lists_every_page() -> None:
    listed = {target for target, _ in links(ROOT / "README.md")}
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page not in INCLUDING}
    assert {page for page in pages - listed if page.name not in FRAME} == set()


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_lines_fit_on_a_screen(page: Path) -> None:
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    long = [f"{page.name}:{number}" for number, line in lines if len(line) > WIDEST]
    assert not long, f"lines of more than {WIDEST} characters: {long}"


def test_every_page_explains_its_terms() -> None:
    glossary = ROOT / "docs" / "glossary.md"
    without = [page.name for page in SHOWN if glossary not in {target for target, _ in links(page)}]
    assert set(without) <= {glossary.name}
