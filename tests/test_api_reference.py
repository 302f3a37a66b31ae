"""The API reference builds from the docstrings without a warning, and its pages are complete in themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every page by name, built in a process of its own."""
    pytest.importorskip("pdoc")
    folder = tmp_path_factory.mktemp("api")
    command = [sys.executable, "-P", str(ROOT / "tools" / "api_reference.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return {str(page.relative_to(folder)): page.read_text(encoding="utf-8") for page in folder.rglob("*.html")}


def test_every_room_has_a_page(pages: dict[str, str]) -> None:
    for name in ("models", "guides", "testing", "scoring", "sampling", "batch", "domains/text", "domains/polyphonic"):
        assert f"pyro_seq/{name}.html" in pages, name
    for name in ("RNN", "SRNN", "VRNN", "DMM", "HMM"):
        assert f'id="{name}"' in pages["pyro_seq/models.html"]
    for name in ("SequenceBatch", "Pair", "score", "AutoSequenceGuide", "posterior_predictive", "infill"):
        assert f'id="{name}"' in pages["pyro_seq.html"]


def test_equations_and_arguments_are_set_apart(pages: dict[str, str]) -> None:
    assert "<h6" in pages["pyro_seq/models.html"]  # the heading of a list of arguments
    assert "<pre>" in pages["pyro_seq/models.html"]  # a model's picture


def test_nothing_is_loaded_from_elsewhere(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["'](https?:)?//""", page)
        assert not loaded, name
