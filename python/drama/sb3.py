"""The replay buffer behind the interface of Stable-Baselines3's. Needs `pip install drama-rl[sb3]`.

`DQN("MlpPolicy", env, replay_buffer_class=drama.sb3.DramaReplayBuffer)`, likewise for SAC, TD3 and DDPG, with
`"MultiInputPolicy"` for dictionaries too.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

import drama.replay
from drama.hints import needed_by
from drama.replay.casting import as_array, as_column

with needed_by("drama.sb3", "sb3"):
    import torch
    from gymnasium import spaces
    from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
    from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
    from stable_baselines3.common.vec_env import VecNormalize

Array = npt.NDArray[Any]
Observations = Array | dict[str, Array]


class DramaReplayBuffer(ReplayBuffer):
    """Stores each observation once and gives what Stable-Baselines3's own buffers give, all kinds in one class.

    It stands for `ReplayBuffer`, for `DictReplayBuffer` where observations are dictionaries, and with `n_steps` for
    `NStepReplayBuffer`, but for one thing: transitions of several steps end where an episode was broken off, as by a
    second `learn`, in place of going on with the next one. `HerReplayBuffer` has no counterpart.

    Args:
        buffer_size: rows over all environments.
        observation_space: of one environment.
        action_space: of one environment.
        device: where samples go.
        n_envs: number of environments.
        optimize_memory_usage: has no effect; observations are stored once in any case.
        handle_timeout_termination: whether episodes that ended by a time limit still have a future.
        n_steps: steps of a transition, fewer where an episode ends; tell the model by
            `replay_buffer_kwargs={"n_steps": 3, "gamma": 0.99}`.
        gamma: discount from step to step where there are several.
        seed: of the draws; by default NumPy's global random numbers decide, which the seed of the model sets.
        compress: whether observations are kept compressed, as `drama.replay.ReplayBuffer` does.
        storage: a directory for the rows, as there.

    Raises:
        ValueError, TypeError, OSError: as `drama.replay.ReplayBuffer`, also for spaces that have no array.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,  # noqa: ARG002
        handle_timeout_termination: bool = True,
        n_steps: int = 1,
        gamma: float = 0.99,
        seed: int | None = None,
        compress: bool = False,
        storage: str | os.PathLike[str] | None = None,
    ) -> None:
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.pos: int = 0
        # Where this is set, `learn` writes to arrays that are not here.
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps, self.gamma = n_steps, gamma
        parts: dict[str | None, Any] = {None: observation_space}
        shapes: dict[str | None, Any] = {None: self.obs_shape}
        if isinstance(observation_space, spaces.Dict):
            parts, shapes = dict(observation_space.spaces.items()), self.obs_shape
        # Names that no field of ours has, whatever the keys are.
        self._names = {key: "obs" if key is None else f"obs/{key}" for key in parts}
        fields: dict[str, drama.replay.FieldSpec] = {
            self._names[key]: (shapes[key], part.dtype) for key, part in parts.items()
        }
        compressed = tuple(fields) if compress else ()
        fields["action"] = ((self.action_dim,), self._maybe_cast_dtype(action_space.dtype))
        fields["reward"] = ((), np.float32)
        self.buffer = drama.replay.ReplayBuffer(
            self.buffer_size * n_envs,
            fields,
            num_envs=n_envs,
            seed=int(np.random.randint(2**31 - 1)) if seed is None else seed,  # noqa: NPY002
            storage=storage,
            compress=compressed,
        )
        self._forget()

    def _forget(self) -> None:
        # What followed the newest rows, whether these ended their episodes, and whether the buffer knows.
        self._next: dict[str, Array] = {}
        self._ended = np.ones(self.n_envs, bool)
        self._told = True

    def add(
        self,
        obs: Observations,
        next_obs: Observations,
        action: Array,
        reward: Array,
        done: Array,
        infos: list[dict[str, Any]],
    ) -> None:
        """Add one transition of each environment.

        Raises:
            ValueError: an array has the wrong shape, or its space does not hold what is in it; nothing is added.
        """
        before, after = self._parts(obs), self._parts(next_obs)
        limited = [self.handle_timeout_termination and info.get("TimeLimit.truncated", False) for info in infos]
        truncated = np.array(limited, bool)
        terminated = as_column("done", bool, 0, [self.n_envs], done) & ~truncated
        broken = np.zeros(self.n_envs, bool)
        for name, last in self._next.items():
            now = before[name]
            differs = (last != now) & ~((last != last) & (now != now))  # NaN is like NaN
            broken |= differs.reshape(self.n_envs, -1).any(1)
        broken &= ~self._ended
        self._tell(broken)
        self.buffer.add(
            **before,
            action=as_array("action", action).reshape(self.n_envs, self.action_dim),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            is_first=self._ended | broken,
        )
        self._next, self._ended = after, terminated | truncated
        self._tell(self._ended)
        self._told = bool(self._ended.all())
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def _parts(self, obs: Observations) -> dict[str, Array]:
        """Copies of the parts of observations as the buffer has them, by field."""
        parts = {}
        for key, name in self._names.items():
            shape, dtype = self.buffer.fields[name]
            given: Any = obs if key is None else obs[key]
            lead = [self.n_envs]
            part = as_column(name, dtype, len(shape), lead, as_array(name, given).reshape(*lead, *shape))
            parts[name] = part.copy()
        return parts

    def _tell(self, envs: Array) -> None:
        """Let the buffer know what followed the newest rows of some environments, which no row to come will say."""
        if envs.any():
            ids = np.flatnonzero(envs)
            self.buffer.set_final(envs=ids, **{name: part[ids] for name, part in self._next.items()})

    def _know(self) -> None:
        if not self._told:
            self._tell(~self._ended)
            self._told = True

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples | DictReplayBufferSamples:
        """Draw transitions, each of all environments' with the same probability, normalized by `env` if given."""
        self._know()
        draw = self.buffer.sample_transitions
        return self._samples(draw(batch_size, self.n_steps, self.gamma, next_fields=tuple(self._names.values())), env)

    def _get_samples(
        self, batch_inds: Array, env: VecNormalize | None = None
    ) -> ReplayBufferSamples | DictReplayBufferSamples:
        self._know()
        envs = np.random.randint(0, high=self.n_envs, size=(len(batch_inds),))  # noqa: NPY002
        indices = self.buffer.indices_at(envs * self.buffer_size + batch_inds)
        names = tuple(self._names.values())
        batch = self.buffer.gather_transitions(indices, self.n_steps, self.gamma, next_fields=names)
        return self._samples({**batch, "indices": indices}, env)

    def _samples(
        self, batch: drama.replay.Batch, env: VecNormalize | None
    ) -> ReplayBufferSamples | DictReplayBufferSamples:
        kind = ReplayBufferSamples if None in self._names else DictReplayBufferSamples
        rewards = batch["reward"].astype(np.float32, copy=False)
        if env is not None and self.n_steps > 1:  # normalized, and so clipped, one by one
            rows = self.buffer.gather(batch["indices"], self.n_steps, within_episode=True)
            discounts = self.gamma ** np.arange(self.n_steps, dtype=np.float32)
            rewards = (self._normalize_reward(rows["reward"], env) * rows["mask"] * discounts).sum(1, dtype=np.float32)
        elif env is not None:
            rewards = self._normalize_reward(rewards, env)
        several = {}
        if self.n_steps > 1:
            several["discounts"] = self.to_torch(self.gamma ** batch["steps"][:, None].astype(np.float32), copy=False)
        return kind(
            observations=self._tensors(batch, "", env),
            actions=self.to_torch(batch["action"], copy=False),
            next_observations=self._tensors(batch, "next_", env),
            dones=self.to_torch(batch["terminated"][:, None].astype(np.float32), copy=False),
            rewards=self.to_torch(rewards[:, None], copy=False),
            **several,
        )

    def _tensors(self, batch: drama.replay.Batch, prefix: str, env: VecNormalize | None) -> Any:
        parts = {key: batch[prefix + name] for key, name in self._names.items()}
        if None in parts:
            return self.to_torch(self._normalize_obs(parts[None], env), copy=False)
        return {key: self.to_torch(part, copy=False) for key, part in self._normalize_obs(parts, env).items()}

    # What the base class has arrays for: copies that cannot be written to, zero where there is no row yet.

    @property
    def observations(self) -> Any:
        """`[buffer_size, n_envs, ...]`, by key for dictionaries."""
        parts = {key: self._array(name) for key, name in self._names.items()}
        return parts.get(None, parts)

    @property
    def next_observations(self) -> Any:
        """As `observations`, what followed."""
        self._know()
        every = np.arange(self.size())
        parts = {key: np.zeros_like(self._array(name)) for key, name in self._names.items()}
        for env in range(self.n_envs):
            indices = self.buffer.indices_at(env * self.buffer_size + every)
            batch = self.buffer.gather_transitions(indices, next_fields=tuple(self._names.values()))
            for key, name in self._names.items():
                parts[key][every, env] = batch[f"next_{name}"]
        for part in parts.values():
            part.flags.writeable = False
        return parts.get(None, parts)

    @property
    def actions(self) -> Array:
        """`[buffer_size, n_envs, action_dim]`."""
        return self._array("action")

    @property
    def rewards(self) -> Array:
        """`[buffer_size, n_envs]`."""
        return self._array("reward")

    @property
    def dones(self) -> Array:
        """`[buffer_size, n_envs]`, 1 where an episode ended in either way."""
        return self._array("terminated", np.float32) + self._array("truncated", np.float32)

    @property
    def timeouts(self) -> Array:
        """`[buffer_size, n_envs]`, 1 where a time limit ended it."""
        return self._array("truncated", np.float32)

    def _array(self, name: str, dtype: Any = None) -> Array:
        shape, own = self.buffer.fields[name]
        array = np.zeros((self.buffer_size, self.n_envs, *shape), dtype or own)
        for env in range(self.n_envs):
            rows = self.buffer.rows(env)[name]
            array[(self.pos - len(rows) + np.arange(len(rows))) % self.buffer_size, env] = rows
        array.flags.writeable = False
        return array

    def __repr__(self) -> str:
        steps = f", n_steps={self.n_steps}" if self.n_steps > 1 else ""
        return f"DramaReplayBuffer(buffer_size={self.buffer_size}, size={self.size()}{steps}, buffer={self.buffer!r})"

    def reset(self) -> None:
        """Forget all transitions."""
        super().reset()
        self.buffer.clear()
        self._forget()
