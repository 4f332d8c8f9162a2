"""Other projects' replay buffers, filled with the same data. One that is not installed gives no parts."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from timing import Parts

Array = npt.NDArray[Any]

left_out: list[str] = []
"""A line for each peer that is not installed."""


def load(*names: str) -> list[Any] | None:
    """The modules, or None, noted, if one is not there."""
    try:
        modules = [importlib.import_module(name) for name in names]
    except ImportError as error:
        line = f"left out: {names[0]}, which is not installed ({error})"
        if line not in left_out:
            left_out.append(line)
        return None
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    return modules


def torchrl_slices(frames: Array, ends: Array) -> Callable[[int, int], Parts]:
    """Torchrl's `SliceSampler` over the frames, by batch size and length."""
    modules = load("torchrl.data", "torchrl.data.replay_buffers.samplers", "tensordict", "torch")
    if modules is None:
        return lambda *_: {}
    data, samplers, tensordict, torch = modules
    episode = np.cumsum(ends[:, 0]) - ends[:, 0]
    columns = {
        "obs": torch.from_numpy(frames),
        "action": torch.zeros(len(frames), dtype=torch.int64),
        "reward": torch.zeros(len(frames)),
        "terminated": torch.from_numpy(ends[:, 0]),
        "episode": torch.from_numpy(episode),
    }
    storage = data.LazyTensorStorage(len(frames))
    storage.set(range(len(frames)), tensordict.TensorDict(columns, batch_size=[len(frames)]))

    def parts(batch_size: int, length: int) -> Parts:
        sampler = samplers.SliceSampler(slice_len=length, traj_key="episode", cache_values=True)
        buffer = data.ReplayBuffer(storage=storage, sampler=sampler, batch_size=batch_size * length)
        return {"torchrl, SliceSampler": buffer.sample}

    return parts


def following(data: dict[str, Array]) -> Array:
    """The observation after each row, which these buffers store again."""
    return np.roll(data["obs"], -1, axis=0)


def cpprb_buffer(kind: str, data: dict[str, Array]) -> Any:
    modules = load("cpprb")
    if modules is None:
        return None
    row = {"shape": 4, "dtype": np.float32}
    schema = {"obs": row, "next_obs": row, "act": {"dtype": np.int64}, "rew": {}, "done": {"dtype": np.bool_}}
    buffer = getattr(modules[0], kind)(len(data["obs"]), schema)
    buffer.add(
        obs=data["obs"],
        next_obs=following(data),
        act=data["action"],
        rew=data["reward"],
        done=data["terminated"],
    )
    return buffer


def torchrl_buffer(data: dict[str, Array], batch_size: int, prioritized: bool) -> Any:
    modules = load("torchrl.data", "torchrl.data.replay_buffers.samplers", "tensordict", "torch")
    if modules is None:
        return None
    module, samplers, tensordict, torch = modules
    count = len(data["obs"])
    columns = {name: torch.from_numpy(column) for name, column in data.items()}
    columns["next_obs"] = torch.from_numpy(following(data))
    sampler = samplers.PrioritizedSampler(count, alpha=0.6, beta=0.4) if prioritized else samplers.RandomSampler()
    buffer = module.ReplayBuffer(storage=module.LazyTensorStorage(count), sampler=sampler, batch_size=batch_size)
    buffer.extend(tensordict.TensorDict(columns, batch_size=[count]))
    return buffer


def prioritized(data: dict[str, Array], priorities: Array) -> Parts:
    """Draw as many transitions as there are `priorities`, in proportion to those they have, and give them these."""
    batch_size = len(priorities)
    parts: Parts = {}
    own = cpprb_buffer("PrioritizedReplayBuffer", data)
    if own is not None:

        def cpprb() -> None:
            batch = own.sample(batch_size, beta=0.4)
            own.update_priorities(batch["indexes"], priorities)

        parts["cpprb, PrioritizedReplayBuffer"] = cpprb
    other = torchrl_buffer(data, batch_size, prioritized=True)
    if other is not None:
        import torch

        new = torch.from_numpy(priorities).float()

        def torchrl() -> None:
            _, info = other.sample(return_info=True)
            other.update_priority(info["index"], new)

        parts["torchrl, PrioritizedSampler"] = torchrl
    return parts


def uniform(data: dict[str, Array], batch_size: int) -> Parts:
    """Draw `batch_size` transitions, all equally likely."""
    parts: Parts = {}
    own = cpprb_buffer("ReplayBuffer", data)
    if own is not None:
        parts["cpprb, ReplayBuffer"] = lambda: own.sample(batch_size)
    other = torchrl_buffer(data, batch_size, prioritized=False)
    if other is not None:
        parts["torchrl, RandomSampler"] = other.sample
    modules = load("stable_baselines3.common.buffers", "gymnasium.spaces")
    if modules is not None:
        buffers, spaces = modules
        count = len(data["obs"])
        box = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        sb3 = buffers.ReplayBuffer(count, box, spaces.Discrete(2), device="cpu")
        sb3.observations[:, 0], sb3.next_observations[:, 0] = data["obs"], following(data)
        sb3.actions[:, 0, 0], sb3.rewards[:, 0], sb3.dones[:, 0] = data["action"], data["reward"], data["terminated"]
        sb3.full = True
        parts["Stable-Baselines3, ReplayBuffer"] = lambda: sb3.sample(batch_size)
    return parts
