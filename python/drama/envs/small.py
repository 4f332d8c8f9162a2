"""Small pixel tasks that show within minutes whether an agent learns: a reflex, a memory, a reward at the end.

Each draws bright cells on a black 8 x 8 grid. `info` holds `lives` and `life_lost`, as for Atari.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from drama.config import EnvConfig
from drama.envs.frames import Frame, FrameEnv

GRID = 8
PIXELS = 32
"""Side of a cell in a picture for people."""
MOVES = (0, -1, 1)


class GridTask(FrameEnv):
    """What the tasks share: the picture, and what the trainer and the vector engine ask of an environment.

    A task keeps everything that decides its future in `self._state`, besides `self.np_random`.

    Args:
        config: size and channels of the frame; the options of Atari's emulator are refused.
        render_mode: None or "rgb_array".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012  # gymnasium declares it so

    def __init__(self, config: EnvConfig, render_mode: str | None = None) -> None:
        config.validate()
        name, defaults = type(self).__name__, EnvConfig()
        height, width = config.frame_size
        if height % GRID or width % GRID:
            raise ValueError(f"env.size: {config.size} must be a multiple of {GRID} for {name}")
        emulator = ("frame_skip", "pool", "frame_stack", "noop_max", "fire_reset", "full_action_space")
        for option in (*emulator, "repeat_action_probability"):
            if (value := getattr(config, option)) != getattr(defaults, option):
                raise ValueError(f"env.{option}: {value} is an option of Atari games; {name} has none")
        self._describe((height, width, 1 if config.grayscale else 3), render_mode)
        self._state: dict[str, int] = {}
        self._ended = True

    def reset_into(
        self, out: Frame, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        self._seed(seed, options)
        self._begin()
        self._ended = False
        self._draw(out)
        return {"lives": 0, "life_lost": False}

    def step_into(self, action: np.int64 | int, out: Frame) -> tuple[float, bool, bool, dict[str, Any]]:
        self._check_action(action)
        if self._ended:
            raise RuntimeError("step: the episode has ended; call reset")
        reward, terminated, truncated = self._move(int(action))
        self._ended = terminated or truncated
        self._draw(out)
        return reward, terminated, truncated, {"lives": 0, "life_lost": False}

    def get_state(self) -> dict[str, Any]:
        return {
            "task": dict(self._state),
            "ended": self._ended,
            "random": self.np_random.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._state, self._ended = dict(state["task"]), state["ended"]
        self.np_random.bit_generator.state = state["random"]

    def _begin(self) -> None:
        """Set the state of a new episode."""
        raise NotImplementedError

    def _move(self, action: int) -> tuple[float, bool, bool]:
        """Change the state; gives reward, terminated, truncated."""
        raise NotImplementedError

    def _cells(self) -> list[tuple[int, int, int]]:
        """Row, column and brightness of the cells that are not black."""
        raise NotImplementedError

    def render(self) -> Frame:
        """The grid in larger cells, `[256, 256, 3]`."""
        if not self._state:
            raise RuntimeError("render: reset must come first")
        picture = np.empty((GRID * PIXELS, GRID * PIXELS, 3), np.uint8)
        self._draw(picture)
        return picture

    def _draw(self, out: Frame) -> None:
        height, width = out.shape[0] // GRID, out.shape[1] // GRID
        out[...] = 0
        for row, column, brightness in self._cells():
            out[row * height : (row + 1) * height, column * width : (column + 1) * width] = brightness


class Catch(GridTask):
    """An object falls one row per step; the paddle in the last row must be under it at the end.

    Actions: 0 stay, 1 left, 2 right. The reward is 1 or -1 on the last step, which terminates; else 0.
    """

    action_meanings = ("NOOP", "LEFT", "RIGHT")

    def _begin(self) -> None:
        column, paddle = (int(x) for x in self.np_random.integers(GRID, size=2))
        self._state = {"row": 0, "column": column, "paddle": paddle}

    def _move(self, action: int) -> tuple[float, bool, bool]:
        state = self._state
        state["paddle"] = min(max(state["paddle"] + MOVES[action], 0), GRID - 1)
        state["row"] += 1
        terminated = state["row"] == GRID - 1
        caught = state["paddle"] == state["column"]
        return (1.0 if caught else -1.0) if terminated else 0.0, terminated, False

    def _cells(self) -> list[tuple[int, int, int]]:
        state = self._state
        return [(GRID - 1, state["paddle"], 255), (state["row"], state["column"], 255)]


class Recall(GridTask):
    """A cue is shown on one side in the first frame only; after 20 dark frames the question lights up for two.

    Actions: 0 wait, 1 left, 2 right. The action on the question's second frame gives 1 for the side of the cue, -1 for
    any other; the answer is shown, and the next step ends the episode. Earlier actions change nothing, so only a memory
    of over 20 steps does better than chance, and an agent without one cannot exceed a mean of 0.

    The question lasts two frames because the agent sees what the sequence model gave out one step before: that tells
    what is remembered only once the model has been asked.
    """

    action_meanings = ("NOOP", "LEFT", "RIGHT")
    DARK = 20
    ASKED = DARK + 2

    def _begin(self) -> None:
        self._state = {"step": 0, "side": int(self.np_random.integers(2))}

    def _move(self, action: int) -> tuple[float, bool, bool]:
        state = self._state
        asked = state["step"] == self.ASKED
        state["step"] += 1
        right = action == 1 + state["side"]
        return (1.0 if right else -1.0) if asked else 0.0, state["step"] > self.ASKED + 1, False

    def _cells(self) -> list[tuple[int, int, int]]:
        step, side = self._state["step"], self._state["side"]
        if step in (0, self.ASKED + 1):
            return [(row, column + (5 if side else 1), 255) for row in (3, 4) for column in (0, 1)]
        if step > self.DARK:
            return [(row, column, 255) for row in (0, GRID - 1) for column in range(GRID)]
        return []


class Doorway(GridTask):
    """Two rooms with one door between them; the goal in the right room is the only reward, 1, and ends the episode.

    Actions: 0 up, 1 down, 2 left, 3 right; a step into a wall does nothing. The walker starts anywhere in the left
    room; the door in the wall and the goal at the far side are two cells high, their places random. After 64 steps the
    episode is truncated. Random play reaches the goal in about one episode of ten.
    """

    action_meanings = ("UP", "DOWN", "LEFT", "RIGHT")
    LIMIT = 64
    WALL = 4

    def _begin(self) -> None:
        row, column = (int(self.np_random.integers(size)) for size in (GRID, self.WALL))
        door, goal = (int(x) for x in self.np_random.integers(GRID - 1, size=2))
        self._state = {"row": row, "column": column, "door": door, "goal": goal, "step": 0}

    def _move(self, action: int) -> tuple[float, bool, bool]:
        state = self._state
        down, right = ((-1, 0), (1, 0), (0, -1), (0, 1))[action]
        row = min(max(state["row"] + down, 0), GRID - 1)
        column = min(max(state["column"] + right, 0), GRID - 1)
        if column != self.WALL or row - state["door"] in (0, 1):
            state["row"], state["column"] = row, column
        state["step"] += 1
        reached = state["column"] == GRID - 1 and state["row"] - state["goal"] in (0, 1)
        return float(reached), reached, state["step"] >= self.LIMIT and not reached

    def _cells(self) -> list[tuple[int, int, int]]:
        state = self._state
        wall = [(row, self.WALL, 80) for row in range(GRID) if row - state["door"] not in (0, 1)]
        goal = [(state["goal"] + i, GRID - 1, 160) for i in (0, 1)]
        return [*wall, *goal, (state["row"], state["column"], 255)]
