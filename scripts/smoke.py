"""The installed package with NumPy alone: what it can do there, from an environment that has nothing else."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version

import numpy as np

import drama
from drama._native import __version__ as native_version
from drama.replay import DynamicFrequency, ReplayBuffer

assert drama.__version__ == native_version == version("drama-rl")
assert all(importlib.util.find_spec(module) is None for module in ("torch", "gymnasium", "ale_py", "tyro"))
buffer = ReplayBuffer(100, {"obs": ((2,), np.float32)}, num_envs=2, seed=0)
for t in range(60):
    end = np.array([t % 10 == 9, False])
    buffer.add(obs=np.full((2, 2), t, np.float32), terminated=end, truncated=np.zeros(2, bool))
batch = buffer.sample(8, 5, sampler=DynamicFrequency().world_model)
assert batch["obs"].shape == (8, 5, 2)
assert (np.diff(batch["obs"][..., 0]) == 1).all()
print("fine")
