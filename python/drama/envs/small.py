"""Small pixel tasks that show within minutes whether an agent learns."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium
import numpy as np

from drama.config import EnvConfig
from drama.envs.atari import Frame


class Catch(gymnasium.Env[Frame, np.int64]):
    """An object falls one row per step on a coarse grid; the paddle in the last row must be under it at the end.

    Actions: 0 stay, 1 left, 2 right. The reward is 1 or -1 on the last step, which terminates; else 0. `info` holds
    `lives` and `life_lost` as for Atari.
    """

    GRID = 8

    def __init__(self, config: EnvConfig) -> None:
        if config.size % self.GRID:
            raise ValueError(f"env.size: {config.size} must be a multiple of {self.GRID} for Catch")
        self._cell = config.size // self.GRID
        self._channels = 1 if config.grayscale else 3
        shape = (config.size, config.size, self._channels)
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space: gymnasium.spaces.Discrete = gymnasium.spaces.Discrete(3)
        self._row = self._column = self._paddle = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._row = 0
        self._column, self._paddle = (int(x) for x in self.np_random.integers(self.GRID, size=2))
        return self._draw(), {"lives": 0, "life_lost": False}

    def step(self, action: np.int64 | int) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        move = (0, -1, 1)[int(action)]
        self._paddle = min(max(self._paddle + move, 0), self.GRID - 1)
        self._row += 1
        terminated = self._row == self.GRID - 1
        reward = (1.0 if self._paddle == self._column else -1.0) if terminated else 0.0
        return self._draw(), reward, terminated, False, {"lives": 0, "life_lost": False}

    def get_state(self) -> bytes:
        """Everything that decides the future of this environment, random numbers included."""
        return pickle.dumps((self._row, self._column, self._paddle, self.np_random.bit_generator.state))

    def set_state(self, state: bytes) -> None:
        """Go on from what `get_state` returned."""
        self._row, self._column, self._paddle, self.np_random.bit_generator.state = pickle.loads(state)

    def _draw(self) -> Frame:
        grid = np.zeros((self.GRID, self.GRID), np.uint8)
        grid[-1, self._paddle] = 255
        grid[self._row, self._column] = 255
        frame = grid.repeat(self._cell, axis=0).repeat(self._cell, axis=1)[..., None]
        return frame.repeat(self._channels, axis=2)
