"""A linear-Gaussian state space model: level, trend, seasons, regression and shared factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import NoContext
from pyro_seq.distributions import kalman
from pyro_seq.distributions.base import Distribution
from pyro_seq.distributions.kalman import StateSpace, Transition
from pyro_seq.distributions.linear_gaussian import CellNormal, LinearGaussian, rows
from pyro_seq.emissions.base import Emission
from pyro_seq.encoders import Encoder
from pyro_seq.errors import UserError
from pyro_seq.infer.smoothing.gaussian import gaussian_marginal
from pyro_seq.infer.smoothing.marginals import Marginal
from pyro_seq.models._structural import (
    Structure,
    Trend,
    check_scale,
    moments,
    real_cells,
    units,
)
from pyro_seq.pairs.model import (
    Layout,
    ModelState,
    SequenceModel,
    SequenceOutput,
    prepared,
)
from pyro_seq.pairs.observed import observe_step

SMALLEST = 1e-4  # scale of the noise, which keeps what is observed from being known beforehand

# standard deviations before training, of series of mean 0 and variance 1
LEVEL, SLOPE, SEASON, NOISE, FACTORS, SHARED = 0.1, 0.003, 0.01, 0.3, 0.2, 0.05
FIRST_LEVEL, FIRST_SLOPE, FIRST_SEASON = 2.0, 0.03, 0.5
DAMPING = 0.95
FILLED_ENTRIES = 2**25  # of the covariances of all steps, of sequences that are filled together
FASTEST, SLOWEST = 2.0, 200.0  # steps in which factors forget, before training


class LGSSM(SequenceModel):
    r"""Linear-Gaussian state space model, its states integrated out (Kalman, 1960).

    A structural time series model (Harvey 1989; Durbin & Koopman 2012, chapter 3) of C columns,
    and factors that they share. Each column c has

        x_t = level_t + sum_seasons season_t + D_c u_t + B_c f_t + e_t,    e_t ~ N(0, R)
        level_{t+1} = level_t + slope_t + N(0, sigma_level^2)
        slope_{t+1} = phi slope_t + N(0, sigma_slope^2)

    A season of s steps is a sum of harmonics j (Harvey 1989, section 2.3.4). Each harmonic is a
    pair (g, g*) that a rotation by 2 pi j / s turns at each step, plus N(0, sigma_season^2) on
    both; season_t is the sum of the g. So seasons may change, and a long one takes few states. The
    factors f_t are stationary, with identity covariance at all steps:

        f_{t+1} = A f_t + N(0, I - A A'),    A = exp(K - K' - diag(r)), r > 0

    Up to the basis of f, every stationary process whose A has a logarithm is one. R is diagonal
    plus W W'. All variances, phi, A, B, D, W, and the mean and variance of the first states are
    learnt.

    The likelihood is exact, by a Kalman filter, so the guide is empty (`guides.no_guide`): layout
    `path` has one observed site, a `LinearGaussian`; layout `steps` a site for each step,
    p(x_t | x_{<t}). What the model carries is its belief, the moments of z_{t+1} given x_{<=t}.

    Args:
        emission: of real numbers, `[]` or `[C]`, or a `Joint` of one such member. It says what is
            observed; the density is this model's own, a normal.
        num_inputs: size of the side inputs.
        seasons: numbers of steps, for instance 24 and 168; `None` for no season.
        harmonics: of each season longer than 12 steps; a shorter one has all. `None` for 4, or
            for fewer of many columns: as many as leave at most 100 states, and at least 1.
        trend: `none`, `damped` (phi < 1 is learnt) or `linear` (phi = 1).
        latent_size: the number of factors.
        noise_rank: columns of W; `None` for C, with which R is any covariance.
        scaled: whether the first 2 C side inputs are each column's location a_t and scale s_t, so
            that (x_t - a_t) / s_t is what is modelled; the density is of x_t.
        regressors: an encoder of the side inputs, whose features are u_t; by default u_t are the
            side inputs themselves, without locations and scales.

    Raises `UserError` for an emission of anything but real numbers, and for side inputs that do
    not fit.
    """

    level_scale: Tensor
    slope_scale: Tensor
    damping: Tensor
    season_scale: Tensor
    noise_scale: Tensor
    noise_factors: Tensor
    factor_rates: Tensor
    factor_turns: Tensor
    factor_loading: Tensor
    regression: Tensor
    first_mean: Tensor
    first_scale: Tensor
    _partner: Tensor

    def __init__(
        self,
        emission: Emission,
        num_inputs: int = 0,
        *,
        seasons: Sequence[int] | None = None,
        harmonics: int | None = None,
        trend: Trend = "damped",
        latent_size: int = 4,
        noise_rank: int | None = None,
        scaled: bool = False,
        regressors: Encoder | None = None,
        layout: Layout = "path",
    ) -> None:
        observed, self.member, size = real_cells(emission)
        super().__init__(observed, NoContext(), layout=layout)
        self.scalar, columns = size is None, size or 1
        if scaled and num_inputs < 2 * columns:
            raise UserError(
                f"a scaled lgssm of {columns} columns wants their {columns} locations and "
                f"{columns} scales as its first side inputs, and there are {num_inputs}"
            )
        self.num_columns, self.num_inputs, self.scaled = columns, num_inputs, scaled
        self.regressors, plain = regressors, num_inputs - 2 * columns * scaled
        num_regressors = plain if regressors is None else regressors.num_features
        if harmonics is None:
            structure = Structure.within(seasons or (), trend, columns, latent_size)
        else:
            structure = Structure.of(seasons or (), harmonics, trend)
        self.structure = structure
        self.register_buffer("_partner", structure.partners(columns), persistent=False)
        rank = columns if noise_rank is None else min(noise_rank, columns)
        season = FIRST_SEASON / max(1, structure.kinds.count("cosine")) ** 0.5
        first = {"level": FIRST_LEVEL, "slope": FIRST_SLOPE}

        def logs(*scales: float) -> Tensor:
            return torch.tensor(scales).log().unsqueeze(-1).repeat(1, columns)

        slopes = [SLOPE] * structure.kinds.count("slope")
        damping = torch.full((columns if trend == "damped" else 0,), DAMPING).logit()
        self._learn(
            level_scale=logs(LEVEL),
            slope_scale=logs(*slopes),
            damping=damping,
            season_scale=logs(*[SEASON] * len(seasons or ())),
            noise_scale=logs(NOISE),
            noise_factors=SHARED * torch.randn(columns, rank),
            factor_rates=-torch.linspace(math.log(FASTEST), math.log(SLOWEST), latent_size),
            factor_turns=0.01 * torch.randn(latent_size, latent_size),
            factor_loading=FACTORS / max(1, latent_size) ** 0.5 * torch.randn(columns, latent_size),
            regression=torch.zeros(columns, num_regressors),
            first_mean=torch.zeros(len(structure.kinds) * columns + latent_size),
            first_scale=logs(*(first.get(kind, season) for kind in structure.kinds)),
        )
        self._latest: tuple[list[tuple[Tensor, int]], StateSpace] | None = None

    def _learn(self, **weights: Tensor) -> None:
        """Register weights as parameters, but none that has no entry."""
        for name, weight in weights.items():
            if weight.numel():
                setattr(self, name, nn.Parameter(weight))
            else:
                self.register_buffer(name, weight, persistent=False)

    @torch.no_grad()
    def start_from(self, batch: SequenceBatch) -> None:
        """Set the first scales by observed sequences, for data that is not of unit variance.

        Noise is a share of the columns' root mean square moves, first states are of their spread.
        """
        location, scale = self._units(batch.inputs)
        cells = self._own(prepared(self, batch)).double()
        cells = cells.unsqueeze(-1) if self.scalar else cells
        seen = self._own(batch.seen).reshape(cells.shape)
        cells = cells if location is None else cells - location
        cells = cells if scale is None else cells / scale
        mean, spread, moves = moments(cells, seen, SMALLEST)
        log_moves, log_spread = moves.log(), spread.log()
        shares = {"level_scale": 0.6, "noise_scale": 0.5, "slope_scale": 0.02, "season_scale": 0.05}
        for name, share in shares.items():
            weight = getattr(self, name)
            weight.copy_((log_moves + math.log(share)).expand_as(weight))
        self.factor_loading.mul_((moves / FACTORS * 0.3).unsqueeze(-1))
        self.noise_factors.mul_(moves.unsqueeze(-1))
        first = {"level": log_spread, "slope": log_moves + math.log(0.1)}
        for place, kind in enumerate(self.structure.kinds):
            self.first_scale[place] = first.get(kind, log_spread + math.log(0.3))
        self.first_mean[: self.num_columns] = mean  # levels come first

    # the matrices

    def system(self) -> StateSpace:
        """Return F, Q, H and R in float64; without gradients the last ones are kept."""
        weights = [
            self.level_scale,
            self.slope_scale,
            self.season_scale,
            self.damping,
            self.noise_scale,
            self.noise_factors,
            self.factor_rates,
            self.factor_turns,
            self.factor_loading,
        ]
        if torch.is_grad_enabled():
            return self._system()
        latest = self._latest
        if latest is None or any(
            old is not weight or version != weight._version
            for (old, version), weight in zip(latest[0], weights, strict=True)
        ):
            latest = [(weight, weight._version) for weight in weights], self._system()
            self._latest = latest
        return latest[1]

    def _system(self) -> StateSpace:
        factors, structure = self._factors(), self.structure
        scales = [self.level_scale, self.slope_scale, self.season_scale[structure.seasons]]
        moves = torch.diag((2 * torch.cat(scales).double()).exp().flatten())
        eye = torch.eye(self.num_columns).to(moves)
        damping = self.damping.double().sigmoid() if self.damping.numel() else None
        own, other = structure.transition(damping, eye.diagonal())
        shared = self.noise_factors.double()
        noise = (2 * self.noise_scale.double()).exp().flatten() + SMALLEST**2
        stationary = torch.eye(len(factors)).to(factors)
        return StateSpace(
            Transition(own, other, self._partner, factors),
            torch.block_diag(moves, stationary - factors @ factors.mT),
            torch.cat([structure.loading(eye), self.factor_loading.double()], -1),
            torch.diag(noise) + shared @ shared.mT,
        )

    def _factors(self) -> Tensor:
        """Return A, whose singular values are below 1."""
        turns, rates = self.factor_turns.double(), self.factor_rates.double()
        return torch.linalg.matrix_exp(turns - turns.mT - torch.diag(rates.exp() + SMALLEST))

    def initial_rnn_state(self, *lead: int) -> dict[str, Tensor]:
        """Return the mean `[*lead, n]` and covariance `[*lead, n, n]` of z_1, in float64."""
        mean = self.first_mean.double()
        structural = (2 * self.first_scale.double()).exp().flatten()
        variances = torch.cat([structural, mean.new_ones(len(mean) - len(structural))])
        covariance = torch.diag(variances)
        n = len(mean)
        return {"mean": mean.expand(*lead, n), "covariance": covariance.expand(*lead, n, n)}

    def _units(self, inputs: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return a_t + s_t D u_t and s_t `[*lead, C]` from side inputs `[*lead, num_inputs]`."""
        given = self.regression, self.regressors
        return units(inputs, self.num_inputs, *given, scaled=self.scaled, name="lgssm")

    # running it

    def distribution(self, batch: SequenceBatch) -> LinearGaussian:
        """Return p(x_{1:T}) of a batch's sequences, with its moments given observations."""
        state = self.state_before(batch)["carried"]
        location, scale = self._units(batch.inputs)
        if scale is not None:
            scale = torch.where(batch.mask.unsqueeze(-1), scale, 1.0)
            check_scale(scale)
        event = () if self.scalar else (self.num_columns,)
        return LinearGaussian(
            self.system(),
            state["mean"],
            state["covariance"],
            (batch.num_steps, *event),
            location=location,
            scale=scale,
            active=None if batch.is_full else batch.mask,
            seen=self._own(batch.seen)
            if batch.missing_cells is not None or batch.to_sample
            else None,
        )

    def posterior(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Compute p(z_t | x_{1:T}): means `[N, T, n]` and covariances `[N, T, n, n]`, in float64.

        The states are ordered as `structure.kinds`, each kind for all columns, then the factors.
        Raises `UserError` for a batch without values.
        """
        if batch.values is None:
            raise UserError("the states' posterior needs observations, and the batch has none")
        return self.distribution(batch).smoothed(self._own(prepared(self, batch)))

    def exact_posterior(
        self, batch: SequenceBatch, draws: int, *, filtered: bool
    ) -> dict[str, Marginal]:
        """Return the states `[n]` given observations, as `z`."""
        law, values = self.distribution(batch), self._own(prepared(self, batch))
        return {"z": gaussian_marginal(law, values, draws, filtered=filtered)}

    def exact_fill(self, batch: SequenceBatch, draws: int) -> Any:
        """Draw missing cells and steps given all that was seen: values `[N * draws, T, *event]`.

        By the simulation smoother of Durbin & Koopman (2002), so without particles.
        """
        size = max(1, FILLED_ENTRIES // (max(1, batch.num_steps) * len(self.first_mean) ** 2))
        parts = []
        for index in torch.arange(len(batch), device=batch.device).split(size):
            some = batch.select(index)
            values = self._own(prepared(self, some))
            parts.append(self.distribution(some).fill(values, draws).flatten(0, 1))
        filled = torch.cat(parts)
        return filled if self.member is None else {self.member: filled}

    def _own(self, values: Any) -> Any:
        return values if self.member is None else values[self.member]

    def _path(self, batch: SequenceBatch) -> SequenceOutput:
        state, path = self.state_before(batch), self.distribution(batch)
        values = self._own(prepared(self, batch))
        with batch.plate():
            name = "x" if self.member is None else f"x_{self.member}"
            found = path.filtered(pyro.sample(name, path, obs=values))
        carried = {"mean": found.mean, "covariance": found.covariance}
        return SequenceOutput(
            batch.values,
            None,
            {"context": state["context"], "latent": state["latent"], "carried": carried},
        )

    def advance(
        self,
        state: ModelState,
        inputs: Tensor | None,
        draw_latent: Callable[[dist.Normal], Tensor],
        draw_observation: Callable[[Distribution], Any],
        seen: Any = None,
    ) -> tuple[Any, Tensor | None, ModelState]:
        """Run one step: x_t ~ p(x_t | x_{<t}), a normal, updates the belief by what was seen."""
        location, scale = self._units(inputs)
        if scale is not None:
            assert inputs is not None
            # side inputs of nothing but zeros are those of padding
            scale = torch.where((inputs == 0).all(-1, keepdim=True), 1.0, scale)
            check_scale(scale)
        predictive = self._predictive(state["carried"], location, scale)
        x = draw_observation(predictive if self.member is None else {self.member: predictive})
        y = self._own(x).double()
        y = y.unsqueeze(-1) if self.scalar else y
        y = y if location is None else y - location
        y = y if scale is None else y / scale
        cells = None if seen is None else self._own(seen)
        if cells is not None and self.scalar:
            cells = cells.unsqueeze(-1)
        context, latent = observe_step(self, x, state["context"], state["latent"], seen)
        after = self._after(state["carried"], y, cells)
        return x, None, {"context": context, "latent": latent, "carried": after}

    def _predictive(
        self, carried: dict[str, Tensor], location: Tensor | None, scale: Tensor | None
    ) -> Distribution:
        """Return p(x_t | x_{<t}) of batch shape `[*lead]`."""
        system, mean = self.system(), carried["mean"]
        of = rows(mean.shape[:-1], carried["covariance"])
        belief = of.belief(mean, carried["covariance"])
        covariance = system.loading @ belief.covariance @ system.loading.mT + system.noise
        loc, root = mean.double() @ system.loading.mT, of.spread(torch.linalg.cholesky(covariance))
        if scale is not None:
            loc, root = scale * loc, scale.unsqueeze(-1) * root
        if location is not None:
            loc = location + loc
        kind = self.first_mean.dtype
        loc, root = loc.to(kind), root.to(kind)
        if self.scalar:
            return dist.Normal(loc.squeeze(-1), root[..., 0, 0])
        return CellNormal(loc, scale_tril=root)

    def _after(
        self, carried: dict[str, Tensor], y: Tensor, seen: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the moments of z_{t+1} given the cells seen of y_t `[*lead, C]` too."""
        system, mean, covariance = self.system(), carried["mean"], carried["covariance"]
        lead = torch.broadcast_shapes(mean.shape[:-1], y.shape[:-1])
        shape = (*lead, 1, self.num_columns)
        cells = None if seen is None else seen.unsqueeze(-2).expand(shape)
        of = rows(lead, covariance, cells)
        belief = of.belief(mean, covariance)
        y = of.inward(y.unsqueeze(-2).expand(shape).unsqueeze(-3))[:, 0]
        if cells is not None:
            cells = of.of_groups(cells)[:, 0]
        found = kalman.innovations(system, belief, y, cells)
        after = kalman.moved(system, kalman.updated(belief, found))
        mean = of.outward(after.mean.unsqueeze(1))[..., 0, 0, :]
        return {"mean": mean, "covariance": of.spread(after.covariance)}
