"""The replay buffer, other buffers and the hardware's limit: `python benchmarks/replay.py [--only draw] [--json]`.

Everything is measured in turns in this process; the table gives median times, and the median of our time over the
other's. The limit is what `np.copyto` takes for as many bytes into memory that is there already. Peers that are not
installed are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import replay_peers as peers
from drama._native import cores
from drama.replay import Batch, DynamicFrequency, Prioritized, ReplayBuffer
from timing import Parts, Row, compare, elapsed, rows, show

FRAME = (64, 64, 3)
EPISODE = 1000
THREADS = cores()

Array = npt.NDArray[Any]


@dataclasses.dataclass
class Options:
    """Sizes, which the tests make small."""

    rows: int
    large: int
    seconds: float


class Copy:
    """Copies as many bytes as `target` has from a random place in `source`."""

    def __init__(self, source: Array, target: Array, threads: int) -> None:
        self.source, self.target = source.reshape(-1), target.reshape(-1)
        self.pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        self.bounds = np.linspace(0, self.target.size, threads + 1).astype(int)
        self.random = np.random.default_rng(0)

    def __call__(self) -> None:
        begin = int(self.random.integers(self.source.size - self.target.size + 1))
        pairs = [
            (self.target[low:high], self.source[begin + low : begin + high])
            for low, high in zip(self.bounds[:-1], self.bounds[1:], strict=True)
        ]
        futures = [self.pool.submit(np.copyto, *pair) for pair in pairs[1:]] if self.pool else []
        np.copyto(*pairs[0])
        wait(futures)


def copies(source: Array, nbytes: int) -> Parts:
    """The limit, by one thread and by all."""
    target = np.zeros(nbytes, np.uint8)
    return {f"np.copyto, threads: {threads}": Copy(source, target, threads) for threads in sorted({1, THREADS})}


def ends(count: int) -> Array:
    return (np.arange(count) % EPISODE == EPISODE - 1)[:, None]


def frames(count: int) -> Array:
    block = np.random.default_rng(0).integers(0, 256, (min(count, 1000), *FRAME), np.uint8)
    return np.concatenate([block] * -(-count // len(block)))[:count]


def frame_buffer(source: Array, capacity: int) -> ReplayBuffer:
    """A buffer of frames, filled."""
    buffer = ReplayBuffer(capacity, {"obs": (FRAME, np.uint8), "action": ((), np.int64), "reward": ((), np.float32)})
    count = len(source)
    buffer.add_block(
        obs=source[:, None],
        action=np.zeros((count, 1), np.int64),
        reward=np.zeros((count, 1), np.float32),
        terminated=ends(count),
        truncated=np.zeros((count, 1), bool),
    )
    return buffer


def take(source: Array, random: np.random.Generator, out: Array) -> None:
    """Sequences from uniform starts, the fast way in NumPy."""
    size, length = out.shape[:2]
    starts = random.integers(len(source) - length + 1, size=size)
    np.take(source, starts[:, None] + np.arange(length), axis=0, out=out, mode="clip")


def softmax_draw(used: Array, random: np.random.Generator, size: int) -> Array:
    """Rows drawn by how often they were used: the formula as it is."""
    total = np.exp(used / -10.0).cumsum()
    return total.searchsorted(random.random(size) * total[-1])


def sequences(options: Options) -> list[Row]:
    """Sequences of frames: draw and copy."""
    count = options.rows
    source = frames(count)
    buffer = frame_buffer(source, count)
    frequency = DynamicFrequency()
    slices = peers.torchrl_slices(source, ends(count))
    table = []
    for size, length, sampler in ((16, 128, frequency.world_model), (1024, 8, frequency.imagination)):
        out, uniform = (buffer.sample(size, length, sampler=by) for by in (sampler, None))
        taken = np.zeros((size, length, *FRAME), np.uint8)
        parts: Parts = {
            "ours, by frequency, into out=": partial(buffer.sample, size, length, sampler=sampler, out=out),
            "ours, uniform, into out=": partial(buffer.sample, size, length, out=uniform),
            **copies(source, taken.nbytes),
            "NumPy, np.take into out=": partial(take, source, np.random.default_rng(0), taken),
            **slices(size, length),
        }
        table += compare("sequences", f"{size} x {length} of {count} frames 64x64x3", parts, options.seconds)
    return table


class Anew:
    """Draws without `out=`, with the batch before still there, as a loop has it; or into the one batch."""

    def __init__(self, buffer: ReplayBuffer, size: int, length: int, again: bool) -> None:
        self.draw = partial(buffer.sample, size, length)
        self.again = again
        self.batch = self.draw()

    def __call__(self) -> None:
        self.batch = self.draw(out=self.batch if self.again else None)


def results(options: Options) -> list[Row]:
    """The memory of results: with `out=` and without, side by side."""
    source = frames(options.rows)
    buffer = frame_buffer(source, options.rows)
    table = []
    for size, length in ((16, 128), (64, 64), (1024, 8)):
        parts: Parts = {
            "without out=": Anew(buffer, size, length, again=False),
            "with out=": Anew(buffer, size, length, again=True),
        }
        table += compare("results", f"{size} x {length} of {options.rows} frames 64x64x3", parts, options.seconds)
    return table


def draws(options: Options) -> list[Row]:
    """The draw: rows of three bytes."""
    table = []
    for count in (options.rows, options.large):
        buffer = ReplayBuffer(count, {})
        buffer.add_block(terminated=ends(count), truncated=np.zeros((count, 1), bool))
        frequency = DynamicFrequency()
        random = np.random.default_rng(0)
        used = random.integers(0, 20, count)
        for size, sampler in ((16, frequency.world_model), (1024, frequency.imagination)):
            out = buffer.sample(size, 1, sampler=sampler)
            parts: Parts = {
                "ours, by frequency": partial(buffer.sample, size, 1, sampler=sampler, out=out),
                "NumPy, softmax over all rows": partial(softmax_draw, used, random, size),
            }
            table += compare("draw", f"{size} of {count} rows", parts, options.seconds / 2)
    return table


def add_all(buffer: ReplayBuffer, source: Array) -> None:
    no = np.zeros(1, bool)
    for row in source:
        buffer.add(obs=row[None], terminated=no, truncated=no)


def copy_all(memory: Array, source: Array) -> None:
    for to, row in zip(memory, source, strict=True):
        np.copyto(to, row)


def adds(options: Options) -> list[Row]:
    """Adding frames: while the buffer fills, and once it is full."""
    source = frames(max(options.rows // 5, 400))
    half = len(source) // 2
    phases = {"filling, first half": slice(half), "filling, second half": slice(half, 2 * half), "full": slice(half)}
    times: dict[str, dict[str, list[float]]] = {case: {"ours, add": [], "np.copyto": []} for case in phases}
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end or len(times["full"]["ours, add"]) < 3:
        buffer, memory = ReplayBuffer(2 * half, {"obs": (FRAME, np.uint8)}), np.empty_like(source)
        for case, part in phases.items():
            times[case]["ours, add"].append(elapsed(partial(add_all, buffer, source[part]), 1) / half)
            times[case]["np.copyto"].append(elapsed(partial(copy_all, memory[part], source[part]), 1) / half)
    table = [row for case in phases for row in rows("add", f"one step of 12 kB, {case}", times[case])]

    block = source[: half // 2, None]
    flags = np.zeros((len(block), 1), bool)
    parts: Parts = {"ours, add_block": partial(buffer.add_block, obs=block, terminated=flags, truncated=flags)}
    parts |= copies(source, block.nbytes)
    return table + compare("add", f"a block of {len(block)} steps", parts, options.seconds / 2)


def transition_columns(count: int) -> dict[str, Array]:
    """Rows as CartPole has them."""
    random = np.random.default_rng(0)
    return {
        "obs": random.normal(size=(count, 4)).astype(np.float32),
        "action": random.integers(0, 2, count),
        "reward": np.ones(count, np.float32),
        "terminated": ends(count)[:, 0],
    }


def draw_and_update(buffer: ReplayBuffer, sampler: Prioritized, priorities: Array, out: Batch) -> None:
    """One use of a prioritized buffer."""
    batch = buffer.sample_transitions(len(priorities), sampler=sampler, out=out)
    sampler.update_priorities(batch["indices"], priorities)


def transitions(options: Options) -> list[Row]:
    """Single transitions, drawn in proportion to priorities that are then changed; and uniformly."""
    count = options.rows
    data = transition_columns(count)
    buffer = ReplayBuffer(count, {"obs": ((4,), np.float32), "action": ((), np.int64), "reward": ((), np.float32)})
    columns = {name: column[:, None] for name, column in data.items()}
    buffer.add_block(**columns, truncated=np.zeros((count, 1), bool))
    sampler = Prioritized()
    table = []
    for size in (32, 256):
        priorities = np.random.default_rng(0).random(size) + 0.1
        out, uniform = (buffer.sample_transitions(size, sampler=by) for by in (sampler, None))
        parts: Parts = {
            "ours, draw and update": partial(draw_and_update, buffer, sampler, priorities, out),
            **peers.prioritized(data, priorities),
        }
        table += compare("transitions", f"{size} of {count} by priority", parts, options.seconds)
        parts = {"ours": partial(buffer.sample_transitions, size, out=uniform), **peers.uniform(data, size)}
        table += compare("transitions", f"{size} of {count} uniformly", parts, options.seconds)
    return table


def saves(options: Options) -> list[Row]:
    """Saving: everything, and after one row in a hundred is new."""
    source = frames(max(options.rows // 5, 400))
    buffer = frame_buffer(source, len(source))
    stored = buffer.gather([0], len(source) // 100)
    new = {name: column.swapaxes(0, 1).copy() for name, column in stored.items()}
    one, full, file = "ours, after 1 % new rows", "ours, in full", "np.ndarray.tofile of the frames"
    times: dict[str, list[float]] = {one: [], full: [], file: []}
    end = time.perf_counter() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        while time.perf_counter() < end or len(times[full]) < 3:
            times[full].append(elapsed(partial(buffer.save, path / "replay"), 1))
            buffer.add_block(**new)
            times[one].append(elapsed(partial(buffer.save, path / "replay"), 1))
            times[file].append(elapsed(partial(source.tofile, path / "frames"), 1))
            shutil.rmtree(path / "replay")
    return rows("save", f"{len(source)} frames 64x64x3", times)


SECTIONS = {
    "sequences": sequences,
    "results": results,
    "draw": draws,
    "add": adds,
    "transitions": transitions,
    "save": saves,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, help="one section")
    parser.add_argument("--rows", type=int, default=100_000, help="at least 8192, the rows of a batch")
    parser.add_argument("--large", type=int, default=10_000_000, help="rows of the larger draw")
    parser.add_argument("--seconds", type=float, default=8.0, help="for one comparison")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    options = Options(args.rows, args.large, args.seconds)
    table = [row for name, section in SECTIONS.items() if args.only in (None, name) for row in section(options)]
    if args.json:
        print(json.dumps({"threads": THREADS, "left_out": peers.left_out, "rows": [vars(r) for r in table]}, indent=2))
        return
    show(table)
    for line in peers.left_out:
        print(line)


if __name__ == "__main__":
    main()
