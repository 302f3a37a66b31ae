"""Games: a world model of a gymnasium environment, and an agent that is trained inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.games.environment.collecting import collect as collect
    from pyro_seq.games.environment.making import make_environment as make_environment
    from pyro_seq.games.environment.replay import Replay as Replay
    from pyro_seq.games.loaded import LoadedAgent as LoadedAgent
    from pyro_seq.games.loaded import dream as dream
    from pyro_seq.games.loaded import play_real as play_real
    from pyro_seq.games.program import game_program as game_program
    from pyro_seq.games.settings import GameSettings as GameSettings
    from pyro_seq.games.settings import game_settings as game_settings
    from pyro_seq.games.world.world_model import World as World
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
