"""Run folders that were changed at random, and checkpoints at every place: one line, and nothing
outside is touched.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq._schema import check
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.errors import UserError
from pyro_seq.runs.checkpoint import load_tree, save_tree
from pyro_seq.runs.folder import RunFolder
from pyro_seq.text.windows import TextWindows
from pyro_seq.train.settings import TrainingSettings
from pyro_seq.train.trainer import Trainer

TOOLS = str(Path(__file__).parent.parent.parent / "tools")
EXTREMES: list[Any] = [
    None,
    True,
    -1,
    0.5,
    float("nan"),
    float("inf"),
    2**63 - 1,
    10**400,
    "x",
    [],
    {},
    {1: 2, "a": 3},
    torch.zeros(3),
]


@pytest.fixture(scope="module")
def attacks() -> Any:
    """The tool that mutates run folders."""
    sys.path.insert(0, TOOLS)
    try:
        return importlib.import_module("attack_run_folders")
    finally:
        sys.path.remove(TOOLS)


@pytest.fixture(scope="module")
def changes(attacks: Any) -> Any:
    """The changes that it draws."""
    return sys.modules["run_folder_mutations"]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("part", range(4))
def test_a_text_run_that_was_changed_at_random(
    attacks: Any, trained: Path, corpus: Path, tmp_path: Path, part: int
) -> None:
    text = attacks.programs(corpus)[0]
    for seed in range(10 * part, 10 * part + 10):
        found, done, outcome = attacks.attack(text, trained, seed, tmp_path / "work")
        assert not found, (seed, done, outcome.said)


def test_a_run_of_seqgan_that_was_changed_at_random(
    attacks: Any, seqgan_run: Path, corpus: Path, tmp_path: Path
) -> None:
    program = attacks.programs(corpus)[2]
    for seed in range(3):
        found, done, outcome = attacks.attack(program, seqgan_run, seed, tmp_path / "work")
        assert not found, (seed, done, outcome.said)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_each_programs_run_that_was_changed_at_random(
    attacks: Any, corpus: Path, tmp_path: Path, number: int
) -> None:
    program = attacks.programs(corpus)[number]
    attacks.begin(program, tmp_path / "template")
    for seed in range(1_000, 1_050):
        found, done, outcome = attacks.attack(
            program, tmp_path / "template", seed, tmp_path / "work"
        )
        assert not found, (seed, done, outcome.said)


def test_it_notices_what_breaks_the_bar(attacks: Any, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    before = attacks.fingerprint(tmp_path / "outside")
    (tmp_path / "outside" / "new").touch()
    outcome = attacks.Outcome(
        1, "Traceback (most recent call last)\nKeyError: 'x'", 1.0, 11.0, 3 * 2**30
    )
    assert len(attacks.faults(outcome, before, tmp_path / "outside")) == 4
    assert (
        len(attacks.faults(attacks.Outcome(2, "a\nb", 1.0, 1.0, 0), before, tmp_path / "outside"))
        == 2
    )


def trainer(folder: Path) -> Trainer:
    """A training of a few steps, kept in a folder."""
    torch.manual_seed(0)
    parts = PairComponents(Categorical(5), lambda: Embedding(5, 3), PreviousObservation)
    pair = make_pair(
        model_settings("srnn", {"hidden_size": 4, "latent_size": 2, "latent_sizes": (4,)}), parts
    )
    symbols = torch.arange(60).remainder(5).numpy()
    batches = TextWindows(symbols, batch_size=2, window=6, carry=True, seed=0)
    settings = TrainingSettings(num_steps=3, ema_decay=0.9, log_every=2, precision="float32")
    return Trainer(pair, batches, settings, run=RunFolder(folder, "text"), quiet=True)


def every_place(tree: Any, changes: Any) -> list[tuple[Any, Callable[[Any], None]]]:
    return list(changes.places(tree))


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_checkpoint_with_another_value_at_any_place_is_refused_in_a_line(
    changes: Any, tmp_path: Path, stride: int
) -> None:
    trainer(tmp_path).fit()
    again, path = trainer(tmp_path), tmp_path / "last.safetensors"
    again.settings = TrainingSettings(num_steps=3, ema_decay=0.9, log_every=2, precision="float32")
    with again.pair.scope():
        again.begin(resume=True)
        kind = again.states.describe_state()
    count, saved = 0, load_tree(path)
    for number in range(0, len(every_place(changes.thawed(saved), changes)), stride):
        for extreme in EXTREMES:
            tree = changes.thawed(saved)  # lists and dictionaries of its own
            place, put = every_place(tree, changes)[number]
            old = changes.at(tree, place)
            put(extreme)
            if place[0] == "carried":
                continue  # which the pair itself has to look at
            with again.pair.scope():
                try:
                    check(tree, kind, path)
                except UserError as error:
                    assert str(path) in str(error) and "\n" not in str(error)
                    count += 1
                else:  # it may be right
                    assert (
                        type(extreme) is type(old)
                        or place[0] in ("best_loss", "first_loss", "minutes", "sums")
                        or extreme in ([], {})
                    ), place
    assert count > 500 / stride


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("step",), 2**63 - 1),
        (("metrics_size",), 2**70),
        (("minutes",), float("inf")),
        (("sums",), {"loss": 1.0}),
        (("sums",), {"steps": 1.0, "split": 2.0}),
        (("random", "cpu"), torch.zeros(5056, dtype=torch.uint8)),
        (("batches", "words", "inc"), "2"),
        (("weights",), {"model": {}, 3: {}}),
        (("weights", "model"), {1: torch.zeros(1), "a": torch.zeros(1)}),
        (("optimiser", "moments", 0, "step"), torch.tensor(-1.0)),
    ],
    ids=str,
)
def test_what_was_a_traceback_is_a_line(
    changes: Any, tmp_path: Path, place: tuple[Any, ...], value: Any
) -> None:
    trainer(tmp_path).fit()
    path = tmp_path / "last.safetensors"
    tree = changes.thawed(load_tree(path))
    changes.at(tree, place[:-1])[place[-1]] = value
    save_tree(path, tree)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=str(path)):
        trainer(tmp_path).fit(resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
