"""Environments: Atari, and small tasks for a quick check. All need the `atari` extra.

An environment here is a `gymnasium.Env` of uint8 frames `[H, W, C]` and discrete actions, whose `info` tells `lives`
and `life_lost`, and whose `get_state` and `set_state` let a run resume exactly.
`make_vector` steps several at once, of these or any other kind.
"""

from drama.envs.atari import AtariEnv, atari_games
from drama.envs.frames import FrameEnv
from drama.envs.making import game_names, make_atari, make_env, make_frames, make_vector, register
from drama.envs.processes import WorkerDied
from drama.envs.small import Catch
from drama.envs.vector import VectorEnv
from drama.envs.worker import EnvError

register()

__all__ = [
    "AtariEnv",
    "Catch",
    "EnvError",
    "FrameEnv",
    "VectorEnv",
    "WorkerDied",
    "atari_games",
    "game_names",
    "make_atari",
    "make_env",
    "make_frames",
    "make_vector",
]
