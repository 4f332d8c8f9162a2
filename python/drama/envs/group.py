"""Environments that one process steps: its share of a vector.

What an environment says that has no place in the shared memory goes through `keep` as a payload `(info, (final_obs,
final_info), objects)`, each part None if there is none, or an exception.
"""

from __future__ import annotations

import copy as copying
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from drama._native import EnvShare, VectorBoard
from drama.envs.arguments import NotMade, plain_array
from drama.envs.layout import Description, Layout, describe_env, flatten, leaves, unflatten

Payload = Any
MAX_CHOICES = 4096
PLAIN = (int, float, complex, str, bytes, type(None), np.generic)
CONTAINERS = (dict, list, set, bytearray, np.ndarray)


class EnvError(RuntimeError):
    """An environment raised an exception. The message holds its traceback, `env_id` the number of the environment."""

    def __init__(self, env_id: int, text: str) -> None:
        super().__init__(f"environment {env_id} raised an exception:\n{text}")
        self.env_id = env_id
        self.text = text

    @property
    def reason(self) -> str:
        """The exception in one line."""
        last = self.text.strip().splitlines()[-1]
        return last.removeprefix("drama.envs.adapt.NotInSpace: ")

    def __reduce__(self) -> tuple[type[EnvError], tuple[int, str]]:
        return EnvError, (self.env_id, self.text)


def describe(error: BaseException) -> str:
    """The traceback as text."""
    return "".join(traceback.format_exception(error))


