"""Atari games, one emulator per environment, each step one call into Rust."""

from __future__ import annotations

import pickle
from typing import Any

import ale_py
import gymnasium
import numpy as np
from ale_py.env import AtariEnv as _AleEnv
from numpy.typing import NDArray

from drama._native import AtariStepper
from drama.config import EnvConfig, did_you_mean

gymnasium.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)

Frame = NDArray[np.uint8]
NOOP_MAX = 30


def atari_games() -> list[str]:
    """Names of the games, as in `ALE/<game>-v5`."""
    ids = (name for name in gymnasium.registry if name.startswith("ALE/") and name.endswith("-v5"))
    return sorted(name.removeprefix("ALE/").removesuffix("-v5") for name in ids)


class AtariEnv(gymnasium.Env[Frame, np.int64]):
    """One Atari game: four emulator frames per step, the last two pooled, resized by area.

    Sticky actions are off and the action set is minimal, as in Atari100k. The first `reset` must be given a seed for a
    reproducible run; later ones without a seed go on with the same random numbers. `info` holds `lives` and
    `life_lost`.

    Args:
        game: name as in `ALE/<game>-v5`.
        config: protocol, frame size, channels and frame skip.

    Raises:
        ValueError: for an unknown game; the message names the nearest ones.
    """

    def __init__(self, game: str, config: EnvConfig) -> None:
        games = atari_games()
        if game not in games:
            raise ValueError(f"game: {game!r} is no Atari game{did_you_mean(game, games)}")
        ale_env = gymnasium.make(
            f"ALE/{game}-v5",
            obs_type="grayscale",
            frameskip=1,
            repeat_action_probability=0.0,
            full_action_space=False,
            max_num_frames_per_episode=config.max_frames,
        ).unwrapped
        assert isinstance(ale_env, _AleEnv)
        self._env = ale_env
        self._stepper = AtariStepper(
            ale_env.ale, frame_skip=config.frame_skip, size=(config.size, config.size), grayscale=config.grayscale
        )
        self._noop_max = NOOP_MAX if config.protocol == "standard" else 0
        self._actions = [action.value for action in ale_env.ale.getMinimalActionSet()]
        self._lives = 0
        shape = (config.size, config.size, 1 if config.grayscale else 3)
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space: gymnasium.spaces.Discrete = gymnasium.spaces.Discrete(len(self._actions))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._env.reset(seed=seed, options=options)
        if self._noop_max:
            for _ in range(int(self._env.np_random.integers(1, self._noop_max + 1))):
                self._env.ale.act(0)
                if self._env.ale.game_over():
                    self._env.reset()
        self._lives = self._env.ale.lives()
        frame = self._new_frame()
        self._stepper.reset(frame)
        return frame, {"lives": self._lives, "life_lost": False}

    def step(self, action: np.int64 | int) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        if not 0 <= action < len(self._actions):
            raise ValueError(f"action: {action} is out of range; expected 0 to {len(self._actions) - 1}")
        frame = self._new_frame()
        reward, terminated, truncated, lives = self._stepper.step(self._actions[action], frame)
        life_lost = lives < self._lives
        self._lives = lives
        return frame, reward, terminated, truncated, {"lives": lives, "life_lost": life_lost}

    def render(self) -> Frame:
        """The emulator's own picture, `[210, 160, 3]` for most games."""
        screen: Frame = self._env.ale.getScreenRGB()
        return screen

    def get_state(self) -> bytes:
        """Everything that decides the future of this environment, random numbers included."""
        return pickle.dumps(
            {
                "ale": self._env.ale.cloneSystemState(),
                "screens": self._stepper.state(),
                "random": self._env.np_random.bit_generator.state,
                "lives": self._lives,
            }
        )

    def set_state(self, state: bytes) -> None:
        """Go on from what `get_state` returned, in any process. The environment must have been reset once."""
        values = pickle.loads(state)
        self._env.ale.restoreSystemState(values["ale"])
        self._stepper.set_state(values["screens"])
        self._env.np_random.bit_generator.state = values["random"]
        self._lives = values["lives"]

    def _new_frame(self) -> Frame:
        shape = self.observation_space.shape
        assert shape is not None
        return np.empty(shape, np.uint8)


def make_atari(game: str, config: EnvConfig | None = None) -> AtariEnv:
    """Make the Atari environment `game`; see `AtariEnv`."""
    return AtariEnv(game, config or EnvConfig())
