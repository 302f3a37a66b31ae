"""The synthetic task: sentences by a seed, figures that tell a collapse, and renderings that come
back.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.models import RNN
from pyro_seq.runs.tensorboard import Image
from pyro_seq.seqgan.tasks.base import Rendering, Sequences, Task
from pyro_seq.seqgan.tasks.oracle import nats_per_token, oracle_from_file, oracle_from_seed
from pyro_seq.seqgan.tasks.oracle_task import OracleRendering, OracleTask, make_oracle_task

pytestmark = pytest.mark.usefixtures("sketched")

V = 9


@pytest.fixture(scope="module")
def oracle() -> RNN:
    return oracle_from_seed(0, num_symbols=V, embedding_size=4, hidden_size=5, start=2)


@pytest.fixture
def task(oracle: RNN) -> OracleTask:
    return make_oracle_task(oracle, length=6, num_train=300, num_valid=50, num_test=400, seed=1)


def test_it_is_a_task(task: OracleTask) -> None:
    held: Task = task
    rendering: Rendering = held.rendering
    sequences = held.sequences
    assert [len(part) for part in (sequences.train, sequences.valid, sequences.test)] == [
        300,
        50,
        400,
    ]
    assert (
        sequences.train.shape[1] == 6
        and sequences.train.dtype == torch.long
        and rendering.num_symbols == V
    )
    assert (held.first, held.units, held.criterion, held.higher) == (
        2,
        "tokens",
        "nll_oracle",
        False,
    )


def test_sentences_by_a_seed(oracle: RNN, task: OracleTask) -> None:
    """The same in whatever state the global generator is, which stays as it was, and however many
    of the other kinds there are.
    """
    torch.rand(3)
    state = torch.get_rng_state()
    again = make_oracle_task(
        oracle, length=6, num_train=20, num_valid=50, num_test=400, seed=1
    ).sequences
    other = make_oracle_task(
        oracle, length=6, num_train=300, num_valid=50, num_test=400, seed=2
    ).sequences
    assert torch.get_rng_state().equal(state)
    assert again.test.equal(task.sequences.test) and again.valid.equal(task.sequences.valid)
    assert not other.train.equal(task.sequences.train)
    parts = [
        part[:50] for part in (task.sequences.train, task.sequences.valid, task.sequences.test)
    ]
    assert not parts[0].equal(parts[1]) and not parts[1].equal(parts[2])


def test_the_oracles_own_sentences_score_its_entropy(oracle: RNN) -> None:
    """E[-log p(x)] summed over all 9^4 sentences, against the figure of sentences that were
    drawn.
    """
    task = make_oracle_task(oracle, length=4, num_train=1, num_valid=1, num_test=5_000, seed=3)
    nats = nats_per_token(oracle, torch.cartesian_prod(*[torch.arange(V)] * 4)).double()
    entropy = float(((-4 * nats).exp() * nats).sum())
    figure = task.judge(task.sequences.test, task.sequences.valid)["nll_oracle"]
    assert figure.standard_error is not None
    assert abs(figure.value - entropy) < 4 * figure.standard_error < 0.1


def test_a_collapse_is_seen_though_the_oracle_likes_it(oracle: RNN, task: OracleTask) -> None:
    real = task.sequences.test
    nats = nats_per_token(oracle, real)
    favourite = real[int(nats.argmin())].expand(200, 6)
    honest, collapsed = (task.judge(generated, real) for generated in (real[:200], favourite))
    assert (
        collapsed["nll_oracle"].value == pytest.approx(float(nats.min()), rel=1e-5)
        and float(nats.min()) < honest["nll_oracle"].value
    )
    assert collapsed["distinct"].value == 1 / 200 < 0.5 < honest["distinct"].value
    assert collapsed["symbol_entropy"].value <= math.log(6) and set(collapsed) == {
        "nll_oracle",
        "distinct",
        "symbol_entropy",
    }
    assert not {"nll", "entropy"} & set(collapsed), "names of the generator's own figures"


def test_symbols_that_the_oracle_has_not(task: OracleTask) -> None:
    real = task.sequences.test
    with pytest.raises(
        UserError, match="the oracle has symbols 0 to 8, and a sequence has symbol 9"
    ):
        task.judge(real + 1, real)
    with pytest.raises(UserError, match="there are 9 symbols"):
        OracleTask(task.oracle, Sequences(real, real, torch.full((1, 6), V)), OracleRendering(V))
    with pytest.raises(UserError, match="the oracle has 9 symbols, and the rendering shows 10"):
        OracleTask(task.oracle, task.sequences, OracleRendering(10))


@pytest.mark.parametrize(
    "numbers", [{"num_train": 0}, {"num_valid": -1}, {"num_test": 0}, {"length": 0}]
)
def test_tasks_without_sentences(oracle: RNN, numbers: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least 1 sentence of each kind, of at least 1 token"):
        make_oracle_task(
            oracle,
            seed=0,
            **({"length": 6, "num_train": 3, "num_valid": 3, "num_test": 3} | numbers),
        )


# rendering


def test_text_and_files(tmp_path: Path) -> None:
    rendering, sequences = OracleRendering(5_000), torch.tensor([[0, 4_999, 17], [3, 3, 3]])
    assert rendering.text(sequences[0]) == "0 4999 17"
    for _ in range(2):
        assert rendering.write(sequences, tmp_path / "a" / "b") == [
            tmp_path / "a" / "b" / "samples.txt"
        ]
        assert (tmp_path / "a" / "b" / "samples.txt").read_text() == "0 4999 17\n3 3 3\n"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make the folder"):
        rendering.write(sequences, tmp_path / "file" / "b")


def test_pictures(task: OracleTask) -> None:
    pictures = task.rendering.pictures(task.sequences.test, task.sequences.train)
    assert list(pictures) == ["frequencies"]
    picture = pictures["frequencies"]
    assert isinstance(picture, Image) and picture.png.startswith(b"\x89PNG")
    assert task.rendering.pictures(task.sequences.test[:0], task.sequences.train) == {}


def test_from_json() -> None:
    document = json.loads(json.dumps(OracleRendering(17).to_json()))
    assert OracleRendering.from_json(document, Path("task.json")) == OracleRendering(17)


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        None,
        {"num_symbols": 0},
        {"num_symbols": "9"},
        {"num_symbols": True},
        {"num_symbols": 10**12},
    ],
)
def test_documents_that_are_no_rendering(document: Any) -> None:
    with pytest.raises(UserError, match=r"task\.json is damaged"):
        OracleRendering.from_json(document, Path("task.json"))


def test_the_papers_task(data_dir: Path) -> None:
    task = make_oracle_task(
        oracle_from_file(data_dir / "seqgan" / "oracle_target_params.npz"),
        num_train=2,
        num_valid=2,
        num_test=500,
        seed=0,
    )
    figures = task.judge(task.sequences.test, task.sequences.valid)
    error = figures["nll_oracle"].standard_error
    assert (
        task.first == 0
        and error is not None
        and abs(figures["nll_oracle"].value - 5.745) < 0.005 + 4 * error
    )
    assert figures["distinct"] == (1.0, 0.0)
