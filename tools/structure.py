"""Measures how the package is built: imports between its rooms, sizes, names, annotations.

    python tools/structure.py        prints the figures, and every place that breaks a rule

The rooms stand on floors, `FLOORS`, and a module imports from floors below its own or from its own
room; imports inside functions and for type checkers count. `tests/test_architecture.py` holds the
rules.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ("models", "guides", "cli")  # folders that are installed inside of the package
MOST_FILES = 12  # of one folder
LONGEST_FILE, LONGEST_FUNCTION = 400, 60

# From the ground up: the rooms of one floor know nothing of each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("_handlers", "_progress", "_pytree", "_schema", "_threads"),
    ("_rng", "_batch_checks"),
    ("_cells",),
    ("batch",),
    ("distributions",),
    ("nn",),
    ("encoders",),
    ("contexts",),
    ("emissions",),
    ("pairs",),
    ("poutine",),
    ("infer",),
    ("reinforce", "models"),
    ("guides",),
    ("runs",),
    ("config",),
    ("train",),
    ("programs", "testing"),
    ("text", "music", "games", "series"),
    ("seqgan", "frames"),
    ("scoring",),
    ("cli",),
    ("__main__",),
)


def modules() -> dict[str, Path]:
    """Return the source file of every module by its name inside the package."""
    found = {}
    for folder in ("pyro_seq", *BESIDE):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = [*file.relative_to(ROOT / folder).with_suffix("").parts]
            parts = ([] if folder == "pyro_seq" else [folder]) + parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def room(module: str) -> str:
    """Return the top-level folder or file of a module."""
    return module.split(".")[0]


def imports(module: str, found: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a module imports, wherever the import stands."""
    for node in ast.walk(ast.parse(found[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            inside = name.removeprefix("pyro_seq").removeprefix(".")
            if name == inside:
                continue
            while inside and inside not in found:
                inside = inside.rpartition(".")[0]
            if inside and inside != module:
                yield inside


def arrows() -> dict[str, set[str]]:
    """Return the imports of every module but the front door, which lists names of all rooms."""
    found = modules()
    return {module: set(imports(module, found)) for module in found if module}


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Return every import from a floor that is not below the importing module's."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    return [
        f"{module} -> {target}"
        for module, targets in graph.items()
        for target in sorted(targets)
        if room(module) != room(target) and floor[room(target)] >= floor[room(module)]
    ]


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Return every module that imports itself over others, with one way round."""
    found = []
    for start in graph:
        ways, seen = [[start]], set()
        while ways:
            way = ways.pop()
            for target in graph.get(way[-1], ()):
                if target == start:
                    found.append(" -> ".join([*way, start]))
                    ways = []
                    break
                if target not in seen:
                    seen.add(target)
                    ways.append([*way, target])
    return found


def crowded() -> list[str]:
    """Return every folder of the package that holds more than `MOST_FILES` files of Python."""
    count = Counter(file.parent for file in modules().values() if file.name != "__init__.py")
    return [f"{folder.relative_to(ROOT)}: {n}" for folder, n in count.items() if n > MOST_FILES]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def long_files() -> list[str]:
    """Return every file of the package that has more than `LONGEST_FILE` lines."""
    sizes = {file: len(file.read_text("utf-8").splitlines()) for file in modules().values()}
    return [f"{file.relative_to(ROOT)}: {n}" for file, n in sizes.items() if n > LONGEST_FILE]


def long_functions() -> list[str]:
    """Return every function of the package that has more than `LONGEST_FUNCTION` lines."""
    found = []
    for file in modules().values():
        for function in functions(ast.parse(file.read_text("utf-8"))):
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > LONGEST_FUNCTION:
                found.append(f"{file.relative_to(ROOT)}:{function.lineno} {function.name}: {lines}")
    return found


def family_checks() -> list[str]:
    """Return every `isinstance(…, SequenceModel)` outside `pairs/`."""
    found = []
    for module, file in modules().items():
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            if "isinstance(" in line and "SequenceModel" in line and room(module) != "pairs":
                found.append(f"{file.relative_to(ROOT)}:{number}")
    return found


def annotated_any() -> tuple[int, int]:
    """Return how many parameters and returns are annotated exactly `Any`, and how many there
    are.
    """
    exact = total = 0
    for file in modules().values():
        for function in functions(ast.parse(file.read_text("utf-8"))):
            a = function.args
            every = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
            given = [arg.annotation for arg in every if arg is not None and arg.annotation]
            given += [function.returns] if function.returns else []
            total += len(given)
            exact += sum(isinstance(node, ast.Name) and node.id == "Any" for node in given)
    return exact, total


def main() -> int:
    """Print the figures and the places; return the exit code, 1 where a rule is broken."""
    graph = arrows()
    files = modules().values()
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    exact, total = annotated_any()
    print(f"lines of Python              {len(lines):,} in {len(files)} files")
    print(f"lines over 100 columns       {sum(len(line) > 100 for line in lines):,}")
    print(f"imports between modules      {sum(map(len, graph.values())):,}")
    print(f"annotated exactly Any        {exact} of {total}, {exact / total:.1%}")
    print(f"isinstance SequenceModel     {len(family_checks())} outside pairs/")
    rules = {
        "imports that go up": upward(graph),
        "circles of imports": circles(graph),
        f"folders of more than {MOST_FILES} files": crowded(),
        f"files of more than {LONGEST_FILE} lines": long_files(),
        f"functions of more than {LONGEST_FUNCTION} lines": long_functions(),
    }
    for rule, places in rules.items():
        print(f"{rule}: {len(places)}", *places, sep="\n    ")
    return int(any(rules.values()))


if __name__ == "__main__":
    sys.exit(main())
