"""What the project's files for people and machines say of each other."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from packaging.requirements import Requirement

import pyro_seq

ROOT = Path(__file__).parent.parent.parent


def promised() -> configparser.ConfigParser:
    """Return what setup.cfg says."""
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    return found


def test_lowest_versions_are_those_that_are_tried() -> None:
    """Each version that setup.cfg promises is pinned for `make test-lowest`."""
    pins = {
        name.lower(): version
        for name, version in re.findall(
            r"^([\w-]+)==(\S+)$", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE
        )
    }
    setup = promised()
    extras = setup["options.extras_require"]
    lines = [
        setup["options"]["install_requires"],
        *(extras[name] for name in extras if name != "docs"),
    ]
    for line in filter(None, "\n".join(lines).split("\n")):
        required = Requirement(line)
        for bound in required.specifier:
            if bound.operator == ">=":
                pin = pins[required.name.lower()]
                assert re.fullmatch(rf"{re.escape(bound.version)}(\.\d+)*", pin), line


def test_workflow_runs_the_pythons_of_setup_cfg() -> None:
    named = re.findall(r"Python :: (3\.\d+)$", promised()["metadata"]["classifiers"], re.MULTILINE)
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    matrix = re.search(r"python: \[(.*)\]", workflow)
    assert matrix and re.findall(r"[\d.]+", matrix[1]) == named
    assert "run: .ci/run" in workflow


def test_citation_names_the_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == pyro_seq.__version__  # type: ignore[index]


def test_documentation_s_packages_are_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    for line in filter(None, promised()["options.extras_require"]["docs"].split("\n")):
        assert f"\n{Requirement(line).name.lower()}==" in pins, line
