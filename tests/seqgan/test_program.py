"""SeqGAN runs from begin to load, on each task, and all that can be wrong with their folders and
data.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from matplotlib.figure import Figure

from pyro_seq.config.model_settings import Layer
from pyro_seq.errors import UserError
from pyro_seq.runs.checkpoint import load_tree
from pyro_seq.seqgan.metrics.quality import generated
from pyro_seq.seqgan.program import seqgan_program
from pyro_seq.seqgan.stored_task import task_of

pytestmark = pytest.mark.usefixtures("sketched")

SAVE = Figure.savefig

TEXT = "the cat sat on the mat; the dog sat on the log. " * 12
ADVERSARIAL = {"reward", "gradient_norm", "discriminator_loss", "discriminator_accuracy"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(
    scope="module", params=["oracle", "text", pytest.param("music", marks=pytest.mark.slow)]
)
def finished(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_seqgan: dict[str, Any],
    text: Path,
    seqgan_run: Path,
) -> Path:
    """A run on each task."""
    kind = request.param
    if kind == "oracle":
        return seqgan_run
    data = {"corpus": text} if kind == "text" else {"demo": True}
    folder = tmp_path_factory.mktemp("runs") / kind
    seqgan_program.start(
        folder, seqgan_program.settings(tiny_seqgan | {"task.kind": kind}), data, seed=0, quiet=True
    )
    return folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.one_in(2)
def test_a_run_from_begin_to_load(finished: Path) -> None:
    run = seqgan_program.folder(finished)
    task = task_of(run, seqgan_program.stored_settings(run))
    entries = metrics(finished)
    by_split = {
        split: [entry for entry in entries if entry["split"] == split]
        for split in ("valid", "discriminator", "adversarial")
    }
    assert [entry["step"] for entry in by_split["valid"]] == [0, 2, 4]
    assert [entry["step"] for entry in by_split["discriminator"]] == [1, 2]
    assert [entry["step"] for entry in by_split["adversarial"]] == [1, 2, 3, 4]
    assert all(
        {"nll", "nll_error", "entropy", task.criterion} <= entry.keys()
        for entry in by_split["valid"]
    )
    assert all(entry.keys() >= ADVERSARIAL for entry in by_split["adversarial"])
    assert {"nll", task.criterion} <= metrics(finished / "pretraining")[-1].keys()
    best, twin = seqgan_program.load(finished), seqgan_program.load(finished, weights="pretrained")
    assert best.step == load_tree(finished / "best.safetensors")["step"] and twin.step in (2, 4)
    for generator in (best, twin):
        sequences = generated(generator.pair, 3, 6)
        assert sequences.shape == (3, 6) and int(sequences.max()) < generator.rendering.num_symbols
        assert isinstance(generator.rendering.text(sequences[0]), str)
    with PIL.Image.open(finished / "curves.png") as picture:
        picture.verify()
    assert sorted(path.name for path in (finished / "samples").iterdir()) == [
        "step-00002",
        "step-00004",
    ]
    left = {path.name for path in finished.iterdir()}
    assert {
        "run.json",
        "task.json",
        "best.safetensors",
        "last.safetensors",
        "pretraining",
        "tensorboard",
    } <= left
    assert not any(name.startswith(".writing") for name in left)


def test_tensorboard_has_both_networks_rewards_by_step_and_samples(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(finished / "tensorboard")).Reload()
    scalars = {tag: [event.step for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert scalars["discriminator/loss"] == [-1, 0], "before the generator's first step"
    assert scalars["adversarial/reward"] == scalars["reward_by_step/006"] == [1, 2, 3, 4]
    assert scalars["valid/nll"] == [-2, 2, 4]
    assert {"generated", "observed"} <= {tag.partition("/")[0] for tag in read.Tags()["tensors"]}
    assert bool(read.Tags()["images"]) == (
        seqgan_program.load(finished).settings.task.kind != "text"
    )


def test_the_best_weights_of_the_twin_are_where_adversarial_training_began(
    seqgan_run: Path,
) -> None:
    """The likelihood of validation sequences is the pretraining's best, to the last digit."""
    pretraining = [
        entry["nll"] for entry in metrics(seqgan_run / "pretraining") if entry["split"] == "valid"
    ]
    assert metrics(seqgan_run)[0]["nll"] == min(pretraining)


def test_equal_seeds_make_equal_runs(
    tmp_path: Path,
    tiny_seqgan: dict[str, Any],
    seqgan_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Figure, "savefig", SAVE)  # figures are drawn: they are compared
    settings = seqgan_program.settings(tiny_seqgan)
    torch.rand(5)
    for seed in (0, 1):
        seqgan_program.start(
            tmp_path / str(seed), settings, {}, seed=seed, device="cpu", quiet=True
        )
    for name in (
        "best.safetensors",
        "metrics.jsonl",
        "pretraining/metrics.jsonl",
        "curves.png",
        "samples/step-00004/samples.txt",
    ):
        same = (seqgan_run / name).read_bytes()
        assert (tmp_path / "0" / name).read_bytes() == same
        assert name == "best.safetensors" or (tmp_path / "1" / name).read_bytes() != same


