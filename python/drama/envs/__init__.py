"""Environments: Atari, small tasks for a quick check, and any of Gymnasium's. All need the `atari` extra.

`make_env` makes one as this package trains on it (see `Adapted`). Atari games and small tasks have uint8 frames
`[H, W, C]` and discrete actions; their `get_state` and `set_state` let a run resume exactly.
`make_vector` steps several at once, of these or any other kind, as they are.
"""

from drama.envs.adapt import Adapted, read_interface
from drama.envs.atari import AtariEnv, atari_games
from drama.envs.frames import FrameEnv
from drama.envs.group import EnvError, failing
from drama.envs.making import (
    MakeEnv,
    env_maker,
    game_names,
    give,
    given_name,
    interface_of,
    known_game,
    make_atari,
    make_env,
    make_frames,
    make_vector,
    register,
    runs_code,
)
from drama.envs.processes import WorkerDied
from drama.envs.small import Catch
from drama.envs.vector import VectorEnv

register()

__all__ = [
    "Adapted",
    "AtariEnv",
    "Catch",
    "EnvError",
    "FrameEnv",
    "MakeEnv",
    "VectorEnv",
    "WorkerDied",
    "atari_games",
    "env_maker",
    "failing",
    "game_names",
    "give",
    "given_name",
    "interface_of",
    "known_game",
    "make_atari",
    "make_env",
    "make_frames",
    "make_vector",
    "read_interface",
    "runs_code",
]
