"""What the replay buffer takes of the memory: nothing before it is used, large pages, and an error where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drama.replay import ReplayBuffer

SMAPS = Path("/proc/self/smaps")
linux = pytest.mark.skipif(not SMAPS.exists(), reason="reads /proc")


def resident() -> int:
    """Bytes of memory in use by this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def advised() -> int:
    """Bytes for which large pages are asked."""
    total = size = 0
    for line in SMAPS.read_text().splitlines():
        name, *values = line.split()
        if name == "Size:":
            size = int(values[0]) << 10
        elif name == "VmFlags:" and "hg" in values:
            total += size
    return total


@linux
def test_a_buffer_takes_memory_as_rows_are_written() -> None:
    before, advised_before = resident(), advised()
    buffer = ReplayBuffer(100_000, {"obs": ((64, 64, 3), np.uint8)})
    assert resident() - before < 16 << 20
    assert advised() - advised_before >= 100_000 * 64 * 64 * 3
    rows, no = 1000, np.zeros((1000, 1), bool)
    buffer.add_block(obs=np.ones((rows, 1, 64, 64, 3), np.uint8), terminated=no, truncated=no)
    taken = resident() - before
    assert rows * 64 * 64 * 3 <= taken < 2 * rows * 64 * 64 * 3
    del buffer
    assert resident() - before < taken // 2


TOO_LARGE = """
import gc, resource, sys
from pathlib import Path
import numpy as np
from drama.replay import DynamicFrequency, MostRecent, Prioritized, ReplayBuffer, Uniform

ROWS = 4_000_000
buffer = ReplayBuffer(ROWS, {"reward": ((), np.float32)})
no = np.zeros((ROWS, 1), bool)
buffer.add_block(reward=np.zeros((ROWS, 1), np.float32), terminated=no, truncated=no)
few = {name: np.zeros((1, *shape), dtype) for name, (shape, dtype) in buffer.fields.items()}
samplers = [Uniform(), Uniform(replacement=False), MostRecent(), Prioritized(), Prioritized(replacement=False)]
frequency = DynamicFrequency()
samplers += [frequency.world_model, frequency.imagination]
calls = [lambda by=by: buffer.sample(ROWS, 1, sampler=by) for by in samplers]
calls += [lambda by=by: buffer.sample_transitions(ROWS, 1, sampler=by, next_fields=()) for by in samplers]
calls += [
    lambda: buffer.sample(2**33, 1),
    lambda: buffer.sample(2**40, 1, sampler=samplers[3]),
    lambda: buffer.sample_transitions(2**36, next_fields=()),
    lambda: buffer.sample(2**20, 2**20, within_episode=True),
    lambda: ReplayBuffer(2**31, {"x": ((2**12,), np.uint8)}),
    lambda: ReplayBuffer(2**31, {}, num_envs=2**31),
    lambda: ReplayBuffer(2**31, {"x": ((2**30,), np.uint8)}, compress=["x"]),
    lambda: samplers[3].priorities(buffer),
    lambda: frequency.counts(buffer),
    lambda: buffer.gather(np.zeros(2**22, np.int64), 1),
]
gc.collect()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
# Less than most of these want at a time, so that it is missing now here, now there.
for spare in (1 << 20, 8 << 20, 20 << 20, 40 << 20, 70 << 20):
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))
    refused = 0
    for call in calls:
        try:
            call()
        except MemoryError as error:
            assert str(error), call
            refused += 1
        except ValueError as error:
            assert "is beyond any memory" in str(error), error
            refused += 1
    assert refused >= 7, (spare, refused)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for by in samplers:
    assert len(buffer.sample(1000, 2, sampler=by)["indices"]) == 1000
print("whole")
"""


@linux
def test_memory_that_is_lacking_is_an_error_wherever_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", TOO_LARGE], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "whole\n", (done.returncode, done.stderr)
