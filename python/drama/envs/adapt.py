"""Any Gymnasium environment as this package trains on it: observations in parts, actions as choices or in [-1, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from drama.config import EnvConfig
from drama.envs.frames import FrameEnv
from drama.envs.layout import flatten, leaves, unflatten
from drama.interface import LONE, Choices, Continuous, Image, Interface, Part, Vector

LEAST_SIDE = 16
"""Pixels on each side from which on an array of bytes is a picture, not a table of numbers."""
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
SLACK = 1e-3
"""How far outside of its bounds a number may be, relative to them: rounding."""

Convert = Callable[[Any], NDArray[Any]]


class NotInSpace(ValueError):
    """An environment gave what it says that it does not give, or a number that is none."""


class Adapter:
    """Turns observations of one environment into parts, and actions back into its own, as `interface` names them.

    Images become uint8 `[size, size, C]`, resized by area, whatever their layout; all else becomes one float32 vector,
    choices as one-hots. Discrete actions count from 0, continuous ones reach from -1 to 1.

    Args:
        observation_space, action_space: of the environment.
        config: `size`, `grayscale`, `without` and `check` are used.
        name: of the environment, for messages.

    Raises:
        ValueError: for spaces that cannot be learned from; the message names them and what would help.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        config: EnvConfig,
        name: str,
        meanings: tuple[str, ...] = (),
    ) -> None:
        self._space, self._config, self._name = observation_space, config, name
        self._leaves = [(_plain(path), leaf) for path, leaf in leaves(observation_space)]
        names = [leaf_name for leaf_name, _ in self._leaves]
        for left_out in config.without:
            if not any(_within(other, left_out) for other in names):
                raise ValueError(
                    f"env.without: {left_out!r} is no part of the observation; there are {', '.join(names)}"
                )
        self._images: dict[str, tuple[int, Convert]] = {}
        self._numbers: list[tuple[int, Convert]] = []
        observation = self._read_observation()
        action, self.native = self._read_action(action_space)
        if isinstance(action, Choices) and action.single and len(meanings) != action.counts[0]:
            meanings = tuple(map(str, range(action.counts[0])))
        self.interface = Interface(observation, action, meanings)

    native: Callable[[Any], Any]
    """An action of `interface` as the environment takes it."""

    def parts(self, observation: Any, step: int) -> dict[str, NDArray[Any]]:
        """An observation by part. Raises ValueError that names `step` if it is not of its space, or not finite."""
        values = flatten("observation", self._space, observation)
        found = {
            key: convert(self._checked(index, values[index], step)) for key, (index, convert) in self._images.items()
        }
        if self._numbers:
            numbers = [convert(self._checked(index, values[index], step)) for index, convert in self._numbers]
            found[next(iter(self.interface.vectors))] = np.concatenate(numbers)
        return found

    def fits(self, observation: Any) -> bool:
        """Whether it is the observation of one environment, by its shapes."""
        try:
            values = flatten("observation", self._space, observation)
        except ValueError:
            return False
        return all(np.shape(value) == (leaf.shape or ()) for value, (_, leaf) in zip(values, self._leaves, strict=True))

    def split(self, observations: Any) -> list[Any]:
        """The observations of several environments, one by one. Raises ValueError if they do not fit the space."""
        values = flatten("observation", self._space, observations)
        for value, (name, leaf) in zip(values, self._leaves, strict=True):
            shape = np.shape(value)
            if shape[1:] != (leaf.shape or ()) or not shape or shape[0] != np.shape(values[0])[0]:
                what = f"observation {name!r}" if name else "observation"
                raise ValueError(
                    f"{what}: got shape {shape}, expected {leaf.shape or ()} or that of several environments"
                )
        rows = zip(*values, strict=True)
        return [unflatten(self._space, iter(row)) for row in rows]

    def _read_observation(self) -> dict[str, Part]:
        images: dict[str, Image] = {}
        labels: list[str] = []
        for index, (name, leaf) in enumerate(self._leaves):
            if any(_within(name, left_out) for left_out in self._config.without):
                continue
            if _is_image(leaf):
                key = _field(name, images)
                images[key], convert = _read_image(leaf, self._config)
                self._images[key] = (index, convert)
            else:
                part_labels, convert = self._read_numbers(name, leaf)
                labels += part_labels
                self._numbers.append((index, convert))
        if not images and not labels:
            raise ValueError(f"observation: nothing of {self._name}'s is left; env.without names all of it")
        found: dict[str, Part] = dict(images)
        if labels:
            found["obs_vector" if images else LONE] = Vector(tuple(labels))
        elif len(images) == 1:
            (self._images[LONE],) = (self._images.pop(key) for key in images)
            (found,) = ({LONE: part} for part in found.values())
        return found

    def _read_numbers(self, name: str, leaf: spaces.Space[Any]) -> tuple[list[str], Convert]:
        """Labels of the numbers that a leaf becomes, and what makes them of it."""
        label = name or "x"
        if isinstance(leaf, spaces.Discrete):
            start, n = int(leaf.start), int(leaf.n)
            return [f"{label}={start + i}" for i in range(n)], lambda x: _one_hots(np.array([x]), (start,), (n,))
        if isinstance(leaf, spaces.MultiDiscrete):
            starts, counts = tuple(leaf.start.flatten().tolist()), tuple(leaf.nvec.flatten().tolist())
            names = [
                f"{label}[{i}]={s + j}" for i, (s, n) in enumerate(zip(starts, counts, strict=True)) for j in range(n)
            ]
            return names, lambda x: _one_hots(np.asarray(x).flatten(), starts, counts)
        if isinstance(leaf, spaces.Box) and _is_image(spaces.Box(0, 255, leaf.shape, np.uint8)):
            raise ValueError(
                f"observation space: {name or 'the observation'} of {self._name} has the shape of an image,"
                f" {leaf.shape}, but no bounds; give its Box low=0 and high=255 (or 1)"
            )
        if isinstance(leaf, spaces.MultiBinary | spaces.Box) and leaf.dtype is not None:
            size = int(np.prod(leaf.shape))
            names = [label] if size == 1 else [f"{label}[{i}]" for i in range(size)]
            return names, lambda x: np.asarray(x, np.float32).reshape(-1)
        what = "the observation" if not name else f"the part {name!r} of the observation"
        raise ValueError(
            f"observation space: {what} of {self._name} is {type(leaf).__name__}, from which nothing can be learned"
            + " here;"
            + (f" --env.without {name} (`env.without`) leaves it out, or a" if name else " a")
            + " gymnasium.ObservationWrapper turns it into a Box"
        )

    def _read_action(self, space: spaces.Space[Any]) -> tuple[Choices | Continuous, Callable[[Any], Any]]:
        if isinstance(space, spaces.Discrete):
            start, dtype = int(space.start), space.dtype
            return Choices((int(space.n),)), lambda a: dtype.type(start + int(a))
        if isinstance(space, spaces.MultiDiscrete):
            shape, starts, kind = space.shape, space.start, space.dtype
            counts = tuple(space.nvec.flatten().tolist())
            return Choices(counts, single=False), lambda a: (np.asarray(a).reshape(shape) + starts).astype(kind)
        if isinstance(space, spaces.MultiBinary):
            shape, kind = space.shape, space.dtype
            counts = (2,) * int(np.prod(shape))
            return Choices(counts, single=False), lambda a: np.asarray(a).reshape(shape).astype(kind)
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                raise ValueError(
                    f"action space: {self._name} takes numbers without bounds (from {space.low.min()} to"
                    f" {space.high.max()}); give the space bounds, or wrap the environment in"
                    " gymnasium.wrappers.RescaleAction"
                )
            low, high, kind = space.low, space.high, space.dtype
            least, most = low.astype(np.float64), high.astype(np.float64)

            def scaled(action: Any) -> NDArray[Any]:
                share = (np.clip(np.asarray(action, np.float64), -1, 1).reshape(low.shape) + 1) / 2
                return np.clip((least * (1 - share) + most * share).astype(kind), low, high)

            return Continuous(int(np.prod(space.shape))), scaled
        raise ValueError(
            f"action space: {self._name} takes {type(space).__name__}, which cannot be learned here; a"
            " gymnasium.ActionWrapper can make it Discrete, MultiDiscrete, MultiBinary or a bounded Box"
        )

    def _checked(self, index: int, value: Any, step: int) -> Any:
        """The value, if it lies in its space."""
        name, leaf = self._leaves[index]
        where = f"observation{f' {name!r}' if name else ''} at step {step} of the episode"
        array = np.asarray(value)
        if array.shape != (leaf.shape or ()):
            raise NotInSpace(f"{where}: got shape {array.shape}, expected {leaf.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NotInSpace(f"{where}: holds a value that is not a finite number")
        if isinstance(leaf, spaces.Discrete | spaces.MultiDiscrete):
            if not leaf.contains(value) and not leaf.contains(array.astype(leaf.dtype)):
                raise NotInSpace(f"{where}: {value!r} is not in its space {leaf}")
        elif self._config.check and isinstance(leaf, spaces.Box) and array.dtype != np.uint8:
            slack = SLACK * (1 + np.maximum(np.abs(np.nan_to_num(leaf.low)), np.abs(np.nan_to_num(leaf.high))))
            with np.errstate(over="ignore"):
                outside = (array < leaf.low - slack) | (array > leaf.high + slack)
            if outside.any():
                raise NotInSpace(
                    f"{where}: {array[outside][0]} is outside of its space, from {leaf.low[outside][0]} to"
                    f" {leaf.high[outside][0]}; --env.no-check (`env.check`, False) lets it pass"
                )
        return value


class Adapted(gymnasium.Env[Any, Any]):
    """An environment whose observations are one array, or a flat dictionary of them, as an `Adapter` makes them.

    `info` holds `lives` and `life_lost`, which are 0 and False where the environment tells of no lives.

    Args:
        env: the environment.
        config: its options; those of an `Adapter`, `render`, `action_repeat`, `clip_rewards`, `life_loss_terminal`.
        name: of the environment, for messages.

    Raises:
        ValueError: as an `Adapter`.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], config: EnvConfig, name: str) -> None:
        for space_name in ("observation_space", "action_space"):
            if not isinstance(getattr(env, space_name, None), spaces.Space):
                raise ValueError(f"game: {name} has no {space_name}, which tells what it shows and takes")
        self._env, self._config = env, config
        self.metadata, self.render_mode, self.spec = env.metadata, env.render_mode, env.spec
        space = _rendered_space(env, name) if config.render else env.observation_space
        self.adapter = Adapter(space, env.action_space, config, name, _meanings(env))
        self.interface = self.adapter.interface
        boxes: dict[str, spaces.Space[Any]] = {
            key: spaces.Box(0, 255, part.shape, np.uint8)
            if isinstance(part, Image)
            else spaces.Box(-np.inf, np.inf, part.shape, np.float32)
            for key, part in self.interface.observation.items()
        }
        action = self.interface.action
        self.observation_space = boxes[LONE] if list(boxes) == [LONE] else spaces.Dict(boxes)
        if isinstance(action, Continuous):
            self.action_space = spaces.Box(-1, 1, action.shape, np.float32)
        elif action.single:
            self.action_space = spaces.Discrete(action.counts[0])
        else:
            self.action_space = spaces.MultiDiscrete(list(action.counts))
        self._steps = 0
        self._lives = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        observation, info = self._env.reset(seed=seed, options=options)
        self._steps, self._lives = 0, int(info.get("lives", 0))
        return self._seen(observation), {"lives": self._lives, "life_lost": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        config, native, total, lost = self._config, self.adapter.native(action), 0.0, False
        for _ in range(config.action_repeat):
            observation, reward, terminated, truncated, info = self._env.step(native)
            self._steps += 1
            reward = float(reward)
            if not math.isfinite(reward):
                raise NotInSpace(f"reward at step {self._steps} of the episode: {reward} is not a finite number")
            total += reward
            lives = int(info.get("lives", self._lives))
            lost |= bool(info.get("life_lost", lives < self._lives))
            self._lives = lives
            if terminated or truncated:
                break
        if config.clip_rewards:
            total = float(np.sign(total))
        ended = bool(terminated) or (config.life_loss_terminal and lost)
        truncated = bool(truncated) or (0 < config.max_steps <= self._steps and not ended)
        return self._seen(observation), total, ended, truncated, {"lives": self._lives, "life_lost": lost}

    def render(self) -> Any:
        """The environment's own picture; None if it has none."""
        return self._env.render()

    def close(self) -> None:
        self._env.close()

    def get_state(self) -> Any:
        """Everything that decides the future, or None if the environment cannot tell."""
        base: Any = self._env.unwrapped
        if not all(callable(getattr(base, name, None)) for name in ("get_state", "set_state")):
            return None
        return {"env": base.get_state(), "steps": self._steps, "lives": self._lives, "elapsed": self._elapsed()}

    def set_state(self, state: Any) -> None:
        """Go on from what `get_state` gave."""
        base: Any = self._env.unwrapped
        base.set_state(state["env"])
        self._steps, self._lives = state["steps"], state["lives"]
        self._elapsed(state["elapsed"])

    def _elapsed(self, steps: int | None = None) -> int | None:
        """The steps that a time limit around the environment has counted; with `steps`, what it is to count from."""
        env = self._env
        while isinstance(env, gymnasium.Wrapper):
            if isinstance(env, gymnasium.wrappers.TimeLimit):
                if steps is not None:
                    env._elapsed_steps = steps  # type: ignore[assignment]
                return env._elapsed_steps
            env = env.env
        return None

    def _seen(self, observation: Any) -> Any:
        found = self.adapter.parts(self._env.render() if self._config.render else observation, self._steps)
        return found[LONE] if list(found) == [LONE] else found


def read_interface(env: gymnasium.Env[Any, Any]) -> Interface:
    """The interface of an environment of this package."""
    assert isinstance(env, Adapted | FrameEnv)
    return env.interface


def resize_by_area(image: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """`[H, W, C]` as `[*size, C]`: each new pixel is the mean of the area that it covers, which may be part of one."""
    rows, columns = _shares(image.shape[0], size[0]), _shares(image.shape[1], size[1])
    by_row = (rows @ image.reshape(image.shape[0], -1)).reshape(size[0], image.shape[1], -1)
    resized: NDArray[np.float32] = np.matmul(columns, by_row)
    return resized


@cache
def _shares(source: int, target: int) -> NDArray[np.float32]:
    """The share of each source pixel in each target pixel, `[target, source]`."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0) * (target / source)).astype(np.float32)


def _is_image(leaf: spaces.Space[Any]) -> bool:
    """Bytes, or bounded numbers, in two or three axes, of which one to four channels come first or last."""
    if not isinstance(leaf, spaces.Box) or len(leaf.shape) not in (2, 3):
        return False
    if leaf.dtype != np.uint8 and not (np.isfinite(leaf.low).all() and np.isfinite(leaf.high).all()):
        return False
    shape = leaf.shape if len(leaf.shape) == 3 else (*leaf.shape, 1)
    last, first = shape[-1] <= 4, shape[0] <= 4
    sides = shape[:2] if last else shape[1:] if first else (0,)
    return min(sides) >= LEAST_SIDE


def _one_hots(values: NDArray[Any], starts: tuple[int, ...], counts: tuple[int, ...]) -> NDArray[np.float32]:
    rows = [np.zeros(count, np.float32) for count in counts]
    for row, value, start in zip(rows, values.tolist(), starts, strict=True):
        row[int(value) - start] = 1
    return np.concatenate(rows)


def _meanings(env: gymnasium.Env[Any, Any]) -> tuple[str, ...]:
    tell = getattr(env.unwrapped, "get_action_meanings", None)
    return tuple(map(str, tell())) if callable(tell) else ()


def _rendered_space(env: gymnasium.Env[Any, Any], name: str) -> spaces.Box:
    """The space of an environment's pictures."""
    if env.render_mode != "rgb_array":
        raise ValueError(f"env.render: {name} cannot be rendered as an array (render_mode 'rgb_array')")
    env.reset()
    frame = np.asarray(env.render())
    if frame.ndim != 3 or frame.dtype != np.uint8:
        raise ValueError(f"env.render: {name} renders {frame.dtype} of shape {frame.shape}, expected uint8 [H, W, C]")
    return spaces.Box(0, 255, frame.shape, np.uint8)


def _read_image(leaf: spaces.Space[Any], config: EnvConfig) -> tuple[Image, Convert]:
    """What an image becomes, and what makes that of it."""
    assert isinstance(leaf, spaces.Box)
    size = config.frame_size
    channels_first = len(leaf.shape) == 3 and leaf.shape[-1] > 4
    shape = leaf.shape if len(leaf.shape) == 3 else (*leaf.shape, 1)
    height, width, channels = (*shape[1:], shape[0]) if channels_first else shape
    low, high = float(leaf.low.min()), float(leaf.high.max())
    gray = config.grayscale and channels >= 3
    is_bytes = leaf.dtype == np.uint8

    def convert(value: Any) -> NDArray[Any]:
        frame = np.asarray(value)
        if channels_first:
            frame = np.moveaxis(frame, 0, -1)
        frame = frame.reshape(height, width, channels)
        if is_bytes and frame.dtype == np.uint8 and not gray and (height, width) == size:
            return np.ascontiguousarray(frame)
        x = frame.astype(np.float32)
        if not is_bytes:
            x = (x - low) * (255 / (high - low))
        if gray:
            x = (x[..., :3] @ LUMINANCE)[..., None]
        if (height, width) != size:
            x = resize_by_area(x, size)
        return (x + 0.5).clip(0, 255).astype(np.uint8)

    return Image((*size, 1 if gray else channels)), convert


def _plain(path: str) -> str:
    """`camera.0` of `['camera'][0]`."""
    return path.replace("']['", ".").replace("'][", ".").replace("]['", ".").replace("][", ".").strip("[]'")


def _within(name: str, group: str) -> bool:
    return name == group or name.startswith(f"{group}.")


def _field(name: str, taken: dict[str, Any]) -> str:
    """A name for a field of the replay."""
    key = "obs_" + "".join(letter if letter.isalnum() else "_" for letter in name) if name else LONE
    while key in taken or key == "obs_vector":
        key += "_"
    return key