def test_runs_of_another_kind(trained: Path, seqgan_run: Path) -> None:
    from pyro_seq.text.program import text_program

    for other in (
        seqgan_program.load,
        lambda folder: seqgan_program.resume(folder, {}, quiet=True),
    ):
        with pytest.raises(UserError, match="holds a run of kind 'text', not 'seqgan'"):
            other(trained)
    with pytest.raises(UserError, match="holds a run of kind 'seqgan', not 'text'"):
        text_program.load(seqgan_run)
    with pytest.raises(UserError, match="holds no run"):
        seqgan_program.load(seqgan_run / "pretraining")


# data


def test_data_may_move_but_not_change(
    tmp_path: Path, tiny_seqgan: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    here, there, folder = tmp_path / "here.txt", tmp_path / "there.txt", tmp_path / "run"
    here.write_text(TEXT)
    settings = seqgan_program.settings(
        tiny_seqgan | {"task.kind": "text", "adversarial.num_steps": 0}
    )
    seqgan_program.start(folder, settings, {"corpus": here}, seed=0)
    assert "adversarial step 0 is the last: adversarial.num_steps is 0" in capsys.readouterr().err
    here.rename(there)
    with pytest.raises(UserError, match=r"here\.txt"):
        seqgan_program.resume(folder, {}, quiet=True)
    there.write_text(TEXT.replace("dog", "cow"))
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"there\.txt: this is not the data that the run in .* was begun with"
    ):
        seqgan_program.resume(
            folder, {"adversarial.num_steps": 1}, quiet=True, source={"corpus": there}
        )
    assert before == {path: path.read_bytes() for path in before}
    there.write_text(TEXT)
    assert (
        seqgan_program.resume(
            folder, {"adversarial.num_steps": 1}, quiet=True, source={"corpus": there}
        ).step
        == 1
    )


@pytest.mark.parametrize(
    ("changes", "data", "said"),
    [
        ({"task.kind": "text"}, {}, "--corpus is missing"),
        ({"task.kind": "music"}, {}, "--train-files are missing"),
        ({"task.kind": "music"}, {"train_files": ["nowhere/*.mid"]}, "nowhere"),
        ({}, {"corpus": "a.txt"}, "the task oracle takes no --corpus"),
        ({"task.kind": "text"}, {"corpus": "a.txt", "demo": True}, "the task text takes no --demo"),
        ({}, {"oracle": "none.npz"}, "none.npz"),
        (
            {"discriminator.filter_sizes": (2, 9)},
            {},
            "filters of size 9 do not fit into sequences of 6 symbols",
        ),
        ({"discriminator.num_filters": (2,)}, {}, "each size of filters needs a number of filters"),
        (
            {"task.length": 2000, "task.kind": "text"},
            {"corpus": "cats.txt"},
            "fewer than one sequence of 2,000",
        ),
    ],
)
def test_nothing_is_written_for_data_and_settings_that_do_not_fit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_seqgan: dict[str, Any],
    changes: dict[str, Any],
    data: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cats.txt").write_text(TEXT)
    with pytest.raises(UserError, match=said):
        seqgan_program.start(
            tmp_path / "run",
            seqgan_program.settings(tiny_seqgan | changes),
            data,
            seed=0,
            quiet=True,
        )
    assert not (tmp_path / "run").exists()


def test_a_generator_with_latents_leaves_no_run(
    tmp_path: Path, tiny_seqgan: dict[str, Any]
) -> None:
    settings = seqgan_program.settings(Layer(tiny_seqgan | {"model.name": "srnn"}, lenient=True))
    with pytest.raises(UserError, match="without latents, and the pair 'srnn' has a guide"):
        seqgan_program.start(tmp_path / "run", settings, {}, seed=0, quiet=True)
    assert (
        not (tmp_path / "run" / "run.json").exists()
        and not (tmp_path / "run" / "task.json").exists()
    )


def test_a_folder_that_is_taken(seqgan_run: Path, tiny_seqgan: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="already holds a run"):
        seqgan_program.start(
            seqgan_run, seqgan_program.settings(tiny_seqgan), {}, seed=0, quiet=True
        )


# damage


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"seed": "0"},
        {"seed": True},
        {"first": 7},
        {"first": "0"},
        {"rendering": {"num_symbols": 0}},
        {"rendering": None},
        {"data": {}},
        {
            "data": {
                "oracle": 3,
                "corpus": None,
                "train_files": [],
                "valid_files": [],
                "test_files": [],
                "demo": False,
            }
        },
        {"sha256": None},
    ],
    ids=str,
)
def test_a_damaged_document(tmp_path: Path, seqgan_run: Path, change: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(seqgan_run, tmp_path / "run"))
    document = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps(document | change))
    before = (folder / "last.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"task\.json is damaged|is not the data that the run"):
        seqgan_program.load(folder)
        seqgan_program.resume(folder, {"adversarial.num_steps": 9}, quiet=True)
    assert (folder / "last.safetensors").read_bytes() == before
    for text in ("", "[]", "{}", "{"):
        (folder / "task.json").write_text(text)
        with pytest.raises(UserError, match=r"task\.json is damaged"):
            seqgan_program.load(folder)


def test_weights_of_another_size(tmp_path: Path, seqgan_run: Path) -> None:
    folder = Path(shutil.copytree(seqgan_run, tmp_path / "run"))
    document = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps(document | {"rendering": {"num_symbols": 11}}))
    with pytest.raises(
        UserError, match=r"best\.safetensors does not fit run\.json and task\.json: weight"
    ):
        seqgan_program.load(folder)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match="has no weights yet"):
        seqgan_program.load(folder)
