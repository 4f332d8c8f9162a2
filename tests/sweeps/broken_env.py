"""Environments that break, for runs of a sweep."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray


class Frames(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """Episodes of ten steps of noise."""

    observation_space = gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._left = 10
        return self._frame(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self._left -= 1
        return self._frame(), float(action), self._left == 0, False, {}

    def _frame(self) -> NDArray[np.uint8]:
        return self.np_random.integers(0, 256, (32, 32, 3), np.uint8)


class Sometimes(Frames):
    """Breaks at its step 90, until there is the file that MENDED names."""

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        if self.steps == 90 and not Path(os.environ["MENDED"]).exists():
            raise RuntimeError("this environment breaks at step 90")
        return super().step(action)


class Deadly(Frames):
    """Ends its process at its step 20, before any checkpoint."""

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        if self.steps == 20:
            os._exit(1)
        return super().step(action)


class Once(Frames):
    """Ends its process at its step 90, unless there is the file that MENDED names, which it then makes."""

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        if self.steps == 90 and not Path(os.environ["MENDED"]).exists():
            Path(os.environ["MENDED"]).touch()
            os._exit(1)
        return super().step(action)
