"""Environments of the vector tests: nested spaces, frames written into given memory, and all kinds of misbehaviour."""

from __future__ import annotations

import os
import signal
import time
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray


class Nested(gymnasium.Env[dict[str, Any], dict[str, Any]]):
    """Dict and Tuple spaces inside each other, nested infos, infos that come and go."""

    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (4, 3), np.uint8),
            "parts": spaces.Tuple((spaces.Discrete(5), spaces.Dict({"speed": spaces.Box(-9, 9, (), np.float32)}))),
            "bits": spaces.MultiBinary(3),
            "many": spaces.MultiDiscrete([3, 4]),
        }
    )
    action_space = spaces.Dict(
        {
            "move": spaces.Discrete(3, start=-1),
            "push": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32), spaces.MultiBinary(2))),
        }
    )

    def _look(self) -> dict[str, Any]:
        random = self.np_random
        return {
            "camera": random.integers(0, 256, (4, 3), dtype=np.uint8),
            "parts": (int(random.integers(5)), {"speed": np.float32(random.normal())}),
            "bits": random.integers(0, 2, 3, dtype=np.int8),
            "many": [int(random.integers(3)), int(random.integers(4))],
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        self.kept: dict[str, Any] | None = None
        return self._look(), {"options": str(options), "start": self.np_random.normal(size=2)}

    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        info: dict[str, Any] = {"nested": {"time": self.time, "name": f"t{self.time}"}}
        if self.kept is not None:  # an action of the step before must not have changed
            info["before"] = self.kept["push"][0]
        self.kept = action
        self.time += 1
        if self.time % 3 == 0:
            info["third"] = np.float32(self.np_random.normal())
        reward = float(action["move"] + action["push"][0].sum() + action["push"][1].sum())
        ended = self.np_random.random()
        return self._look(), reward, bool(ended < 0.05), bool(ended > 0.95), info


class Words(gymnasium.Env[Any, str]):
    """Spaces that no array holds."""

    observation_space = spaces.Tuple((spaces.Text(40), spaces.Box(-9, 9, (2,), np.float32), spaces.Text(40)))
    action_space = spaces.Text(20)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.said = ""
        return ("start", np.zeros(2, np.float32), "a"), {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.said += action
        number = self.np_random.normal(size=2).astype(np.float32)
        return (action, number, self.said[-40:]), float(len(action)), len(self.said) > 60, False, {}


class Painter(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """Writes its frame into given memory."""

    observation_space = spaces.Box(0, 255, (6, 5, 1), np.uint8)
    action_space = spaces.Discrete(4)
    info_fields: ClassVar[dict[str, Any]] = {"lives": np.int64, "hurt": np.bool_}

    def reset_into(
        self, out: NDArray[np.uint8], *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        super().reset(seed=seed, options=options)
        self.lives = 3
        out[...] = self.np_random.integers(0, 256, out.shape, dtype=np.uint8)
        return {"lives": self.lives, "hurt": False}

    def step_into(self, action: int, out: NDArray[np.uint8]) -> tuple[float, bool, bool, dict[str, Any]]:
        hurt = bool(self.np_random.random() < 0.1)
        self.lives -= hurt
        out[...] = self.np_random.integers(0, 256, out.shape, dtype=np.uint8)
        info = {"lives": self.lives, "hurt": hurt}
        if hurt:
            info["rare"] = action
        return float(action), self.lives == 0, False, info

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        out = np.empty((6, 5, 1), np.uint8)
        info = self.reset_into(out, seed=seed, options=options)
        return out, info

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        out = np.empty((6, 5, 1), np.uint8)
        reward, terminated, truncated, info = self.step_into(int(action), out)
        return out, reward, terminated, truncated, info


COUNT, RAISE, KILL, HANG, HUGE, END, UNSENDABLE = range(7)
"""Actions of `Counter`: count, raise, kill the process, hang, a huge info, end, an info that cannot be sent."""


class Counter(gymnasium.Env[np.int64, np.int64]):
    """Counts its steps, and does what the action says."""

    observation_space = spaces.Discrete(1 << 40)
    action_space = spaces.Discrete(7)

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.count = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        if options is not None and options.get("fail"):
            raise ValueError("no reset today")
        self.count = 0
        return np.int64(0), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        info: dict[str, Any] = {}
        if action == RAISE:
            raise ZeroDivisionError("as it was told")
        if action == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if action == HANG:
            time.sleep(3600)
        if action == HUGE:
            info["huge"] = np.full(300_000, self.count)
        if action == UNSENDABLE:
            info["lock"] = (_ for _ in ())
        self.count += 1
        return np.int64(self.count), 1.0, bool(action == END), self.count >= self.limit, info

    def pid(self) -> int:
        """The process it lives in."""
        return os.getpid()

    def rest(self) -> None:
        """Do nothing."""

    def get_state(self) -> int:
        return self.count

    def set_state(self, state: int) -> None:
        self.count = state


class Slow(Counter):
    """Takes `seconds` for a step."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        if self.seconds:
            time.sleep(self.seconds)
        return super().step(action)


class Calm(Slow):
    """Takes no action that does harm."""

    action_space = spaces.Discrete(1)


class Unclosable(Counter):
    """Raises where it is closed, and notes that it was."""

    closed: ClassVar[list[int]] = []

    def close(self) -> None:
        self.closed.append(1)
        raise OSError("stuck")


class Mute(gymnasium.Env[Any, Any]):
    """Takes text, which has no place in shared memory, pays its length, and may die of it."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.Text(4_000_000)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return 0, {}

    def step(self, action: str) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if action.startswith("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        return 1, float(len(action)), False, False, {}
