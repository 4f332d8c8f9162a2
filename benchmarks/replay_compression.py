"""What `compress=` saves and costs: `python benchmarks/replay_compression.py [--games Pong Breakout] [--json]`.

Frames of games played at random, as the environments here give them, are added to two buffers, one of which compresses
them. Adding, sampling and saving are timed in turns; the ratio is that of the plain rows' size over the compressed
rows'.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drama.config import EnvConfig
from drama.envs import FrameEnv, make_env
from drama.replay import ReplayBuffer
from timing import Parts, Row, compare, elapsed, rows, show

Array = npt.NDArray[Any]


def play(game: str, count: int) -> dict[str, Array]:
    """Rows of random play, `[count, 1, ...]` by field name."""
    env = make_env(game, EnvConfig())
    assert isinstance(env, FrameEnv)
    random = np.random.default_rng(0)
    frame, _ = env.reset(seed=0)
    columns: dict[str, Array] = {
        "obs": np.empty((count, 1, *frame.shape), np.uint8),
        "terminated": np.zeros((count, 1), bool),
        "truncated": np.zeros((count, 1), bool),
    }
    for row in range(count):
        columns["obs"][row, 0] = frame
        frame, _, terminated, truncated, _ = env.step(int(random.integers(env.action_space.n)))
        columns["terminated"][row], columns["truncated"][row] = terminated, truncated
        if terminated or truncated:
            frame, _ = env.reset()
    return columns


def measure(game: str, count: int, seconds: float) -> tuple[float, list[Row]]:
    """The ratio of sizes, and the table of times: compressed first."""
    columns = play(game, count)
    shape = columns["obs"].shape[2:]
    plain = ReplayBuffer(count, {"obs": (shape, np.uint8)})
    packed = ReplayBuffer(count, {"obs": (shape, np.uint8)}, compress=("obs",))
    buffers = {"with compress=": packed, "without": plain}
    for buffer in buffers.values():
        buffer.add_block(**columns)
    table = []
    steps = min(count, 1000)
    block = {name: column[:steps] for name, column in columns.items()}
    times: dict[str, list[float]] = {name: [] for name in buffers}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["without"]) < 3:
        for name, buffer in buffers.items():
            times[name].append(elapsed(partial(buffer.add_block, **block), 1) / steps)
    table += rows(game, "adding a frame", times)
    for size, length in ((16, 128), (1024, 8)):
        outs = {name: buffer.sample(size, length) for name, buffer in buffers.items()}
        parts: Parts = {name: partial(buffer.sample, size, length, out=outs[name]) for name, buffer in buffers.items()}
        table += compare(game, f"sampling {size} x {length}", parts, seconds)
    times = {name: [] for name in buffers}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(3):
            for name, buffer in buffers.items():
                times[name].append(elapsed(partial(buffer.save, Path(folder) / f"{name} {turn}"), 1))
                # Anew each time: what a directory has already is not written again.
                buffer.add_block(**columns)
    table += rows(game, f"saving {count} frames", times)
    return plain.stored_nbytes / packed.stored_nbytes, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", default=["Pong", "Breakout"])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=3.0, help="for one comparison")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = {game: measure(game, args.rows, args.seconds) for game in args.games}
    if args.json:
        shown = {game: {"ratio": ratio, "rows": [vars(r) for r in table]} for game, (ratio, table) in results.items()}
        print(json.dumps(shown, indent=2))
        return
    for game, (ratio, table) in results.items():
        show(table)
        print(f"\n{game}: compressed to 1/{ratio:.1f} of the size")


if __name__ == "__main__":
    main()
