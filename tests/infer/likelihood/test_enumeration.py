"""Exact scores of pairs whose latents are all marked to be enumerated, against sums over every
assignment.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_seq import Pair, SequenceBatch, UserError, score, score_document
from pyro_seq.distributions.hidden_markov import filtered

S = 3
MARKED = {"enumerate": "parallel"}

pytestmark = pytest.mark.usefixtures("float64")


class Chain:
    """z_t ~ A[z_{t-1}], x_t ~ N(mu[z_t] + c[w], 1), with w ~ W a class of the whole sequence if
    wanted; in groups and plates.
    """

    def __init__(self, kind: str = "plain") -> None:
        self.kind = kind
        self.first, self.move, self.mu = (
            torch.randn(S).softmax(-1),
            torch.randn(S, S).softmax(-1),
            2 * torch.randn(S),
        )
        self.classes, self.offset = torch.tensor([0.3, 0.7]), torch.tensor([0.0, 1.5])

    def __call__(self, batch: SequenceBatch) -> None:
        z: Any = None
        with batch.plate():
            w = (
                pyro.sample("w", dist.Categorical(self.classes), infer=MARKED)
                if self.kind == "class"
                else torch.zeros((), dtype=torch.long)
            )
            for t in batch.steps():
                with batch.active(t):
                    z = pyro.sample(
                        f"z_{t}",
                        dist.Categorical(self.first if z is None else self.move[z]),
                        infer=MARKED,
                    )
                    self.emit(t, self.mu[z] + self.offset[w], batch.at(t))

    def emit(self, t: int, loc: Tensor, x: Any) -> None:
        if self.kind == "group":
            pyro.sample(f"x_{t}_a", dist.Normal(loc, 1.0), obs=x["a"])
            pyro.sample(f"x_{t}_b", dist.Poisson(loc.exp()), obs=x["b"])
        elif self.kind == "plate":
            with pyro.plate(f"entries_{t}", 2, dim=-2):
                pyro.sample(f"x_{t}", dist.Normal(loc, 1.0), obs=x.mT)
        else:
            pyro.sample(f"x_{t}", dist.Normal(loc, 1.0), obs=x)

    def values(self, n: int, steps: int) -> Any:
        if self.kind == "group":
            return {"a": torch.randn(n, steps), "b": torch.randint(4, (n, steps)).double()}
        return torch.randn(n, steps, 2) if self.kind == "plate" else torch.randn(n, steps)

    def log_prob(self, batch: SequenceBatch, n: int, steps: int) -> Tensor:
        """log p(x_{1:steps}) of one sequence, by every path of states and every class."""
        found = []
        for w in range(2 if self.kind == "class" else 1):
            for path in itertools.product(range(S), repeat=steps):
                total = self.classes[w].log() if self.kind == "class" else torch.zeros(())
                for t, z in enumerate(path):
                    loc = self.mu[z] + self.offset[w]
                    total = total + (self.first[z] if t == 0 else self.move[path[t - 1], z]).log()
                    if self.kind == "group":
                        x: Any = batch.values
                        total = (
                            total
                            + dist.Normal(loc, 1.0).log_prob(x["a"][n, t])
                            + dist.Poisson(loc.exp()).log_prob(x["b"][n, t])
                        )
                    else:
                        total = total + dist.Normal(loc, 1.0).log_prob(batch.values[n, t]).sum()
                found.append(total)
        return torch.stack(found).logsumexp(0)


@pytest.mark.parametrize("kind", ["plain", "class", "group", "plate"])
@pytest.mark.parametrize("lengths", [[4, 3, 1], [4]])
def test_equals_a_sum_over_all_assignments(kind: str, lengths: list[int]) -> None:
    model = Chain(kind)
    batch = SequenceBatch(model.values(len(lengths), max(lengths)), lengths)
    scored = score(Pair(model), batch)
    assert scored.exact and scored.method == "exact" and not scored.standard_error.any()
    for n, length in enumerate(lengths):
        expected = torch.stack([model.log_prob(batch, n, t) for t in range(1, length + 1)])
        torch.testing.assert_close(
            scored.steps[n, :length].cumsum(-1), expected, rtol=1e-10, atol=1e-10
        )
        assert not scored.steps[n, length:].any()


@pytest.mark.parametrize("method", ["exact", "elbo", "importance", "filter"])
def test_every_method_sums_out_what_no_guide_draws(method: Any) -> None:
    model = Chain()
    batch = SequenceBatch(torch.randn(2, 4))
    scored = score(Pair(model), batch, method=method, samples=3)
    assert scored.exact
    torch.testing.assert_close(scored.total, score(Pair(model), batch).total)


def test_prior_proposals_estimate_the_same() -> None:
    torch.manual_seed(0)
    model, batch = Chain(), SequenceBatch(torch.randn(1, 4))
    drawn = score(Pair(model), batch, method="importance", proposal="prior", samples=4_000)
    assert (
        not drawn.exact
        and abs(drawn.total - score(Pair(model), batch).total) < 4 * drawn.standard_error
    )


def test_a_long_chain_and_many_sequences_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the forward algorithm, also where the sequences are worked on in several portions."""
    model = Chain()
    batch = SequenceBatch(torch.randn(5, 120), [120, 7, 120, 60, 33])
    likelihoods = dist.Normal(model.mu, 1.0).log_prob(batch.values.unsqueeze(-1))  # type: ignore[union-attr]
    expected, _ = filtered(model.first.log(), model.move.log(), likelihoods, batch.mask)
    torch.testing.assert_close(score(Pair(model), batch).steps, expected, rtol=1e-9, atol=1e-9)
    monkeypatch.setattr("pyro_seq.infer.stepping.stepper.CHUNK_STEPS", 150)
    torch.testing.assert_close(score(Pair(model), batch).steps, expected, rtol=1e-9, atol=1e-9)


