"""A switching linear dynamical system: regimes that switch, each of linear-Gaussian dynamics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_seq.batch import OVER_ALL_STEPS, SequenceBatch
from pyro_seq.contexts import NoContext
from pyro_seq.distributions.base import Distribution
from pyro_seq.distributions.kalman import Belief
from pyro_seq.distributions.linear_gaussian import CellNormal
from pyro_seq.emissions.base import Emission
from pyro_seq.encoders import Encoder
from pyro_seq.errors import UserError, whole
from pyro_seq.models._structural import check_scale, moments, real_cells, units
from pyro_seq.models._switching import (
    Paths,
    RegimePath,
    Regimes,
    Seen,
    SwitchedGaussian,
    belief_of,
    carried_of,
    drawn_paths,
    every_path,
    filtered,
    moved,
    over,
    smoothed,
    told,
)
from pyro_seq.pairs.model import Layout, ModelState, SequenceModel, SequenceOutput, observe_step
from pyro_seq.pairs.observed import prepared

SMALLEST = 1e-4  # scale of noises, which keeps them from being known beforehand
# before training, of series of mean 0 and variance 1
STAYING = 0.95  # probability of the regime before
NOISE, MOVES, DECAY, TURN = 0.3, 0.3, 0.95, 0.3
MOST_PATHS = 4096  # of regimes, which are summed over one by one
ENTRIES = 2**23  # of the covariances of sequences that are worked on together


class RegimePosterior(NamedTuple):
    """Hold what is known of regimes and states given x_{1:T}.

    Attributes:
        regimes: p(z_t | x_{1:T}) `[N, T, K]`; zero at padding.
        mean: of h_t `[N, T, n]`.
        covariance: of h_t `[N, T, n, n]`.
        effective: how many drawn paths each step rests on, `[N, T]`; `None` where all were summed.
    """

    regimes: Tensor
    mean: Tensor
    covariance: Tensor
    effective: Tensor | None


class SLDS(SequenceModel):
    r"""Switching linear dynamical system, its continuous states integrated out.

    Of K regimes z_t and states h_t (Ghahramani & Hinton 2000, Neural Computation 12; Fox, Sudderth,
    Jordan & Willsky 2009, arXiv 1003.3829; Barber 2012, chapter 25):

        z_t ~ Categorical(Pi[z_{t-1}])
        h_t = A[z_t] h_{t-1} + b[z_t] + N(0, Q[z_t]),    h_0 ~ N(m, P)
        x_t = C[z_t] h_t + d[z_t] + D u_t + N(0, R[z_t])

        z_1 ------> z_t
         |           |
         v           v
        h_1 ------> h_t
         |           |
         v           v
        x_1         x_t

    Given the regimes the rest is linear-Gaussian, and integrated out by a Kalman filter: regimes
    are the only latents, sites `z` (integers `[T, 1]`) and `x` in layout `path`, `z_0, x_0, …` in
    layout `steps`. The sum over all K^T paths of regimes has no shorter form, so that with its
    guide (`guides.SLDSGuide`) the likelihood is a bound or an estimate (`score`), and for short
    sequences exact (`exact_steps`). What the model carries are the moments of h_t and log p(z_{t+1}
    | z_t). Q and R are any covariances. All weights are learnt.

    Args:
        emission: of real numbers, `[]` or `[C]`, or a `Joint` of one such member. It says what is
            observed; the density is this model's own.
        num_inputs: size of the side inputs.
        num_states: K.
        state_size: n, of h_t.
        scaled: whether the first 2 C side inputs are each column's location a_t and scale s_t, so
            that (x_t - a_t) / s_t is what is modelled; the density is of x_t.
        regressors: an encoder of the side inputs, whose features are u_t; by default u_t are the
            side inputs themselves, without locations and scales.

    Raises `UserError` for an emission of anything but real numbers, and for side inputs that do
    not fit.
    """

    regression: Tensor
    latent_size = 1
    recurs_on_latents = True

    def __init__(
        self,
        emission: Emission,
        num_inputs: int = 0,
        *,
        num_states: int = 2,
        state_size: int = 4,
        scaled: bool = False,
        regressors: Encoder | None = None,
        layout: Layout = "path",
    ) -> None:
        observed, self.member, size = real_cells(emission, "slds")
        super().__init__(observed, NoContext(), layout=layout)
        self.scalar, columns = size is None, size or 1
        self.num_states = whole(num_states, "num_states of an slds", 1)
        n = whole(state_size, "state_size of an slds", 1)
        if scaled and num_inputs < 2 * columns:
            raise UserError(
                f"a scaled slds of {columns} columns wants their {columns} locations and "
                f"{columns} scales as its first side inputs, and there are {num_inputs}"
            )
        self.num_inputs, self.scaled, self.regressors = num_inputs, scaled, regressors
        plain = num_inputs - 2 * columns * scaled
        num_regressors = plain if regressors is None else regressors.num_features

        def noise(size: int, scale: float) -> nn.Parameter:
            """Return Cholesky factors, their diagonals as logarithms."""
            return nn.Parameter((scale * torch.ones(num_states, size)).log().diag_embed())

        staying = torch.full((num_states,), STAYING).logit()
        turns = TURN * torch.randn(num_states, n, n)
        self.initial_logits = nn.Parameter(torch.zeros(num_states))
        self.transition_logits = nn.Parameter(staying.diag_embed())
        self.dynamics = nn.Parameter(DECAY * torch.linalg.matrix_exp(turns - turns.mT))
        self.drift = nn.Parameter(torch.zeros(num_states, n))
        self.state_noise = noise(n, MOVES)
        loading = torch.randn(columns, n) / n**0.5
        self.loading = nn.Parameter(loading.repeat(num_states, 1, 1))
        self.offset = nn.Parameter(torch.zeros(num_states, columns))
        self.noise = noise(columns, NOISE)
        self.first_mean = nn.Parameter(torch.zeros(n))
        self.first_scale = nn.Parameter(torch.zeros(n))
        regression = torch.zeros(columns, num_regressors)
        if num_regressors:
            self.regression = nn.Parameter(regression)
        else:
            self.register_buffer("regression", regression, persistent=False)

    @torch.no_grad()
    def start_from(self, batch: SequenceBatch) -> None:
        """Set the first scales by observed sequences, for data that is not of unit variance."""
        seen, _ = self._seen(batch)
        cells = torch.ones_like(seen.y, dtype=torch.bool) if seen.cells is None else seen.cells
        mean, spread, moves = moments(seen.y, cells & batch.mask.unsqueeze(-1), SMALLEST)
        self.offset.copy_(mean.expand_as(self.offset))
        self.loading.mul_(spread.unsqueeze(-1))
        self.noise.diagonal(dim1=-2, dim2=-1).copy_((NOISE * moves).log())

    # the equations

    def regimes(self) -> Regimes:
        """Return Pi, A, b, Q, C, d and R of all regimes, in float64."""

        def covariance(factor: Tensor) -> Tensor:
            scales = factor.diagonal(dim1=-2, dim2=-1).double().exp()
            root = factor.double().tril(-1) + scales.diag_embed()
            return root @ root.mT + SMALLEST**2 * torch.eye(root.shape[-1]).to(root)

        return Regimes(
            self.transition_logits.double().log_softmax(-1),
            self.dynamics.double(),
            self.drift.double(),
            covariance(self.state_noise),
            self.loading.double(),
            self.offset.double(),
            covariance(self.noise),
        )

    def initial_rnn_state(self, *lead: int) -> dict[str, Tensor]:
        """Return the moments of h_0, `[*lead, n]` and `[*lead, n, n]`, and log p(z_1)."""
        mean, covariance = self.first_mean.double(), (2 * self.first_scale.double()).exp().diag()
        regime = self.initial_logits.double().log_softmax(-1)
        return {
            "mean": mean.expand(*lead, *mean.shape),
            "covariance": covariance.expand(*lead, *covariance.shape),
            "regime": regime.expand(*lead, *regime.shape),
        }

    def initial_latent(self, *lead: int) -> Tensor:
        """Return zeros `[*lead, 1]`, which stand for no regime."""
        return torch.zeros(*lead, 1, dtype=torch.long, device=self.drift.device)

    def _units(self, inputs: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return a_t + s_t D u_t and s_t `[*lead, C]` from side inputs."""
        given = self.regression, self.regressors
        return units(inputs, self.num_inputs, *given, scaled=self.scaled, name="slds")

    def _seen(self, batch: SequenceBatch, values: Any = None) -> tuple[Seen, Tensor]:
        """Return (observations in the model's units, their log-scale by step `[N, T]`)."""
        location, scale = self._units(batch.inputs)
        x = self._own(prepared(self, batch)) if values is None else values
        if scale is not None:
            scale = torch.where(batch.mask.unsqueeze(-1), scale, 1.0)
            check_scale(scale, "slds")
        gaps = batch.missing_cells is not None or batch.to_sample
        seen = self._in_units(x, self._own(batch.seen) if gaps else None, location, scale)
        if scale is None:
            return seen, seen.y.new_zeros(())
        logs = scale.log() if seen.cells is None else torch.where(seen.cells, scale.log(), 0.0)
        return seen, logs.sum(-1)

    def _in_units(
        self, x: Tensor, cells: Tensor | None, location: Tensor | None, scale: Tensor | None
    ) -> Seen:
        """Return y = (x - location) / scale, with a dimension for cells."""
        y = x.double()
        if self.scalar:
            y, cells = y.unsqueeze(-1), None if cells is None else cells.unsqueeze(-1)
        y = y if location is None else y - location
        return Seen(y if scale is None else y / scale, cells)

    def _own(self, values: Any) -> Any:
        return values if self.member is None else values[self.member]

    def evidence(self, batch: SequenceBatch) -> Seen:
        """Return a batch's observations in the model's units, without gradients."""
        seen = self._seen(batch)[0]
        return Seen(seen.y.detach(), seen.cells)

    # running them

    def prior(self, batch: SequenceBatch, *, padded: bool = False) -> RegimePath:
        """Return p(z_{1:T}) of a batch's sequences; with `padded`, of regimes at padding too."""
        first, moves = self.state_before(batch)["carried"]["regime"], self.regimes().moves

        def conditional(z: Tensor, t: int, _: object) -> tuple[Tensor, Any]:
            return (moves[z] if t else first), None

        active = torch.ones_like(batch.mask) if padded else batch.mask
        return RegimePath(conditional, None, batch.lengths.shape, active)

    def _path(self, batch: SequenceBatch) -> SequenceOutput:
        state, regimes = self.state_before(batch), self.regimes()
        values = self._own(prepared(self, batch))
        event = () if self.scalar else values.shape[-1:]
        with batch.plate():
            latents = pyro.sample("z", self.prior(batch), infer=OVER_ALL_STEPS)
            lead = latents.shape[:-2]
            steps = partial(self._given, batch, regimes, latents.squeeze(-1))
            path = SwitchedGaussian(steps, (batch.num_steps, *event), lead)
            name = "x" if self.member is None else f"x_{self.member}"
            _, belief = path.filtered(pyro.sample(name, path, obs=values))
        last = batch.last(latents, state["latent"])
        carried = carried_of(belief, regimes.moves[last.squeeze(-1)])
        return SequenceOutput(
            batch.values, latents, {"context": state["context"], "latent": last, "carried": carried}
        )

    def _given(
        self, batch: SequenceBatch, regimes: Regimes, z: Tensor, values: Tensor
    ) -> tuple[Tensor, Belief]:
        """Return (log p(x_t | z, x_{<t}) `[*lead, N, T]`, the moments of h_T)."""
        seen, logs = self._seen(batch, values)
        steps, beliefs = filtered(regimes, belief_of(self.state_before(batch)["carried"]), z, seen)
        return torch.where(batch.mask, steps - logs, 0.0), beliefs[-1][1]

    def exact_steps(self, batch: SequenceBatch) -> Tensor:
        """Compute log p(x_t | x_{<t}) `[N, T]`, summed over all K^T paths of regimes, in float64.

        Raises `UserError` for more than 4096 paths, and for a batch without values.
        """
        paths = self.num_states**batch.num_steps
        if paths > MOST_PATHS:
            raise UserError(
                f"{self.num_states} regimes take {paths} paths over {batch.num_steps} steps, and "
                f"at most {MOST_PATHS} can be summed over"
            )
        return torch.cat([self._exact_steps(some) for some in self._portions(batch, None)])

    def _exact_steps(self, batch: SequenceBatch) -> Tensor:
        regimes, z = self.regimes(), every_path(self.num_states, batch.mask)
        prior = self.prior(batch, padded=True).log_prob(z.unsqueeze(-1)).unsqueeze(-1)
        steps, _ = self._given(batch, regimes, z, self._own(prepared(self, batch)))
        prefixes = (prior + steps.cumsum(-1)).logsumexp(0)
        return prefixes - torch.nn.functional.pad(prefixes, (1, -1))

    @torch.no_grad()
    def posterior(self, batch: SequenceBatch, *, samples: int = 256) -> RegimePosterior:
        """Compute p(z_t | x_{1:T}), and the moments of h_t given x_{1:T}, in float64.

        By the sum over all K^T paths of regimes where these are at most 4096; else over `samples`
        paths drawn by a Rao-Blackwellised filter that looks ahead (`effective` says how many of
        them a step rests on). Given a path the moments are exact, by a smoother. Missing cells and
        steps to be sampled tell nothing. Raises `UserError` for a batch without values.
        """
        whole(samples, "the number of samples", 1)
        exact = self.num_states**batch.num_steps <= MOST_PATHS
        drawn = None if exact else samples
        parts = [self._posterior(some, drawn) for some in self._portions(batch, drawn)]
        joined = [None if one[0] is None else torch.cat(one) for one in zip(*parts, strict=True)]
        return RegimePosterior(*joined)  # type: ignore[arg-type]

    def _posterior(self, batch: SequenceBatch, samples: int | None) -> RegimePosterior:
        regimes, first, (seen, _) = (
            self.regimes(),
            belief_of(self.state_before(batch)["carried"]),
            self._seen(batch),
        )
        active = batch.mask.unsqueeze(-1)
        seen = Seen(
            seen.y, active.expand(seen.y.shape) & (True if seen.cells is None else seen.cells)
        )
        if samples is None:
            z = every_path(self.num_states, batch.mask)
            steps, beliefs = filtered(regimes, first, z, seen)
            prior = self.prior(batch, padded=True).log_prob(z.unsqueeze(-1))
            joint = prior + torch.where(batch.mask, steps, 0.0).sum(-1)
            paths = Paths(z, joint.log_softmax(0), None)
        else:
            logits = self.state_before(batch)["carried"]["regime"]
            paths, _ = drawn_paths(regimes, first, logits, seen, batch.mask, samples)
            _, beliefs = filtered(regimes, first, paths.z, seen)
        means, covariances = smoothed(regimes, paths.z, beliefs)
        weights = paths.log_weights.exp()[..., None, None]
        shown = torch.nn.functional.one_hot(paths.z, self.num_states) * active
        mean = (weights * means).sum(0)
        apart = (means - mean).unsqueeze(-1)
        spread = (weights.unsqueeze(-1) * (covariances + apart @ apart.mT)).sum(0)
        return RegimePosterior((weights * shown).sum(0), mean, spread, paths.effective)

    def _portions(self, batch: SequenceBatch, samples: int | None) -> list[SequenceBatch]:
        """Return a batch in portions, as many sequences as are worked on at once."""
        if batch.values is None or not batch.num_steps or not len(batch):
            raise UserError("the regimes' posterior needs observations, and the batch has none")
        paths = self.num_states**batch.num_steps if samples is None else samples
        size = max(1, ENTRIES // (paths * batch.num_steps * self.drift.shape[-1] ** 2))
        rows = torch.arange(len(batch), device=batch.device).split(size)
        return [batch.select(some) for some in rows]

    def advance(
        self,
        state: ModelState,
        inputs: Tensor | None,
        draw_latent: Callable[[Any], Tensor],
        draw_observation: Callable[[Distribution], Any],
        seen: Any = None,
    ) -> tuple[Any, Tensor | None, ModelState]:
        """Run one step: z_t, then x_t ~ p(x_t | z_{<=t}, x_{<t}), a normal, updates the belief."""
        location, scale = self._units(inputs)
        if scale is not None:
            assert inputs is not None
            # side inputs of nothing but zeros are those of padding
            scale = torch.where((inputs == 0).all(-1, keepdim=True), 1.0, scale)
            check_scale(scale, "slds")
        carried, regimes = state["carried"], self.regimes()
        prior: Any = dist.Categorical(logits=carried["regime"].unsqueeze(-2))
        z = draw_latent(prior)
        now = z.squeeze(-1)
        lead = torch.broadcast_shapes(now.shape, carried["mean"].shape[:-1])
        predicted = moved(regimes, now.expand(lead), over(belief_of(carried), lead))
        law = self._predictive(regimes, now, predicted, location, scale)
        x = draw_observation(law if self.member is None else {self.member: law})
        cells = None if seen is None else self._own(seen)
        shown = self._in_units(self._own(x), cells, location, scale)
        lead = torch.broadcast_shapes(lead, shown.y.shape[:-1])
        _, after = told(regimes, now.expand(lead), over(predicted, lead), shown)
        context, latent = observe_step(self, x, state["context"], z, seen)
        carried = carried_of(after, regimes.moves[now])
        return x, z, {"context": context, "latent": latent, "carried": carried}

    def _predictive(
        self,
        regimes: Regimes,
        z: Tensor,
        predicted: Belief,
        location: Tensor | None,
        scale: Tensor | None,
    ) -> Distribution:
        """Return p(x_t | z_{<=t}, x_{<t}) of batch shape `[*lead]`."""
        C = regimes.C[z]
        loc = (C @ predicted.mean).squeeze(-1) + regimes.d[z]
        root = torch.linalg.cholesky(C @ predicted.covariance @ C.mT + regimes.R[z])
        if scale is not None:
            loc, root = scale * loc, scale.unsqueeze(-1) * root
        loc = loc if location is None else location + loc
        loc, root = loc.to(self.drift.dtype), root.to(self.drift.dtype)
        if self.scalar:
            return dist.Normal(loc.squeeze(-1), root[..., 0, 0])
        return CellNormal(loc, scale_tril=root)
