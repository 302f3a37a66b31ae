"""A hidden Markov model with neural emissions, whose discrete states are summed out exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from math import prod
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyro_seq._cells import of_member
from pyro_seq._pytree import tree_leaves
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import Context
from pyro_seq.distributions.base import Distribution
from pyro_seq.distributions.categorical import LazyCategorical
from pyro_seq.distributions.hidden_markov import (
    HiddenMarkov,
    advanced,
    filtered,
    log_likelihoods,
    log_product,
    log_sum_exp,
)
from pyro_seq.distributions.state_chains import StateChain, check_size, most_probable
from pyro_seq.distributions.state_mixtures import TransformDistribution, mixtures
from pyro_seq.emissions.base import Emission, mask_cells, observe
from pyro_seq.emissions.composite import Joint
from pyro_seq.errors import UserError
from pyro_seq.infer.smoothing.marginals import Marginal
from pyro_seq.infer.smoothing.states import state_marginal
from pyro_seq.nn.feedforward import MLP, concatenate
from pyro_seq.nn.precision import full_precision
from pyro_seq.pairs.model import (
    Layout,
    ModelState,
    SequenceModel,
    SequenceOutput,
)
from pyro_seq.pairs.observed import observations, observe_step, prepared, stack_sampled, told_at
from pyro_seq.poutine.summed_out import LeftToSum

# numbers that the emissions of some states at all steps may take; more states are worked on one
# after another
CHUNK_ENTRIES = 2**23


class HMM(SequenceModel):
    r"""Hidden Markov model with neural emissions, its states summed out (Rabiner, 1989).

    z_1 ~ Categorical(pi); z_t ~ Categorical(A[z_{t-1}]); x_t ~ p(x_t | f(e[z_t])), or p(x_t |
    f(e[z_t], c_t)). Of order m, z_t ~ Categorical(A[z_{t-m}, …, z_{t-1}]), and pi is of the states
    up to step 1. With durations (hidden semi-Markov: Yu 2010; Johnson & Willsky 2013, arXiv
    1203.1365) a state lasts d steps, d ~ Categorical(D[z]) up to `max_duration`, and is followed by
    another one: A[z, z] = 0. The last one may last beyond step T.

        x_1           x_t
         ^             ^
         |             |
        z_1 --------> z_t

    z_t is one of `num_states` hidden states, e[k] a state's learnt embedding, f a network. Its
    likelihood is exact, the states summed out (Rabiner 1989), so its guide is empty
    (`guides.no_guide`):

    - layout `path`: one observed site `x`, a `HiddenMarkov`; of a named group, a site for each
      member.
    - layout `steps`: sites `z_0, x_0, z_1, x_1, …`, each z_t enumerated in parallel: for
      `TraceEnum_ELBO(max_plate_nesting=1)`, whose loss is that of `Trace_ELBO` in layout `path`,
      and for handlers that want the states by name; other objectives raise `UserError`. Of an
      order above 1 or with durations, z_t is the number of an expanded state (`StateChain`).

    To the tools, which run it step by step, it has no latents: it carries log p(z_{t+1} | x_{<=t}).

    Args:
        emission: p(x_t | features).
        context: c_t, what the emission may look at if `autoregressive`; else it is left out.
        num_states: S.
        embedding_size: of a state's embedding e[k].
        emission_sizes: hidden layers of f.
        autoregressive: whether the emission looks at c_t as well: p(x_t | z_t, c_t).
        order: m, the number of states before that the next one depends on.
        max_duration: the most steps that a state lasts; 1 for states drawn anew at each step.

    Raises `UserError` where the S^m `max_duration` expanded states are more than 65536.
    """

    computes_later = True

    def __init__(
        self,
        emission: Emission,
        context: Context,
        *,
        num_states: int = 16,
        embedding_size: int = 64,
        emission_sizes: Sequence[int] = (),
        autoregressive: bool = False,
        activation: str = "relu",
        layout: Layout = "path",
        order: int = 1,
        max_duration: int = 1,
    ) -> None:
        if emission.emission_context_size:
            what = f"{type(emission).__name__} wants the context passed on"
            raise UserError(f"an HMM evaluates its emission for all states at once, and {what}")
        super().__init__(
            emission, context if autoregressive else context.emission_only(), layout=layout
        )
        if num_states < 1 or embedding_size < 1:
            raise ValueError("num_states and embedding_size of an HMM must be at least 1")
        check_size(num_states, order, max_duration)
        self.num_states, self.order, self.max_duration = num_states, order, max_duration
        self.initial_logits = nn.Parameter(torch.zeros(num_states**order))
        self.transition_logits = nn.Parameter(torch.randn(num_states**order, num_states))
        if max_duration > 1:
            self.duration_logits = nn.Parameter(torch.zeros(num_states, max_duration))
        self.embedding = nn.Parameter(torch.randn(num_states, embedding_size))
        sizes = embedding_size + self.context.num_features
        self.decoder = MLP(sizes, emission_sizes, emission.num_features, activation=activation)

    def initial_rnn_state(self, *lead: int) -> Any:
        """Return log p(z_1) `[*lead, S]`, or of the first expanded states."""
        first, chain = self.initial_logits.log_softmax(-1), self._transition()
        first = first if isinstance(chain, Tensor) else chain.begun(first)
        return first.expand(*lead, len(first))

    def posterior(self, batch: SequenceBatch) -> Tensor:
        """Compute p(z_t | x_{1:T}) `[N, T, S]`, the smoothed probabilities of the states.

        Entries at padding are zero.

        Of missing cells nothing is known: the states at a step that is missing, or to be sampled,
        depend on their neighbours alone. Raises `UserError` for a batch without values, and where
        steps to be sampled would be wanted by the steps after them: those of an `autoregressive`
        model whose context looks at observations.
        """
        likelihoods = self._observed_likelihoods(batch)
        predicted = self.state_before(batch)["carried"]
        # the derivative of log p(x) by log p(x_t | z_t = k) is p(z_t = k | x)
        with torch.enable_grad():
            likelihoods.requires_grad_()
            steps, _ = filtered(predicted.detach(), self._transition(), likelihoods, batch.mask)
            return torch.autograd.grad(steps.sum(), likelihoods)[0]

    def viterbi(self, batch: SequenceBatch) -> Tensor:
        """Compute the most probable path of the states given x_{1:T}, `[N, T]`; 0 at padding.

        It is most probable together with the states' durations (Viterbi 1967). Raises `UserError`
        as `posterior` does.
        """
        chain = self._transition()
        chain = StateChain(chain) if isinstance(chain, Tensor) else chain
        predicted = self.state_before(batch)["carried"]
        return most_probable(predicted, chain, self._observed_likelihoods(batch), batch.mask)

    def _observed_likelihoods(self, batch: SequenceBatch) -> Tensor:
        """Return log p(x_t | z_t) `[N, T, S]` of what was seen, without gradients."""
        if batch.values is None:
            raise UserError("the states' posterior needs observations, and the batch has none")
        self._check_gaps(batch)
        cells = batch.seen if batch.missing_cells is not None or batch.to_sample else None
        with torch.no_grad():
            contexts, _ = self.context_features(batch.with_cache())
            return self._joint(contexts, prepared(self, batch), cells)

    def exact_posterior(
        self, batch: SequenceBatch, draws: int, *, filtered: bool
    ) -> dict[str, Marginal]:
        """Return the states given observations, as `z`."""
        smoothed = None if filtered else self.posterior(batch)
        first, likelihoods = self.state_before(batch)["carried"], self._observed_likelihoods(batch)
        moves = self._transition()
        return {"z": state_marginal(first, moves, likelihoods, batch.mask, draws, smoothed)}

    def _check_gaps(self, batch: SequenceBatch) -> None:
        """Raise `UserError` where a step looks at steps to be sampled."""
        looks_back = any(x.numel() for x in tree_leaves(self.context.initial(1)))
        if looks_back and batch.before_gaps() is None:
            raise UserError(
                f"step {min(batch.to_sample)} is to be sampled, and the steps after it look at it, "
                "since this HMM is autoregressive: the states' posterior is a sum over all that "
                "may have stood there; fill it in first (infill), some times"
            )

    def _path(self, batch: SequenceBatch) -> SequenceOutput:
        state, transition = self.state_before(batch), self._transition()
        contexts, context = self.context_features(batch)
        observed = prepared(self, batch)
        mask, known = None if batch.is_full else batch.mask, None
        cells = None if batch.missing_cells is None else batch.seen
        with batch.plate():
            for member, emission in self._members():
                values, site = (
                    (observed, "x") if member is None else (observed[member], f"x_{member}")
                )
                shape = (batch.num_steps, *emission.event_shape)
                likelihood = partial(
                    self._likelihoods, contexts, member=member, seen=of_member(cells, member)
                )
                path = HiddenMarkov(
                    state["carried"], transition, likelihood, shape, active=mask, given=known
                )
                known = path.filtered(pyro.sample(site, path, obs=values))
        assert known is not None
        carried = known.belief.to(self.embedding.dtype)
        after: ModelState = {"context": context, "latent": state["latent"], "carried": carried}
        return SequenceOutput(batch.values, None, after)

    def _steps(self, batch: SequenceBatch) -> SequenceOutput:
        state, chain = self.state_before(batch), self._transition()
        transition = chain if isinstance(chain, Tensor) else chain.dense()
        first = state["carried"]
        observed, values = observations(self, batch), []
        hidden: Tensor | None = None
        with batch.plate():
            for t in batch.steps():
                contexts = self.context.features(state["context"], batch.inputs_at(t))
                with batch.active(t):
                    prior = dist.Categorical(logits=first if hidden is None else transition[hidden])
                    with LeftToSum() if t == 0 and batch.values is not None else nullcontext():
                        hidden = pyro.sample(f"z_{t}", prior, infer={"enumerate": "parallel"})
                    own = hidden if isinstance(chain, Tensor) else chain.state(hidden)
                    features = self.decoder(concatenate(self.embedding[own], contexts))
                    emission, seen = self.emission(full_precision(features)), told_at(batch, t)
                    if seen is not None:
                        emission = mask_cells(emission, seen)
                    x = observe(f"x_{t}", emission, obs=observed[t])
                state = self._after(state, contexts, x, seen)
                values.append(x)
        sampled = values and (batch.values is None or batch.to_sample)
        return SequenceOutput(
            stack_sampled(self, batch, values) if sampled else batch.values, None, state
        )

    def advance(
        self,
        state: ModelState,
        inputs: Tensor | None,
        draw_latent: Callable[[dist.Normal], Tensor],
        draw_observation: Callable[[Distribution], Any],
        seen: object = None,
    ) -> tuple[Any, Tensor | None, ModelState]:
        """Run one step: x_t ~ p(x_t | x_{<t}), a mixture over states, updates the belief.

        The members of a named group share the state (`StateMixture`).
        """
        contexts = self.context.features(state["context"], inputs)
        predicted, chain = state["carried"], self._transition()
        predicted = predicted if isinstance(chain, Tensor) else chain.marginal(predicted)
        x = draw_observation(self._predictive(predicted, contexts))
        return x, None, self._after(state, contexts, x, seen)

    def _predictive(self, predicted: Tensor, contexts: Tensor) -> Distribution:
        """Return p(x_t | x_{<t}) for log p(z_t | x_{<t}) `[*lead, S]` and c_t `[*lead, C]`."""
        if isinstance(self.emission, Joint):

            def of_state(chosen: Tensor) -> dict[str, Distribution]:
                features = self.decoder(concatenate(self.embedding[chosen], contexts))
                return cast("dict[str, Distribution]", self.emission(full_precision(features)))

            members = self.emission.emissions
            likelihoods: dict[str, Any] = {
                name: partial(self._adjusted_likelihoods, contexts, name) for name in members
            }
            return mixtures(
                predicted,
                likelihoods,
                of_state,
                {name: member.event_shape for name, member in members.items()},
            )
        emissions = self.emission(self._features(contexts, slice(None)))
        if isinstance(emissions, torch.distributions.Categorical):
            if emissions.logits.dim() == 2:
                return LazyCategorical(log_product(predicted, emissions.logits))
            return LazyCategorical(log_sum_exp((predicted.unsqueeze(-1) + emissions.logits).mT))
        # particles may share a belief, and differ in what the contexts have seen
        shape = torch.broadcast_shapes(predicted.shape, emissions.batch_shape)
        states = dist.Categorical(logits=predicted.expand(shape))
        return dist.MixtureSameFamily(states, emissions.expand(shape))

    def _after(self, state: ModelState, contexts: Tensor, x: Any, seen: Any = None) -> ModelState:
        """Return the state after step t, of whose observation some cells may not have been seen."""
        cells = None if seen is None else self.emission.stack([seen])
        values = self.emission.stack([x])
        likelihood = self._joint(contexts.unsqueeze(-2), values, cells).squeeze(-2)
        _, belief = advanced(
            state["carried"].double(), self._transition().double(), likelihood.double()
        )
        context, latent = observe_step(self, x, state["context"], state["latent"], seen)
        return {"context": context, "latent": latent, "carried": belief.to(self.embedding.dtype)}

    def _transition(self) -> Tensor | StateChain:
        """Return log p(z_{t+1} = j | z_t = i) `[S, S]`, or how expanded states move."""
        states = self.num_states
        logits: Tensor = self.transition_logits
        if self.max_duration > 1:  # a state is followed by another one
            same = torch.eye(states, dtype=torch.bool, device=logits.device)
            logits = logits.masked_fill(same.repeat(len(logits) // states, 1), -torch.inf)
            return StateChain(logits.log_softmax(-1), self.duration_logits.log_softmax(-1))
        moves = logits.log_softmax(-1)
        return moves if self.order == 1 else StateChain(moves)

    def _members(self) -> list[tuple[str | None, Emission]]:
        """Return the emission, or the members of a named group by name."""
        return (
            list(self.emission.emissions.items())
            if isinstance(self.emission, Joint)
            else [(None, self.emission)]
        )

    def _features(self, contexts: Tensor, states: slice) -> Tensor:
        """Compute the features of some states' emissions, `[S, F]` or `[*lead, S, F]`.

        The latter depend on contexts `[*lead, C]`.
        """
        embedding = self.embedding[states]
        return full_precision(
            self.decoder(
                concatenate(embedding, contexts.unsqueeze(-2)) if contexts.shape[-1] else embedding
            )
        )

    def _joint(self, contexts: Tensor, values: Any, cells: Any = None) -> Tensor:
        """Compute log p(x_t | z_t) `[*lead, S]` of all members of a named group.

        If `cells` that were seen are given, the others count nothing.
        """
        parts = [
            self._likelihoods(
                contexts,
                values if member is None else values[member],
                member=member,
                seen=of_member(cells, member),
            )
            for member, _ in self._members()
        ]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def _adjusted_likelihoods(
        self,
        contexts: Tensor,
        member: str,
        values: Tensor,
        transform_distribution: TransformDistribution,
    ) -> Tensor:
        return self._likelihoods(
            contexts, values, member=member, transform_distribution=transform_distribution
        )

    def _likelihoods(
        self,
        contexts: Tensor,
        values: Tensor,
        *,
        member: str | None,
        seen: Tensor | None = None,
        transform_distribution: TransformDistribution | None = None,
    ) -> Tensor:
        """Compute log p(x_t | z_t) `[*lead, S]` of observations `[*lead, *event]`.

        Contexts are `[*lead, C]`; of a named group, the observations are one member's. Cells that
        were not `seen` count nothing.

        In chunks of states, whose emissions are computed again for the gradient instead of kept,
        where they would take much memory.
        """
        emission = dict(self._members())[member]
        numbers = emission.num_features if contexts.shape[-1] else prod(emission.event_shape)
        lead = values.shape[: values.dim() - len(emission.event_shape)]
        size = max(1, CHUNK_ENTRIES // max(1, prod(lead) * numbers))

        def chunk(start: int) -> Tensor:
            distribution = self.emission(self._features(contexts, slice(start, start + size)))
            own = distribution if member is None else distribution[member]
            if transform_distribution is not None:
                own = transform_distribution(own)
            return log_likelihoods(own, values, seen)

        if size >= self.num_states:
            return chunk(0)
        starts = range(0, self.num_states, size)
        recompute = torch.is_grad_enabled()
        return torch.cat(
            [
                checkpoint(chunk, start, use_reentrant=False) if recompute else chunk(start)
                for start in starts
            ],
            -1,
        )
