"""Where a pair's code comes from: names, packages, files and modules; what cannot be imported is
said in one line.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from pyro_seq.config.registry import SHIPPED, find_pair, installed, named_by_code
from pyro_seq.errors import UserError
from pyro_seq.models import SRNN

SOURCE = '''
"""A file."""
from beside import WORD


def maker(emission):
    """Makes a model.

    And more.
    """


class Other:
    pass


number = 3
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WORD = 'beside'\n")
    (tmp_path / "own.py").write_text(SOURCE)
    return tmp_path / "own.py"


def refused(spec: str) -> str:
    with pytest.raises(UserError) as error:
        find_pair(spec)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_shipped_pairs_have_names_and_a_line_each() -> None:
    for name in SHIPPED:
        entry = find_pair(name)
        assert entry.shipped and entry.kind == name and entry.title
        assert not named_by_code(name)
    assert find_pair("srnn").maker is SRNN


def test_unknown_name() -> None:
    assert refused("srn") == "unknown pair 'srn'; did you mean 'srnn'?"


def test_file_is_named_by_its_whole_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    path_before = list(sys.path)
    entry = find_pair("own.py:maker")
    assert entry.kind == f"{file}:maker" == find_pair(f"{file}:maker").kind and named_by_code(
        entry.kind
    )
    assert entry.title == "Makes a model." and entry.source == f"file {file}" and not entry.shipped
    assert find_pair("./own.py:Other").title == ""
    assert sys.path == path_before and "own" not in sys.modules
    assert sorted(path.name for path in file.parent.iterdir() if path.name != "__pycache__") == [
        "beside.py",
        "own.py",
    ]
    assert not list(file.parent.glob("__pycache__/own*"))  # no compiled copy of the user's file


def test_file_runs_once_until_its_contents_change(file: Path) -> None:
    maker = find_pair(f"{file}:maker").maker
    assert find_pair(f"{file}:maker").maker is maker
    file.write_text(SOURCE + "\nmore = 1\n")
    assert find_pair(f"{file}:maker").maker is not maker


def test_file_beside_does_not_hide_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('hides the standard library')\n")
    (tmp_path / "own.py").write_text("import colorsys\ndef maker(): colorsys\n")
    assert find_pair(f"{tmp_path}/own.py:maker").maker.__name__ == "maker"


def test_two_folders_may_each_have_a_helper_of_one_name(tmp_path: Path) -> None:
    """Which pair is read first makes no difference; one without such a helper does not get
    another's.
    """
    for name in ("first", "second"):
        (tmp_path / name / "helpers").mkdir(parents=True)
        (tmp_path / name / "helpers" / "__init__.py").write_text("")
        (tmp_path / name / "helpers" / "words.py").write_text(f"WORD = {name!r}\n")
        (tmp_path / name / "beside_both.py").write_text(
            "from helpers.words import WORD\nWORD = WORD + '!'\n"
        )
        (tmp_path / name / "own.py").write_text(
            "import beside_both\ndef maker(): return beside_both.WORD\n"
        )
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "own.py").write_text("import beside_both\ndef maker(): pass\n")
    first, second = (
        find_pair(f"{tmp_path}/{name}/own.py:maker").maker for name in ("first", "second")
    )
    assert (first(), second()) == ("first!", "second!")
    assert "No module named 'beside_both'" in refused(f"{tmp_path}/third/own.py:maker")
    (tmp_path / "first" / "own.py").write_text(
        "import beside_both, helpers.words\ndef maker(): return helpers.words.WORD\n"
    )
    again = find_pair(f"{tmp_path}/first/own.py:maker").maker
    assert again() == "first" and second() == "second!"
    modules = [sys.modules[maker.__module__].beside_both for maker in (first, again, second)]
    assert modules[0] is modules[1] is not modules[2]


def test_a_model_that_imports_while_it_runs_finds_its_own_helper(tmp_path: Path) -> None:
    """At each call of what the maker has returned, whichever pair was read last."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "late.py").write_text(f"WORD = {name!r}\n")
        (tmp_path / name / "own.py").write_text(
            "def maker():\n    def model():\n        import late\n        return late.WORD\n"
            "    return model\n"
        )
    models = [find_pair(f"{tmp_path}/{name}/own.py:maker").maker() for name in ("first", "second")]
    assert [model() for model in (*models, *models)] == ["first", "second"] * 2
    assert "late" not in sys.modules


def test_makers_import_what_lies_beside_their_own_file(tmp_path: Path) -> None:
    """Also where they do it only when they are called, from folders without `__init__.py`, and
    after another's helper has failed.
    """
    for name in ("first", "second"):
        for folder, failing in (("plain", False), ("failing", name == "first")):
            (tmp_path / name / folder).mkdir(parents=True)
            (tmp_path / name / folder / "words.py").write_text(f"WORD = {name!r}\n")
            if folder == "failing":
                (tmp_path / name / folder / "__init__.py").write_text(
                    "from . import words\n" + "1 / 0\n" * failing
                )
        source = (
            "try:\n    import failing\nexcept ZeroDivisionError:\n    pass\n"
            if name == "first"
            else "import failing.words\n"
        )
        maker = (
            "def maker(emission):\n    from plain.words import WORD\n    return lambda batch: "
            "WORD\n"
        )
        (tmp_path / name / "own.py").write_text(source + maker)
    entries = [find_pair(f"{tmp_path}/{name}/own.py:maker") for name in ("first", "second")]
    words = []
    for entry in (*entries, *entries):
        with entry.explained("could not be made"):
            words.append(entry.maker(None)(None))
    assert words == ["first", "second"] * 2
    assert sys.modules[entries[1].maker.__module__].failing.words.WORD == "second"
    assert not {"plain", "plain.words", "failing", "failing.words"} & set(sys.modules), (
        "whoever asks now would mean neither"
    )


