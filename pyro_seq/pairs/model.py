"""`SequenceModel`: a generative model that declares its equations, run in two equal layouts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, TypedDict

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_seq._batch_checks import Values
from pyro_seq._handlers import GivenPath
from pyro_seq.batch import OVER_ALL_STEPS, SequenceBatch
from pyro_seq.contexts import Context
from pyro_seq.distributions.base import Distribution
from pyro_seq.distributions.path import MarkovPath, RecurrentPath, before
from pyro_seq.emissions.base import Emission, mask_cells, observe, over_time
from pyro_seq.errors import UserError
from pyro_seq.nn.dropout import same_features
from pyro_seq.nn.feedforward import zeros_like_weights
from pyro_seq.nn.precision import full_precision
from pyro_seq.pairs.observed import observations, observe_step, prepared, stack_sampled, told_at
from pyro_seq.pairs.registration import register

Layout = Literal["path", "steps"]


class SequenceOutput(NamedTuple):
    """The values, latents `[*lead, N, T, Z]` and last state that a model or guide returns.

    The next window starts from the state, which is that of sequences that fill the batch's T steps;
    no window follows a sequence that has ended earlier.
    """

    values: Any
    latents: Tensor | None
    state: Any


class ModelState(TypedDict):
    """The state between two steps of a `SequenceModel`: trees of tensors, sequences first.

    Attributes:
        context: what the context remembers of the observations.
        latent: z_t `[*lead, Z]`, z_0 before the first step.
        carried: the recurrences' state.
    """

    context: Any
    latent: Tensor
    carried: Any


class SequenceModel(nn.Module):
    """A model with deterministic recurrences and, per step, an optional latent vector z_t.

    A subclass declares three equations. Each of them takes a chunk of steps `[*lead, T, …]`; a
    chunk may be one step long.

    - `rnn_step(c, z_{t-1}, rnn_state)`: h_t, computed before z_t is known from the contexts c_t
      (`contexts.Context`). A model that looks at z_{t-1} here sets `recurs_on_latents`.
    - `transition(h, z_{t-1})`: the prior p(z_t | h_t, z_{t-1}), a normal; not needed without
      latents (`latent_size` 0).
    - `decode(h, z, rnn_state)`: the emission's features.

    `rnn_state` is the recurrences' state (`initial_rnn_state`), a tree of tensors `[*lead, …]`.
    From these the core runs

    - layout `path` (the default): one site `z` for the latent path and one site `x` for the
      observations, the recurrences over all steps in one kernel. With `values=None` there is
      nothing to teacher-force, and the steps layout runs.
    - layout `steps`: the `pyro.markov` loop with sites `z_0, x_0, z_1, x_1, …`; valid under every
      Pyro handler.

    A named group of observations (`emissions.Joint`) has a site for each member, `x_{member}` or
    `x_{t}_{member}`. Calling the model returns a `SequenceOutput`, whose state the next window's
    batch may carry.
    """

    latent_size: int = 0
    recurs_on_latents: bool = False
    computes_later: bool = False  # whether layout `path` uses weights after the call is over

    def __init__(self, emission: Emission, context: Context, *, layout: Layout = "path") -> None:
        super().__init__()
        if layout not in ("path", "steps"):
            raise ValueError(f"layout must be 'path' or 'steps', got {layout!r}")
        if emission.emission_context_size != context.emission_context_size:
            wants, brings = emission.emission_context_size, context.emission_context_size
            raise UserError(
                f"{type(emission).__name__} wants {wants} features of the context passed on, and "
                f"the context brings {brings}"
            )
        self.emission, self.context, self.layout = emission, context, layout

    # the equations

    def initial_rnn_state(self, *lead: int) -> Any:
        """Return the recurrences' state before the first step."""
        return ()

    def initial_latent(self, *lead: int) -> Tensor:
        """Return z_0 `[*lead, Z]`, by default zero."""
        return zeros_like_weights([self], *lead, self.latent_size)

    def rnn_step(self, contexts: Tensor, previous: Tensor, rnn_state: Any) -> tuple[Tensor, Any]:
        """Compute (h_t `[*lead, T, H]`, carried) from c_t and z_{t-1}; by default h_t = c_t.

        c_t is `[*lead, T, C]`, z_{t-1} is `[*lead, T, Z]`.

        A model that does not recur on latents is given an empty tensor in place of z_{t-1}.
        """
        return contexts, rnn_state

    def transition(self, h: Tensor, previous: Tensor) -> dist.Normal:
        """Return p(z_t | h_t, z_{t-1}), a normal `[*lead, T, Z]`; by default N(0, 1)."""
        zeros = previous.new_zeros(
            *torch.broadcast_shapes(h.shape[:-1], previous.shape[:-1]), self.latent_size
        )
        return dist.Normal(zeros, torch.ones_like(zeros))

    def decode(self, h: Tensor, latents: Tensor | None, rnn_state: Any) -> tuple[Tensor, Any]:
        """Compute (features of p(x_t | …) `[*lead, T, emission.num_features]`, carried)."""
        raise TypeError(f"{type(self).__name__} must define decode(h, latents, rnn_state)")

    def exact_fill(self, batch: SequenceBatch, draws: int) -> Any:
        """Return exact draws of a batch's missing cells, or `None` where only moves draw them.

        Values `[N * draws, T, *event]`, those of one sequence side by side, of p(x_missing |
        x_observed); `infill` puts what was observed in its place.
        """

    def exact_posterior(self, batch: SequenceBatch, draws: int, *, filtered: bool) -> Any:
        """Return a `Marginal` for each latent, by name, or `None` where particles find them.

        Of a step it is given all observations, or where `filtered` those up to the step.
        """

    def start_from(self, batch: SequenceBatch) -> None:
        """Set new weights by observed sequences, where a model can; by default nothing."""

    # running them

    def initial(self, *lead: int) -> ModelState:
        """Return the state before the first step of `lead` sequences.

        It holds the states of the context and of the recurrences, and z_0.
        """
        latent = self.initial_latent(*lead)
        return {
            "context": self.context.initial(*lead),
            "latent": latent,
            "carried": self.initial_rnn_state(*lead),
        }

    def state_before(self, batch: SequenceBatch) -> ModelState:
        """Return the state that the batch's first step starts from."""
        return (
            batch.cached((id(self), "before"), lambda: self.initial(len(batch)))
            if batch.state is None
            else batch.state["model"]
        )

    def forward(self, batch: SequenceBatch, layout: Layout | None = None) -> SequenceOutput:
        """Return the Pyro model p(x, z) of the batch, in its own layout or in another one."""
        whole = in_one_path(self, batch, layout)
        if register(self) and whole and (self.latent_size or self.computes_later):
            raise UserError(
                f"this {type(self).__name__} has random weights (PyroSample), which are drawn for "
                "the time of a call, and in layout 'path' its "
                "densities are computed afterwards: make it with layout='steps'"
            )
        return self._path(batch) if whole else self._steps(batch)

    def context_features(self, batch: SequenceBatch) -> tuple[Tensor, Any]:
        """Compute (c_{1:T} `[N, T, C]`, the context's last state) from the batch's observations."""
        contexts, after = self.all_context_features(batch)
        return contexts[..., : self.context.num_features], after

    def passed_on(self, batch: SequenceBatch) -> Tensor:
        """Return what the context passes on to the emission, `[N, T, emission_context_size]`."""
        return self.all_context_features(batch)[0][..., self.context.num_features :]

    def all_context_features(self, batch: SequenceBatch) -> tuple[Tensor, Any]:
        """Compute `context_features` with the features that are passed on to the emission."""
        return batch.cached(
            (id(self), "seen"),
            lambda: self.context.over(batch, self.state_before(batch)["context"]),
        )

    def emit(self, features: Tensor, contexts: Tensor) -> Distribution:
        """Return p(x_t | features `[*lead, F]`), given all features of the context.

        These are `[*lead, C + emission_context_size]`, the last ones for the emission.
        """
        features = full_precision(features)
        passed_on = contexts[..., self.context.num_features :]
        return (
            self.emission(features, full_precision(passed_on))
            if self.emission.emission_context_size
            else self.emission(features)
        )

    def hidden_states(self, batch: SequenceBatch) -> tuple[Tensor, Any]:
        """Compute (h_{1:T} `[N, T, H]`, carried) of a model that does not recur on latents.

        The batch's observations are given.
        """

        def compute() -> tuple[Tensor, Any]:
            contexts, _ = self.context_features(batch)
            return self.rnn_step(contexts, contexts[..., :0], self.state_before(batch)["carried"])

        return batch.cached((id(self), "history"), compute)

    def _path(self, batch: SequenceBatch) -> SequenceOutput:
        state = self.state_before(batch)
        mask = None if batch.is_full else batch.mask
        contexts, context = self.context_features(batch)
        h, rnn_state = (
            (contexts[..., :0, :], None) if self.recurs_on_latents else self.hidden_states(batch)
        )

        def conditional(previous: Tensor, steps: slice) -> dist.Normal:
            return self.transition(h[..., steps, :], previous)

        def recurrent(previous: Tensor, steps: slice, running: object) -> tuple[dist.Normal, Any]:
            nonlocal h, rnn_state
            h, rnn_state = self.rnn_step(contexts[..., steps, :], previous, running)
            return self.transition(h, previous), rnn_state

        with batch.plate():
            latents = None
            if self.recurs_on_latents:
                prior: MarkovPath = RecurrentPath(
                    state["latent"], recurrent, state["carried"], batch.num_steps, active=mask
                )
                latents = pyro.sample("z", prior, infer=OVER_ALL_STEPS)
                # which sets h and carried, unless the path is this prior's own sample
                prior.at(latents)
                if h.shape[-2] != batch.num_steps or rnn_state is None:
                    recurrent(before(latents, state["latent"]), slice(None), state["carried"])
            elif self.latent_size:
                prior = MarkovPath(state["latent"], conditional, batch.num_steps, active=mask)
                latents = pyro.sample("z", prior, infer=OVER_ALL_STEPS)
            features, rnn_state = self.decode(h, latents, rnn_state)
            emission = self.emit(features, self.all_context_features(batch)[0])
            if batch.missing_cells is not None:
                emission = mask_cells(emission, batch.seen)
            observed = prepared(self, batch)
            observe("x", over_time(emission, mask), obs=observed, infer=OVER_ALL_STEPS)
        latent = state["latent"] if latents is None else batch.last(latents, state["latent"])
        return SequenceOutput(
            batch.values, latents, {"context": context, "latent": latent, "carried": rnn_state}
        )

    def _steps(self, batch: SequenceBatch) -> SequenceOutput:
        state = self.state_before(batch)
        values: list[Any] = []
        latents: list[Any] = []
        observed = observations(self, batch)
        complete = batch.values
        path = (
            GivenPath(batch.num_steps)
            if self.layout == "path" and self.latent_size
            else nullcontext()
        )
        with batch.plate(), same_features(self), path:
            for t in batch.steps():
                with batch.active(t):
                    x, z, state = self._step(
                        t, state, batch.inputs_at(t), observed[t], told_at(batch, t)
                    )
                values.append(x)
                latents.append(z)
        if values and (batch.values is None or batch.to_sample):
            complete = stack_sampled(self, batch, values)
        return SequenceOutput(
            complete,
            torch.stack(torch.broadcast_tensors(*latents), -2)
            if self.latent_size and latents
            else None,
            state,
        )

    def _step(
        self,
        t: int,
        state: ModelState,
        inputs: Tensor | None,
        obs: Values | None,
        seen: Values | None,
    ) -> tuple[Any, Tensor | None, ModelState]:
        def draw_latent(prior: TorchDistribution) -> Tensor:
            return pyro.sample(f"z_{t}", prior.to_event(1))

        def draw_observation(emission: Distribution) -> Any:
            known = emission if seen is None else mask_cells(emission, seen)
            return observe(f"x_{t}", known, obs=obs)

        return self.advance(state, inputs, draw_latent, draw_observation, seen)

    def advance(
        self,
        state: ModelState,
        inputs: Tensor | None,
        draw_latent: Callable[[dist.Normal], Tensor],
        draw_observation: Callable[[Distribution], Any],
        seen: Values | None = None,
    ) -> tuple[Any, Tensor | None, ModelState]:
        """Run one step: (x_t, z_t, the state after it).

        The caller's functions draw x_t and z_t from their distributions. Where cells are missing
        from x_t, `seen` (as `batch.seen_at(t)`) is what the state after it is told.
        """
        contexts = self.context.features(state["context"], inputs)
        looked_at = contexts[..., : self.context.num_features].unsqueeze(-2)
        previous = state["latent"].unsqueeze(-2)
        h, rnn_state = self.rnn_step(
            looked_at, previous if self.recurs_on_latents else previous[..., :0], state["carried"]
        )
        latent = (
            draw_latent(self.transition(h.squeeze(-2), state["latent"]))
            if self.latent_size
            else None
        )
        features, rnn_state = self.decode(
            h, None if latent is None else latent.unsqueeze(-2), rnn_state
        )
        x = draw_observation(self.emit(features.squeeze(-2), contexts))
        context, current = observe_step(
            self, x, state["context"], state["latent"] if latent is None else latent, seen
        )
        return x, latent, {"context": context, "latent": current, "carried": rnn_state}


def in_one_path(model: SequenceModel, batch: SequenceBatch, layout: Layout | None = None) -> bool:
    """Tell whether a batch runs as one path, in the model's layout or in another one.

    With anything left to be sampled, there is nothing to teacher-force, and the batch runs in
    steps.
    """
    return (
        (layout or model.layout) == "path"
        and batch.values is not None
        and batch.num_steps > 0
        and not batch.to_sample
    )


def path_by_steps(model: Callable[[SequenceBatch], Any], batch: SequenceBatch) -> bool:
    """Tell whether a model in layout `path` runs this batch in steps."""
    if not isinstance(model, SequenceModel):
        return False
    return model.layout == "path" and not in_one_path(model, batch)


def declared(model: Callable[[SequenceBatch], Any]) -> SequenceModel | None:
    """Return the model if its equations are declared, else `None`."""
    return model if isinstance(model, SequenceModel) else None


def unwrapped(side: object) -> Any:
    """Return the model or guide inside the wrappers of tools, which name it `wrapped_side`."""
    while hasattr(side, "wrapped_side"):
        side = side.wrapped_side
    return side
