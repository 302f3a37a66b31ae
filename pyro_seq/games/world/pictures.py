"""Parts of pairs over games that are observed by pictures: nothing but latents remembers them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pyro_seq._pytree import tree_leaves
from pyro_seq.config.build import PairComponents
from pyro_seq.contexts import SideInputs
from pyro_seq.distributions.base import Distribution
from pyro_seq.emissions.composite import Joint
from pyro_seq.emissions.elementary import Bernoulli, Normal
from pyro_seq.emissions.pictures import Pictures
from pyro_seq.encoders import Conv2d, Encoder
from pyro_seq.games.environment.environments import Game
from pyro_seq.games.environment.episodes import FLAGS
from pyro_seq.games.settings import PictureSettings
from pyro_seq.infer.stepping.replay import Prefix
from pyro_seq.pairs.model import ModelState
from pyro_seq.pairs.pair import Pair

# of what is predicted, in its own deviations: how exact a model may claim to be
SMALLEST_SCALE = 0.01
# of rewards beside a picture: a constant one is not to drown what is to be learnt of the picture
REWARD_SCALE = 0.1


class ObservationOf(Encoder):
    """Encode a step's named group by its observation alone.

    Args:
        encoder: of the observation.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.num_features = encoder, encoder.num_features

    def blank(self, *lead: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """Return a group of zeros."""
        zeros = torch.zeros(*lead, device=device)
        observation = self.encoder.blank(*lead, device=device)
        return {"observation": observation, "reward": zeros, "end": zeros}

    def forward(self, values: dict[str, Tensor]) -> Tensor:
        """Return the features of the observation `[..., F]`."""
        return self.encoder(values["observation"])


class PictureStep(Joint):
    """p(o, r, e | f) = p(o | f_o) N(r; f_r) Bernoulli(e; f_e), o a picture (`emissions.Pictures`).

    Inside `unseen`, only r and e are asked for: most of what a step costs is its picture, and
    where no network looks at it, a game can be imagined without.

    Args:
        pictures: the emission of o.
    """

    def __init__(self, pictures: Pictures) -> None:
        parts = {"observation": pictures, "reward": Normal(epsilon=REWARD_SCALE)}
        super().__init__({**parts, "end": Bernoulli()})
        self._unseen = False

    def forward(self, features: Tensor, passed_on: Tensor | None = None) -> dict[str, Distribution]:
        """Return the distributions of o, r and e given their features side by side."""
        if not self._unseen:
            return super().forward(features)
        parts = zip(self.emissions, features.split(self.sizes, -1), strict=True)
        return {name: self.emissions[name](f) for name, f in parts if name != "observation"}

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Leave o out inside."""
        self._unseen = True
        try:
            yield
        finally:
            self._unseen = False


def picture_parts(game: Game, settings: PictureSettings) -> PairComponents:
    """Return the parts of pairs over a game's steps whose observations are pictures.

    The context is the action alone: what was seen before reaches a step through the pair's latents
    (Hafner et al. 2019, arXiv 1811.04551), which the guide infers from pictures.
    """
    s, inputs = settings, game.action_size + FLAGS
    emission = Pictures(
        game.picture,
        s.features,
        pixel=s.pixel,
        channels=s.map_channels,
        hidden_size=s.hidden_size,
        kernel_sizes=(1, s.kernel_size),
        num_mixtures=s.num_mixtures,
        scale_of_all=s.scale,
    )

    def encoder() -> Encoder:
        return ObservationOf(
            Conv2d(
                game.picture,
                s.encoder_features,
                channels=s.encoder_channels,
                scale=emission.scale,
            )
        )

    return PairComponents(PictureStep(emission), encoder, lambda _: SideInputs(inputs), inputs)


def without_pictures(pair: Pair) -> Any:
    """Return a context in which a pair's model draws no pictures, if it does not look at them."""
    emission, context = (getattr(pair.model, part, None) for part in ("emission", "context"))
    if isinstance(emission, PictureStep) and isinstance(context, SideInputs):
        return emission.unseen()
    return nullcontext()


def remembered(state: ModelState | Prefix) -> Tensor:
    """Return what a model's state remembers of games, `[N, F]`.

    Of a declared model that is its latents and what its recurrences carry, of a function all that
    it returns.
    """
    parts = state.state if isinstance(state, Prefix) else (state["latent"], state["carried"])
    return torch.cat([x.flatten(1) for x in tree_leaves(parts)], 1)
