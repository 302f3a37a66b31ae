"""Which site belongs to which step: members and latents with numbers in their names, marks, and
what cannot be told.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_seq import (
    AutoSequenceGuide,
    Pair,
    SequenceBatch,
    UserError,
    contexts,
    continuation,
    emissions,
    encoders,
    infill,
    sample,
    score,
)
from pyro_seq.models import RNN
from pyro_seq.poutine.time_sites import Side, Stem, classify
from pyro_seq.testing import problems

NAMES: dict[str, Callable[[int, int], str]] = {
    "x_{t}_{m}": lambda t, m: f"x_{t}_{m}",
    "x_{m}_{t}": lambda t, m: f"x_{m}_{t}",
    "x_{t}_voice_{m}": lambda t, m: f"x_{t}_voice_{m}",
    "x_voice_{m}_{t}": lambda t, m: f"x_voice_{m}_{t}",
    "x2_{m}_{t}_end": lambda t, m: f"x2_{m}_{t}_end",
}


def law(t: int, m: int) -> dist.Normal:
    return dist.Normal(0.3 * t + m, 1.0 + m)


def voices(
    name: Callable[[int, int], str], members: int, *, active: bool
) -> Callable[[SequenceBatch], None]:
    """Independent numbers, a site for each step and member."""

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t) if active else nullcontext():
                    for m in range(members):
                        obs = None if batch.at(t) is None else batch.at(t)[..., m]
                        pyro.sample(name(t, m), law(t, m).expand([len(batch)]), obs=obs)

    return model


def by_step(values: Tensor) -> Tensor:
    """log p of each step `[N, T]` of values `[N, T, M]`."""
    steps, members = values.shape[1:]
    return torch.stack(
        [sum(law(t, m).log_prob(values[:, t, m]) for m in range(members)) for t in range(steps)], 1
    )  # type: ignore[misc]


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "names", [[f"voice_{i}" for i in range(4)], list("0123"), ["a_1", "a_0", "b", "2"]], ids=str
)
@pytest.mark.parametrize("layout", ["path", "steps"])
def test_members_of_a_group_are_no_steps(names: list[str], steps: int, layout: Any) -> None:
    values = torch.randint(3, (3, steps, 4))

    def scored(names: list[str], layout: Any) -> Tensor:
        pyro.set_rng_seed(1)
        encoder = encoders.Joint({name: encoders.OneHot(3) for name in names})
        emission = emissions.Joint({name: emissions.Categorical(3) for name in names})
        pair = Pair(
            RNN(emission, contexts.PreviousObservation(encoder), hidden_size=4, layout=layout)
        )
        return score(
            pair, SequenceBatch(dict(zip(names, values.unbind(-1), strict=True)), [steps, 1, 1])
        ).steps

    torch.testing.assert_close(
        scored(names, layout),
        scored(["soprano", "alto", "tenor", "bass"], "path"),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("layout", ["path", "steps"])
def test_a_shipped_model_whose_members_are_numbers_keeps_the_contract(layout: Any) -> None:
    encoder = encoders.Joint({name: encoders.OneHot(3) for name in "01"})
    emission = emissions.Joint({name: emissions.Categorical(3) for name in "01"})
    model = RNN(emission, contexts.PreviousObservation(encoder), hidden_size=4, layout=layout)
    batch = SequenceBatch({name: torch.randint(3, (3, 4)) for name in "01"}, [4, 3, 1])
    assert problems(model, lambda batch: None, batch) == []


@pytest.mark.parametrize("active", [True, False], ids=["active", "unmarked"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_own_functions_with_numbered_members(
    name: Callable[[int, int], str], steps: int, active: bool
) -> None:
    """Also with as many steps as there are members."""
    values = torch.randn(2, steps, 3)
    lengths = [steps, 1] if active else [steps, steps]
    scored = score(Pair(voices(name, 3, active=active)), SequenceBatch(values, lengths))
    expected = by_step(values)
    expected[1, lengths[1] :] = 0
    torch.testing.assert_close(scored.steps, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("active", [True, False], ids=["active", "unmarked"])
def test_vectors_with_as_many_entries_as_there_are_steps(active: bool) -> None:
    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t) if active else nullcontext():
                    pyro.sample(
                        f"x_{t}",
                        dist.Normal(torch.full((len(batch), 4), 0.3 * t), 1.0).to_event(1),
                        obs=batch.at(t),
                    )

    values = torch.randn(2, 4, 4)
    expected = torch.stack(
        [dist.Normal(0.3 * t, 1.0).log_prob(values[:, t]).sum(-1) for t in range(4)], 1
    )
    torch.testing.assert_close(
        score(Pair(model), SequenceBatch(values)).steps, expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("as_they_are", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_paths_of_numbered_members_in_own_functions(steps: int, as_they_are: bool) -> None:
    """Events `[T]` at sites x_0, x_1, x_2, whose names say nothing of time; also where what is
    observed is computed of the values.
    """

    def model(batch: SequenceBatch) -> None:
        values: Any = batch.values
        with batch.plate():
            for m in range(3):
                obs = values[str(m)] if as_they_are else values[str(m)] + 0.0
                pyro.sample(
                    f"x_{m}",
                    dist.Normal(torch.full_like(obs, float(m)), 1.0).mask(batch.mask).to_event(1),
                    obs=obs,
                )

    values = torch.randn(2, steps, 3)
    batch = SequenceBatch({str(m): values[..., m] for m in range(3)}, [steps, 1])
    expected = (
        sum(dist.Normal(float(m), 1.0).log_prob(values[..., m]) for m in range(3)) * batch.mask
    )
    torch.testing.assert_close(score(Pair(model), batch).steps, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["importance", "filter"])
def test_as_many_latents_of_a_sequence_as_there_are_steps(method: Any) -> None:
    def latents(names: list[str]) -> Pair:
        def model(batch: SequenceBatch) -> None:
            with batch.plate():
                w = [pyro.sample(name, dist.Normal(torch.zeros(len(batch)), 1.0)) for name in names]
                for t in range(batch.num_steps):
                    pyro.sample(f"x_{t}", dist.Normal(w[0] + w[2], 1.0), obs=batch.at(t))

        def guide(batch: SequenceBatch) -> None:
            with batch.plate():
                for name in names:
                    pyro.sample(name, dist.Normal(batch.values.mean(-1), 1.0))

        return Pair(model, guide)

    batch, found = SequenceBatch(torch.randn(2, 3)), []
    for names in (["w_0", "w_1", "w_2"], ["a", "b", "c"]):
        pyro.set_rng_seed(0)
        found.append(score(latents(names), batch, method=method, samples=5).steps)
    torch.testing.assert_close(*found)


def odd(mark: Callable[[int], Any]) -> Callable[[SequenceBatch], None]:
    """Steps whose names say nothing."""

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            for t, word in enumerate(["one", "two", "three"]):
                pyro.sample(
                    word,
                    dist.Normal(torch.full((len(batch),), float(t)), 1.0),
                    obs=batch.at(t),
                    infer={"time": mark(t)},
                )

    return model


def test_marks_say_what_names_do_not() -> None:
    values = torch.randn(2, 3)
    expected = dist.Normal(torch.arange(3.0), 1.0).log_prob(values)
    torch.testing.assert_close(score(Pair(odd(lambda t: t)), SequenceBatch(values)).steps, expected)
    torch.testing.assert_close(
        score(Pair(odd(lambda t: 2 - t)), SequenceBatch(values)).steps, expected.flip(1)
    )


@pytest.mark.parametrize(("mark", "says"), [
    (lambda t: 3, "site 'one' is marked 3, which is no step of 0 … 2: mark it, infer={'time': t}"),
    (lambda t: True, "site 'one' is marked True, which is no step"),
    (lambda t: "all", r"site 'one' is marked as over all 3 steps, and its event has shape \[\]"),
    (lambda t: None,
    r"site 'one' belongs to no step: name it for its step \(x_0, x_1, … for every step\)"),
])  # fmt: skip
def test_marks_that_do_not_fit_are_refused(mark: Callable[[int], Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        score(Pair(odd(mark)), SequenceBatch(torch.randn(2, 3)))


def test_a_mark_of_the_model_counts_where_its_latents_are_replayed() -> None:
    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            z = [
                pyro.sample(name, dist.Normal(torch.zeros(len(batch)), 1.0), infer={"time": t})
                for t, name in enumerate("ab")
            ]
            for t in range(2):
                pyro.sample(f"x_{t}", dist.Normal(z[t], 1.0), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            for t, name in enumerate("ab"):
                pyro.sample(name, dist.Normal(batch.at(t) / 2, 0.5**0.5))  # the posterior

    values = torch.randn(2, 2)
    expected = dist.Normal(0.0, 2**0.5).log_prob(values)
    for method in ("elbo", "importance", "filter"):
        torch.testing.assert_close(
            score(
                Pair(model, guide), SequenceBatch(values), method=method, samples=2
            ).steps.float(),
            expected,
        )  # type: ignore[arg-type]


def test_a_first_step_before_the_loop() -> None:
    """Every sequence has it, so that it needs no mask."""

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            x = pyro.sample("x_0", dist.Normal(torch.zeros(len(batch)), 1.0), obs=batch.at(0))
            for t in range(1, batch.num_steps):
                with batch.active(t):
                    x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0), obs=batch.at(t))

    values = torch.randn(2, 3)
    batch = SequenceBatch(values, [3, 2])
    expected = (
        dist.Normal(torch.cat([torch.zeros(2, 1), values[:, :-1]], 1), 1.0).log_prob(values)
        * batch.mask
    )
    torch.testing.assert_close(score(Pair(model), batch).steps, expected)


def test_labels_of_a_sequence_are_no_steps() -> None:
    """As many observations of a whole sequence as there are steps, beside those of the steps."""

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            for i in range(3):
                pyro.sample(
                    f"label_{i}",
                    dist.Normal(torch.zeros(len(batch)), 1.0),
                    obs=torch.zeros(len(batch)),
                )
            for t in range(batch.num_steps):
                pyro.sample(f"x_{t}", law(t, 0).expand([len(batch)]), obs=batch.at(t))

    with pytest.raises(UserError, match="site 'label_0' belongs to no step"):
        score(Pair(model), SequenceBatch(torch.randn(2, 3)))


def test_what_cannot_be_told_is_refused() -> None:
    """A function of one length, with as many members as steps."""
    inner = voices(NAMES["x_{t}_{m}"], 3, active=False)

    def model(batch: SequenceBatch) -> None:
        assert batch.num_steps == 3
        inner(batch)

    with pytest.raises(
        UserError,
        match=(
            "which step site 'x_0_0' belongs to cannot be told: the number in its name may be a "
            "step or one of"
        ),
    ):
        score(Pair(model), SequenceBatch(torch.randn(2, 3, 3)))
    (line,) = problems(model, lambda batch: None, SequenceBatch(torch.randn(2, 3, 3)))
    assert line.startswith("which step site 'x_0_0' belongs to cannot be told")


def test_classification_leaves_the_users_objects_as_they_are() -> None:
    mine: dict[str, Any] = {"note": 1}

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            w = pyro.sample(
                "w",
                dist.Normal(torch.zeros(len(batch), batch.num_steps), 1.0).to_event(1),
                infer=mine,
            )
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(w[:, 0], 1.0), obs=batch.at(t), infer=mine)

    batch = SequenceBatch(torch.randn(2, 3))
    trace = poutine.trace(model).get_trace(batch)
    before = {name: set(site) for name, site in trace.nodes.items()}
    places = classify([Side(trace, model)], batch)
    assert places["w"].over_time and places["x_2"] == (2, False, Stem("x_", ""))
    assert {name: set(site) for name, site in trace.nodes.items()} == before and mine == {"note": 1}


def test_what_a_longer_run_shows_is_kept() -> None:
    runs: list[int] = []
    inner = voices(NAMES["x_{m}_{t}"], 2, active=False)

    def model(batch: SequenceBatch) -> None:
        runs.append(batch.num_steps)
        inner(batch)

    pair, batch = Pair(model), SequenceBatch(torch.randn(2, 2, 2))
    for _ in range(3):
        score(pair, batch)
    assert runs == [2, 2, 3, 2, 2]  # at first for latents that all sequences share


@pytest.mark.parametrize("active", [True, False], ids=["active", "unmarked"])
@pytest.mark.parametrize("steps", [2, 3])
def test_tools_put_members_that_are_numbers_together(steps: int, active: bool) -> None:
    """Members "0" and "1" of x_{t}_{m}, far apart: each tool gives each member its own."""

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t) if active else nullcontext():
                    for m in range(2):
                        obs = None if batch.at(t) is None else batch.at(t)[str(m)]
                        pyro.sample(
                            f"x_{t}_{m}",
                            dist.Normal(100.0 * m + torch.zeros(len(batch)), 1.0),
                            obs=obs,
                        )

    values = {str(m): 100.0 * m + torch.randn(3, steps) for m in range(2)}
    batch = SequenceBatch(values)
    drawn = sample(Pair(model), 3, steps), continuation(Pair(model), batch, 2)
    filled = infill(Pair(model), batch, torch.arange(steps) == 1, samples=2)
    for found in (*drawn, filled):
        assert set(found) == {"0", "1"}
        assert all((x - 100.0 * int(m)).abs().max() < 20 for m, x in found.items())
    assert drawn[0]["1"].shape == (3, steps) and drawn[1]["1"].shape == (3, 2)
    assert filled["0"][:, 0].equal(values["0"][:, 0]) and not filled["0"][:, 1].equal(
        values["0"][:, 1]
    )


@pytest.mark.parametrize("active", [True, False], ids=["active", "unmarked"])
def test_the_automatic_guide_tells_steps_from_members(active: bool) -> None:
    """As many latents of a step, and as many of the sequence, as there are steps; later batches
    have other lengths.
    """

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            w = [pyro.sample(f"w_{i}", dist.Normal(torch.zeros(len(batch)), 1.0)) for i in range(2)]
            for t in batch.steps():
                with batch.active(t) if active else nullcontext():
                    z = [pyro.sample(f"z_{t}_{m}", dist.Normal(w[m], 1.0)) for m in range(2)]
                    pyro.sample(f"x_{t}", dist.Normal(z[0] + z[1], 1.0), obs=batch.at(t))

    guide = AutoSequenceGuide(model, hidden_size=4, latent_sizes=(4,)).prepare(
        SequenceBatch(torch.randn(3, 2))
    )
    assert guide._first is not None
    assert [latent.name for latent in guide._first.sequence] == ["w_0", "w_1"]
    assert [latent.name for latent in guide._first.steps] == ["z_{}_0", "z_{}_1"]
    trace = poutine.trace(guide).get_trace(SequenceBatch(torch.randn(3, 5)))
    assert {f"z_{t}_{m}" for t in range(5) for m in range(2)} | {"w_0", "w_1"} <= set(trace.nodes)
