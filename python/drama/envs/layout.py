"""What lies where in the memory of a vector: actions and observations of array-like spaces, one region per leaf of the
space, then info fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from drama._native import VectorBoard


def leaves(space: spaces.Space[Any], path: str = "") -> list[tuple[str, spaces.Space[Any]]]:
    """The spaces inside nested Dict and Tuple spaces, with where they are, as in `["camera"][0]`."""
    if isinstance(space, spaces.Dict):
        return [leaf for key, sub in space.spaces.items() for leaf in leaves(sub, f"{path}[{key!r}]")]
    if isinstance(space, spaces.Tuple):
        return [leaf for index, sub in enumerate(space.spaces) for leaf in leaves(sub, f"{path}[{index}]")]
    return [(path, space)]


def flatten(name: str, space: spaces.Space[Any], value: Any) -> list[Any]:
    """The parts of `value` in the order of `leaves`. Raises ValueError if it is not nested as the space."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or not all(key in value for key in space.spaces):
            got = f"the keys {sorted(value)}" if isinstance(value, Mapping) else f"{type(value).__name__}"
            raise ValueError(f"{name}: got {got}, expected a mapping with the keys {list(space.spaces)}")
        return [leaf for key, sub in space.spaces.items() for leaf in flatten(f"{name}[{key!r}]", sub, value[key])]
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            got = f"{len(value)}" if isinstance(value, tuple | list) else f"{type(value).__name__}"
            raise ValueError(f"{name}: got {got}, expected a tuple of {len(space.spaces)}")
        parts = zip(space.spaces, value, strict=True)
        return [leaf for index, (sub, part) in enumerate(parts) for leaf in flatten(f"{name}[{index}]", sub, part)]
    return [value]


def unflatten(space: spaces.Space[Any], parts: Iterator[Any]) -> Any:
    """Nest what `flatten` gave."""
    if isinstance(space, spaces.Dict):
        return {key: unflatten(sub, parts) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(unflatten(sub, parts) for sub in space.spaces)
    return next(parts)


def is_array(space: spaces.Space[Any]) -> bool:
    """Whether gymnasium batches the space as one array."""
    return isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)


@dataclass(frozen=True)
class Layout:
    """What lies in each region of a board: leaves of the actions, leaves of the observations, info fields."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    info_fields: dict[str, np.dtype[Any]] | None
    """Info fields in shared memory, for environments with `step_into` and `reset_into`; else None."""

    @property
    def choices(self) -> spaces.Discrete | None:
        """The action space if it is discrete; then region 0 holds choices counted from 0."""
        return self.action_space if isinstance(self.action_space, spaces.Discrete) else None

    def _regions(self) -> Iterator[tuple[np.dtype[Any], tuple[int, ...]] | None]:
        for _, leaf in leaves(self.action_space):
            dtype = np.dtype(np.int64 if self.choices else leaf.dtype)
            yield (dtype, leaf.shape or ()) if is_array(leaf) else None
        for _, leaf in leaves(self.observation_space):
            yield (np.dtype(leaf.dtype), leaf.shape or ()) if is_array(leaf) else None
        for dtype in (self.info_fields or {}).values():
            yield (np.dtype(dtype), ())

    def rows(self) -> list[int]:
        """Bytes per environment of each region; there is none for a leaf that is no array."""
        regions = (region for region in self._regions() if region is not None)
        return [dtype.itemsize * int(np.prod(shape)) for dtype, shape in regions]

    def arrays(self, board: VectorBoard, num_envs: int) -> tuple[list[NDArray[Any] | None], ...]:
        """The regions as arrays `[num_envs, ...]`, None for a leaf without one: actions, observations, info fields."""
        arrays: list[NDArray[Any] | None] = []
        index = 0
        for region in self._regions():
            if region is None:
                arrays.append(None)
                continue
            dtype, shape = region
            arrays.append(board.region(index).view(dtype).reshape(num_envs, *shape))
            index += 1
        actions, observations = len(leaves(self.action_space)), len(leaves(self.observation_space))
        return arrays[:actions], arrays[actions : actions + observations], arrays[actions + observations :]


def fast_fields(env: gymnasium.Env[Any, Any]) -> dict[str, np.dtype[Any]] | None:
    """`info_fields` of an environment that writes its frame into given memory, else None."""
    if not all(hasattr(env, name) for name in ("step_into", "reset_into", "info_fields")):
        return None
    if not isinstance(env.action_space, spaces.Discrete) or not isinstance(env.observation_space, spaces.Box):
        return None
    return {name: np.dtype(dtype) for name, dtype in env.info_fields.items()}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Description:
    """What an environment says of itself."""

    metadata: dict[str, Any]
    render_mode: str | None
    layout: Layout


def describe_env(env: gymnasium.Env[Any, Any]) -> Description:
    """What is to be known of an environment before it is stepped."""
    layout = Layout(env.observation_space, env.action_space, fast_fields(env))
    for name in ("observation_space", "action_space"):
        if not isinstance(space := getattr(layout, name), spaces.Space):
            raise TypeError(f"{name}: got {space!r}, expected a space of Gymnasium's")
    return Description(dict(env.metadata), env.render_mode, layout)
