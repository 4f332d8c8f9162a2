"""Whether worker processes pay, found by trying."""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from drama._native import VectorBoard
from drama.envs.processes import Worker

PROBE_STEPS = 60
PROBE_SECONDS = 0.02
ECHO_SECONDS, ECHOES, LONGEST_ECHO_SECONDS = 0.02, 16, 0.1
# What a step of a vector costs this process beyond the environments', and what workers must save to be worth a core.
OVERHEAD_SECONDS = 5e-6
WORTH = 0.85


def probe(make: Callable[[], gymnasium.Env[Any, Any]]) -> float | None:
    """`step_seconds` of an environment that is made for it alone: one that has been stepped is no longer new."""
    env = make()
    try:
        return step_seconds(env)
    finally:
        env.close()


def step_seconds(env: gymnasium.Env[Any, Any]) -> float | None:
    """Median time of a step with random actions, or None if the environment does not take them."""
    # Nobody's random numbers are to change because of this.
    action_space, python_state, numpy_state = copy.deepcopy(env.action_space), random.getstate(), np.random.get_state()  # noqa: NPY002
    action_space.seed(0)
    times: list[float] = []
    begin = time.perf_counter()
    try:
        env.reset()
        while len(times) < PROBE_STEPS and (len(times) < 3 or time.perf_counter() - begin < PROBE_SECONDS):
            action = action_space.sample()
            start = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(action)
            times.append(time.perf_counter() - start)
            if terminated or truncated:
                env.reset()
    except Exception:  # it will be raised again where the user can see what it came from
        return None
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
    return statistics.median(times)


def workers_pay(board: VectorBoard, workers: Sequence[Worker], largest_share: int, num_envs: int, step: float) -> bool:
    """Whether a step of the vector is faster with these workers, none of which has work, than without them."""
    slowest = 0.0
    for worker in workers:
        answers: list[float] = []
        end = time.perf_counter() + ECHO_SECONDS
        while time.perf_counter() < end or len(answers) < ECHOES:
            answers.append(board.echo(worker.number, LONGEST_ECHO_SECONDS) or LONGEST_ECHO_SECONDS)
        # Not the mean or median: whatever else keeps the cores busy now may be gone in a moment, the vector stays.
        slowest = max(slowest, statistics.quantiles(answers, n=4)[0])
    return largest_share * step + OVERHEAD_SECONDS + slowest < WORTH * num_envs * step
