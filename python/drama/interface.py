"""What an environment shows and takes. It is read once from the spaces, and everything after it is built from this."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

LONE = "obs"
"""Name of the only part of an observation."""


@dataclass(frozen=True)
class Image:
    """A part of an observation that is a picture, uint8 `[H, W, C]`."""

    shape: tuple[int, int, int]
    dtype = np.dtype(np.uint8)


@dataclass(frozen=True)
class Vector:
    """A part of an observation that is a row of numbers, float32 `[N]`: measurements, and choices as one-hots."""

    labels: tuple[str, ...]
    """A name for each number."""
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int]:
        """`(N,)`."""
        return (len(self.labels),)


@dataclass(frozen=True)
class Choices:
    """An action that picks one of several for each of K choices: int64 `[K]`, or `[]` for a single choice."""

    counts: tuple[int, ...]
    """How many there are to pick from, for each choice."""
    single: bool = True
    """One number instead of an array."""
    dtype = np.dtype(np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one action."""
        return () if self.single else (len(self.counts),)

    @property
    def width(self) -> int:
        """Numbers that tell of an action: a one-hot for each choice."""
        return sum(self.counts)

    @property
    def words(self) -> str:
        """What a person is told of it."""
        if self.single:
            return f"{self.counts[0]} actions"
        return f"actions of {len(self.counts)} choices, from {', '.join(map(str, self.counts))}"

    def sample(self, random: np.random.Generator, size: int) -> NDArray[Any]:
        """`size` uniformly random actions."""
        if self.single:
            return random.integers(self.counts[0], size=size)
        return random.integers(self.counts, size=(size, len(self.counts)))


@dataclass(frozen=True)
class Continuous:
    """An action of K numbers between -1 and 1: float32 `[K]`."""

    size: int
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one action."""
        return (self.size,)

    @property
    def width(self) -> int:
        """Numbers that tell of an action."""
        return self.size

    @property
    def words(self) -> str:
        """What a person is told of it."""
        return f"continuous actions of {self.size} number{'s' * (self.size != 1)}"

    def sample(self, random: np.random.Generator, size: int) -> NDArray[Any]:
        """`size` uniformly random actions."""
        return random.uniform(-1, 1, size=(size, self.size)).astype(np.float32)


Part: TypeAlias = Image | Vector
Observations: TypeAlias = dict[str, NDArray[Any]]
"""Observations of several environments by part, `[N, ...]`."""


@dataclass(frozen=True)
class Interface:
    """The parts of an observation by name, and the action."""

    observation: Mapping[str, Part]
    action: Choices | Continuous
    meanings: tuple[str, ...] = ()
    """A name for each action of a single choice, such as `UPRIGHTFIRE`; none for other actions."""

    @classmethod
    def of_frames(cls, shape: tuple[int, int, int], actions: int) -> Interface:
        """That of an environment with frames `[H, W, C]` and a single choice of `actions`."""
        return cls({LONE: Image(shape)}, Choices((actions,)))

    @property
    def images(self) -> dict[str, Image]:
        """The parts that are pictures."""
        return {name: part for name, part in self.observation.items() if isinstance(part, Image)}

    @property
    def is_image(self) -> bool:
        """Whether an observation is one picture and nothing else."""
        return list(self.observation) == list(self.images) == [LONE]

    @property
    def vectors(self) -> dict[str, Vector]:
        """The parts that are numbers; at most one."""
        return {name: part for name, part in self.observation.items() if isinstance(part, Vector)}

    def parts(self, observations: Any) -> Observations:
        """What a vector of environments gives, by part."""
        return {LONE: observations} if list(self.observation) == [LONE] else dict(observations)

    def fields(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of each field of a replay, besides those that are always there."""
        fields: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            name: (part.shape, part.dtype) for name, part in self.observation.items()
        }
        return fields | {
            "action": (self.action.shape, self.action.dtype),
            "reward": ((), np.dtype(np.float32)),
            "life_lost": ((), np.dtype(np.bool_)),
        }

    def meaning(self, action: Any) -> str:
        """An action in a few words."""
        if isinstance(self.action, Choices) and self.action.single:
            return self.meanings[int(action)] if self.meanings else str(int(action))
        values = np.asarray(action).tolist()
        return " ".join(f"{value:+.2f}" if isinstance(value, float) else str(value) for value in values)

    def to_json(self) -> str:
        """JSON that `from_json` reads."""
        observation = {
            name: {"image": part.shape} if isinstance(part, Image) else {"vector": part.labels}
            for name, part in self.observation.items()
        }
        action: dict[str, Any] = (
            {"choices": self.action.counts, "single": self.action.single}
            if isinstance(self.action, Choices)
            else {"continuous": self.action.size}
        )
        return json.dumps({"observation": observation, "action": action, "meanings": self.meanings}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Interface:
        """Read what `to_json` wrote. Raises ValueError if it is something else."""
        try:
            values = json.loads(text)
            if not all(name.isidentifier() and name.startswith(LONE) for name in values["observation"]):
                raise ValueError(f"names {list(values['observation'])}")
            observation: dict[str, Part] = {
                name: Image(_sizes(part["image"], 3)) if "image" in part else Vector(tuple(map(str, part["vector"])))  # type: ignore[arg-type]
                for name, part in values["observation"].items()
            }
            action: Choices | Continuous
            if "choices" in values["action"]:
                action = Choices(_sizes(values["action"]["choices"]), bool(values["action"]["single"]))
            else:
                action = Continuous(*_sizes([values["action"]["continuous"]]))
            return cls(observation, action, tuple(map(str, values["meanings"])))
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"not the interface of an environment: {type(error).__name__} {error}") from error

    @classmethod
    def load(cls, path: Path) -> Interface:
        """Read a run's `interface.json`."""
        try:
            return cls.from_json(path.read_text())
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _sizes(values: Any, count: int | None = None) -> tuple[int, ...]:
    sizes = tuple(values)
    limit = 2**22 if count == 3 else 2**16  # nothing that a file says may ask for all the memory
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not sizes or not whole or math.prod(sizes) > limit or len(sizes) != (count or len(sizes)):
        raise ValueError(f"{values!r} are no sizes")
    return sizes
