"""Other projects' vectors of environments, set to give what ours give, and what bare emulators reach."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import ale_py
import gymnasium
import numpy as np
import numpy.typing as npt
from ale_py import roms
from gymnasium.wrappers import AtariPreprocessing, ResizeObservation

SIZE = 64
Play = Callable[[int], None]
"""Plays this many steps."""

gymnasium.register_envs(ale_py)
left_out: list[str] = []
"""A line for each peer that could not be made."""


class TakeMaximum(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Four frames with one action, the maximum of the last two: a published wrapper's work, in NumPy."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total, frames = 0.0, []
        for _ in range(4):
            frame, reward, terminated, truncated, info = self.env.step(action)
            frames.append(frame)
            total += float(reward)
            if terminated or truncated:
                break
        return np.max(frames[-2:], axis=0), total, terminated, truncated, info


def emulator(game: str) -> Any:
    return gymnasium.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0)


def published(game: str) -> gymnasium.Env[Any, Any]:
    """As published training code wraps the game."""
    return ResizeObservation(TakeMaximum(emulator(game)), (SIZE, SIZE))


def preprocessed(game: str) -> gymnasium.Env[Any, Any]:
    return AtariPreprocessing(emulator(game), screen_size=SIZE, grayscale_obs=False)


def gymnasium_sync(game: str, num_envs: int) -> Any:
    return gymnasium.vector.SyncVectorEnv([partial(published, game)] * num_envs)


def gymnasium_async(game: str, num_envs: int) -> Any:
    return gymnasium.vector.AsyncVectorEnv([partial(preprocessed, game)] * num_envs)


def ale_vector(game: str, num_envs: int, cores: int) -> Any:
    return ale_py.vector_env.AtariVectorEnv(
        game.lower(),
        num_envs,
        num_threads=min(cores, num_envs),
        img_height=SIZE,
        img_width=SIZE,
        grayscale=False,
        stack_num=1,
        reward_clipping=False,
        use_fire_reset=False,
    )


def envpool(game: str, num_envs: int, cores: int) -> Any:
    import envpool

    return envpool.make(
        f"{game}-v5",
        env_type="gymnasium",
        num_envs=num_envs,
        num_threads=min(cores, num_envs),
        img_height=SIZE,
        img_width=SIZE,
        gray_scale=False,
        stack_num=1,
        use_fire_reset=False,
    )


def vector(
    name: str, make: Callable[[], Any], num_envs: int, choices: int, closing: contextlib.ExitStack
) -> dict[str, Play]:
    """One part that steps the vector with random actions; none, noted, if it cannot be made."""
    try:
        env = make()
    except Exception as error:
        left_out.append(f"left out: {name} ({type(error).__name__}: {error})")
        return {}
    closing.callback(env.close)
    env.reset()
    actions = np.random.default_rng(0).integers(choices, size=(1000, num_envs))
    at = 0

    def play(steps: int) -> None:
        nonlocal at
        for _ in range(steps):
            env.step(actions[at % len(actions)])
            at += 1

    return {name: play}


def bare_atari(game: str, count: int) -> Play:
    """Emulators alone: four frames and two raw screens each step."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    screens = np.zeros((2, 210, 160), np.uint8)
    random = np.random.default_rng(0)
    emulators = []
    rom = roms.get_rom_path(game.lower())
    assert rom is not None
    for _ in range(count):
        ale = ale_py.ALEInterface()
        ale.setFloat("repeat_action_probability", 0.0)
        ale.loadROM(rom)
        emulators.append(ale)
    actions = [action.value for action in emulators[0].getMinimalActionSet()]

    def play(steps: int) -> None:
        for choice in random.integers(len(actions), size=(steps, count)).tolist():
            for ale, index in zip(emulators, choice, strict=True):
                action = actions[index]
                ale.act(action)
                ale.act(action)
                ale.act(action)
                ale.getScreen(screens[0])
                ale.act(action)
                ale.getScreen(screens[1])
                if ale.game_over():
                    ale.reset_game()

    return play


class Millisecond(gymnasium.Env[Any, Any]):
    """An environment whose step keeps a core busy for one millisecond."""

    observation_space = gymnasium.spaces.Box(0, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        # Processor time, so that waiting for a core does not count as work done.
        end = time.thread_time_ns() + 1_000_000
        while time.thread_time_ns() < end:
            pass
        return np.full(4, action, np.float32), 0.0, False, False, {}


def bare_milliseconds(_: str, count: int) -> Play:
    """The steps alone."""
    env = Millisecond()

    def play(steps: int) -> None:
        for _ in range(steps * count):
            env.step(0)

    return play


def _serve(make: Callable[[str, int], Play], name: str, count: int, pipe: Connection) -> None:
    play = make(name, count)
    pipe.send(None)
    while (steps := pipe.recv()) is not None:
        play(steps)
        pipe.send(None)


class PerCore:
    """`make(name, share)` in one process per core, all playing at once."""

    def __init__(
        self, make: Callable[[str, int], Play], name: str, shares: Sequence[int], closing: contextlib.ExitStack
    ) -> None:
        closing.callback(self._close)
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for share in shares:
            ours, theirs = context.Pipe()
            self._processes.append(context.Process(target=_serve, args=(make, name, share, theirs), daemon=True))
            self._processes[-1].start()
            self._pipes.append(ours)
        for pipe in self._pipes:
            pipe.recv()

    def __call__(self, steps: int) -> None:
        for pipe in self._pipes:
            pipe.send(steps)
        for pipe in self._pipes:
            pipe.recv()

    def _close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join()
