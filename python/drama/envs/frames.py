"""What this package asks of an environment, and what all of its own share."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import gymnasium
import numpy as np
from numpy.typing import NDArray

from drama.interface import LONE, Choices, Image, Interface

Frame: TypeAlias = NDArray[np.uint8]


class FrameEnv(gymnasium.Env[Frame, np.int64], ABC):
    """A `gymnasium.Env` of uint8 frames and discrete actions.

    A subclass says how to `reset_into` and `step_into` memory that it is given; `reset` and `step` take fresh memory,
    the vector engine gives its own. `render` gives a picture for people.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012  # gymnasium declares it so
    info_fields: ClassVar[Mapping[str, type[np.generic]]] = {"lives": np.int64, "life_lost": np.bool_}
    """What every `info` holds, with the types."""
    action_space: gymnasium.spaces.Discrete
    action_meanings: Sequence[str]
    """ALE's name of each action, such as `UPRIGHTFIRE`."""
    _shape: tuple[int, ...]
    """Of an observation."""

    def _describe(self, shape: tuple[int, ...], render_mode: str | None) -> None:
        """Set the spaces, for observations of this shape. Raises ValueError for a mode that there is not."""
        modes = self.metadata["render_modes"]
        if render_mode is not None and render_mode not in modes:
            wrapped = "; gymnasium.make shows it to people, too" if render_mode == "human" else ""
            raise ValueError(f"render_mode: got {render_mode!r}, expected None or one of {modes}{wrapped}")
        self.render_mode = render_mode
        self._shape = shape
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self.action_meanings))

    @property
    def interface(self) -> Interface:
        """What it shows and takes."""
        action = Choices((len(self.action_meanings),))
        return Interface({LONE: Image(self._shape)}, action, tuple(self.action_meanings))  # type: ignore[arg-type]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        frame = np.empty(self._shape, np.uint8)
        return frame, self.reset_into(frame, seed=seed, options=options)

    def step(self, action: np.int64 | int) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        frame = np.empty(self._shape, np.uint8)
        return frame, *self.step_into(action, frame)

    @abstractmethod
    def reset_into(
        self, out: Frame, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """`reset` that writes the observation to `out`, C-contiguous and of the observation's shape; gives the info."""

    @abstractmethod
    def step_into(self, action: np.int64 | int, out: Frame) -> tuple[float, bool, bool, dict[str, Any]]:
        """`step` that writes the observation to `out`; gives reward, terminated, truncated, info."""

    @abstractmethod
    def render(self) -> Frame:
        """A picture `[H, W, 3]`, whatever the render mode."""

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """Everything that decides the future of this environment, random numbers included, as plain values."""

    @abstractmethod
    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` returned, in any process."""

    def _seed(self, seed: int | None, options: dict[str, Any] | None) -> int | None:
        """Gymnasium's own `reset`, which begins `np_random` anew if there is a seed; gives it as Python's integer."""
        seed = None if seed is None else operator.index(seed)
        super().reset(seed=seed, options=options)
        return seed

    def _check_action(self, action: np.int64 | int) -> None:
        if not 0 <= action < len(self.action_meanings):
            raise ValueError(f"action: {action} is out of range; expected 0 to {len(self.action_meanings) - 1}")
