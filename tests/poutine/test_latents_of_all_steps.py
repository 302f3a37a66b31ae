"""A latent site whose event is `[T]`: of the whole sequence, or with an entry for each step."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.pairs.pair import Pair

pytestmark = pytest.mark.usefixtures("float64")


class BySteps(dist.Independent):  # type: ignore[misc, name-defined]
    """Independent steps that say what each of them counts."""

    def step_log_prob(self, value: Tensor) -> Tensor:
        return self.base_dist.log_prob(value)


class TestLatentsOfAllSteps:
    """A latent site whose event is `[T]`: of the whole sequence, or with an entry for each step."""

    @pytest.mark.parametrize("method", ["elbo", "importance", "filter"])
    @pytest.mark.parametrize("name", ["w", "w_0"])
    def test_a_latent_of_a_whole_sequence_may_have_t_entries(self, method: Any, name: str) -> None:
        """w ~ N(0, I_4), x_t ~ N(w_4, 1), with its exact posterior as guide: the last entry is none
        of the last step's.
        """
        lengths = torch.tensor([4, 2, 1])
        batch = SequenceBatch(torch.randn(3, 4), lengths)

        def sequences(batch: SequenceBatch) -> None:
            with batch.plate():
                w = pyro.sample(name, dist.Normal(torch.zeros(len(batch), 4), 1.0).to_event(1))[
                    ..., 3
                ]
                for t in batch.steps():
                    with batch.active(t):
                        pyro.sample(f"x_{t}", dist.Normal(w, 1.0), obs=batch.at(t))

        def guide(batch: SequenceBatch) -> None:
            last, rest = torch.eye(4)[3], torch.eye(4)[:3].sum(0)
            precision = batch.lengths.unsqueeze(-1) + 1.0
            loc, scale = (
                batch.values.sum(-1, keepdim=True) / precision * last,
                precision.rsqrt() * last + rest,
            )
            with batch.plate():
                pyro.sample(name, dist.Normal(loc, scale).to_event(1))

        laws = [dist.MultivariateNormal(torch.zeros(n), torch.eye(n) + 1) for n in lengths.tolist()]
        expected = torch.stack(
            [law.log_prob(x[:n]) for law, x, n in zip(laws, batch.values, lengths, strict=True)]
        )
        scored = score(Pair(sequences, guide), batch, method=method, samples=3)
        torch.testing.assert_close(scored.total, expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(scored.steps.double().sum(-1), expected, rtol=0, atol=1e-9)
        assert not scored.steps[~batch.mask].any(), "nothing at padding"

    def independent(
        self, *, any_length: bool = True, path: bool = False, calls: list[int] | None = None
    ) -> Pair:
        """z_t ~ N(0, 1), x_t ~ N(z_t, 1), all steps at once, with the exact posterior."""

        def both(batch: SequenceBatch) -> None:
            assert any_length or batch.num_steps == 4
            if calls is not None:
                calls.append(len(batch))
            with batch.plate():
                z = dist.Normal(torch.zeros(len(batch), batch.num_steps), 1.0).mask(batch.mask)
                loc = pyro.sample("z", z.to_event(1))
                pyro.sample(
                    "x", dist.Normal(loc, 1.0).mask(batch.mask).to_event(1), obs=batch.values
                )

        def guide(batch: SequenceBatch) -> None:
            law = dist.Normal(batch.values / 2, math.sqrt(0.5)).mask(batch.mask)
            with batch.plate():
                pyro.sample("z", BySteps(law, 1) if path else law.to_event(1))

        return Pair(both, guide)

    @pytest.mark.parametrize("method", ["elbo", "importance", "filter"])
    def test_a_latent_that_grows_with_the_sequence_counts_by_steps(self, method: Any) -> None:
        batch = SequenceBatch(torch.randn(3, 4), [4, 2, 1])
        expected = dist.Normal(0.0, math.sqrt(2)).log_prob(batch.values) * batch.mask
        scored = score(self.independent(), batch, method=method, samples=2)
        torch.testing.assert_close(scored.steps.double(), expected, rtol=0, atol=1e-9)

    def test_where_a_side_knows_its_steps_nothing_is_run_for_it(self) -> None:
        calls: list[int] = []
        batch = SequenceBatch(torch.randn(3, 4), [4, 2, 1])
        scored = score(self.independent(path=True, calls=calls), batch, samples=2)
        torch.testing.assert_close(
            scored.steps,
            dist.Normal(0.0, math.sqrt(2)).log_prob(batch.values) * batch.mask,
            rtol=0,
            atol=1e-6,
        )
        assert calls == [3, 6]  # at first for latents that all sequences share

    def test_where_it_cannot_be_told_totals_are_right(self) -> None:
        """A model of one length: the latents count at the first step."""
        batch = SequenceBatch(torch.randn(3, 4), [4, 2, 1])
        expected = (dist.Normal(0.0, math.sqrt(2)).log_prob(batch.values) * batch.mask).sum(-1)
        for method in ("elbo", "importance", "filter"):
            scored = score(self.independent(any_length=False), batch, method=method, samples=2)  # type: ignore[arg-type]
            torch.testing.assert_close(scored.total, expected, rtol=0, atol=1e-9)
            assert not scored.steps[~batch.mask].any()
