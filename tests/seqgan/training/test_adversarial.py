"""The adversarial game: what it keeps, when it stops, and what it says where a network has
collapsed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.pairs.pair import Pair
from pyro_seq.runs.checkpoint import load_tree
from pyro_seq.runs.folder import RunFolder
from pyro_seq.seqgan.adversary.discriminators import make_discriminator
from pyro_seq.seqgan.adversary.rewards import SHAPINGS, DiscriminatorReward
from pyro_seq.seqgan.metrics.quality import generated
from pyro_seq.seqgan.program import new_generator, seqgan_program
from pyro_seq.seqgan.settings import BASELINES
from pyro_seq.seqgan.stored_task import make_task
from pyro_seq.seqgan.tasks.base import Measurement, Task
from pyro_seq.seqgan.training import adversarial
from pyro_seq.seqgan.training.adversarial import AdversarialTraining

pytestmark = pytest.mark.usefixtures("sketched")

Made = tuple[AdversarialTraining, Pair]
Make = Callable[..., Made]


@pytest.fixture
def make(tmp_path: Path, tiny_seqgan: dict[str, Any]) -> Make:
    """Makes the adversarial training of a generator that has learnt nothing yet, without a
    pretraining.
    """

    def made(**changes: Any) -> Made:
        always = {"adversarial.sample_every": 0, "adversarial.checkpoint_seconds": 0.0}
        settings = seqgan_program.settings(
            tiny_seqgan
            | always
            | {name.replace("__", "."): value for name, value in changes.items()}
        )
        task: Task = make_task(settings, {}, tmp_path)
        torch.manual_seed(0)
        pair = new_generator(settings, task.rendering.num_symbols, task.first)
        discriminator = make_discriminator(
            settings.discriminator, task.rendering.num_symbols, settings.length
        )
        run = RunFolder(tmp_path / "run", "seqgan")
        return AdversarialTraining(
            pair, discriminator, task, settings, run=run, seed=0, quiet=True
        ), pair

    return made


def kept(training: AdversarialTraining) -> int:
    """The step of the last good checkpoint, whose weights are all finite."""
    saved = load_tree(training.run.last)
    assert all(tensor.isfinite().all() for tensor in saved["weights"]["model"].values())
    return int(saved["step"])


def metrics(training: AdversarialTraining, split: str) -> list[dict[str, Any]]:
    entries = map(json.loads, training.run.metrics.read_text().splitlines())
    return [entry for entry in entries if entry["split"] == split]


# the variants


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "changes",
    [
        *({"adversarial__baseline": baseline} for baseline in BASELINES),
        *({"adversarial__reward": shaping} for shaping in SHAPINGS if shaping != "probability"),
        {"adversarial__rollouts": 0},
        {"adversarial__rollout_batch": 3},
        {"adversarial__entropy_bonus": 0.1, "adversarial__normalise": True},
        {"discriminator__kind": "rnn", "discriminator__samples": 5},
        {
            "adversarial__generator_steps": 2,
            "adversarial__discriminator_rounds": 0,
            "adversarial__likelihood_steps": 1,
        },
    ],
    ids=lambda changes: " ".join(str(value) for value in changes.values()),
)
def test_every_variant_trains_the_generator(make: Make, changes: dict[str, Any]) -> None:
    training, pair = make(adversarial__num_steps=1, adversarial__valid_every=9, **changes)
    before = {name: parameter.detach().clone() for name, parameter in pair.parameters().items()}
    training.fit()
    weights = load_tree(training.run.last)["weights"]["model"]
    assert all(
        not torch.equal(weights[name.removeprefix("model.")], value)
        for name, value in before.items()
        if "bias_ih" not in name
    )
    (entry,) = metrics(training, "adversarial")
    assert (
        all(math.isfinite(value) for name, value in entry.items() if name != "split")
        and entry["gradient_norm"] > 0
    )
    assert ("likelihood_nll" in entry) == ("adversarial__likelihood_steps" in changes)
    assert ("discriminator_loss" in entry) == ("adversarial__discriminator_rounds" not in changes)
    assert list(weights) == [name.removeprefix("model.") for name in before], (
        "a generator's weights are its own alone"
    )


def test_the_generator_learns_what_is_rewarded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward for the symbol 3 alone; its share among generated symbols, before and after."""
    monkeypatch.setattr(
        DiscriminatorReward, "__call__", lambda reward, batch: share_of_three(batch)
    )
    training, pair = make(
        adversarial__num_steps=14, adversarial__valid_every=99, adversarial__learning_rate=0.05
    )
    before = float((generated(pair, 500, 6) == 3).float().mean())
    training.fit()
    pair.load_weights(load_tree(training.run.last)["weights"], "last")
    assert before < 0.3 and float((generated(pair, 500, 6) == 3).float().mean()) > 0.7


