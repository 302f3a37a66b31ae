"""Runs mypy over the package as it is installed: a tree of links in which `models/` is
`pyro_seq/models`, and so on.

Run over the checkout itself, mypy would see `models`, `guides` and `cli` as packages of their own
and `pyro_seq.models` as missing, or pass over what it does not find. So the tree is made from the
packages that setup.cfg names, and the check fails when mypy has looked at fewer files than the four
folders hold: then a folder is missing in setup.cfg, and would be in a wheel as well.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# always the same place, so that mypy can use what it knows from the last run
TREE = ROOT / ".mypy_cache" / "tree"


def packages() -> dict[str, Path]:
    """Every package that setup.cfg installs, and the folder it is made from."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    roots = dict(
        re.split(r"\s*=\s*", line) for line in config["options"]["package_dir"].split("\n") if line
    )
    found = {}
    for name in config["options"]["packages"].split():
        parent, inner = name, []
        while parent not in roots:
            parent, _, last = parent.rpartition(".")
            inner.insert(0, last)
        found[name] = ROOT.joinpath(roots[parent], *inner)
    return found


def link_tree(folders: dict[str, Path]) -> None:
    """Fills `TREE` with one folder for each package and one link for each of its files."""
    shutil.rmtree(TREE, ignore_errors=True)
    for name, folder in folders.items():
        target = TREE.joinpath(*name.split("."))
        target.mkdir(parents=True, exist_ok=True)
        for file in [*folder.glob("*.py"), *folder.glob("py.typed")]:
            (target / file.name).symlink_to(file)


def main() -> int:
    """Prints what mypy has to say, with the paths of the checkout; returns the exit code."""
    folders = packages()
    link_tree(folders)
    command = [sys.executable, "-P", "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), "--package", "pyro_seq"]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True)
    output = done.stdout + done.stderr
    for name, folder in sorted(folders.items(), reverse=True):  # the inner packages first
        output = output.replace(
            name.replace(".", "/") + "/", folder.relative_to(ROOT).as_posix() + "/"
        )
    print(output, end="")
    count = re.search(
        r"(?:in|checked) (\d+) source files?", output.splitlines()[-1] if output else ""
    )
    checked = int(count[1]) if count else 0
    top_folders = {ROOT / folder.relative_to(ROOT).parts[0] for folder in folders.values()}
    present = sum(1 for folder in top_folders for _ in folder.rglob("*.py"))
    # where mypy itself failed it has said so
    if checked < present and not (done.returncode and not checked):
        print(f"mypy looked at {checked} of {present} files: is every package listed in setup.cfg?")
        return 1
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
