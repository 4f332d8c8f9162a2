"""Steps of the environments into the replay."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drama.agent.player import Player
from drama.config import Config
from drama.envs import VectorEnv, make_frames
from drama.interface import Interface, Observations
from drama.replay import ReplayBuffer
from drama.training import plain


class Collector:
    """Steps environments, with random actions or an agent's, and keeps what of them goes on from step to step.

    Args:
        config: of the run.
        interface: of the environments, which are `envs`.
        player: picks the actions once they are not random.
    """

    def __init__(self, config: Config, envs: VectorEnv, interface: Interface, player: Player) -> None:
        self._envs, self._interface, self._player = envs, interface, player
        self._random = np.random.default_rng(config.seed)
        count = config.train.num_envs
        self._returns = np.zeros(count)
        self._lengths = np.zeros(count, np.int64)
        observations, _ = envs.reset(seed=config.seed)
        self._obs: Observations = interface.parts(observations)
        self._first = np.ones(count, np.bool_)

    def collect(self, replay: ReplayBuffer, *, randomly: bool) -> list[dict[str, float]]:
        """One step of every environment into the replay; the `return` and `length` of each episode that has ended."""
        obs, first = self._obs, self._first
        action = self._interface.action
        actions = action.sample(self._random, len(first)) if randomly else self._player.act(obs, first)
        following, rewards, terminated, truncated, infos = self._envs.step(actions)
        store_step(replay, obs, first, actions, rewards, terminated, truncated, infos)
        self._obs = self._interface.parts(following)
        self._returns += rewards
        self._lengths += 1
        self._first = terminated | truncated
        episodes: list[dict[str, float]] = [
            {"return": self._returns[i].item(), "length": self._lengths[i].item()} for i in np.flatnonzero(self._first)
        ]
        self._returns[self._first] = 0
        self._lengths[self._first] = 0
        return episodes

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()

    def state_dict(self, *, broken: bool = False) -> dict[str, Any]:
        """All that decides what comes next; the environments' own state if they tell of it and are not `broken`."""
        return {
            "envs": None if broken else self._envs_state(),
            "player": self._player.get_state(),
            "returns": torch.from_numpy(self._returns),
            "lengths": torch.from_numpy(self._lengths),
            "obs": {name: torch.from_numpy(array) for name, array in self._obs.items()},
            "first": torch.from_numpy(self._first),
            "random": self._random.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any], seed: int) -> bool:
        """Go on from `state_dict`. False if the environments begin new episodes instead, from `seed`.

        The episodes that are broken off then end without a termination.
        """
        self._random.bit_generator.state = state["random"]
        if state["envs"] is None:
            observations, _ = self._envs.reset(seed=seed)
            self._obs = self._interface.parts(observations)
            return False
        self._envs.set_state(plain.loads(state["envs"]))
        self._player.set_state(state["player"])
        self._obs = {name: tensor.cpu().numpy() for name, tensor in state["obs"].items()}
        self._returns, self._lengths, self._first = (
            state[name].cpu().numpy() for name in ("returns", "lengths", "first")
        )
        return True

    def _envs_state(self) -> str | None:
        state = self._envs.get_state()
        if any(env is None for env in state["envs"]):
            return None
        try:
            return plain.dumps(state)
        except TypeError:  # an environment whose state is some object of its own
            return None


def make_envs(config: Config) -> tuple[VectorEnv, Interface]:
    """The environments that a run steps, and what they show and take."""
    envs = make_frames(config.game, config.train.num_envs, config.env)
    try:
        return envs, envs.get_attr("interface")[0]
    except BaseException:
        envs.close()
        raise


def make_replay(config: Config, interface: Interface) -> ReplayBuffer:
    """The empty replay of a run."""
    return ReplayBuffer(
        min(config.train.replay_capacity, config.steps),
        fields=interface.fields(),
        num_envs=config.train.num_envs,
        seed=config.seed,
    )


def store_step(
    replay: ReplayBuffer,
    obs: Observations,
    first: NDArray[np.bool_],
    actions: NDArray[Any],
    rewards: NDArray[np.float64],
    terminated: NDArray[np.bool_],
    truncated: NDArray[np.bool_],
    infos: dict[str, Any],
) -> None:
    """Add to a replay from `make_replay` what `envs.step(actions)` returned for the observations before it."""
    life_lost = infos["life_lost"]
    if "final_info" in infos:  # where an episode ended, the info is that of the new one's first frame
        life_lost = np.where(infos["_final_info"], infos["final_info"]["life_lost"], life_lost)
    replay.add(
        **obs,
        action=actions,
        reward=rewards.astype(np.float32),
        terminated=terminated,
        truncated=truncated,
        life_lost=life_lost.astype(np.bool_),
        is_first=first,
    )


def random_play(config: Config, steps: int) -> ReplayBuffer:
    """A replay with `steps` rows of random play in the config's environment, for tests and benchmarks."""
    envs, interface = make_envs(config)
    replay = make_replay(config, interface)
    random = np.random.default_rng(0)
    observations, _ = envs.reset(seed=0)
    first = np.ones(envs.num_envs, np.bool_)
    while len(replay) < min(steps, replay.capacity):
        action = interface.action.sample(random, envs.num_envs)
        following, rewards, terminated, truncated, infos = envs.step(action)
        store_step(replay, interface.parts(observations), first, action, rewards, terminated, truncated, infos)
        observations, first = following, terminated | truncated
    envs.close()
    return replay


def tensors(state: dict[str, Any]) -> dict[str, Any]:
    """Arrays as tensors, for a checkpoint."""
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}


def arrays(state: dict[str, Any]) -> dict[str, Any]:
    """Tensors as arrays, from a checkpoint."""
    return {k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in state.items()}
