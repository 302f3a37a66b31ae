"""`SequenceGuide`: an inference network that declares its equations, in its model's layouts."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_seq.batch import OVER_ALL_STEPS, SequenceBatch
from pyro_seq.distributions.path import FlowPath, RecurrentPath, Sampler
from pyro_seq.encoders import encode
from pyro_seq.errors import UserError
from pyro_seq.nn.dropout import same_features
from pyro_seq.nn.feedforward import concatenate, zeros_like_weights
from pyro_seq.nn.precision import full_precision
from pyro_seq.pairs.model import SequenceModel, SequenceOutput, in_one_path
from pyro_seq.pairs.registration import register


class SequenceGuide(nn.Module):
    """q(z_{1:T} | x_{1:T}) = prod_t q(z_t | evidence_t, z_{t-1}): guide of a `SequenceModel`.

    A subclass declares `encode` (features of the observations, for all steps) and `posterior` (one
    chunk of steps). Where q(z_t) depends on a recurrence over earlier latents,
    `condition_on_latents` adds that recurrence to the evidence of a chunk. Each z_t passes through
    the invertible `flows`, if there are any. The guide may use the model's own equations
    (`self.model`); the model's parameters stay the model's.
    """

    flows: Any
    encoder: Any
    # it samples the latents up to the gaps at the end of a batch, and none in them
    stops_at_gaps = True

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        # of the instance: one of the class would hide a subclass's module of that name
        self.flows = ()
        # in a tuple, so that the model's parameters are not registered a second time here
        self._model = (model,)

    @property
    def model(self) -> SequenceModel:
        """The model whose latents this guide infers."""
        return self._model[0]

    # the equations

    def initial_rnn_state(self, *lead: int) -> Any:
        """Return the state of the forward recurrences before the first step."""
        return ()

    def initial_latent(self, *lead: int) -> Tensor:
        """Return z_0 `[*lead, Z]`, by default zero."""
        return zeros_like_weights([self, self.model], *lead, self.model.latent_size)

    def encode(self, batch: SequenceBatch, rnn_state: Any) -> tuple[tuple[Tensor, ...], Any]:
        """Compute (the evidence of all steps, the state carried to the next window).

        The evidence is a tuple of tensors `[N, T, E_i]`.
        """
        raise TypeError(f"{type(self).__name__} must define encode(batch, rnn_state)")

    def encoded_batch(self, batch: SequenceBatch) -> Tensor:
        """Return [enc(x_t), u_t] `[N, T, F]`, over which the guide's recurrences run.

        An encoder that `takes_past` is told what the model's context passes on to its emission.
        """
        seen = None if batch.missing_cells is None else batch.seen
        past = self.model.passed_on(batch) if self.encoder.takes_past else None
        encoded = encode(self.encoder, batch.values, seen, past)
        return encoded if batch.inputs is None else concatenate(encoded, batch.inputs)

    def initial_guide_state(self, batch: SequenceBatch) -> Any:
        """Return the state before the first step of the recurrence of `condition_on_latents`.

        It is `None` without one.
        """

    def condition_on_latents(
        self, evidence: tuple[Tensor, ...], previous: Tensor, guide_state: Any
    ) -> tuple[tuple[Tensor, ...], Any]:
        """Add what z_{t-1} `[*lead, T, Z]` contributes to the evidence of a chunk of steps.

        Returns (the evidence, running).
        """
        return evidence, guide_state

    def given_hidden(self, evidence: tuple[Tensor, ...], h: Tensor) -> tuple[Tensor, ...] | None:
        """Return what `condition_on_latents` does where the model's h_t is known, if it is that.

        A guide whose recurrence is the model's own need not run it a second time at a step that
        the model takes as well. `h` is `[*lead, T, H]`, as `SequenceModel.rnn_step` returns it;
        `None` for a guide that runs another recurrence, or none.
        """

    def posterior(self, evidence: tuple[Tensor, ...], previous: Tensor) -> dist.Normal:
        """Return q(z_t | evidence_t, z_{t-1}) of a chunk of steps.

        It is a normal of batch shape `[*lead, T, Z]`.
        """
        raise TypeError(f"{type(self).__name__} must define posterior(evidence, previous)")

    def posterior_beside(
        self, evidence: tuple[Tensor, ...], previous: Tensor, prior: dist.Normal
    ) -> dist.Normal:
        """Return `posterior` where p(z_t | h_t, z_{t-1}) of the same step has been computed."""
        return self.posterior(evidence, previous)

    def proposal(
        self, evidence: tuple[Tensor, ...], previous: Tensor, guide_state: object
    ) -> tuple[Any, Any]:
        """Return (q(z_t | …) of one step, running), from chunks of one step.

        The distribution has batch shape `[*lead]` and event shape `[Z]`.
        """
        known, guide_state = self.condition_on_latents(evidence, previous, guide_state)
        return self.of_one_step(self.posterior(known, previous)), guide_state

    def of_one_step(self, normal: dist.Normal) -> Any:
        """Return q(z_t | …) of batch shape `[*lead]` from the normal of a chunk of one step.

        It has passed through the flows, if there are any.
        """
        step = dist.Normal(normal.loc.squeeze(-2), normal.scale.squeeze(-2)).to_event(1)
        return dist.TransformedDistribution(step, list(self.flows)) if len(self.flows) else step

    def sampler(self, evidence: tuple[Tensor, ...]) -> Sampler | None:
        """Return a faster equal of stepping through `posterior`, if there is one.

        See `MarkovPath`.
        """
        return None

    # running them

    def forward(self, batch: SequenceBatch) -> SequenceOutput:
        """Run the Pyro guide q(z | x) of the batch, in the layout of its model.

        Where observations end before the batch's steps do (`continued`), the guide samples the
        latents up to the last observation and leaves later latents to the model. Missing cells are
        zeros to it, and an encoder that `takes_seen` is told which cells were seen. Raises
        `UserError` for steps to be sampled before an observation.
        """
        if batch.values is None:
            raise UserError(
                f"{type(self).__name__} infers latents from observations, and the batch has none"
            )
        register(self)
        one_path, batch = (
            in_one_path(self.model, batch),
            batch_for_guide(type(self).__name__, batch),
        )
        if batch.state is None:
            state = {
                "latent": self.initial_latent(len(batch)),
                "carried": self.initial_rnn_state(len(batch)),
            }
        else:
            state = batch.state["guide"]
        gathered, rnn_state = self.encode(batch, state["carried"])
        # a chain of many steps, each of little work
        evidence = tuple(full_precision(part) for part in gathered)
        # whose recurrence `condition_on_latents` may run, step by step
        with batch.plate(), same_features(self.model):
            run = self._path if one_path else self._steps
            latents = run(batch, evidence, state["latent"])
        return SequenceOutput(
            None, latents, {"latent": batch.last(latents, state["latent"]), "carried": rnn_state}
        )

    def _path(self, batch: SequenceBatch, evidence: tuple[Tensor, ...], first: Tensor) -> Tensor:
        def conditional(
            previous: Tensor, steps: slice, guide_state: object
        ) -> tuple[dist.Normal, Any]:
            known, guide_state = self.condition_on_latents(
                tuple(part[..., steps, :] for part in evidence), previous, guide_state
            )
            return self.posterior(known, previous), guide_state

        options: dict[str, Any] = {"active": None if batch.is_full else batch.mask}
        options |= {"flows": self.flows} if len(self.flows) else {"sampler": self.sampler(evidence)}
        kind = FlowPath if len(self.flows) else RecurrentPath
        posterior = kind(
            first, conditional, self.initial_guide_state(batch), batch.num_steps, **options
        )
        with torch.autocast(first.device.type, enabled=False):
            return pyro.sample("z", posterior, infer=OVER_ALL_STEPS)

    def _steps(
        self, batch: SequenceBatch, evidence: tuple[Tensor, ...], previous: Tensor
    ) -> Tensor:
        latents, guide_state = [], self.initial_guide_state(batch)
        for t in batch.steps():
            with batch.active(t):
                chunk = tuple(part[..., t : t + 1, :] for part in evidence)
                posterior, guide_state = self.proposal(chunk, previous.unsqueeze(-2), guide_state)
                previous = pyro.sample(f"z_{t}", posterior)
            latents.append(previous)
        # a dimension of its own for each step's values
        if self.model.recurs_on_latents and len({z.shape for z in latents}) > 1:
            raise UserError(
                f"{type(self.model).__name__} recurs on all latents before, and enumeration in "
                "parallel (TraceTMC_ELBO) knows those of the "
                "step before alone"
            )
        return (
            torch.stack(torch.broadcast_tensors(*latents), -2)
            if latents
            else previous.new_zeros(len(batch), 0, self.model.latent_size)
        )


def batch_for_guide(name: str, batch: SequenceBatch) -> SequenceBatch:
    """Return the part of a batch that a guide may look at: up to gaps at the end.

    Raises `UserError` for steps to be sampled before an observation.
    """
    before = batch.before_gaps()
    if before is None:
        instead = "posterior_predictive and infill draw what is missing, and latents with it"
        raise UserError(
            f"{name} has not seen what is to be sampled before other observations (steps "
            f"{_listed(batch.to_sample)}): {instead}"
        )
    return before


def _listed(steps: frozenset[int]) -> str:
    shown = ", ".join(str(t) for t in sorted(steps)[:4])
    return f"{shown}, …" if len(steps) > 4 else shown
