"""A run is given away whole, and nothing goes with it of the machine that it was trained on."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from pyro_seq.errors import UserError
from pyro_seq.frames.data.demo import moving_squares
from pyro_seq.frames.program import frame_program
from pyro_seq.games.program import game_program
from pyro_seq.music.data.sources import DEMO
from pyro_seq.music.program import music_program
from pyro_seq.programs import share
from pyro_seq.programs.shared import WHOLE_PATH, names_of
from pyro_seq.programs.sharing import code_span, fenced
from pyro_seq.runs.checkpoint import load_tree
from pyro_seq.seqgan.program import seqgan_program
from pyro_seq.series.program import series_program
from pyro_seq.text.program import text_program

pytestmark = pytest.mark.usefixtures("sketched", "short_previews")

USER = "ann-o"
SHORT = {
    "training.num_steps": 2,
    "training.valid_every": 1,
    "training.sample_every": 0,
    "training.precision": "float32",
}
# options that make a card's commands quick
QUICK = {
    "text generate": "--length 3",
    "midi generate": "--length 1 --formats mid",
    "series forecast": "--paths 4",
    "series evaluate": "--paths 4 --windows 1",
    "frames evaluate": "--continuations 2 --samples 2",
    "frames generate": "--num-samples 1 --num-frames 2",
    "seqgan evaluate": "--num-samples 8",
    "play evaluate": "--num-games 2 --max-moves 5",
    "play imagine": "--num-games 2 --max-moves 5 --render none",
}
ALONE = ("text", "midi", "series", "frames")  # programs whose runs `pyroseq score` takes


@dataclass
class Case:
    """A run of a program with the file that its commands are given."""

    program: Any
    run: Path
    data: Path
    files: set[str]  # of what is shared, beside run.json, README.md and the best weights
    evaluated: str = ""  # more words of `evaluate`


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose name needs escapes in JSON, Markdown, HTML and a shell."""
    folder = tmp_path_factory.mktemp("machine") / USER / 'a "b" `c` <i>é\n* d'
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder.parent))
        patch.setenv("LOGNAME", USER)
        yield folder


def _text(home: Path, tiny_seqgan: dict[str, Any]) -> Case:
    corpus = home / "cat `x` <b>.txt"
    corpus.write_text("the cat sat on the mat; " * 20)
    sizes = {"model.hidden_size": 4, "text.window": 12, "text.batch_size": 4}
    settings = text_program.settings(SHORT | sizes | {"model.name": "srnn", "model.latent_size": 2})
    text_program.start(home / "text", settings, {"train_corpus": corpus}, seed=1, quiet=True)
    return Case(text_program, home / "text", corpus, {"vocabulary.json"})


def _midi(home: Path, tiny_seqgan: dict[str, Any]) -> Case:
    tunes = Path(shutil.copytree(DEMO, home / "tunes"))
    sizes = {"model.hidden_size": 4, "rolls.grid": 2, "rolls.window": 8, "rolls.batch_size": 2}
    source = {"train_files": (str(tunes),), "valid_fraction": 0.2}
    settings = music_program.settings(SHORT | sizes)
    music_program.start(home / "midi", settings, source, seed=1, quiet=True)
    return Case(music_program, home / "midi", min(tunes.iterdir()), {"music.json"})


def _series(home: Path, tiny_seqgan: dict[str, Any]) -> Case:
    table = home / "sold.csv"
    sold = np.random.default_rng(0).normal(5, 1, 60).round(2)
    days = pd.date_range("2024-01-01", periods=60)
    pd.DataFrame({"day": days, "sold": sold}).to_csv(table, index=False)
    sizes = {"model.hidden_size": 4, "series.horizon": 3, "series.context": 10}
    settings = series_program.settings(SHORT | sizes | {"series.pool": True})
    series_program.start(home / "series", settings, {"train_data": (table,)}, seed=1, quiet=True)
    pooled = {"pool.json"} & {path.name for path in (home / "series").iterdir()}
    return Case(series_program, home / "series", table, {"series.json"} | pooled)


