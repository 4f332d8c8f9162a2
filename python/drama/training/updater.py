"""Batches from the replay into the learner."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drama.config import Config
from drama.models.world_model import Batch
from drama.replay import DynamicFrequency, ReplayBuffer, Sampler, Uniform
from drama.training.collector import arrays, tensors
from drama.training.learner import Learner


class Updater:
    """Updates of world model and agent from one replay, and the means of their scalars."""

    def __init__(self, config: Config, learner: Learner, replay: ReplayBuffer) -> None:
        train = config.train
        self._train, self._learner, self._replay = train, learner, replay
        self._dfs = DynamicFrequency(
            temperature=train.dfs_temperature, ratio=train.batch_size / train.imagination_batch
        )
        dfs = train.sampler == "dfs"
        self._samplers: tuple[Sampler, Sampler] = (
            (self._dfs.world_model, self._dfs.imagination) if dfs else (Uniform(), Uniform())
        )
        self.count = 0
        """Updates of the world model so far."""
        self.last: Batch | None = None
        """The sequences that were learned from last in this process."""
        self._sums: dict[str, Tensor] = {}
        self._summed = {"world_model": 0, "agent": 0}
        self._memory: dict[str, tuple[dict[str, NDArray[Any]], torch.cuda.Event | None]] = {}

    def update(self, step: int) -> None:
        """One update of the world model and, from `train.agent_start` on, one of the agent."""
        train = self._train
        if self.count == 0:
            rows = self._replay.sample(256, 1, sampler=Uniform())
            self._learner.start_from_frames({name: rows[name] for name in self._learner.world_model.encoder})
        sequences, starts = self._samplers
        batch = self.last = self._sample("sequences", train.batch_size, train.batch_length, sequences)
        frames: dict[str, Tensor] | None = None
        agent: dict[str, Tensor] = {}
        if train.statistics_frames:
            frames = self._sample("frames", train.statistics_frames, 1, Uniform()).obs
        if step < train.agent_start:
            world_model = self._learner.update_world_model(batch, frames)
        elif train.imagine_from == "batch":
            world_model, agent = self._learner.update_together(batch, frames)
        else:
            world_model = self._learner.update_world_model(batch, frames)
            agent = self._learner.update_agent(self._sample("starts", train.imagination_batch, train.context, starts))
        self.count += 1
        for part, values in (("world_model", world_model), ("agent", agent)):
            self._summed[part] += bool(values)
            for name, value in values.items():
                key = f"{part}/{name}"
                self._sums[key] = self._sums[key] + value if key in self._sums else value

    def means(self) -> dict[str, float]:
        """The mean of each scalar since `clear`. Waits for the device."""
        if not self._sums:
            return {}
        sums = torch.stack([value.float() for value in self._sums.values()]).tolist()
        return {
            name: value / self._summed[name.partition("/")[0]] for name, value in zip(self._sums, sums, strict=True)
        }

    def clear(self) -> None:
        """Begin the means anew."""
        self._sums, self._summed = {}, dict.fromkeys(self._summed, 0)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "dfs": tensors(self._dfs.state_dict()),
            "count": self.count,
            "sums": self._sums,
            "summed": self._summed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._dfs.load_state_dict(arrays(state["dfs"]))
        self.count, self._sums, self._summed = state["count"], state["sums"], state["summed"]

    def _sample(self, name: str, batch_size: int, length: int, sampler: Sampler) -> Batch:
        """Draw a batch into the memory of the last one of that name: fresh memory would cost its page faults.

        For CUDA that memory is pinned, so that the copy from it waits for nothing and nothing for it.
        """
        memory, copied = self._memory.get(name, (None, None))
        if copied is not None:
            copied.synchronize()
        memory = self._replay.sample(batch_size, length, sampler=sampler, out=memory)
        if copied is None and self._learner.device.type == "cuda":
            memory = {key: torch.from_numpy(array).pin_memory().numpy() for key, array in memory.items()}
            copied = torch.cuda.Event()
        batch = self._learner.to_batch(memory)
        if copied is not None:
            copied.record()
        self._memory[name] = memory, copied
        return batch


def not_finite(means: dict[str, float]) -> str | None:
    """The parts of the first loss that is not finite, or None."""
    bad = [name for name, value in means.items() if not np.isfinite(value)]
    for loss in bad:
        network, _, scalar = loss.partition("/")
        if scalar == "loss":
            return ", ".join(name for name in bad if name.startswith(f"{network}/"))
    return None
