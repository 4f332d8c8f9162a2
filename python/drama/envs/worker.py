"""Where environments are stepped: a share of them in this process or, through `main`, in a worker process.

Actions and observations of array-like spaces lie in the shared memory of a `VectorBoard`, one region per leaf of the
space; what else an environment says goes through `keep` and `send` as a payload `(info, (final_obs, final_info),
objects)`, each part None if there is none, or an exception.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from drama._native import EnvShare, VectorBoard

Payload = Any
MAX_CHOICES = 4096
MAIL_BYTES = 60_000
"""Larger values go through a file."""


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
            part = np.asarray(part)
            if part.shape != array.shape[1:]:
                raise ValueError(f"observation{path}: got shape {part.shape}, expected {array.shape[1:]}")
            np.copyto(array[index, ...], part, casting="same_kind")
        return objects or None


class EnvGroup:
    """The environments of one worker with their share of the board.

    Args:
        board: shared memory.
        layout: what lies in it; each environment must have these spaces.
        worker: number of the worker, and `first` that of its first environment.
        env_fns: make the environments.
        keep, send: see `EnvShare`.
        action_objects: gives the parts of an environment's action that are in no region.
    """

    def __init__(
        self,
        board: VectorBoard,
        layout: Layout,
        *,
        worker: int,
        first: int,
        num_envs: int,
        autoreset: str,
        env_fns: Sequence[Callable[[], gymnasium.Env[Any, Any]]],
        keep: Callable[[int, Payload], object],
        send: Callable[[Any], object],
        action_objects: Callable[[int], Sequence[Any]],
    ) -> None:
        self._layout = layout
        self._first = first
        codec = _Codec(board, layout, num_envs, action_objects)
        self.envs: list[gymnasium.Env[Any, Any]] = []
        try:
            for index, env_fn in enumerate(env_fns, first):
                self._create(index, env_fn)
        except BaseException:
            self.close()
            raise
        self._share = EnvShare(
            board,
            worker,
            autoreset,
            [self._calls(codec, index) for index in range(first, first + len(self.envs))],
            choices=codec.choices(),
            decode=codec.decode,
            row=codec.row(),
            encode=codec.encode,
            infos=[
                (name, array)
                for name, array in zip(layout.info_fields or (), codec.infos, strict=True)
                if array is not None
            ],
            keep=keep,
            send=send,
        )
        self.run, self.serve = self._share.run, self._share.serve

    def _create(self, index: int, env_fn: Callable[[], gymnasium.Env[Any, Any]]) -> None:
        try:
            env = env_fn()
            self.envs.append(env)
            fields = fast_fields(env)
        except Exception as error:
            raise EnvError(index, describe(error)) from error
        for name, got, expected in (
            ("observation_space", env.observation_space, self._layout.observation_space),
            ("action_space", env.action_space, self._layout.action_space),
            ("info_fields", fields, self._layout.info_fields),
        ):
            if got != expected:
                raise ValueError(f"environment {index}: {name}: got {got}, expected {expected} as environment 0 has")

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
                payloads[index] = self._share.reset(index, {"seed": seed, "options": options})
        return payloads

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Call a method of each environment, or get an attribute that is none."""
        results = []
        for index, env in enumerate(self.envs, self._first):
            with failing(index):
                value = env.get_wrapper_attr(name)
                results.append(value(*args, **kwargs) if callable(value) else value)
        return results

    def set_attr(self, name: str, values: Sequence[Any]) -> None:
        """Set an attribute of each environment."""
        for index, (env, value) in enumerate(zip(self.envs, values, strict=True), self._first):
            with failing(index):
                env.set_wrapper_attr(name, value)

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
        self.envs = []
        if error is not None:
            raise error


def dump(value: Any) -> bytes:
    """Pickled; by value where it is of the script that was started, which another process cannot import."""
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:
        import cloudpickle

        return cloudpickle.dumps(value)


def to_mail(value: Any) -> bytes:
    """What goes into the mail for `value`: itself, or the name of a file that holds it if it is too large."""
    import cloudpickle

    data = cloudpickle.dumps(value)
    if len(data) < MAIL_BYTES:
        return b"\0" + data
    with tempfile.NamedTemporaryFile(prefix="drama-mail-", delete=False) as file:
        file.write(data)
    return b"\1" + os.fsencode(file.name)


def from_mail(mail: bytes) -> Any:
    """The value that `to_mail` put there."""
    if mail[:1] == b"\0":
        return pickle.loads(mail[1:])
    path = os.fsdecode(mail[1:])
    with open(path, "rb") as file:
        value = pickle.load(file)
    os.unlink(path)
    return value


class failing:
    """Turns an exception into an `EnvError` for environment `index`."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception):
            raise EnvError(self._index, describe(error)) from error


def main(socket: int, parent: int) -> None:
    """Run a worker process: take orders from `socket`, and step environments between them."""
    from multiprocessing.connection import Connection

    import cloudpickle

    # Ctrl-C reaches the whole terminal group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    VectorBoard.die_with_parent(parent)
    os.set_inheritable(socket, False)
    connection: Connection[Any, Any] = Connection(socket)

    def answer(kind: str, *values: Any) -> None:
        connection.send_bytes(cloudpickle.dumps((kind, *values)))

    def keep(index: int, payload: Payload) -> bytes | None:
        if isinstance(payload, Exception):
            payload = describe(payload)
        try:
            data = dump(payload)
        except Exception:
            text = f"the info or observation cannot be sent to another process:\n{traceback.format_exc()}"
            data = pickle.dumps(text)
        return None if board.write_mail(index, data) else data

    def order(method: str, arguments: tuple[Any, ...]) -> None:
        try:
            answer("value", getattr(group, method)(*arguments))
        except EnvError as error:
            answer("failed", error.env_id, error.text)
        except Exception:
            answer("failed", first, traceback.format_exc())

    setup = cloudpickle.loads(connection.recv_bytes())
    board = VectorBoard(setup["shares"], setup["layout"].rows(), shared=True, crowded=setup["crowded"], fd=setup["fd"])
    first = setup["first"]
    try:
        for data in setup["registered"]:
            with contextlib.suppress(Exception):  # what wants modules that are not here is missed by who asks for it
                spec = cloudpickle.loads(data)
                gymnasium.registry.setdefault(spec.id, spec)
        group = EnvGroup(
            board,
            setup["layout"],
            worker=setup["worker"],
            first=first,
            num_envs=sum(setup["shares"]),
            autoreset=setup["autoreset"],
            env_fns=cloudpickle.loads(setup["env_fns"]),
            keep=keep,
            send=connection.send_bytes,
            action_objects=lambda index: from_mail(board.read_mail(index)),
        )
    except EnvError as error:
        return answer("failed", error.env_id, error.text)
    except Exception as error:
        return answer("refused", str(error))
    answer("value", None)
    try:
        while True:
            group.serve()
            order(*cloudpickle.loads(connection.recv_bytes()))
    except (EOFError, OSError):  # the parent closed the connection
        group.close()
    return None