def _frames(home: Path, tiny_seqgan: dict[str, Any]) -> Case:
    films = np.stack(moving_squares(6, 6, 8).films)[:, :, 0]
    path = home / "films.npz"
    np.savez(path, train=films[:4], valid=films[4:5], test=films[5:])
    sizes = {
        "frames.features": 4,
        "frames.map_channels": (3,),
        "frames.hidden_size": 3,
        "frames.kernel_sizes": (3, 1),
        "frames.encoder_channels": (3,),
        "frames.encoder_features": 4,
        "frames.batch_size": 4,
        "model.hidden_size": 4,
    }
    source = {"train_data": (path,)}
    settings = frame_program.settings(SHORT | sizes)
    frame_program.start(home / "frames", settings, source, seed=1, quiet=True)
    return Case(frame_program, home / "frames", path, {"frames.json"})


def _play(home: Path, tiny_seqgan: dict[str, Any]) -> Case:
    sizes = {
        "play.env": "CartPole-v1",
        "play.env_steps": 60,
        "play.first_games": 2,
        "play.games_per_round": 2,
        "play.num_envs": 1,
        "play.held_out": 0.5,
        "world.batch_size": 2,
        "world.window": 6,
        "world.first_updates": 2,
        "world.updates": 1,
        "agent.first_updates": 1,
        "agent.updates": 1,
        "agent.num_games": 2,
        "agent.horizon": 3,
        "model.hidden_size": 4,
    }
    settings = game_program.settings(sizes)
    game_program.start(home / "play", settings, seed=1, quiet=True)
    return Case(game_program, home / "play", home, {"game.json"})


def _seqgan(home: Path, tiny_seqgan: dict[str, Any]) -> Case:
    corpus = home / "lines.txt"
    corpus.write_text("the cat sat on the mat\n" * 40)
    changes = {"task.kind": "text", "training.num_steps": 2, "adversarial.num_steps": 2}
    settings = seqgan_program.settings(tiny_seqgan | changes)
    seqgan_program.start(home / "seqgan", settings, {"corpus": corpus}, seed=1, quiet=True)
    shared = {"task.json", "pretraining/best.safetensors"}
    return Case(
        seqgan_program, home / "seqgan", corpus, shared, f" --corpus {shlex.quote(str(corpus))}"
    )


MADE = {
    "text": _text,
    "midi": _midi,
    "series": _series,
    "frames": _frames,
    "play": _play,
    "seqgan": _seqgan,
}


@pytest.fixture(scope="module")
def cases(home: Path, tiny_seqgan: dict[str, Any]) -> Callable[[str], Case]:
    """A finished run of each kind, trained when it is first asked for."""
    made: dict[str, Case] = {}

    def case(kind: str) -> Case:
        if kind not in made:
            torch.set_num_threads(1)
            made[kind] = MADE[kind](home, tiny_seqgan)
        return made[kind]

    return case


