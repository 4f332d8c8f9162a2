"""Batches as gymnasium's vector environments take and give them, in and out of the memory of a `VectorBoard`."""

from __future__ import annotations

import copy as copying
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from drama._native import VectorBoard
from drama.envs.arguments import plain_array
from drama.envs.group import EnvError, Payload
from drama.envs.layout import Layout, flatten, leaves, unflatten


class Batches:
    """Actions of all environments in, observations and infos out.

    Args:
        board: shared memory.
        layout: what lies in it.
        num_envs: number of environments.
        copy: whether observations are copied out of the memory.
    """

    def __init__(self, board: VectorBoard, layout: Layout, num_envs: int, copy: bool) -> None:
        self._board, self._layout, self._num_envs, self._copy = board, layout, num_envs, copy
        self._actions, self._observations, self._infos = layout.arrays(board, num_envs)
        # What of the observations is in no array, by leaf and environment.
        self._objects: list[list[Any]] = [[None] * num_envs if array is None else [] for array in self._observations]

    def write_actions(self, actions: Any, ids: list[int] | None) -> dict[int, list[Any]]:
        """Check the actions of the environments `ids` (all if None) and write them; gives the parts of each action
        that have no place in the memory. Raises ValueError and writes nothing if they do not fit the space."""
        choices, count = self._layout.choices, self._num_envs if ids is None else len(ids)
        if choices is not None:
            array = plain_array("actions", actions)
            if array.dtype != np.int64 or array.ndim != 1:
                if array.dtype.kind not in "iu" or array.ndim != 1:
                    got = f"dtype {array.dtype} and shape {array.shape}"
                    raise ValueError(f"actions: got {got}, expected integers of shape ({count},)")
                if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
                    raise ValueError(
                        f"actions: got {array.max()}, expected {choices.start} to {choices.start + choices.n - 1}"
                    )
                array = array.astype(np.int64)
            self._board.write_choices(0, array, int(choices.start), int(choices.n), ids)
            return {}
        space = self._layout.action_space
        parts = flatten("actions", space, actions)
        writes: list[tuple[NDArray[Any], NDArray[Any]]] = []
        objects: list[Sequence[Any]] = []
        for (path, leaf), memory, part in zip(leaves(space), self._actions, parts, strict=True):
            if memory is not None:
                writes.append((memory, _checked(f"actions{path}", leaf, part, (count, *memory.shape[1:]))))
            elif isinstance(part, list | tuple) and len(part) == count:
                objects.append(part)
            else:
                raise ValueError(f"actions{path}: got {part!r}, expected a list or tuple of {count}")
        rows: Any = slice(None) if ids is None else ids
        for memory, values in writes:
            memory[rows] = values
        if not objects:
            return {}
        return dict(zip(range(count) if ids is None else ids, map(list, zip(*objects, strict=True)), strict=True))

    def observe(self, ids: list[int] | None) -> Any:
        """The observations of the environments `ids`, or of all."""

        def part(array: NDArray[Any] | None, items: list[Any]) -> Any:
            if array is not None:
                return array[ids] if ids is not None else array.copy() if self._copy else array
            chosen = tuple(items) if ids is None else tuple(items[index] for index in ids)
            return copying.deepcopy(chosen) if self._copy else chosen

        return unflatten(self._layout.observation_space, map(part, self._observations, self._objects))

    def observation(self, index: int, objects: Sequence[Any]) -> Any:
        """A copy of one environment's observation, whose parts without a place are `objects`."""
        gone = iter(objects)
        parts: Iterator[Any] = (next(gone) if array is None else array[index].copy() for array in self._observations)
        return unflatten(self._layout.observation_space, parts)

    def take_in(
        self,
        told: Sequence[int],
        payloads: list[tuple[int, Payload]],
        compact: list[int] | None,
        batch: gymnasium.vector.VectorEnv[Any, Any, Any],
    ) -> dict[str, Any]:
        """Keep what came besides the memory, and give the infos of the environments `told`: as arrays of all
        environments with `batch` the vector, or only of `compact`."""
        infos: dict[str, Any] = {}
        if compact is not None:
            batch = _Batch(len(compact))
        for name, array in zip(self._layout.info_fields or (), self._infos, strict=True):
            assert array is not None
            if len(told) == batch.num_envs:
                infos[name] = array.copy() if compact is None else array[compact]
                infos[f"_{name}"] = np.ones(len(told), np.bool_)
            else:
                infos[name], infos[f"_{name}"] = np.zeros_like(array), np.zeros(len(array), np.bool_)
                infos[name][told], infos[f"_{name}"][told] = array[told], True
        for index, (info, last, objects) in payloads:
            position = index if compact is None else compact.index(index)
            if objects is not None:
                for items, item in zip((items for items in self._objects if items), objects, strict=True):
                    items[index] = item
            given = [] if last is None else [{"final_obs": last[0], "final_info": last[1]}]
            for more in given if info is None else [*given, info]:
                try:
                    infos = batch._add_info(infos, more, position)
                except (TypeError, ValueError, OverflowError) as error:
                    what = f"what the info holds makes no array with that of the others: {error}; info: {more!r:.200}"
                    raise EnvError(index, what) from error
        return infos

    def state(self) -> tuple[list[NDArray[Any] | None], list[list[Any]]]:
        """The observations that the environments gave last."""
        return [array if array is None else array.copy() for array in self._observations], [
            copying.deepcopy(items) for items in self._objects
        ]

    def set_state(self, state: tuple[list[NDArray[Any] | None], list[list[Any]]]) -> None:
        """Take over what `state` gave."""
        for array, values in zip(self._observations, state[0], strict=True):
            if array is not None:
                array[...] = values
        self._objects = copying.deepcopy(state[1])


class _Batch(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Adds infos to arrays of fewer environments."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs


def _checked(name: str, space: spaces.Space[Any], part: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Actions as an array of the right shape. Boxes may be left, as environments clip; choices may not."""
    values, dtype = plain_array(name, part), np.dtype(space.dtype)
    if values.shape != shape or not np.can_cast(values.dtype, dtype, "same_kind"):
        got = f"{values.dtype} and shape {values.shape}"
        raise ValueError(f"{name}: got {got}, expected {dtype} and shape {shape}")
    low: Any = 0
    high: Any = 1
    if isinstance(space, spaces.Box):
        return values
    if isinstance(space, spaces.Discrete):
        low, high = space.start, space.start + space.n - 1
    elif isinstance(space, spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
    if not ((values >= low) & (values <= high)).all():
        raise ValueError(f"{name}: got {values!r}, expected values from {low} to {high}")
    return values
