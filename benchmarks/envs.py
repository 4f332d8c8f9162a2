"""Vectors of environments, ours and others': `python benchmarks/envs.py [--only pong-8] [--cores 2] [--json]`.

Everything is measured in turns in this process, which is pinned to as many cores as `--cores` says, and its children
with it. The table gives steps per second of all environments together, and the median over the turns of our speed over
the other's. Atari: frame skip 4, two frames pooled, 64x64 RGB, random actions. The limit is bare emulators, four frames
and two raw screens a step, in one process per core. Peers that cannot be made are listed below the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import gymnasium
import numpy as np
import numpy.typing as npt

import envs_peers as peers
from drama.config import EnvConfig
from drama.envs import AtariEnv, make_atari, make_vector
from timing import compare

Play = peers.Play
CHOICES = {"Pong": 6, "Breakout": 4}


@dataclasses.dataclass
class Speed:
    """One line of the table."""

    section: str
    cores: int
    name: str
    steps_per_second: float
    """Of all environments together; median over the turns."""
    ours_over_this: float | None
    """Median over the turns of our speed over this one's. None for ours."""


class Alone:
    """One environment without a vector around it."""

    def __init__(self, game: str) -> None:
        self._env = AtariEnv(game, EnvConfig())
        self.reset, self.close = self._env.reset, self._env.close

    def step(self, actions: npt.NDArray[np.int64]) -> None:
        _, _, terminated, truncated, _ = self._env.step(actions[0])
        if terminated or truncated:
            self._env.reset()


def shares(num_envs: int, cores: int) -> list[int]:
    """How many environments each core steps."""
    used = min(num_envs, cores)
    return [num_envs // used + (core < num_envs % used) for core in range(used)]


def atari(game: str, num_envs: int, cores: int, closing: ExitStack) -> dict[str, Play]:
    part = partial(peers.vector, num_envs=num_envs, choices=CHOICES[game], closing=closing)
    return {
        **part("ours", partial(make_atari, game, num_envs)),
        **part("ours, copy=False", partial(make_atari, game, num_envs, copy=False)),
        **(part("ours, AtariEnv alone", partial(Alone, game)) if num_envs == 1 else {}),
        "limit: bare emulators": peers.PerCore(peers.bare_atari, game, shares(num_envs, cores), closing),
        **part("gymnasium Sync, published wrappers", partial(peers.gymnasium_sync, game, num_envs)),
        **part("gymnasium Async, AtariPreprocessing", partial(peers.gymnasium_async, game, num_envs)),
        **part("ale_py AtariVectorEnv", partial(peers.ale_vector, game, num_envs, cores)),
        **part("EnvPool", partial(peers.envpool, game, num_envs, cores)),
    }


def cartpole(num_envs: int, _: int, closing: ExitStack) -> dict[str, Play]:
    functions = [partial(gymnasium.make, "CartPole-v1")] * num_envs
    part = partial(peers.vector, num_envs=num_envs, choices=2, closing=closing)
    return {
        **part("ours, auto", partial(make_vector, functions)),
        **part("ours, two processes", partial(make_vector, functions, num_workers=2)),
        **part("ours, in this process", partial(make_vector, functions, num_workers=0)),
        **part("gymnasium Sync", partial(gymnasium.vector.SyncVectorEnv, functions)),
        **part("gymnasium Async", partial(gymnasium.vector.AsyncVectorEnv, functions)),
    }


def millisecond(num_envs: int, cores: int, closing: ExitStack) -> dict[str, Play]:
    functions = [peers.Millisecond] * num_envs
    part = partial(peers.vector, num_envs=num_envs, choices=2, closing=closing)
    return {
        **part("ours, auto", partial(make_vector, functions)),
        "limit: the steps alone, one process per core": peers.PerCore(
            peers.bare_milliseconds, "", shares(num_envs, cores), closing
        ),
        **part("gymnasium Sync", partial(gymnasium.vector.SyncVectorEnv, functions)),
        **part("gymnasium Async", partial(gymnasium.vector.AsyncVectorEnv, functions)),
    }


# For each section: what makes its parts, environments, and steps of each in one turn.
SECTIONS: dict[str, tuple[Callable[[int, int, ExitStack], dict[str, Play]], int, int]] = {
    "pong-1": (partial(atari, "Pong"), 1, 300),
    "pong-8": (partial(atari, "Pong"), 8, 50),
    "breakout-1": (partial(atari, "Breakout"), 1, 300),
    "breakout-8": (partial(atari, "Breakout"), 8, 50),
    "cartpole-8": (cartpole, 8, 300),
    "cartpole-32": (cartpole, 32, 100),
    "millisecond-8": (millisecond, 8, 10),
}


def measure(section: str, cores: int, seconds: float) -> list[Speed]:
    """Time one section on that many cores."""
    make, num_envs, steps = SECTIONS[section]
    with ExitStack() as closing:
        parts = make(num_envs, cores, closing)
        table = compare(section, "", {name: partial(play, steps) for name, play in parts.items()}, seconds)
    return [
        Speed(section, cores, row.name, num_envs * steps / row.seconds, row.ratio and 1 / row.ratio) for row in table
    ]


def show(table: list[Speed]) -> None:
    previous = ("", 0)
    for row in table:
        if (row.section, row.cores) != previous:
            print(f"\n{row.section}, cores: {row.cores}")
            previous = (row.section, row.cores)
        ratio = "" if row.ours_over_this is None else f"ours / this {row.ours_over_this:6.2f}"
        print(f"  {row.name:46}{row.steps_per_second:10,.0f} steps/s   {ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS), help="these sections")
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    count = len(available) or os.cpu_count() or 1
    parser.add_argument("--cores", type=int, nargs="+", default=sorted({1, count}), help="pin to so many, in turn")
    parser.add_argument("--seconds", type=float, default=10.0, help="for one section on one number of cores")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    table = []
    for section in args.only:
        for cores in args.cores:
            if available:
                os.sched_setaffinity(0, available[:cores])
            elif cores != count:
                peers.left_out.append(f"left out: {cores} of {count} cores, for processes cannot be pinned here")
                continue
            table += measure(section, cores, args.seconds)
    if args.json:
        print(json.dumps({"left_out": peers.left_out, "rows": [vars(row) for row in table]}, indent=2))
        return
    show(table)
    for line in peers.left_out:
        print(line)


if __name__ == "__main__":
    main()