def test_two_chains_that_emit_together() -> None:
    """A factorial model: the chains are summed out one after the other."""
    moves, loc = torch.randn(2, 2, 2).softmax(-1), torch.randn(2, 2)

    def model(batch: SequenceBatch) -> None:
        a: Any = torch.zeros((), dtype=torch.long)
        b: Any = a
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    a = pyro.sample(f"a_{t}", dist.Categorical(moves[0][a]), infer=MARKED)
                    b = pyro.sample(f"b_{t}", dist.Categorical(moves[1][b]), infer=MARKED)
                    pyro.sample(f"x_{t}", dist.Normal(loc[a, b], 0.5), obs=batch.at(t))

    batch = SequenceBatch(torch.randn(3, 6), [6, 6, 2])
    both = torch.einsum("ik,jl->ijkl", moves[0], moves[1]).reshape(4, 4).log()
    likelihoods = dist.Normal(loc.flatten(), 0.5).log_prob(batch.values.unsqueeze(-1))  # type: ignore[union-attr]
    expected, _ = filtered(both[0], both, likelihoods, batch.mask)
    torch.testing.assert_close(score(Pair(model), batch).steps, expected, rtol=1e-9, atol=1e-9)


def test_a_mixture_whose_observations_are_one_site() -> None:
    """A class of the whole sequence, and x_{1:T} one event: the step's shares are told apart by its
    distribution.
    """
    scale = torch.tensor([0.5, 2.0])

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            w = pyro.sample("w", dist.Bernoulli(torch.full((len(batch),), 0.4)), infer=MARKED)
            normal = dist.Normal(torch.zeros(batch.num_steps), scale[w.long()].unsqueeze(-1))
            pyro.sample("x", normal.mask(batch.mask).to_event(1), obs=batch.values)

    batch = SequenceBatch(torch.randn(2, 4), [4, 2])
    scored = score(Pair(model), batch)
    terms = torch.stack(
        [
            dist.Normal(0.0, s).log_prob(batch.values).cumsum(-1) + p.log()
            for s, p in zip(scale, torch.tensor([0.6, 0.4]), strict=True)
        ]
    )  # type: ignore[arg-type]
    prefixes = terms.logsumexp(0)
    torch.testing.assert_close(scored.total, torch.stack([prefixes[0, 3], prefixes[1, 1]]))
    torch.testing.assert_close(scored.steps[0].cumsum(-1), prefixes[0])


