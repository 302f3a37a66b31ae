"""Give a run away: what using it needs, and a model card, in a folder of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyro_seq import __version__
from pyro_seq._schema import check
from pyro_seq.config.model_settings import KIND
from pyro_seq.config.registry import named_by_code
from pyro_seq.errors import UserError
from pyro_seq.programs.page import page_templates
from pyro_seq.programs.program import Program
from pyro_seq.programs.shared import Shared, names_of, places_of, refuse_paths, refuse_places
from pyro_seq.runs.checkpoint import CHECKPOINT, FORMAT, load_tree, save_tree
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.metrics import read_metrics
from pyro_seq.runs.writing import whole_folder

TEMPLATES = Path(__file__).parent
NAMED = 20  # places of data that the card names
ERROR = "_error"  # what the name of a figure's standard error ends with


class Figure(NamedTuple):
    """A figure of a run, with its standard error if the run has it."""

    name: str
    value: float
    error: float | None = None


def share(
    program: Program[Any, Any, Any],
    run_dir: Path | str,
    out: Path | str,
    *,
    pair: str | None = None,
) -> None:
    """Write what using a run needs into a new folder, with a model card, `README.md`.

    These are settings, the documents of the program without places of data, and the best weights:
    no optimiser, no metrics, no path of this machine. `program.load` and every command take the
    folder as they take a run. Before it is put in place, it is loaded once, unless its pair is code
    of the user's own that `pair` does not name.

    Args:
        program: of the run, such as `text_program`.
        run_dir: the run's folder.
        out: the new folder, which must not be there yet.
        pair: the run's pair, where it is code of the user's own, which this lets be run.

    Raises `UserError` if the run is missing, half-written or damaged, if it names a path or place
    of this machine that it cannot be used without, and if `out` is there or cannot be written.
    """
    run = program.folder(run_dir)
    settings = dict(run.settings())
    shared = program.shared(run)
    kind = str(settings.get(KIND))
    if named_by_code(kind):
        settings[KIND] = kind = kind.rpartition("/")[2]
    refuse_paths(settings, run)
    refuse_places(shared.documents, places_of(run, shared.data), run)
    weights = {name: _weights(run.path / name, kept) for name, kept in shared.checkpoints.items()}
    steps = {tree.get("real_steps", tree["step"]) for tree in weights.values()}
    card = model_card(program, shared, settings, figures(run, shared.splits, steps))
    with whole_folder(Path(out), "OUT") as folder:
        made = program.folder(folder)
        for name, document in shared.documents.items():
            made.write_json(name, document)
        made.write_json("run.json", {"format": FORMAT, "kind": run.kind, "settings": settings})
        for name, tree in weights.items():
            (folder / name).parent.mkdir(exist_ok=True)
            save_tree(folder / name, tree)
        with made.replacing("README.md") as temporary:
            temporary.write_text(card, encoding="utf-8")
        if pair is not None or not named_by_code(kind):
            loading: Any = program
            loading.load(folder, pair=pair)


def _weights(best: Path, kept: Sequence[str]) -> dict[str, Any]:
    """What is given away of a checkpoint: of the last one where there is no best one yet."""
    last = best.with_name("last.safetensors")
    path = best if best.exists() else last
    if not path.exists():
        raise UserError(f"{best.parent} has no weights yet: train it first")
    tree = load_tree(path)
    check(tree, CHECKPOINT, path, otherwise="is damaged: it holds no weights")
    if missing := [name for name in kept if name not in tree]:
        raise UserError(f"{path} has no {missing[0]}: train for longer first")
    return {name: tree[name] for name in kept}


def figures(run: RunFolder, splits: Sequence[str], steps: set[int]) -> list[Figure]:
    """Return the figures of a run's best weights: of their step, or else the last ones."""
    lines = [line for line in read_metrics(run.metrics) if line.get("split") in splits]
    chosen = [line for line in lines if line.get("step") in steps] or lines
    if not chosen:
        return []
    found = {
        name: float(value)
        for name, value in chosen[-1].items()
        if name != "step" and isinstance(value, int | float)
    }
    return [
        Figure(name, value, found.get(name + ERROR))
        for name, value in found.items()
        if not (name.endswith(ERROR) and name.removesuffix(ERROR) in found)
    ]


def model_card(
    program: Program[Any, Any, Any],
    shared: Shared,
    settings: Mapping[str, Any],
    measured: Sequence[Figure],
) -> str:
    """Return the model card of a run, as Markdown with the head that model hubs read."""
    names, kind = names_of(shared.data), str(settings.get(KIND))
    spec = f" --pair {kind}" if named_by_code(kind) else ""
    return (
        page_templates(TEMPLATES, html=False)
        .get_template("card.md.jinja")
        .render(
            program=program.kind,
            pair=code_span(kind),
            own=bool(spec),
            files=[
                code_span(name) for name in ("run.json", *shared.documents, *shared.checkpoints)
            ],
            figures=measured,
            settings=fenced("\n".join(_lines(settings)), "toml"),
            data=[code_span(name) for name in names[:NAMED]],
            more=len(shared.data) - len(names[:NAMED]),
            commands=fenced("\n".join(f"$ pyroseq {c}{spec}" for c in shared.commands), "console"),
            python=fenced(shared.python, "python"),
            without=shared.without,
            notes=shared.notes,
            version=__version__,
        )
    )


def _lines(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        shown = json.dumps("none" if value is None else value, ensure_ascii=False)
        yield f"{name} = {visible(shown)}"


def visible(text: str) -> str:
    """Return a text whose control characters, and halves of characters, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def code_span(text: str) -> str:
    """Return a text that Markdown shows as it stands, whatever is in it."""
    shown = visible(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{ticks} {shown} {ticks}" if "`" in shown else f"`{shown}`"


def fenced(text: str, language: str) -> str:
    """Return lines that Markdown shows as they stand, whatever is in them."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
