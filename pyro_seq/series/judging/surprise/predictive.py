"""Predict each step of observed sequences from the steps before it: p(x_t | x_{<t}).

Of a pair without latents the law is exact. Of one with latents it is a mixture over particles whose
latents are drawn from the prior, weighed by what they have predicted so far and resampled on the
way: a bootstrap filter (Gordon, Salmond & Smith 1993). The guide is not asked, since it may look
ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch import distributions as laws

from pyro_seq._batch_checks import Values
from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.base import Distribution
from pyro_seq.distributions.tails import quantile, tails
from pyro_seq.emissions.base import mask_cells
from pyro_seq.errors import UserError
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.pairs.model import SequenceModel, declared
from pyro_seq.pairs.pair import Pair

DRAWS = 16  # of each particle, for the quantiles of a mixture
CHUNK = 4096  # steps of all sequences whose tails are computed at once


@dataclass(frozen=True, eq=False)
class StepPredictions:
    """What was predicted of some steps, for one member of the observations.

    Attributes:
        p: `[N, T, *event]`, in float64: how much probability was on cells as far out as what came,
            2 min(P(X < x), P(X > x)) + P(X = x); of a category on those that are no likelier.
        quantiles: `[Q, N, T, *event]` at the levels asked for; of a category the likeliest code.
    """

    p: Tensor
    quantiles: Tensor


Parts = dict[str, StepPredictions]


@torch.no_grad()
def predictions(
    pair: Pair, batch: SequenceBatch, levels: tuple[float, ...], *, samples: int = 64
) -> dict[str, StepPredictions]:
    """Return what each step's law says of what came, by member (`""` where there is no group).

    Args:
        pair: any model; one with missing cells must be a `SequenceModel`.
        batch: N sequences.
        levels: of the quantiles.
        samples: particles, of a pair with latents.

    Raises `UserError` for a law whose tails are not known.
    """
    with pair.scope(), pair.evaluating(), pyro.validation_enabled(False):
        model = declared(pair.model)
        if model is not None and _runs_at_once(model):
            found = list(_along(model, batch, levels))
        else:
            exact = stepper_of(pair).is_exact
            found = list(_filtered(pair, batch, levels, 1 if exact else samples))
    return {
        name: StepPredictions(
            torch.cat([part[name].p for part in found], 1),
            torch.cat([part[name].quantiles for part in found], 2),
        )
        for name in found[0]
    }


def _runs_at_once(model: SequenceModel) -> bool:
    """Whether a model's laws of all steps are known from the observations alone, at once."""
    return not model.latent_size and type(model)._path is SequenceModel._path