def test_windows_need_a_state() -> None:
    windows = [SequenceBatch(torch.randn(1, 3)) for _ in range(2)]
    with pytest.raises(UserError, match="the model returned no state"):
        list(score_document(Pair(Chain()), windows))
    assert len(list(score_document(Pair(Chain()), windows[:1]))) == 1


def sampled(
    name: str,
    law: Any,
    *,
    infer: Any = MARKED,
    loop: Callable[[SequenceBatch], Any] | None = None,
    shared: bool = False,
) -> Any:
    """A model with one more latent beside an enumerated chain of two states."""
    model = Chain()

    def whole(batch: SequenceBatch) -> None:
        if shared:
            pyro.sample(name, law, infer=infer)
        with batch.plate():
            if not shared and law is not None:
                pyro.sample(name, law, infer=infer)
            z: Any = None
            for t in batch.steps() if loop is None else loop(batch):
                z = pyro.sample(
                    f"z_{t}",
                    dist.Categorical(model.first if z is None else model.move[z]),
                    infer=MARKED,
                )
                pyro.sample(f"x_{t}", dist.Normal(model.mu[z], 1.0), obs=batch.at(t))

    return whole


@pytest.mark.parametrize(
    ("model", "steps", "words"),
    [
        (lambda: sampled("w", dist.Poisson(2.0)), 3, "finitely many values"),
        (lambda: sampled("w", dist.Normal(0.0, 1.0), infer={}), 3, "the guide has no site 'w'"),
        (
            lambda: sampled("w", dist.Bernoulli(0.5), shared=True),
            3,
            "site 'w' is one for all sequences",
        ),
        (
            lambda: sampled("w", None, loop=lambda batch: range(batch.num_steps)),
            80,
            "must be batch.steps",
        ),
    ],
)
def test_what_cannot_be_summed_out_is_refused(model: Any, steps: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        score(Pair(model()), SequenceBatch(torch.randn(2, steps)))


def test_latents_of_a_guide_and_of_later_steps_are_refused() -> None:
    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("w", dist.Normal(torch.zeros(len(batch)), 1.0))

    mixed = sampled("w", dist.Normal(0.0, 1.0), infer={})
    with pytest.raises(UserError, match="site 'w' is sampled by the guide"):
        score(Pair(mixed, guide), SequenceBatch(torch.randn(2, 3)))

    def backwards(batch: SequenceBatch) -> None:
        with batch.plate():
            z: Any = torch.zeros(len(batch), dtype=torch.long)
            for t in pyro.markov(range(batch.num_steps - 1, -1, -1)):
                z = pyro.sample(f"z_{t}", dist.Categorical(torch.eye(2)[z] + 0.5), infer=MARKED)
                pyro.sample(f"x_{t}", dist.Normal(z.double(), 1.0), obs=batch.at(t))

    with pytest.raises(
        UserError,
        match="depends on 'z_1' of a later step: exact scores need latents drawn in order of time",
    ):
        score(Pair(backwards), SequenceBatch(torch.randn(2, 3)))


def test_observations_outside_the_support_are_named() -> None:
    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                z = pyro.sample(
                    f"z_{t}", dist.Bernoulli(torch.full((len(batch),), 0.5)), infer=MARKED
                )
                pyro.sample(f"x_{t}", dist.Bernoulli(0.2 + 0.5 * z), obs=batch.at(t))

    with pytest.raises(
        UserError, match=r"sequence 1, step 2: site 'x_2' observes 3\.0, which must be 0 or 1"
    ):
        score(Pair(model), SequenceBatch(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 3.0]])))