class failing:
    """Turns an exception into an `EnvError` for environment `index`."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, EnvError | NotMade):
            raise EnvError(self._index, describe(error)) from error


def owned(value: Any) -> Any:
    """A deep copy, or the object itself where it cannot be copied."""
    try:
        return copying.deepcopy(value)
    except Exception:
        return value


def settled(payload: Payload) -> Payload:
    """A payload whose info stays as it is, whatever its environment does to it. Of numbers, strings and arrays of them
    the batch takes a copy anyway."""
    if payload is None or isinstance(payload, Exception) or payload[0] is None:
        return payload

    def copied(value: Any) -> bool:
        return isinstance(value, PLAIN) or (isinstance(value, np.ndarray) and not value.dtype.hasobject)

    info, *others = payload
    return payload if all(map(copied, info.values())) else (owned(info), *others)


def _apart(values: Iterable[Any]) -> list[Any]:
    """The arguments of a call for one environment: no other is handed the same dict, list, set or array, as it may be
    in another process."""
    return [owned(value) if type(value) in CONTAINERS else value for value in values]


def make_one(index: int, env_fn: Callable[[], gymnasium.Env[Any, Any]]) -> gymnasium.Env[Any, Any]:
    """Make environment `index`. Raises EnvError where that fails, NotMade where something else comes of it."""
    with failing(index):
        env: Any = env_fn()
    if not isinstance(env, gymnasium.Env):
        raise NotMade(f"env_fns[{index}]: returned {type(env).__name__}, expected a gymnasium.Env")
    return env


class _Codec:
    """Actions out of a board, observations into it. Apart from `EnvGroup`, which would never be freed if the Rust
    object that it has led back to it."""

    def __init__(
        self, board: VectorBoard, layout: Layout, num_envs: int, action_objects: Callable[[int], Sequence[Any]]
    ) -> None:
        self._layout = layout
        self._action_objects = action_objects
        self._actions, self.observations, self.infos = layout.arrays(board, num_envs)

    def choices(self) -> list[Any]:
        """The actions as the environments get them, where they are few."""
        choices = self._layout.choices
        if choices is None or choices.n > MAX_CHOICES:
            return []
        values = range(int(choices.start), int(choices.start + choices.n))
        return [value if self._layout.info_fields is not None else choices.dtype.type(value) for value in values]

    def row(self) -> tuple[int, np.dtype[Any], tuple[int, ...]] | None:
        """Region, dtype and shape of an observation that is one array."""
        if len(self.observations) != 1 or (array := self.observations[0]) is None:
            return None
        return sum(action is not None for action in self._actions), array.dtype, array.shape[1:]

    def decode(self, index: int) -> Any:
        """The action of an environment."""
        if (choices := self._layout.choices) is not None:
            array = self._actions[0]
            assert array is not None
            action = int(array[index]) + int(choices.start)
            return action if self._layout.info_fields is not None else choices.dtype.type(action)
        objects = iter(() if all(array is not None for array in self._actions) else self._action_objects(index))
        # A copy: the environment may keep it, and the memory is written to again.
        parts = (next(objects) if array is None else array[index].copy() for array in self._actions)
        return unflatten(self._layout.action_space, parts)

    def encode(self, index: int, observation: Any) -> list[Any] | None:
        """Put an observation into its place; gives the parts that have none."""
        space = self._layout.observation_space
        objects = []
        parts = flatten("observation", space, observation)
        for (path, _), array, part in zip(leaves(space), self.observations, parts, strict=True):
            if array is None:
                objects.append(part)
                continue
            part = plain_array(f"observation{path}", part)
            if part.shape != array.shape[1:]:
                raise ValueError(f"observation{path}: got shape {part.shape}, expected {array.shape[1:]}")
            np.copyto(array[index, ...], part, casting="same_kind")
        return objects or None


class EnvGroup:
    """The environments of one worker with their share of the board: first `make`, then `lay_out`, then all else.

    Args:
        board: memory of the vector, still without regions.
        worker: number of the worker, and `first` that of its first environment.
        keep: see `EnvShare`.
        action_objects: gives the parts of an environment's action that are in no region.
    """

    def __init__(
        self,
        board: VectorBoard,
        *,
        worker: int,
        first: int,
        keep: Callable[[int, Payload], object],
        action_objects: Callable[[int], Sequence[Any]],
    ) -> None:
        self.board = board
        self.envs: list[gymnasium.Env[Any, Any]] = []
        self._worker, self._first, self._keep, self._action_objects = worker, first, keep, action_objects
        self._share: EnvShare | None = None

    def make(self, env_fns: Sequence[Callable[[], gymnasium.Env[Any, Any]]]) -> Description:
        """Make the environments; gives what the first says of itself."""
        described: list[Description] = []
        for index, env_fn in enumerate(env_fns, self._first):
            self.envs.append(make_one(index, env_fn))
            with failing(index):
                described.append(describe_env(self.envs[-1]))
        self._layouts = [one.layout for one in described]
        return described[0]

    def lay_out(self, layout: Layout, autoreset: str, num_envs: int, board: VectorBoard | None = None) -> None:
        """Get ready to step, with `board`, which has the regions of `layout`, or one that is made of the present one.

        Raises NotMade if an environment has other spaces."""
        for index, own in enumerate(self._layouts, self._first):
            for name in ("observation_space", "action_space", "info_fields"):
                if (got := getattr(own, name)) != (expected := getattr(layout, name)):
                    raise NotMade(f"environment {index}: {name}: got {got}, expected {expected} as environment 0 has")
        self.board = board or self.board.with_regions(layout.rows())
        self._layout = layout
        codec = _Codec(self.board, layout, num_envs, self._action_objects)
        self._share = EnvShare(
            self.board,
            self._worker,
            autoreset,
            [self._calls(codec, index) for index in range(self._first, self._first + len(self.envs))],
            choices=codec.choices(),
            decode=codec.decode,
            row=codec.row(),
            encode=codec.encode,
            infos=[
                (name, array)
                for name, array in zip(layout.info_fields or (), codec.infos, strict=True)
                if array is not None
            ],
            keep=self._keep,
        )

    def run(self, enough: int) -> None:
        """For the parent: step its posted environments, at least one, until `enough` of all are done."""
        assert self._share is not None
        self._share.run(enough)

    def serve(self) -> None:
        """For a worker process: step what is posted until there is an order."""
        if self._share is None:
            self.board.listen(self._worker)
        else:
            self._share.serve()

    def _calls(self, codec: _Codec, index: int) -> tuple[Any, Any, NDArray[Any] | None]:
        env: Any = self.envs[index - self._first]
        if self._layout.info_fields is None:
            return env.step, env.reset, None
        array = codec.observations[0]
        assert array is not None
        return env.step_into, env.reset_into, array[index, ...]

    def reset(self, seeds: dict[int, int | None], options: dict[str, Any] | None) -> dict[int, Payload]:
        """Reset the environments that `seeds` names; gives what they said that has no place in shared memory."""
        payloads = {}
        for index, seed in seeds.items():
            with failing(index):
                assert self._share is not None
                payloads[index] = settled(self._share.reset(index, {"seed": seed, "options": owned(options)}))
        return payloads

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Call a method of each environment, or get an attribute that is none."""
        results = []
        for index, env in enumerate(self.envs, self._first):
            with failing(index):
                value = env.get_wrapper_attr(name)
                if callable(value):
                    value = value(*_apart(args), **dict(zip(kwargs, _apart(kwargs.values()), strict=True)))
                results.append(value)
        return results

    def set_attr(self, name: str, values: Sequence[Any]) -> None:
        """Set an attribute of each environment."""
        for index, (env, value) in enumerate(zip(self.envs, values, strict=True), self._first):
            with failing(index):
                env.set_wrapper_attr(name, *_apart([value]))

    def set_state(self, states: Sequence[Any]) -> None:
        """Call `set_state` of each environment with its own."""
        for index, (env, state) in enumerate(zip(self.envs, states, strict=True), self._first):
            with failing(index):
                env.get_wrapper_attr("set_state")(state)

    def close(self) -> None:
        """Close all environments; then raise the first error, if one could not be closed."""
        error: EnvError | None = None
        for index, env in enumerate(self.envs, self._first):
            try:
                env.close()
            except Exception as failure:
                error = error or EnvError(index, describe(failure))
        # The share leads back here through `keep`, unseen by the garbage collector.
        self.envs, self._share = [], None
        if error is not None:
            raise error
