"""An automatic guide: an amortised posterior of the latents that one run of a model shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.path import MarkovPath, TransformedPath
from pyro_seq.encoders import Encoder, encode
from pyro_seq.errors import UserError
from pyro_seq.guides._encoder import default_encoder
from pyro_seq.nn._latent_scan import scan_latents
from pyro_seq.nn.feedforward import concatenate, zeros_like_weights
from pyro_seq.nn.gaussian import NormalNet
from pyro_seq.nn.precision import full_precision
from pyro_seq.nn.recurrent import Recurrence
from pyro_seq.pairs.guide import batch_for_guide
from pyro_seq.pairs.model import SequenceOutput, path_by_steps
from pyro_seq.pairs.registration import register
from pyro_seq.poutine.checks import latent_sites
from pyro_seq.poutine.latent_sites import Latent, Latents, find_latents
from pyro_seq.poutine.probe import trace_model


class AutoSequenceGuide(nn.Module):
    r"""An automatic guide: a bidirectional RNN over observations, then a normal for each latent.

    (f_t, b_t) = bidirectional RNN over [enc(x_t), u_t]; q(w | f_T, b_1), q(z_t | f_t, b_t, w,
    z_{t-1}).

    A run of the model on the first batch finds its latents. Latents are of three kinds: of a step
    (sites `z_0, z_1, …`, of any name), of all steps at once (a site whose event has T as its first
    dimension, such as `MarkovPath`), and of a whole sequence (w above). Each is a diagonal normal
    in unconstrained space, z_t given everything at t-1, and is carried into its support by
    PyTorch's `biject_to` (automatic differentiation variational inference, arXiv 1603.00788, made
    amortised and sequential). Of several paths the later ones are given the earlier ones; latents
    of steps are given all paths.

    Latents marked to be enumerated are left to `TraceEnum_ELBO`. The guide's state, which the next
    window starts from, are f_T, the last z_T and w.

    Parameters exist once the guide has been `prepare`d, which the first call does by itself. Raises
    `UserError` for latents that the guide cannot sample: discrete latents that are not enumerated,
    latents that all sequences share, latents in plates inside a sequence.

    Args:
        model: any Pyro model of a `SequenceBatch`.
        encoder: x_t → features; by default real numbers as they are, and symbols embedded, with
            indicators of what was seen if the batch that it is prepared on has missing cells.
        hidden_size, num_layers, cell: of each of the two recurrences.
        latent_sizes: hidden layers of the networks of q.
        activation, positive, epsilon: see `networks.NormalNet`.
    """

    stops_at_gaps = True

    def __init__(
        self,
        model: Callable[[SequenceBatch], Any],
        *,
        encoder: Encoder | None = None,
        cell: str = "gru",
        hidden_size: int = 64,
        num_layers: int = 1,
        latent_sizes: Sequence[int] = (64,),
        activation: str = "relu",
        positive: str = "softplus",
        epsilon: float = 1e-4,
    ) -> None:
        super().__init__()
        # in a tuple, so that the model's parameters are not registered a second time here
        self._model = (model,)
        self.encoder = encoder
        self._recurrence: dict[str, Any] = {"kind": cell, "num_layers": num_layers}
        self._network: dict[str, Any] = {
            "activation": activation,
            "positive": positive,
            "epsilon": epsilon,
        }
        self.hidden_size, self.latent_sizes = hidden_size, tuple(latent_sizes)
        # of q: for the latents of sequences, of each path, of steps
        self.networks: Any = nn.ModuleDict()
        self._first: Latents | None = None  # the latents of a first window
        # and of those that start from a state: no latents of the sequence may be among them
        self._later: Latents | None = None

    @property
    def model(self) -> Callable[[SequenceBatch], Any]:
        """The model whose latents this guide infers."""
        return self._model[0]

    def prepare(self, batch: SequenceBatch) -> AutoSequenceGuide:
        """Make the parameters for batches like this one, once.

        The batch has at least one sequence and one step.
        """
        if self._first is None:
            if batch.values is None or not len(batch) or not batch.num_steps:
                raise UserError(
                    "AutoSequenceGuide is made from a batch with observations, and this one has "
                    "none"
                )
            first = batch.with_state(None)
            trace = trace_model(self.model, first)
            latents = find_latents(trace, first, self.model)
            if any(latents):
                self._build(latents, trace, batch)
            self.train(self.training).to(batch.device, _type_of_latents(trace))
            self._first = latents
        return self

    def _build(self, latents: Latents, trace: Trace, batch: SequenceBatch) -> None:
        if self.encoder is None:
            assert batch.values is not None
            self.encoder = default_encoder(batch.values, trace, batch.missing_cells is not None)
        inputs = self.encoder.num_features + (0 if batch.inputs is None else batch.inputs.shape[-1])
        self.forwards = Recurrence(inputs, self.hidden_size, **self._recurrence)
        self.backwards = Recurrence(inputs, self.hidden_size, **self._recurrence)
        seen, sizes = 2 * self.hidden_size, _sizes(latents.sequence)
        if latents.sequence:
            self.networks["sequence"] = NormalNet(
                seen, self.latent_sizes, sum(sizes), **self._network
            )
        seen += sum(sizes)
        for i, size in enumerate(_sizes(latents.paths)):
            self.networks[f"path{i}"] = NormalNet(
                seen + size, self.latent_sizes, size, **self._network
            )
            seen += size
        if latents.steps:
            size = sum(_sizes(latents.steps))
            self.networks["steps"] = NormalNet(
                seen + size, self.latent_sizes, size, **self._network
            )

    def _latents_of(self, batch: SequenceBatch) -> Latents:
        """Return the latents of a batch.

        In a window that starts from a state, latents of the whole sequence may have come before.
        """
        assert self._first is not None
        if batch.state is None or not batch.num_steps:
            return self._first
        if self._later is None:
            latents = find_latents(trace_model(self.model, batch), batch, self.model)
            if latents not in (self._first, self._first._replace(sequence=())):
                raise UserError(
                    "on a window that starts from a state, this model has other latents than on a "
                    "first one"
                )
            self._later = latents
        return self._later

    def _initial(self, size: int) -> dict[str, Any]:
        """Return the state before the first step of so many sequences."""
        assert self._first is not None
        w, steps, *paths = (
            zeros_like_weights([self], size, n)
            for n in (
                sum(_sizes(self._first.sequence)),
                sum(_sizes(self._first.steps)),
                *_sizes(self._first.paths),
            )
        )
        return {
            "carried": self.forwards.initial(size),
            "sequence": w,
            "paths": tuple(paths),
            "steps": steps,
        }

    def forward(self, batch: SequenceBatch) -> SequenceOutput:
        """Run the Pyro guide q(z | x) of the batch.

        Where observations end before the batch's steps do (`continued`), the guide samples the
        latents up to the last observation and leaves later latents to the model. Raises `UserError`
        for steps to be sampled before an observation, and for a latent of all steps where some are
        to be sampled.
        """
        if batch.values is None:
            raise UserError(
                "AutoSequenceGuide infers latents from observations, and the batch has none"
            )
        one_path, gaps, batch = (
            not path_by_steps(self.model, batch),
            bool(batch.to_sample),
            batch_for_guide(type(self).__name__, batch),
        )
        if gaps and not batch.num_steps:
            return SequenceOutput(None, None, None)
        self.prepare(batch)
        latents = self._latents_of(batch)
        if not any(self._first or ()):
            return SequenceOutput(None, None, None)
        register(self)
        before = None if batch.state is None else batch.state["guide"]
        state = self._initial(len(batch)) if before is None else before
        evidence, summary, carried = self._gather(batch, state["carried"])
        lasts = []
        with torch.autocast(batch.device.type, enabled=False), batch.plate():
            w = state["sequence"]
            if latents.sequence:
                w = self._sample(
                    [(latent, latent.name) for latent in latents.sequence],
                    self.networks["sequence"](summary),
                )
            evidence = concatenate(
                evidence, w.unsqueeze(-2).expand(*w.shape[:-1], batch.num_steps, w.shape[-1])
            )
            for latent, network, first in zip(
                latents.paths, self._path_networks(), state["paths"], strict=True
            ):
                if gaps and one_path:
                    instead = "posterior_predictive and infill draw it with what is missing"
                    raise UserError(
                        f"site {latent.name!r} holds the latents of all steps, and some are "
                        f"missing: {instead}"
                    )
                draw = self._sample_path if one_path else self._sample_path_by_steps
                path = draw(latent, network, evidence, first, batch)
                evidence = concatenate(evidence, path)
                lasts.append(batch.last(path, first))
            last = self._sample_steps(latents.steps, evidence, state["steps"], batch)
        return SequenceOutput(
            None, None, {"carried": carried, "sequence": w, "paths": tuple(lasts), "steps": last}
        )

    def _path_networks(self) -> list[NormalNet]:
        return [self.networks[name] for name in self.networks if name.startswith("path")]

    def _gather(self, batch: SequenceBatch, carried: Any) -> tuple[Tensor, Tensor, Any]:
        """Run both recurrences over the observations.

        Returns (the features at each step `[N, T, 2H]`, those at the ends `[N, 2H]`, the state of
        the forward recurrence).
        """
        assert self.encoder is not None
        seen = encode(
            self.encoder, batch.values, None if batch.missing_cells is None else batch.seen
        )
        if batch.inputs is not None:
            seen = concatenate(seen, batch.inputs.to(seen.dtype))
        before = carried[0][..., -1, :]
        f, carried = self.forwards(seen, carried)
        b = batch.reverse(self.backwards(batch.reverse(seen))[0])
        f, b = full_precision(f), full_precision(b)
        started = batch.lengths.unsqueeze(-1) > 0
        ends = (
            torch.where(started, b[:, 0], b.new_zeros(()))
            if batch.num_steps
            else torch.zeros_like(before)
        )
        return concatenate(f, b), concatenate(batch.last(f, before), ends), carried

    def _sample_path(
        self,
        latent: Latent,
        network: NormalNet,
        evidence: Tensor,
        first: Tensor,
        batch: SequenceBatch,
    ) -> Tensor:
        """Sample a latent of all steps; return its unconstrained path `[*lead, N, T, Z]`."""

        def conditional(previous: Tensor, steps: slice) -> dist.Normal:
            return network(evidence[..., steps, :], previous)

        def sampler(noise: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
            return scan_latents(noise, first, network, evidence)

        path = MarkovPath(
            first,
            conditional,
            batch.num_steps,
            active=None if batch.is_full else batch.mask,
            sampler=sampler,
        )
        if latent.is_real and len(latent.event_shape) == 1:
            return pyro.sample(latent.name, path)
        transformed = TransformedPath(path, latent.support, latent.event_shape)
        return transformed.unconstrained(pyro.sample(latent.name, transformed))

    def _sample_path_by_steps(
        self,
        latent: Latent,
        network: NormalNet,
        evidence: Tensor,
        first: Tensor,
        batch: SequenceBatch,
    ) -> Tensor:
        """Sample the path of `_sample_path` with a site for each step: `z_0, z_1, …` of `z`."""
        path = []
        for t in batch.steps():
            with batch.active(t):
                first = pyro.sample(
                    f"{latent.name}_{t}", network(evidence[..., t, :], first).to_event(1)
                )
            path.append(first)
        return torch.stack(path, -2)

    def _sample_steps(
        self, latents: Sequence[Latent], evidence: Tensor, previous: Tensor, batch: SequenceBatch
    ) -> Tensor:
        """Sample the latents of each step; return the last ones `[*lead, N, U]`, unconstrained."""
        before, path = previous, []
        for t in batch.steps() if latents else ():
            with batch.active(t):
                sites = [(latent, latent.name.replace("{}", str(t))) for latent in latents]
                previous = self._sample(
                    sites, self.networks["steps"](evidence[..., t, :], previous)
                )
            path.append(previous)
        return batch.last(torch.stack(path, -2), before) if path else before

    def _sample(self, sites: Sequence[tuple[Latent, str]], normal: dist.Normal) -> Tensor:
        """Sample sites side by side in a diagonal normal in unconstrained space.

        Returns the unconstrained values `[*lead, N, U]`.
        """
        sizes = _sizes([latent for latent, _ in sites])
        values = []
        for (latent, name), loc, scale in zip(
            sites, normal.loc.split(sizes, -1), normal.scale.split(sizes, -1), strict=True
        ):
            shape = latent.unconstrained_shape
            base = dist.Normal(
                loc.unflatten(-1, shape or (1,)), scale.unflatten(-1, shape or (1,))
            ).to_event(len(shape))
            if not shape:
                base = dist.Normal(loc.squeeze(-1), scale.squeeze(-1))
            if latent.is_real:
                value = pyro.sample(name, base)
            else:
                transform = latent.transform()
                value = transform.inv(
                    pyro.sample(name, dist.TransformedDistribution(base, [transform]))
                )
            values.append(value.reshape(*value.shape[: value.dim() - len(shape)], latent.size))
        return concatenate(*values)


def _type_of_latents(trace: Trace) -> torch.dtype | None:
    """Return the floating-point type of a model's latents, or `None` without latents."""
    types = (site["value"].dtype for site in latent_sites(trace).values())
    return next((dtype for dtype in types if dtype.is_floating_point), None)


def _sizes(latents: Sequence[Latent]) -> list[int]:
    return [latent.size for latent in latents]
