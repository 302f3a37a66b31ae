"""Trainings that end in unusual ways, or go on elsewhere than they began."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_seq import Pair, RunFolder, SequenceBatch, Trainer, TrainingSettings, UserError, _threads
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.models import RNN
from pyro_seq.runs.checkpoint import load_tree, save_tree
from pyro_seq.train import trainer as training
from pyro_seq.train.trainer import Hooks, NonFinite
from small_trainings import equal, new_pair, new_run, new_trainer, parameters


class Stream:
    """Random symbols, each batch going on where the one before ended."""

    def __init__(self) -> None:
        self.drawn = 0

    def draw(self) -> tuple[SequenceBatch, bool]:
        self.drawn += 1
        return SequenceBatch(
            torch.randint(0, 3, (4, 6), generator=torch.Generator().manual_seed(self.drawn))
        ), self.drawn > 1

    def state(self) -> Any:
        return {"drawn": self.drawn}

    def load_state(self, state: Any) -> None:
        self.drawn = state["drawn"]


def rnn() -> Pair:
    torch.manual_seed(0)
    return Pair(RNN(Categorical(3), PreviousObservation(OneHot(3)), hidden_size=4))


class Normalised(nn.Module):
    """A model with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, batch: SequenceBatch) -> None:
        pyro.module("normalised", self)
        assert isinstance(batch.values, Tensor)
        means = self.norm(
            batch.values.double().mean(-1, keepdim=True).to(torch.get_default_dtype())
        ).squeeze(-1)
        with batch.plate():
            for t in batch.steps():
                pyro.sample(f"x_{t}", dist.Normal(means, 1.0), obs=batch.at(t).to(means.dtype))


def train(
    pair: Pair,
    folder: Path,
    num_steps: int,
    *,
    resume: bool = False,
    hooks: Hooks | None = None,
    **changes: Any,
) -> Trainer:
    settings = TrainingSettings(
        num_steps=num_steps, schedule="constant", warmup=0.0, sample_every=0, **changes
    )
    trainer = Trainer(
        pair, Stream(), settings, run=RunFolder(folder, "test"), hooks=hooks, quiet=True
    )
    trainer.fit(resume=resume)
    return trainer


def test_checkpoints_have_the_names_they_always_had(tmp_path: Path) -> None:
    """Runs that were begun by an older version go on, also without first loss or threads."""
    train(rnn(), tmp_path, 2)
    path = tmp_path / "last.safetensors"
    saved = load_tree(path)
    assert saved.keys() == {
        *("step", "minutes", "best_loss", "validations_since_best", "validated", "first_loss"),
        *("weights", "optimiser", "batches", "carried", "sums", "metrics_size", "random"),
        *("precision", "threads"),
    }
    assert saved["optimiser"].keys() == {"steps", "moments", "averages"}
    del saved["first_loss"], saved["threads"]
    save_tree(path, saved)
    assert train(rnn(), tmp_path, 3, resume=True).step == 3


def test_running_statistics_go_on_exactly(tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for folder in (unbroken, broken):
        folder.mkdir()
    train(Pair(Normalised()), unbroken, 6)
    train(Pair(Normalised()), broken, 3)
    train(Pair(Normalised()), broken, 6, resume=True)
    weights = [
        load_tree(folder / "last.safetensors")["weights"]["model"] for folder in (unbroken, broken)
    ]
    assert weights[0]["norm.num_batches_tracked"] == 6
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_a_run_goes_on_in_the_precision_it_was_begun_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where `auto` would choose another one, as on another machine; the states carried over
    are float32 in any case.
    """
    monkeypatch.setattr(training, "fast_precision", lambda device, largest: torch.bfloat16)
    train(rnn(), tmp_path, 2)
    monkeypatch.setattr(training, "fast_precision", lambda device, largest: torch.float32)
    trainer = train(rnn(), tmp_path, 4, resume=True)
    saved = load_tree(tmp_path / "last.safetensors")
    assert trainer.step == 4 and saved["precision"] == "bfloat16"
    assert {state.dtype for state in saved["carried"]["model"]["carried"]} == {torch.float32}


def test_bfloat16_is_never_chosen_for_a_model_of_unknown_densities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "fast_precision", lambda device, largest: torch.bfloat16)
    train(Pair(Normalised()), tmp_path, 1)
    assert load_tree(tmp_path / "last.safetensors")["precision"] == "float32"


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    losses = iter([1.0, math.nan])
    with pytest.raises(
        NonFinite, match=r"step 4: the validation loss is not finite; the last good checkpoint is"
    ):
        train(
            rnn(), tmp_path, 10, hooks=Hooks(validate=lambda: {"loss": next(losses)}), valid_every=2
        )
    assert load_tree(tmp_path / "best.safetensors")["step"] == 2


def test_a_training_is_never_begun_over_another(tmp_path: Path) -> None:
    train(rnn(), tmp_path, 3)
    with pytest.raises(UserError, match="holds a training"):
        train(rnn(), tmp_path, 1)
    assert load_tree(tmp_path / "last.safetensors")["step"] == 3


@pytest.mark.parametrize("kind", ["rnn", "srnn"])
def test_choice_of_threads_leaves_no_trace_and_is_gone_on_with(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_pyro: None
) -> None:
    """Steps are tried before the first one, and the checkpoint says how many threads they took."""

    def trained(folder: str, most: int, steps: int, *, resume: bool = False) -> dict[str, Tensor]:
        monkeypatch.setattr(_threads, "_most", most)
        pyro.clear_param_store()
        torch.manual_seed(0)
        pair = new_pair(kind, input_dropout=0.5)
        trainer = new_trainer(pair, run=new_run(tmp_path / folder), num_steps=steps)
        trainer.fit(resume=resume)
        return parameters(pair)

    told, stands = list[int](), [1]

    def tell(number: int) -> None:
        stands[0] = number
        told.append(number)

    monkeypatch.setattr(torch, "set_num_threads", tell)
    monkeypatch.setattr(torch, "get_num_threads", lambda: stands[0])
    expected = trained("untold", 1, 4)
    assert not told
    trained("tried", 2, 2)
    chosen = told[-1]
    assert told == [1, 2] * _threads.TRIES + [chosen]
    assert load_tree(new_run(tmp_path / "tried").last)["threads"] == chosen
    told.clear()
    assert equal(trained("tried", 8, 4, resume=True), expected)
    assert told == [chosen]
    # a user who chose is left alone
    trained("tried", 1, 6, resume=True)
    assert told == [chosen]