def words(path: Path) -> Iterator[str]:
    """Yield all text of a shared file, as it stands and with JSON's escapes undone."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            yield json.dumps([file.metadata(), list(file.keys())])
            assert {*json.loads(file.metadata()["pyro_seq"])} == {"format", "tree"}
        return
    text = path.read_text(encoding="utf-8")
    yield text
    if path.suffix == ".json":
        yield str(json.loads(text))


@pytest.mark.parametrize("kind", MADE)
def test_nothing_of_the_machine_is_given_away(
    kind: str, cases: Callable[[str], Case], home: Path, tmp_path: Path
) -> None:
    case, out = cases(kind), tmp_path / "out"
    share(case.program, case.run, out)
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    assert files == {"run.json", "README.md", "best.safetensors"} | case.files
    assert not any(path.is_symlink() for path in out.rglob("*"))
    told = (USER, str(home), home.name, str(Path(__file__).parent), str(case.run.parent))
    for name in files:
        for text in words(out / name):
            assert not [word for word in told if word in text or repr(word)[1:-1] in text], name
    for name in files:
        if name.endswith(".safetensors"):
            allowed = {"step", "weights", "agent", "normalisation", "real_steps"}
            assert {*load_tree(out / name)} <= allowed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", MADE)
def test_what_the_card_says_can_be_done(
    kind: str,
    cases: Callable[[str], Case],
    pyroseq: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case, out = cases(kind), tmp_path / "out"
    assert pyroseq("share", case.run, out) == 0
    monkeypatch.chdir(tmp_path)
    card = (out / "README.md").read_text()
    lines = re.findall(r"^\$ pyroseq (.*)$", card, re.MULTILINE)
    assert len(lines) >= 2
    for line in lines:
        command = " ".join(line.split()[:2])
        more = QUICK.get(command, "") + case.evaluated * command.endswith("evaluate")
        filled = [
            {"DIR": str(out), "FILE": str(case.data), "FILES": str(case.data)}.get(word, word)
            for word in shlex.split(f"{line} {more}")
        ]
        assert pyroseq(*filled) == 0, (line, capsys.readouterr().err)
    python = re.search(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    assert python is not None
    code = python[1].replace("500", "3").replace("200", "3").replace('"DIR"', repr(str(out)))
    exec(code.replace('"FILE"', repr(str(case.data))), {})


@pytest.mark.parametrize("kind", ["text", "seqgan"])
def test_what_is_loaded_is_the_run(kind: str, cases: Callable[[str], Case], tmp_path: Path) -> None:
    case = cases(kind)
    share(case.program, case.run, tmp_path / "out")
    share(case.program, case.run, tmp_path / "again")
    own, loaded = (case.program.load(path) for path in (case.run, tmp_path / "out"))
    assert loaded.settings == own.settings and loaded.step == own.step
    for name, weight in own.pair.parameters().items():
        assert torch.equal(weight, loaded.pair.parameters()[name])
    for path in (tmp_path / "out").rglob("*.*"):
        twin = tmp_path / "again" / path.relative_to(tmp_path / "out")
        assert path.read_bytes() == twin.read_bytes()
    assert (tmp_path / "out" / "best.safetensors").read_bytes() == (
        case.run / "best.safetensors"
    ).read_bytes()


def test_card_names_data_and_figures(cases: Callable[[str], Case], tmp_path: Path) -> None:
    share(text_program, cases("text").run, tmp_path / "text")
    card = (tmp_path / "text" / "README.md").read_text()
    assert "- `` cat `x` <b>.txt ``\n" in card
    step = load_tree(cases("text").run / "best.safetensors")["step"]
    lines = map(json.loads, (cases("text").run / "metrics.jsonl").read_text().splitlines())
    loss = next(one["loss"] for one in lines if (one["split"], one["step"]) == ("valid", step))
    assert f"| loss | {loss:.5g} |" in card and "# A pair `srnn`" in card
    share(seqgan_program, cases("seqgan").run, tmp_path / "seqgan")
    card = (tmp_path / "seqgan" / "README.md").read_text()
    assert re.search(r"\| nll \| [\d.]+ ± [\d.e-]+ \|", card) and "nll error" not in card
    share(series_program, cases("series").run, tmp_path / "series")
    card = (tmp_path / "series" / "README.md").read_text()
    assert "- `sold.csv`\n" in card and "level and scale" in card


def test_out_is_never_overwritten(
    cases: Callable[[str], Case], refused: Callable[..., str], tmp_path: Path
) -> None:
    run, out = cases("text").run, tmp_path / "out"
    out.mkdir()
    assert "is there already: choose another" in refused("share", run, out)
    assert not list(out.iterdir())
    out.rmdir()
    out.symlink_to(tmp_path / "nowhere")
    assert "is there already" in refused("share", run, out)
    out.unlink()
    out.write_text("mine")
    assert "is there already" in refused("share", run, out) and out.read_text() == "mine"
    assert "is there already" in refused("share", run, run)
    out.unlink()
    assert "no run folder" in refused("share", tmp_path / "no", out) and not out.exists()


def test_out_is_written_whole_or_not_at_all(
    cases: Callable[[str], Case], tmp_path: Path, file_size_limit: Any
) -> None:
    case = cases("text")
    with file_size_limit(4_000), pytest.raises(UserError, match="cannot write"):
        share(text_program, case.run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def spoilt_text(cases: Callable[[str], Case], tmp_path: Path) -> Path:
    """A copy of a run of text."""
    return Path(shutil.copytree(cases("text").run, tmp_path / "spoilt"))


def test_links_in_a_run_folder_are_refused(
    spoilt_text: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    secret = tmp_path / "secret.json"
    (spoilt_text / "vocabulary.json").rename(secret)
    (spoilt_text / "vocabulary.json").symlink_to(secret)
    assert "vocabulary.json is a symbolic link; remove it" in refused(
        "share", spoilt_text, tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_settings_and_documents_that_hold_paths_are_refused(
    spoilt_text: Path, home: Path, tmp_path: Path
) -> None:
    kept = json.loads((spoilt_text / "run.json").read_text())
    for value in ("/srv/vectors.bin", '{"map": "/srv/x"}', ["a", "~/x"], "C:\\data", str(home)):
        changed = kept | {"settings": kept["settings"] | {"model.activation": value}}
        (spoilt_text / "run.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"the setting model\.activation holds a path"):
            share(text_program, spoilt_text, tmp_path / "out")
    (spoilt_text / "run.json").write_text(json.dumps(kept | {"left": str(home)}))
    share(text_program, spoilt_text, tmp_path / "out")  # what is not the run's own stays home
    assert "left" not in (tmp_path / "out" / "run.json").read_text()
    vocabulary = spoilt_text / "vocabulary.json"
    vocabulary.write_text(json.dumps(json.loads(vocabulary.read_text()) | {"of": f"{home}/x"}))
    with pytest.raises(UserError, match=r"vocabulary\.json names .*, a place of this machine"):
        share(text_program, spoilt_text, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_what_is_no_path_may_stay() -> None:
    for word in ("1/2", "a/b", "https://pyro.ai", "Toy/Game-v0", "/", "and / or", "a:b", "~"):
        assert not WHOLE_PATH.search(word), word


def test_a_run_of_code_of_ones_own_asks_for_it_again(
    spoilt_text: Path,
    tmp_path: Path,
    corpus: Path,
    tiny: list[str],
    pyroseq: Callable[..., int],
    refused: Callable[..., str],
) -> None:
    own, run, out = tmp_path / "own.py", tmp_path / "run", tmp_path / "out"
    own.write_text("from pyro_seq.models import RNN as Own\n")
    words = ["--train-corpus", corpus, "--pair", f"{own}:Own", "--run-dir", run, "--quiet"]
    sizes = ["text.batch_size=4", "text.window=12", "training.num_steps=2", "model.hidden_size=4"]
    sizes += ["training.valid_every=2", "training.precision=float32"]
    assert pyroseq("text", "train", *words, *(w for s in sizes for w in ("--set", s))) == 0
    assert pyroseq("share", run, out) == 0  # its code is not run
    for path in out.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    card = (out / "README.md").read_text()
    assert "names a file of code" in card and "DIR FILE --pair own.py:Own" in card
    line = ["text", "generate", "--run-dir", out, "--length", 2]
    assert "whose code is not run unless you say so: add --pair own.py:Own" in refused(*line)
    assert pyroseq(*line, "--pair", f"{own}:Own") == 0
    assert pyroseq("share", run, tmp_path / "loaded", "--pair", f"{own}:Own") == 0


def test_a_run_without_validation_gives_its_last_weights(tmp_path: Path, corpus: Path) -> None:
    sizes = {"model.hidden_size": 4, "text.window": 12, "text.batch_size": 4}
    settings = text_program.settings(SHORT | sizes)
    source = {"train_corpus": corpus, "valid_fraction": 0.0}
    text_program.start(tmp_path / "run", settings, source, seed=1, quiet=True)
    (tmp_path / "run" / "best.safetensors").unlink()  # as of a training that is under way
    share(text_program, tmp_path / "run", tmp_path / "out")
    assert {*load_tree(tmp_path / "out" / "best.safetensors")} == {"step", "weights"}
    assert text_program.load(tmp_path / "out").step == 2
    assert "measured none" in (tmp_path / "out" / "README.md").read_text()


def test_what_a_hub_has_brought_is_loaded_from_files_alone(
    cases: Callable[[str], Case], tmp_path: Path
) -> None:
    """As `snapshot_download` leaves it: files with `local_dir`, else links into a cache."""
    local, cache = tmp_path / "local", tmp_path / "models--ann--fables"
    share(text_program, cases("text").run, local)
    (local / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (local / ".cache" / "huggingface").mkdir(parents=True)
    (local / ".cache" / "huggingface" / "best.safetensors.lock").touch()
    assert text_program.load(local).step > 0
    snapshot = cache / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    for path in local.glob("*.*"):
        (snapshot / path.name).symlink_to(path)
    with pytest.raises(UserError, match="is a symbolic link; remove it"):
        text_program.load(snapshot)


def test_names_of_data_without_that_of_the_user(home: Path) -> None:
    assert os.environ["LOGNAME"] == USER
    places = [home / "a.txt", home.parent, f"/x/{USER}.csv", "/x/joanna.csv", f"/y/{USER.upper()}"]
    assert names_of(places) == ["a.txt", "joanna.csv"]


def test_markdown_shows_what_is_in_it() -> None:
    assert code_span("a") == "`a`" and code_span("a`b``c") == "``` a`b``c ```"
    assert code_span("a\nb\u202e\udcff") == r"`a\nb\u202e\udcff`"
    assert fenced("```\nx", "toml") == "````toml\n```\nx\n````"
