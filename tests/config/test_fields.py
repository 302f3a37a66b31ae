"""Settings: names, types and ranges, from words and files, and there and back through TOML."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pyro_seq.config.fields import (
    above,
    at_least,
    between,
    described,
    described_settings,
    flatten,
    one_of,
    override,
    parse_words,
    read_file,
    to_toml,
)
from pyro_seq.errors import UserError, did_you_mean, nearest


@dataclass(frozen=True)
class Inner:
    size: int = at_least(1, 16, "how large")
    sizes: tuple[int, ...] = at_least(1, (64,), "how large, each")
    rate: float = above(0, 1e-3, "how fast")
    share: float = between(0, 0.99, 0.0, "how much")
    minutes: float | None = above(0, None, "how long")
    on: bool = described(True, "whether")
    kind: str = one_of(("gru", "lstm"), "lstm", "which")
    title: str = described("", "what it is called")


@dataclass(frozen=True)
class Outer:
    seed: int = described(0, "seed")
    inner: Inner = field(default_factory=Inner)
    more: Inner = field(default_factory=Inner)


def value(name: str, given: Any) -> Any:
    """What a setting is after it was given."""
    return dict(flatten(override(Outer(), {name: given}, "--set")))[name]


class TestOverride:
    @pytest.mark.parametrize(
        ("name", "given", "expected"),
        [
            ("seed", "-3", -3),
            ("inner.size", 5, 5),
            ("inner.size", 5.0, 5),
            ("inner.size", " 5 ", 5),
            ("inner.rate", 2, 2.0),
            ("inner.rate", "1e-5", 1e-5),
            ("inner.share", "0.99", 0.99),
            ("inner.share", 0, 0.0),
            ("inner.on", "False", False),
            ("inner.on", "true", True),
            ("inner.on", False, False),
            ("inner.kind", "gru", "gru"),
            ("inner.title", "a b=c", "a b=c"),
            ("inner.minutes", None, None),
            ("inner.minutes", "none", None),
            ("inner.minutes", "", None),
            ("inner.minutes", "2.5", 2.5),
            ("inner.sizes", "", ()),
            ("inner.sizes", "[]", ()),
            ("inner.sizes", "64", (64,)),
            ("inner.sizes", 64, (64,)),
            ("inner.sizes", "64,32", (64, 32)),
            ("inner.sizes", "[64, 32]", (64, 32)),
            ("inner.sizes", "(64, 32,)", (64, 32)),
            ("inner.sizes", [64, "32", 16.0], (64, 32, 16)),
        ],
    )
    def test_values(self, name: str, given: Any, expected: Any) -> None:
        got = value(name, given)
        assert got == expected and type(got) is type(expected)

    @pytest.mark.parametrize(
        ("name", "given", "message"),
        [
            ("seed", "1.5", "must be a whole number, got '1.5'"),
            ("seed", 1.5, "must be a whole number, got 1.5"),
            ("seed", math.inf, "must be a whole number, got inf"),
            ("seed", math.nan, "must be a whole number, got nan"),
            ("seed", True, "must be a whole number, got True"),
            ("seed", None, "must be a whole number, got None"),
            ("seed", [1], r"must be a whole number, got \[1\]"),
            ("seed", "9" * 5000, "must be a whole number"),
            ("inner.rate", "fast", "must be a number, got 'fast'"),
            ("inner.rate", False, "must be a number, got False"),
            ("inner.rate", 10**400, "must be a number"),
            ("inner.rate", "nan", "must be a finite number, got nan"),
            ("inner.rate", math.inf, "must be a finite number, got inf"),
            ("inner.rate", "-inf", "must be a finite number, got -inf"),
            ("inner.rate", 0, "must be greater than 0, got 0.0"),
            ("inner.size", 0, "must be at least 1, got 0"),
            ("inner.share", 1, r"must lie in \[0, 0.99\], got 1.0"),
            ("inner.share", -0.1, r"must lie in \[0, 0.99\], got -0.1"),
            ("inner.minutes", -1, "must be greater than 0, got -1.0"),
            ("inner.minutes", "soon", "must be a number, got 'soon'"),
            ("inner.on", "yes", "must be true or false, got 'yes'"),
            ("inner.on", 1, "must be true or false, got 1"),
            ("inner.kind", "lst", "must be one of gru, lstm, got 'lst'; did you mean 'lstm'?"),
            ("inner.kind", "transformer", "must be one of gru, lstm, got 'transformer'$"),
            ("inner.title", 3, "must be a word, got 3"),
            ("inner.title", None, "must be a word, got None"),
            ("inner.sizes", "64,0", "must be at least 1, got 0"),
            ("inner.sizes", "64;32", "must be a whole number, got '64;32'"),
            ("inner.sizes", [[1]], r"must be a whole number, got \[1\]"),
            ("inner.sizes", True, "must be a whole number, got 'True'"),
            ("inner.sizes", None, "must be a whole number, got 'None'"),
        ],
    )
    def test_refusals(self, name: str, given: Any, message: str) -> None:
        with pytest.raises(UserError, match=message) as raised:
            value(name, given)
        assert str(raised.value).startswith(f"--set: {name} ") and "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("name", "near"),
        [
            ("inner.siz", "inner.size"),
            ("iner.rate", "inner.rate"),
            ("learning.rate", "inner.rate"),
            ("sed", "seed"),
            ("minutes", ".minutes"),
        ],
    )
    def test_unknown_names(self, name: str, near: str) -> None:
        with pytest.raises(
            UserError, match=rf"^file: unknown setting '{name}'; did you mean '.*{near}'\?$"
        ):
            override(Outer(), {name: 1}, "file")

    @pytest.mark.parametrize(
        "name", ["inner", "", ".", "inner.", "seed.size", "zzzzzzzz", "inner.size.x.y"]
    )
    def test_names_of_no_setting(self, name: str) -> None:
        with pytest.raises(UserError, match="unknown setting"):
            override(Outer(), {name: 1}, "file")

    def test_leaves_the_rest_and_the_original_alone(self) -> None:
        original = Outer()
        changed = override(original, {"inner.size": 3, "seed": 1}, "--set")
        assert (
            changed.inner.size == 3
            and changed.seed == 1
            and changed.more == Inner()
            and changed.inner.rate == 1e-3
        )
        assert original == Outer()
        assert override(original, {}, "--set") == original


class TestFiles:
    def write(self, folder: Path, text: str | bytes, name: str = "settings.toml") -> Path:
        path = folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def test_nested_and_dotted(self, tmp_path: Path) -> None:
        expected = {"seed": 4, "inner.size": 2, "more.sizes": [1, 2], "more.on": False}
        nested = self.write(
            tmp_path, "seed = 4\n[inner]\nsize = 2\n[more]\nsizes = [1, 2]\non = false\n"
        )
        dotted = self.write(
            tmp_path, "seed = 4\ninner.size = 2\nmore.sizes = [1, 2]\nmore.on = false", "b.toml"
        )
        quoted = self.write(
            tmp_path,
            '"seed" = 4\n"inner.size" = 2\n"more.sizes" = [1, 2]\n[more]\non = false',
            "c.toml",
        )
        js = self.write(
            tmp_path,
            json.dumps(
                {"seed": 4, "inner": {"size": 2}, "more.sizes": [1, 2], "more": {"on": False}}
            ),
            "d.json",
        )
        upper = self.write(tmp_path, js.read_bytes(), "E.JSON")
        marked = self.write(tmp_path, b"\xef\xbb\xbf" + nested.read_bytes(), "f.toml")
        for path in (nested, dotted, quoted, js, upper, marked):
            assert read_file(path) == expected, path.name
            assert override(Outer(), read_file(path), str(path)).more.sizes == (1, 2)
        assert read_file(self.write(tmp_path, "", "empty.toml")) == {}

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.toml", "seed = ", "is not valid TOML"),
            ("a.toml", "seed: 4", "is not valid TOML"),
            ("a.toml", "seed = 1\nseed = 2", "is not valid TOML"),
            ("a.toml", b"\xff\xfe\x00", "is not valid TOML"),
            ("a.json", "{", "is not valid JSON"),
            ("a.json", "", "is not valid JSON"),
            ("a.json", "[" * 100_000, "is not valid JSON"),
            ("a.json", "[1]", "must hold a table of settings"),
            ("a.json", "3", "must hold a table of settings"),
        ],
    )
    def test_broken(self, tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
        path = self.write(tmp_path, text, name)
        with pytest.raises(UserError, match=message) as raised:
            read_file(path)
        assert str(path) in str(raised.value)

    def test_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="No such file"):
            read_file(tmp_path / "nowhere.toml")
        with pytest.raises(UserError, match="Is a directory"):
            read_file(tmp_path)

    @pytest.mark.parametrize(
        "text",
        [
            "inner.rate = nan",
            "inner.rate = inf",
            "inner.size = {a = 1}",
            "seed = 2020-01-01",
            "inner = 3",
        ],
    )
    def test_values_that_toml_knows_and_settings_do_not(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(UserError):
            override(Outer(), read_file(self.write(tmp_path, text)), "file")


class TestToml:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"inner.minutes": 3, "inner.sizes": (), "more.on": False, "seed": -(10**15)},
            {
                "inner.rate": 1e-12,
                "more.rate": 1e22,
                "inner.share": 0.1 + 0.2,
                "inner.sizes": (1, 2, 3),
            },
            {"inner.title": 'a "quoted" \\ # 😀 \t line\nbreak', "more.title": "[x] = é"},
        ],
    )
    def test_there_and_back(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        settings = override(Outer(), changes, "test")
        path = tmp_path / "resolved.toml"
        path.write_text(to_toml(settings), encoding="utf-8")
        assert override(Outer(), read_file(path), str(path)) == settings

    def test_says_what_each_setting_means(self) -> None:
        lines = to_toml(Outer()).splitlines()
        described = list(described_settings(Outer()))
        assert len(lines) == len(described) == 17
        for line, (name, _, text) in zip(lines, described, strict=True):
            assert line.startswith(f"{name} = ") and line.endswith(f"  # {text}") and text
        assert tomllib.loads("\n".join(lines))["inner"]["minutes"] == "none"


def test_words() -> None:
    assert parse_words(["a.b=1", " c = x=y ", "d="]) == {"a.b": "1", "c": "x=y", "d": ""}
    with pytest.raises(UserError, match=r"--set takes key=value, got 'a\.b'"):
        parse_words(["a.b"])


def test_nearest_words() -> None:
    assert (
        nearest("lsmt", ["gru", "lstm"]) == "lstm"
        and nearest("xyz", ["gru", "lstm"]) is None
        and nearest("x", []) is None
    )
    assert (
        did_you_mean("xyz", ["lstm", "gru"]) == "; known are gru, lstm"
        and did_you_mean("x", []) == ""
    )


def test_the_shipped_settings_come_back() -> None:
    from pyro_seq.config.build import model_settings
    from pyro_seq.config.registry import SHIPPED
    from pyro_seq.train.settings import TrainingSettings

    for settings in (*map(model_settings, SHIPPED), TrainingSettings()):
        parsed = tomllib.loads(to_toml(settings))
        assert override(settings, parsed, "test") == settings
        assert all(text for _, _, text in described_settings(settings))