def share_of_three(batch: SequenceBatch) -> Tensor:
    assert isinstance(batch.values, Tensor)
    return (batch.values == 3).float().mean(-1)


# what is kept, and when training stops


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets validations find these figures, (NLL_oracle, NLL), one after the other."""

    def script(*figures: tuple[float, float]) -> None:
        coming: Iterator[tuple[float, float]] = iter(figures)

        def found(*_: Any, **__: Any) -> dict[str, Measurement]:
            oracle, nll = next(coming)
            return {
                "nll": Measurement(nll, 0.1),
                "entropy": Measurement(1.0, 0.1),
                "nll_oracle": Measurement(oracle, 0.1),
            }

        monkeypatch.setattr(adversarial, "quality", found)

    return script


def best_step(training: AdversarialTraining) -> int:
    return int(load_tree(training.run.best)["step"])


def test_the_best_weights_are_kept_and_left_in_the_generator(
    make: Make, scripted: Callable[..., None]
) -> None:
    scripted((9.0, 7.0), (8.0, 7.1), (8.5, 7.1), (8.2, 7.1))
    training, pair = make(adversarial__num_steps=3, adversarial__valid_every=1)
    training.fit()
    assert best_step(training) == 1 and training.step == 3
    best = load_tree(training.run.best)["weights"]["model"]
    assert all(
        torch.equal(parameter, best[name.removeprefix("model.")])
        for name, parameter in pair.parameters().items()
    )


def test_checkpoints_have_the_names_they_always_had(
    make: Make, scripted: Callable[..., None]
) -> None:
    """Runs that were begun by an older version go on."""
    scripted((9.0, 7.0), (8.0, 7.1))
    training, _ = make(adversarial__num_steps=1, adversarial__valid_every=1)
    training.fit()
    saved = load_tree(training.run.last)
    assert saved.keys() == {
        *("step", "rounds", "minutes", "best", "validations_since_best", "validated"),
        *("pretrained_nll", "weights", "discriminator", "generator_training"),
        *("discriminator_training", "metrics_size", "random"),
    }
    assert saved["generator_training"].keys() == {"optimiser", "policy", "baseline", "real"}
    assert saved["discriminator_training"].keys() == {"optimiser", "random"}


def test_training_stops_after_so_many_validations_without_a_better_figure(
    make: Make, scripted: Callable[..., None]
) -> None:
    scripted((9.0, 7.0), (8.0, 7.0), (8.5, 7.0), (8.0, 7.0))  # an equal figure is no better one
    training, _ = make(
        adversarial__num_steps=50, adversarial__valid_every=1, adversarial__patience=2
    )
    training.fit()
    assert (training.step, best_step(training)) == (3, 1)
    assert (
        training.stopped_by()
        == "adversarial.patience is 2, and so many validations brought nothing better"
    )


def test_weights_under_which_real_sequences_are_too_unlikely_are_not_kept(
    make: Make, scripted: Callable[..., None]
) -> None:
    """The margin is of NLL, from what it was after pretraining."""
    scripted((9.0, 7.0), (8.0, 7.6), (8.5, 7.5), (8.4, 7.51))
    training, _ = make(
        adversarial__num_steps=3, adversarial__valid_every=1, adversarial__valid_margin=0.5
    )
    training.fit()
    assert best_step(training) == 2


def test_minutes_are_an_end(make: Make) -> None:
    training, _ = make(adversarial__num_steps=10_000, adversarial__max_minutes=1e-4)
    training.fit()
    assert training.step < 50 and training.minutes >= 1e-4
    assert training.stopped_by() == "adversarial.max_minutes is 0.0001"


# collapse


def test_a_generator_that_says_one_thing_has_collapsed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        DiscriminatorReward, "__call__", lambda reward, batch: share_of_three(batch)
    )
    training, _ = make(
        adversarial__num_steps=1000, adversarial__valid_every=999, adversarial__learning_rate=1.0
    )
    with pytest.raises(
        UserError,
        match=(
            r"adversarial step \d+: the generator has collapsed: all sequences of a minibatch "
            r"are the same"
        ),
    ):
        training.fit()
    assert kept(training) == training.step and best_step(training) == 0


def test_a_generator_of_low_entropy_has_collapsed(make: Make) -> None:
    training, pair = make(adversarial__num_steps=4, adversarial__lowest_entropy=1.5)
    pair.parameters()["model.decoder.0.bias"].data[3] += 4.0
    said = (
        r"the generator has collapsed: its entropy is [01]\.\d+ nats a symbol, below "
        r"adversarial.lowest_entropy; the best weights so far"
    )
    with pytest.raises(UserError, match=said):
        training.fit()
    assert kept(training) == best_step(training) == 0


def test_a_discriminator_that_is_sure_of_everything_has_collapsed(make: Make) -> None:
    training, _ = make(discriminator__pretrain_rounds=0)
    training.discriminator.output.bias.data.fill_(-1e4)  # D(x) is 0 in all digits that there are
    said = (
        "adversarial step 1: the discriminator has collapsed: the reward is 0 for every "
        "sequence and prefix"
    )
    with pytest.raises(
        UserError, match=said + r".*the best weights so far are in .*best\.safetensors"
    ):
        training.fit()
    assert kept(training) == 0


# what is not finite


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (
            lambda batch: torch.full((len(batch),), math.nan),
            "the reward is not finite: nan for sequence 0",
        ),
        (
            lambda batch: torch.zeros(len(batch), 2),
            r"the reward must give .* one for each sequence, and gives shape \[64, 2\]",
        ),
    ],
)
def test_a_reward_that_is_none(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    reward: Callable[[SequenceBatch], Tensor],
    said: str,
) -> None:
    monkeypatch.setattr(DiscriminatorReward, "__call__", lambda _, batch: reward(batch))
    training, _ = make()
    with pytest.raises(UserError, match=f"adversarial step 1: {said}"):
        training.fit()
    assert kept(training) == 0


@pytest.mark.parametrize(
    "changes",
    [{"adversarial__learning_rate": 1e30}, {"discriminator__learning_rate": 1e30}],
    ids=str,
)
def test_learning_rates_that_are_far_too_high(make: Make, changes: dict[str, float]) -> None:
    training, _ = make(adversarial__num_steps=50, adversarial__clip_norm=0.0, **changes)
    with pytest.raises(
        UserError, match=r"adversarial step \d+: .*(not finite|collapsed|no probability).*"
    ):
        training.fit()
    kept(training)


def test_a_validation_that_is_not_finite(make: Make, scripted: Callable[..., None]) -> None:
    scripted((9.0, 7.0), (math.nan, 7.0))
    training, _ = make(adversarial__valid_every=1)
    with pytest.raises(
        UserError, match="the validation's nll_oracle is not finite; the last good checkpoint"
    ):
        training.fit()
    assert kept(training) == best_step(training) == 0


def test_training_leaves_the_random_state_of_validations_alone(make: Make) -> None:
    """How often is validated changes nothing of the training."""
    weights = []
    for every in (1, 3):
        training, _ = make(adversarial__num_steps=3, adversarial__valid_every=every)
        training.fit()
        weights.append(load_tree(training.run.last)["weights"]["model"])
        training.run.last.unlink()  # a training is never begun over another
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
