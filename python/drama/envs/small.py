"""Small pixel tasks that show within minutes whether an agent learns."""

from __future__ import annotations

import pickle
from typing import Any, ClassVar

import gymnasium
import numpy as np

from drama.config import EnvConfig
from drama.envs.atari import AtariEnv, Frame

ATARI_ONLY = (
    "frame_skip",
    "pool",
    "frame_stack",
    "noop_max",
    "fire_reset",
    "repeat_action_probability",
    "full_action_space",
)


class Catch(gymnasium.Env[Frame, np.int64]):
    """An object falls one row per step on a coarse grid; the paddle in the last row must be under it at the end.

    Actions: 0 stay, 1 left, 2 right. The reward is 1 or -1 on the last step, which terminates; else 0. `info` holds
    `lives` and `life_lost` as for Atari.
    """

    GRID = 8
    info_fields: ClassVar[dict[str, type[np.generic]]] = AtariEnv.info_fields
    action_meanings = ("NOOP", "LEFT", "RIGHT")

    def __init__(self, config: EnvConfig) -> None:
        config.validate()
        height, width = config.frame_size
        if height % self.GRID or width % self.GRID:
            raise ValueError(f"env.size: {config.size} must be a multiple of {self.GRID} for Catch")
        defaults = EnvConfig()
        for name in ATARI_ONLY:
            if (value := getattr(config, name)) != getattr(defaults, name):
                raise ValueError(f"env.{name}: {value} is an option of Atari games; Catch has none")
        self._cell = (height // self.GRID, width // self.GRID)
        self._shape = (height, width, 1 if config.grayscale else 3)
        self.observation_space = gymnasium.spaces.Box(0, 255, self._shape, np.uint8)
        self.action_space: gymnasium.spaces.Discrete = gymnasium.spaces.Discrete(3)
        self._row = self._column = self._paddle = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        frame = np.empty(self._shape, np.uint8)
        return frame, self.reset_into(frame, seed=seed, options=options)

    def step(self, action: np.int64 | int) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        frame = np.empty(self._shape, np.uint8)
        return frame, *self.step_into(action, frame)

    def reset_into(
        self, out: Frame, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """`reset` that writes the observation to `out`; gives the info."""
        super().reset(seed=seed, options=options)
        self._row = 0
        self._column, self._paddle = (int(x) for x in self.np_random.integers(self.GRID, size=2))
        self._draw(out)
        return {"lives": 0, "life_lost": False}

    def step_into(self, action: np.int64 | int, out: Frame) -> tuple[float, bool, bool, dict[str, Any]]:
        """`step` that writes the observation to `out`; gives reward, terminated, truncated, info."""
        if not 0 <= action < 3:
            raise ValueError(f"action: {action} is out of range; expected 0 to 2")
        if self._row == self.GRID - 1:
            raise RuntimeError("step: the episode has ended; call reset")
        move = (0, -1, 1)[int(action)]
        self._paddle = min(max(self._paddle + move, 0), self.GRID - 1)
        self._row += 1
        terminated = self._row == self.GRID - 1
        reward = (1.0 if self._paddle == self._column else -1.0) if terminated else 0.0
        self._draw(out)
        return reward, terminated, False, {"lives": 0, "life_lost": False}

    def get_state(self) -> bytes:
        """Everything that decides the future of this environment, random numbers included."""
        return pickle.dumps((self._row, self._column, self._paddle, self.np_random.bit_generator.state))

    def set_state(self, state: bytes) -> None:
        """Go on from what `get_state` returned."""
        self._row, self._column, self._paddle, self.np_random.bit_generator.state = pickle.loads(state)

    def _draw(self, out: Frame) -> None:
        height, width = self._cell
        out[...] = 0
        for row, column in ((self.GRID - 1, self._paddle), (self._row, self._column)):
            out[row * height : (row + 1) * height, column * width : (column + 1) * width] = 255
