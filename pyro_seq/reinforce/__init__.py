"""REINFORCE as a Pyro objective: advantages, baselines, rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.reinforce.advantages import discounted_returns as discounted_returns
    from pyro_seq.reinforce.advantages import generalised_advantages as generalised_advantages
    from pyro_seq.reinforce.baselines import Baseline as Baseline
    from pyro_seq.reinforce.baselines import Critic as Critic
    from pyro_seq.reinforce.baselines import LeaveOneOut as LeaveOneOut
    from pyro_seq.reinforce.baselines import MovingAverage as MovingAverage
    from pyro_seq.reinforce.objective import Reinforce as Reinforce
    from pyro_seq.reinforce.rollouts import Rollouts as Rollouts
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