def test_a_program_keeps_the_modules_that_it_has_imported(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the working folder, reachable without us or not, and those that have the name of a
    pair's helper.
    """
    package = tmp_path / "a_package_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "pairs.py").write_text("def maker(emission): pass\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "own.py").write_text("import beside_other\ndef maker(emission): pass\n")
    (other / "beside_other.py").write_text("")
    monkeypatch.chdir(tmp_path)
    find_pair("a_package_of_mine.pairs:maker")
    kept = sys.modules["a_package_of_mine"], sys.modules["a_package_of_mine.pairs"]
    find_pair(f"{other}/own.py:maker")
    assert (sys.modules["a_package_of_mine"], sys.modules["a_package_of_mine.pairs"]) == kept
    assert "beside_other" not in sys.modules
    monkeypatch.syspath_prepend(tmp_path / "installed")
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "beside_other.py").write_text("")
    importlib.invalidate_caches()
    own = importlib.import_module("beside_other")
    (other / "own.py").write_text("import beside_other\ndef maker(emission): return beside_other\n")
    assert find_pair(f"{other}/own.py:maker").maker(None) is own is sys.modules["beside_other"]


def test_module_of_the_working_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = file.parent / "some_package_of_mine"
    package.mkdir()
    (package / "pairs.py").write_text("def maker(emission): pass\n")
    monkeypatch.chdir(file.parent)
    entry = find_pair("some_package_of_mine.pairs:maker")
    assert (
        entry.kind == "some_package_of_mine.pairs:maker"
        and entry.source == "module some_package_of_mine.pairs"
    )


@pytest.mark.parametrize(
    ("contents", "spec", "says"),
    [
        (None, "none.py:maker", "cannot read {path}: No such file or directory"),
        (
            "def maker(:\n",
            "own.py:maker",
            "{path} cannot be imported: line 1 of {path}: invalid syntax",
        ),
        (
            "\nimport no_such_module\n",
            "own.py:maker",
            "ModuleNotFoundError: No module named 'no_such_module' (line 2 of {path})",
        ),
        (
            "import sys\nsys.exit('bye')\n",
            "own.py:maker",
            "{path} cannot be imported: SystemExit: bye (line 2 of {path})",
        ),
        (
            "\n\n1 / 0\n",
            "own.py:maker",
            "{path} cannot be imported: ZeroDivisionError: division by zero (line 3 of {path})",
        ),
        ("x = '\0'\n", "own.py:maker", "{path} cannot be imported"),
        (
            "def makers(): pass\n",
            "own.py:maker",
            "file {path} has no 'maker'; did you mean 'makers'?",
        ),
        (
            "maker = 3\n",
            "own.py:maker",
            "'maker' is a int, not a class or function that makes a model",
        ),
        (
            "import torch\nmaker = torch.nn.Linear(1, 1)\n",
            "own.py:maker",
            "'maker' is a module already made",
        ),
        ("", "own.py:", "is named path/to/file.py:attribute or module:attribute"),
        ("", ":maker", "is named path/to/file.py:attribute or module:attribute"),
        ("", "own.py:a-b", "is named path/to/file.py:attribute or module:attribute"),
        (
            "",
            "no_such_module.x:maker",
            "No module named 'no_such_module'; tried the installed packages and {folder}",
        ),
    ],
    ids=range(13),
)
def test_what_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: str | None, spec: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / spec.partition(":")[0]
    if contents:
        path.write_text(contents)
    line = refused(spec)
    assert line.startswith(f"--pair {spec}: ") and says.format(path=path, folder=tmp_path) in line


def installs(folder: Path, package: str, entries: str, code: str) -> None:
    """A package as an installer leaves it."""
    info = folder / f"{package}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[pyro_seq.pairs]\n{entries}\n")
    (folder / f"{package}.py").write_text(code)


def test_pairs_of_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installs(
        tmp_path,
        "thirdparty_a",
        "mine = thirdparty_a:maker\nrnn = thirdparty_a:maker\ntwice = thirdparty_a:maker",
        "def maker(): pass",
    )
    installs(
        tmp_path,
        "thirdparty_b",
        "broken = thirdparty_b:nothing\ntwice = thirdparty_b:maker\nthree = thirdparty_b:three",
        "three = 3",
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert set(installed()) >= {"mine", "broken", "twice", "three"} and "rnn" not in installed()
    entry = find_pair("mine")
    assert (entry.kind, entry.source, entry.shipped) == (
        "mine",
        "package thirdparty_a 1.5",
        False,
    )
    assert find_pair("rnn").shipped
    assert refused("broken").startswith(
        "the pair 'broken' of package thirdparty_b 1.5 cannot be imported: AttributeError: "
    )
    assert refused("three").startswith(
        "the pair 'three' of package thirdparty_b 1.5 is a int, not a class or function"
    )
    line = refused("twice")
    assert (
        line.startswith("several installed packages have a pair 'twice': ")
        and "thirdparty_a 1.5" in line
        and "thirdparty_b 1.5" in line
    )
    assert "did you mean 'mine'?" in refused("mines")
