"""Environments: Atari, and small tasks for a quick check. All need the `atari` extra.

An environment here is a `gymnasium.Env` of uint8 frames `[H, W, C]` and discrete actions, whose `info` tells `lives`
and `life_lost`, and whose `get_state` and `set_state` let a run resume exactly.
"""

from typing import TypeAlias

from drama.config import EnvConfig, did_you_mean
from drama.envs.atari import AtariEnv, atari_games, make_atari
from drama.envs.small import Catch

FrameEnv: TypeAlias = AtariEnv | Catch
SMALL = {"Catch": Catch}


def game_names() -> list[str]:
    """All names that `make_env` takes."""
    return [*atari_games(), *SMALL]


def make_env(game: str, config: EnvConfig | None = None) -> FrameEnv:
    """Make the Atari game or small task `game`. Raises ValueError that names the nearest ones if there is none."""
    config = config or EnvConfig()
    if game in SMALL:
        return SMALL[game](config)
    if game not in (names := game_names()):
        raise ValueError(f"game: {game!r} is unknown{did_you_mean(game, names)}; `drama games` lists all {len(names)}")
    return make_atari(game, config)


__all__ = ["AtariEnv", "Catch", "FrameEnv", "atari_games", "game_names", "make_atari", "make_env"]
