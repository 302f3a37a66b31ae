"""Names that settings had in versions before.

Run folders with such a name are read, files and options are refused with the name of today.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_seq.errors import UserError

# the dotted name of before, that of today; the value means the same under both
RENAMED: dict[str, str] = {
    "training.average": "training.ema_decay",
    "agent.average": "agent.ema_decay",
    "training.floor": "training.final_lr_fraction",
    "play.hold": "play.action_repeat",
    "agent.trace_decay": "agent.gae_lambda",
    "agent.relaxation": "agent.gumbel_temperature",
    "agent.beginnings": "agent.initial_state_fraction",
    "adversarial.update_rate": "adversarial.rollout_policy_decay",
    "model.kind": "model.name",
}


def with_current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run folder under the names of today.

    A setting that stands there under both names has the value that it has under today's.
    """
    renamed = {RENAMED[name]: value for name, value in settings.items() if name in RENAMED}
    return renamed | {name: value for name, value in settings.items() if name not in RENAMED}


def refuse_old_names(changes: Mapping[str, Any], source: str) -> None:
    """Raise `UserError` for a setting under a name of before, saying which name it has now.

    `source` says where the changes come from.
    """
    for name in changes:
        if name in RENAMED:
            raise UserError(f"{source}: the setting {name!r} is named {RENAMED[name]!r} now")
