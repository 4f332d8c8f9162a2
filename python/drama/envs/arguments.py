"""Checks of what a vector is given; each error names the argument, what came and what was expected."""

from __future__ import annotations

import functools
import inspect
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from drama.config import did_you_mean

EnvFn: TypeAlias = Callable[[], gymnasium.Env[Any, Any]]
VECTOR_OPTIONS = ("num_workers", "autoreset_mode", "batch_size", "copy", "on_worker_death", "timeout")
"""Keywords of a vector, which no environment is given."""


class NotMade(ValueError):
    """What was given makes no environment; where the fault is with who gave it, and no traceback says more."""


def count(name: str, value: Any, low: int, high: int | None = None) -> int:
    """An integer in its bounds, of any type that is one."""
    expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {value!r}, expected {expected}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name}: got {number}, expected {expected}")
    return number


def flag(name: str, value: Any) -> bool:
    """True or false, for which no text is taken."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: got {value!r}, expected True or False")
    return bool(value)


def seconds(name: str, value: Any, zero: bool = False) -> float | None:
    """A time to wait, of any type that is a number, or None."""
    if value is None:
        return None
    expected = f"seconds {'of at least' if zero else 'above'} 0 or None"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    time = float(value)
    if not (time >= 0 if zero else time > 0) or time == float("inf"):
        raise ValueError(f"{name}: got {value}, expected {expected}")
    return time


def choice(name: str, value: Any, known: Sequence[str]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: got {value!r}, expected {' or '.join(map(repr, known))}")
    return value


def plain_array(name: str, value: Any) -> NDArray[Any]:
    """An array of what was given, none of which is masked."""
    if np.ma.is_masked(value):
        raise ValueError(f"{name}: got masked values, expected none")
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name}: got {type(value).__name__}, which NumPy makes no array of: {error}") from None


def env_functions(env_fns: Any, num_envs: Any, kwargs: Mapping[str, Any]) -> list[EnvFn]:
    """A function for each environment, with the arguments `kwargs` where one function or name stands for all."""
    if isinstance(env_fns, gymnasium.Env | gymnasium.vector.VectorEnv):
        got = f"an environment ({type(env_fns).__name__})"
        raise TypeError(f"env_fns: got {got}, expected what makes one: its id, or a function such as lambda: make(...)")
    if isinstance(env_fns, str) or callable(env_fns):
        if num_envs is None:
            raise TypeError("num_envs: got None, expected the number of environments, as env_fns says what to make")
        number = count("num_envs", num_envs, 1)
        kwargs = {name: value.item() if isinstance(value, np.generic) else value for name, value in kwargs.items()}
        return [_by_name(env_fns, kwargs) if isinstance(env_fns, str) else _with_arguments(env_fns, kwargs)] * number
    if isinstance(env_fns, bytes | Mapping) or not isinstance(env_fns, Iterable):
        expected = "functions that make one environment each, one such function, or the id of a registered environment"
        raise TypeError(f"env_fns: got {type(env_fns).__name__}, expected {expected}")
    env_fns = list(env_fns)
    if not env_fns:
        raise ValueError("env_fns: got none, expected at least one function that makes an environment")
    for index, env_fn in enumerate(env_fns):
        if not callable(env_fn):
            raise TypeError(f"env_fns[{index}]: got {type(env_fn).__name__}, expected a function")
    for name in kwargs:
        what = "no option of a vector, and functions in a list are called without arguments"
        raise TypeError(f"{name}: is {what}{did_you_mean(name, VECTOR_OPTIONS)}")
    if num_envs is not None:
        count("num_envs", num_envs, len(env_fns), len(env_fns))
    return env_fns


def _with_arguments(env_fn: Callable[..., gymnasium.Env[Any, Any]], kwargs: Mapping[str, Any]) -> EnvFn:
    if not kwargs:
        return env_fn
    try:
        inspect.signature(env_fn).bind(**kwargs)
    except ValueError:  # written in C
        pass
    except TypeError as error:
        hints = "".join(did_you_mean(name, VECTOR_OPTIONS) for name in kwargs)
        raise TypeError(f"env_fns: the function cannot be called with {kwargs}: {error}{hints}") from None
    return functools.partial(env_fn, **kwargs)


def _by_name(name: str, kwargs: Mapping[str, Any]) -> EnvFn:
    if ":" not in name:  # that imports a module first, in the process where it is made
        try:
            gymnasium.spec(name)
        except gymnasium.error.Error as error:
            raise ValueError(
                f"env_fns: {name!r} cannot be made: {error} (make_atari makes Atari games and small tasks)"
            ) from None
    return functools.partial(_registered, name, dict(kwargs))


def _registered(name: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Make what is registered under a name. What is wrong with the name or the arguments is a `NotMade`."""
    try:
        return gymnasium.make(name, **kwargs)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        hint = " (module:id imports a module that registers an environment)" if ":" in name else ""
        raise NotMade(f"env_fns: {name!r} cannot be made: {error}{hint}") from None
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        hints = "".join(did_you_mean(each, VECTOR_OPTIONS) for each in kwargs)
        raise NotMade(f"env_fns: {name!r} cannot be made with {kwargs}: {error}{hints}") from None


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
