"""What the trainer says of a broken pair: on the first batch, in one line, and nothing is
written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_seq import Pair, RunFolder, SequenceBatch, Trainer, TrainingSettings, UserError
from pyro_seq.train.preflight import dry_run


class Stream:
    """The same batch again and again."""

    def __init__(self) -> None:
        self.drawn = 0

    def draw(self) -> tuple[SequenceBatch, bool]:
        self.drawn += 1
        return SequenceBatch(torch.tensor([[0.3, -0.2, 1.0], [0.5, 0.0, 0.0]]), [3, 1]), False

    def state(self) -> Any:
        return {"drawn": self.drawn}

    def load_state(self, state: Any) -> None:
        self.drawn = state["drawn"]


class Side(nn.Module):
    """A random walk, as the model or as its guide, with a fault."""

    def __init__(self, *, observes: bool, fault: str = "") -> None:
        super().__init__()
        self.observes, self.fault = observes, fault
        self.loc, self.spare = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.ones(2, 2))
        self.batch_norm = nn.BatchNorm1d(1)

    def forward(self, batch: SequenceBatch) -> Any:
        pyro.module("model" if self.observes else "guide", self)
        self.batch_norm(batch.values.flatten().unsqueeze(-1))  # type: ignore[union-attr]
        n, fault = len(batch), self.fault
        loc = self.loc.detach() if fault == "trains nothing" else self.loc
        if fault != "spare":
            loc = (
                loc
                + 0 * self.batch_norm.weight.sum()
                + self.spare.sum()
                + self.batch_norm.weight.sum()
                + self.batch_norm.bias.sum()
            )
        loc = loc.detach() if fault == "trains nothing" else loc
        z = torch.zeros(n)
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    if fault == "misses" and t == 1:
                        continue
                    if fault == "nan" and t == 1:
                        z = z / 0 * 0
                    shape = [n, 2] if fault == "shape" else [n]
                    normal: Any = dist.Normal(
                        (z + loc).unsqueeze(-1).expand(shape) if fault == "shape" else z + loc, 1.0
                    )
                    if fault == "support":
                        normal = dist.LogNormal(z + loc, 1.0)
                    z = pyro.sample(f"z_{t}", normal.to_event(1) if fault == "shape" else normal)
                    z = z.sum(-1) if fault == "shape" else z
                    if fault == "extra":
                        pyro.sample(f"w_{t}", dist.Normal(z, 1.0))
                    if self.observes:
                        pyro.sample(
                            f"x_{t}",
                            dist.Normal(z / 0 if fault == "infinite" else z, 1.0),
                            obs=batch.at(t),
                        )
        return (
            SimpleNamespace(state={"z": z, "steps": torch.tensor(batch.num_steps)})
            if fault == "state"
            else None
        )


def new_pair(model: str = "", guide: str = "") -> Pair:
    return Pair(Side(observes=True, fault=model), Side(observes=False, fault=guide))


FAULTS: dict[str, tuple[str, str, str]] = {
    "the guide misses a site": (
        "",
        "misses",
        "on the first batch: the guide has no site 'z_1', which the model samples",
    ),
    "the guide has another site": (
        "",
        "extra",
        r"on the first batch: the model has no site 'w_0' \(and 2 more\), which the guide samples",
    ),
    "event shapes": (
        "",
        "shape",
        r"site 'z_0' \(and 2 more\) has event shape \[2\] in the guide and \[\] in the model",
    ),
    "supports": (
        "support",
        "",
        (
            r"site 'z_0' .* is sampled from Real\(\) by the guide, which leads out of the model's "
            r"support Greater"
        ),
    ),
    "NaN in the guide": (
        "",
        "nan",
        (
            r"on the first batch: the value of site 'z_1' \(and 1 more\) in the guide is not "
            r"finite "
            r"\(sequence 0\)"
        ),
    ),
    "NaN in the model": (
        "infinite",
        "",
        r"on the first batch: the log-density of site 'x_0' .* in the model is not finite",
    ),
    "a state without the sequences": (
        "state",
        "",
        (
            r"on the first batch: the model's state has a tensor of shape \[\]: its first "
            r"dimension "
            r"must be the sequences \(2\)"
        ),
    ),
    "nothing trains": (
        "trains nothing",
        "trains nothing",
        "on the first batch no parameter of this pair gets a gradient",
    ),
}
ELBOS: dict[str, Callable[[], Any]] = {
    "settings": lambda: None,
    "particles": lambda: Trace_ELBO(num_particles=2),
    "vectorised": lambda: Trace_ELBO(
        num_particles=2, vectorize_particles=True, max_plate_nesting=1
    ),
    "mean field": TraceMeanField_ELBO,
    "renyi": lambda: RenyiELBO(num_particles=2),
}


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str, elbo: str, tmp_path: Path) -> None:
    of_model, of_guide, message = FAULTS[fault]
    pair, stream = new_pair(of_model, of_guide), Stream()
    run = RunFolder(tmp_path / "run", "test")
    with run.locked():
        run.create({}, {})
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    weights = {name: p.detach().clone() for name, p in pair.parameters().items()}
    with pytest.raises(UserError, match=message) as raised:
        Trainer(
            pair, stream, TrainingSettings(num_steps=3), run=run, elbo=ELBOS[elbo](), quiet=True
        ).fit()
    assert "\n" not in str(raised.value)
    assert stream.drawn == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    assert all(
        torch.equal(p, weights[name]) and p.grad is None for name, p in pair.parameters().items()
    )


def test_a_parameter_that_is_not_used_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    pair = new_pair("spare")
    pair.guide.loc.requires_grad_(False)  # type: ignore[attr-defined]  # on purpose, so nothing to say
    Trainer(pair, Stream(), TrainingSettings(num_steps=3)).fit()
    said = [line for line in capsys.readouterr().err.splitlines() if "gradient" in line]
    assert said == [
        "parameter 'model.spare' (and 2 more) has no gradient on the first batch: is it in use?"
    ]


def test_a_sound_pair_has_nothing_said_about_it(capsys: pytest.CaptureFixture[str]) -> None:
    Trainer(new_pair(), Stream(), TrainingSettings(num_steps=3)).fit()
    assert "first batch" not in capsys.readouterr().err


def test_trying_leaves_everything_as_it_was() -> None:
    pair, stream = new_pair(), Stream()
    buffers = {name: b.clone() for name, b in pair.model.state_dict().items()}  # type: ignore[attr-defined]
    random: Tensor = torch.get_rng_state()
    with dry_run(pair, stream) as batch:
        pair.model(batch)
        torch.randn(3)
        assert stream.drawn == 1
    assert stream.drawn == 0 and torch.equal(random, torch.get_rng_state())
    after = pair.model.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(value, after[name]) for name, value in buffers.items())


class Regimes(nn.Module):
    """x_t from one of two normals, which of them being left to enumeration."""

    def __init__(self) -> None:
        super().__init__()
        self.locs = nn.Parameter(torch.tensor([-1.0, 1.0]))

    def forward(self, batch: SequenceBatch) -> None:
        pyro.module("regimes", self)
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    z = pyro.sample(
                        f"z_{t}", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"}
                    )
                    pyro.sample(f"x_{t}", dist.Normal(self.locs[z], 1.0), obs=batch.at(t))


def test_latents_left_to_enumeration_take_an_objective_that_enumerates() -> None:
    message = (
        r"on the first batch: site 'z_0' \(and 2 more\) is marked to be enumerated, which "
        r"Trace_ELBO does not do: it takes TraceEnum"
    )
    with pytest.raises(UserError, match=message):
        Trainer(Pair(Regimes()), Stream(), TrainingSettings(num_steps=3), quiet=True).fit()
    pair = Pair(Regimes())
    Trainer(
        pair,
        Stream(),
        TrainingSettings(num_steps=3),
        elbo=TraceEnum_ELBO(max_plate_nesting=1),
        quiet=True,
    ).fit()
    assert not torch.equal(pair.model.locs.detach(), torch.tensor([-1.0, 1.0]))  # type: ignore[attr-defined]