def _along(
    model: SequenceModel, batch: SequenceBatch, levels: tuple[float, ...]
) -> Iterator[Parts]:
    """All steps at once, by the recurrence over the observations themselves."""
    batch = batch.with_cache()
    contexts, _ = model.context.over(batch, model.state_before(batch)["context"])
    h, carried = model.hidden_states(batch)
    features, _ = model.decode(h, None, carried)
    observed = model.emission.prepare(batch.values, batch.mask)

    def predicted(law: TorchDistribution, x: Tensor) -> StepPredictions:
        return _exact(law, x, levels)

    size = max(1, CHUNK // len(batch))
    for start in range(0, batch.num_steps, size):
        steps = slice(start, start + size)
        law = model.emit(features[:, steps], contexts[:, steps])
        yield _by_member(law, tree_map(lambda x, s=steps: x[:, s], observed), predicted)


def _filtered(
    pair: Pair, batch: SequenceBatch, levels: tuple[float, ...], k: int
) -> Iterator[Parts]:
    """Step after step, by k particles of each sequence, side by side."""
    n, model, stepper = len(batch), declared(pair.model), stepper_of(pair)
    if batch.missing_cells is not None and model is None:
        raise UserError(
            "steps of which cells are missing are predicted by pairs that are declared by their "
            "equations (SequenceModel) alone: fill the gaps first"
        )
    state, many = stepper.state_before(batch.repeat(k)), batch.repeat(k)
    values = many.values
    if model is not None:
        values = model.emission.prepare(values, many.mask)
    weights = torch.full((n, k), -math.log(k), dtype=torch.double, device=batch.device)
    for t in range(batch.num_steps):
        x, seen = tree_map(lambda whole, t=t: whole[:, t], values), _seen_at(many, t)
        heard: list[Distribution] = []

        def observe(law: Distribution, x: Values = x, heard: list[Distribution] = heard) -> Any:
            heard.append(law)
            return x

        state = _advanced(pair, state, many.inputs_at(t), observe, seen)
        law = (
            heard[0] if len(heard) == 1 else {name: p for part in heard for name, p in part.items()}
        )

        def predicted(
            law: TorchDistribution, x: Tensor, weights: Tensor = weights
        ) -> StepPredictions:
            return _exact(law, x, levels) if k == 1 else _mixed(law, x, levels, weights)

        parts = _by_member(law, x, predicted)
        yield {
            name: StepPredictions(part.p.unsqueeze(1), part.quantiles.unsqueeze(2))
            for name, part in parts.items()
        }
        if k > 1:
            grown = _log_prob(law, x, seen).double().view(n, k)
            weights = weights + torch.where(batch.mask[:, t : t + 1], grown, 0.0)
            weights = weights - weights.logsumexp(-1, keepdim=True)
            state, weights = _resampled(state, weights, k)


def _seen_at(batch: SequenceBatch, t: int) -> Any:
    return None if batch.missing_cells is None else batch.seen_at(t)


def _advanced(
    pair: Pair,
    state: Any,
    inputs: Tensor | None,
    observe: Callable[[Any], Any],
    seen: Values | None,
) -> Any:
    """The state after a step whose latents are drawn from the prior."""

    def draw_latent(prior: TorchDistribution) -> Tensor:
        drawn: Tensor = prior.sample()
        return drawn

    model = declared(pair.model)
    if model is not None:
        return model.advance(state, inputs, draw_latent, observe, seen)[2]
    return stepper_of(pair).step(state, inputs, draw_latent, observe)[1]


def _log_prob(law: Distribution, x: Values, seen: Values | None) -> Tensor:
    law = law if seen is None else mask_cells(law, seen)
    if isinstance(law, dict):
        return torch.stack([part.log_prob(x[name]) for name, part in law.items()]).sum(0)
    return law.log_prob(x)


def _resampled(state: object, weights: Tensor, k: int) -> tuple[Any, Tensor]:
    """Particles drawn by weight where the effective number is below K / 2."""
    few = 1 / weights.exp().square().sum(-1) < k / 2
    if not few.any():
        return state, weights
    n = len(weights)
    index = torch.arange(k, device=weights.device).expand(n, k).clone()
    index[few] = torch.multinomial(weights[few].exp(), k, replacement=True)
    rows = (index + k * torch.arange(n, device=weights.device).unsqueeze(-1)).flatten()
    weights = torch.where(few.unsqueeze(-1), -math.log(k), weights)
    return tree_map(lambda x: x[rows], state), weights


def _by_member(law: Distribution, x: Any, predicted: Callable[[Any, Tensor], Any]) -> Parts:
    if isinstance(law, dict):
        return {name: predicted(part, x[name]) for name, part in law.items()}
    return {"": predicted(law, x)}


def _marginal(law: TorchDistribution) -> Any:
    """A law whose cells are known one by one."""
    while isinstance(law, laws.Independent | dist.MaskedDistribution):
        law = law.base_dist
    if isinstance(law, laws.MultivariateNormal):
        return dist.Normal(law.loc, law.variance.sqrt())
    return law


def _exact(law: TorchDistribution, x: Tensor, levels: tuple[float, ...]) -> StepPredictions:
    """What a law says of values `[*batch, *event]`."""
    law = _marginal(law)
    if isinstance(law, laws.Categorical):
        return _of_categories(law.probs.double(), x, levels)
    q = torch.tensor(levels, dtype=torch.double, device=x.device)
    ends = quantile(law, q.view(-1, *(1,) * x.dim()))
    return StepPredictions(_two_sided(*tails(law, x)), ends.expand(len(levels), *x.shape))


def _two_sided(below: Tensor, at: Tensor, above: Tensor) -> Tensor:
    return 2 * torch.minimum(below, above) + at


def _of_categories(probs: Tensor, x: Tensor, levels: tuple[float, ...]) -> StepPredictions:
    """Probabilities `[*batch, K]` of codes that have no order."""
    own = probs.gather(-1, x.long().unsqueeze(-1))
    likeliest = probs.argmax(-1).double().expand(len(levels), *x.shape)
    return StepPredictions(torch.where(probs <= own, probs, 0.0).sum(-1), likeliest)


def _mixed(
    law: TorchDistribution, x: Tensor, levels: tuple[float, ...], log_weights: Tensor
) -> StepPredictions:
    """What a mixture of K laws each says of values: rows `[N * K, *event]`, weights `[N, K]`."""
    law, weights = _marginal(law), log_weights.exp()
    n, k = weights.shape

    def mean(part: Tensor) -> Tensor:
        return torch.einsum("nk,nk...->n...", weights, part.double().view(n, k, *part.shape[1:]))

    first = x.view(n, k, *x.shape[1:])[:, 0]
    if isinstance(law, laws.Categorical):
        return _of_categories(mean(law.probs), first, levels)
    drawn = law.sample((DRAWS,)).double().view(DRAWS, n, k, *first.shape[1:])
    ordered, index = drawn.movedim(0, 2).flatten(1, 2).sort(1)  # [N, K * DRAWS, *event]
    each = weights.repeat_interleave(DRAWS, 1).view(n, -1, *(1,) * (first.dim() - 1)) / DRAWS
    reached = each.expand_as(ordered).gather(1, index).cumsum(1)
    last = ordered.shape[1] - 1
    places = torch.stack([(reached < q).sum(1).clamp(max=last) for q in levels], 1)
    ends = ordered.gather(1, places).movedim(1, 0)
    return StepPredictions(_two_sided(*(mean(part) for part in tails(law, x))), ends)
