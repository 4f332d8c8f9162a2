"""Checks of what a vector is given; each error names the argument, what came and what was expected."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

EnvFn: TypeAlias = Callable[[], gymnasium.Env[Any, Any]]


def count(name: str, value: Any, low: int, high: int | None = None) -> int:
    """An integer in its bounds, of any type that is one."""
    expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {value!r}, expected {expected}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name}: got {number}, expected {expected}")
    return number


def env_functions(env_fns: Any, num_envs: Any) -> list[EnvFn]:
    """A function for each environment."""
    if isinstance(env_fns, str) or callable(env_fns):
        if num_envs is None:
            raise TypeError("num_envs: got None, expected the number of environments, as env_fns says what to make")
        number = count("num_envs", num_envs, 1)
        return [_by_name(env_fns) if isinstance(env_fns, str) else env_fns] * number
    env_fns = list(env_fns)
    if not env_fns:
        raise ValueError("env_fns: got none, expected at least one function that makes an environment")
    for index, env_fn in enumerate(env_fns):
        if not callable(env_fn):
            raise TypeError(f"env_fns[{index}]: got {type(env_fn).__name__}, expected a function")
    if num_envs is not None:
        count("num_envs", num_envs, len(env_fns), len(env_fns))
    return env_fns


def _by_name(name: str) -> EnvFn:
    if ":" not in name:  # that imports a module first, in the process where it is made
        try:
            gymnasium.spec(name)
        except gymnasium.error.Error as error:
            raise ValueError(
                f"env_fns: {name!r} cannot be made: {error} (make_atari makes Atari games and small tasks)"
            ) from None
    return functools.partial(gymnasium.make, name)


def checked_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """An autoreset mode, by its value or by its name."""
    by_name = {plain(one.name): one for one in AutoresetMode}
    found = by_name.get(plain(mode)) if isinstance(mode, str) else mode
    if not isinstance(found, AutoresetMode):
        modes = ", ".join(repr(one.value) for one in AutoresetMode)
        raise ValueError(f"autoreset_mode: got {mode!r}, expected one of {modes}")
    return found


def plain(name: str) -> str:
    """`nextstep` of any way to spell it."""
    return name.replace("_", "").replace("-", "").lower()


def checked_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """A seed for each environment."""
    if seed is None:
        return [None] * num_envs
    if not isinstance(seed, Sequence | np.ndarray) or np.ndim(seed) == 0:  # type: ignore[arg-type]
        first = count("seed", seed, 0)
        return [first + index for index in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"seed: got {len(seed)} seeds, expected {num_envs}, one for each environment")
    return [None if one is None else count("seed", one, 0) for one in seed]


def masked(mask: Any, num_envs: int) -> list[int]:
    """The environments where a mask of `reset` is true."""
    expected = f"a boolean array of shape ({num_envs},) that is true somewhere"
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        got = f"dtype {array.dtype}" if isinstance(mask, np.ndarray) else repr(mask)
        raise TypeError(f"options['reset_mask']: got {got}, expected {expected}")
    if array.shape != (num_envs,) or not array.any():
        raise ValueError(f"options['reset_mask']: got {mask!r}, expected {expected}")
    return np.flatnonzero(array).tolist()


def checked_ids(env_ids: Any, num_envs: int) -> list[int]:
    """Numbers of different environments."""
    ids = [count("env_ids", index, 0, num_envs - 1) for index in np.atleast_1d(env_ids)]
    if not ids or len(set(ids)) != len(ids):
        raise ValueError(f"env_ids: got {ids}, expected different environments, at least one")
    return ids
