"""The buffer for Stable-Baselines3 beside its own: what goes in by `add` comes out the same."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

pytest.importorskip("stable_baselines3")

import torch
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from drama.sb3 import DramaReplayBuffer

BOX = spaces.Box(-9, 9, (3,), np.float32)
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "vector": BOX,
    "float64": spaces.Box(-9, 9, (2,), np.float64),
    "image": spaces.Box(0, 255, (4, 5, 1), np.uint8),
    "scalar": spaces.Discrete(500),
    "binary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"reward": BOX, "action": spaces.Discrete(7), "picture": spaces.Box(0, 255, (2, 2), np.uint8)}),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "choice": spaces.Discrete(4),
    "box": spaces.Box(-1, 1, (2,), np.float64),
    "choices": spaces.MultiDiscrete([3, 4]),
}


def batch(space: spaces.Space[Any], count: int) -> Any:
    seen = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {key: np.array([one[key] for one in seen]) for key in space.spaces}
    return np.array(seen)


def feed(buffers: list[ReplayBuffer], count: int, seed: int = 0, breaks: bool = False) -> None:
    """The same steps to each, as `learn` adds them: episodes end by themselves or by a time limit, or break off."""
    one = buffers[0]
    one.observation_space.seed(seed)
    one.action_space.seed(seed)
    random = np.random.default_rng(seed)
    obs = batch(one.observation_space, one.n_envs)
    for t in range(count):
        following = batch(one.observation_space, one.n_envs)
        ends = random.choice(["", "done", "limit"], one.n_envs, p=[0.7, 0.15, 0.15])
        infos = [{"TimeLimit.truncated": True} if end == "limit" else {} for end in ends]
        step = (batch(one.action_space, one.n_envs), random.normal(size=one.n_envs), ends != "", infos)
        for buffer in buffers:
            buffer.add(copy.deepcopy(obs), copy.deepcopy(following), *copy.deepcopy(step))
        begun, obs = batch(one.observation_space, one.n_envs), following
        new = (ends != "") | (breaks and t % 7 == 5)
        for key in obs if isinstance(obs, dict) else [None]:
            part, start = (obs, begun) if key is None else (obs[key], begun[key])
            part[new] = start[new]


def same(one: Any, other: Any) -> None:
    """Equal samples, types and shapes included."""
    assert type(one) is type(other)
    for name, mine, theirs in zip(one._fields, one, other, strict=True):
        parts = [each.values() if isinstance(each, dict) else [each] for each in (mine, theirs)]
        for ours, own in zip(*parts, strict=True):
            if own is None:
                assert ours is None
                continue
            assert (ours.dtype, ours.shape, ours.device) == (own.dtype, own.shape, own.device), name
            torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-6)
        if isinstance(theirs, dict):
            assert mine.keys() == theirs.keys()


def assert_alike(ours: DramaReplayBuffer, own: ReplayBuffer, env: VecNormalize | None = None) -> None:
    assert (ours.size(), ours.pos, ours.full, ours.buffer_size) == (own.size(), own.pos, own.full, own.buffer_size)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        one, other = getattr(ours, name), getattr(own, name)
        parts = [(one[key], other[key]) for key in other] if isinstance(other, dict) else [(one, other)]
        for mine, theirs in parts:
            assert mine.dtype == theirs.dtype
            held = slice(ours.size())  # theirs keeps what was there before a reset
            np.testing.assert_array_equal(mine[held], theirs[held], err_msg=name)
    every = np.arange(own.size())
    for seed in range(4):
        samples = []
        for buffer in (ours, own):
            np.random.seed(seed)  # noqa: NPY002
            samples.append(buffer._get_samples(every, env))
        same(*samples)


def both(observation: str, action: str, size: int, **options: Any) -> tuple[DramaReplayBuffer, ReplayBuffer]:
    given = (size, OBSERVATIONS[observation], ACTIONS[action], "cpu")
    own = DictReplayBuffer if observation == "dict" else ReplayBuffer
    return DramaReplayBuffer(*given, **options), own(*given, **options)


@pytest.mark.parametrize("count", [1, 6, 20, 47])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_what_goes_in_comes_out(observation: str, n_envs: int, count: int) -> None:
    for action in ACTIONS:
        for handled in (True, False):
            options = {"n_envs": n_envs, "handle_timeout_termination": handled}
            ours, own = both(observation, action, 20 * n_envs + n_envs // 2, **options)
            feed([ours, own], count, breaks=True)
            assert_alike(ours, own)


def rows(samples: Any) -> set[tuple[float, ...]]:
    parts = [part for part in samples[:5] if part is not None]
    flat = [torch.as_tensor(part).reshape(len(part), -1).double() for part in parts]
    return {tuple(row) for row in torch.cat(flat, 1).round(decimals=4).tolist()}


@pytest.mark.parametrize("n_envs", [1, 3])
def test_every_transition_is_drawn_and_none_besides(n_envs: int) -> None:
    ours, own = both("vector", "box", 20 * n_envs, n_envs=n_envs)
    for count in (1, 5, 30):
        feed([ours, own], count, seed=count)
        assert rows(ours.sample(2000)) == rows(own.sample(2000))


@pytest.mark.parametrize("n_steps", [2, 3, 7])
@pytest.mark.parametrize("count", [1, 6, 20, 47])
@pytest.mark.parametrize("normalized", [False, True])
def test_several_steps(n_steps: int, count: int, normalized: bool) -> None:
    given = (60, BOX, ACTIONS["box"], "cpu", 3)
    ours = DramaReplayBuffer(*given, n_steps=n_steps, gamma=0.9)
    own = NStepReplayBuffer(*given, n_steps=n_steps, gamma=0.9)
    feed([ours, own], count)
    env = None
    if normalized:
        env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), clip_reward=0.8)
        env.obs_rms.mean[:], env.ret_rms.var = 0.3, np.float64(2.0)
    assert_alike(ours, own, env)


def test_observations_and_rewards_are_normalized() -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), clip_reward=0.8)
    env.obs_rms.mean[:], env.ret_rms.var = 0.3, np.float64(2.0)
    ours, own = both("vector", "box", 20)
    feed([ours, own], 30)
    assert_alike(ours, own, env)
    assert rows(ours.sample(2000, env)) == rows(own.sample(2000, env))


@pytest.mark.parametrize("observation", ["vector", "dict"])
def test_a_reset_forgets_and_copies_go_on(observation: str) -> None:
    ours, own = both(observation, "choice", 20)
    feed([ours, own], 30)
    for buffer in (ours, own):
        buffer.reset()
    assert (ours.size(), len(ours.buffer)) == (0, 0)
    feed([ours, own], 5, seed=1)
    assert_alike(ours, own)
    other = copy.deepcopy(ours)
    feed([other, own], 5, seed=2)
    assert_alike(other, own)
    assert ours.size() == 5


def test_observations_that_are_not_numbers_break_nothing_off() -> None:
    ours = DramaReplayBuffer(20, OBSERVATIONS["vector"], ACTIONS["choice"], "cpu", n_steps=3, gamma=1.0)
    steps = [np.array([[t, np.nan, 0]], np.float32) for t in range(6)]
    for before, after in itertools.pairwise(steps):
        ours.add(before, after, np.ones((1, 1), int), np.ones(1), np.zeros(1, bool), [{}])
    assert ours.sample(50).rewards.max() == 3


def test_extend_adds_one_after_the_other() -> None:
    ours, own = both("vector", "choice", 20)
    for buffer in (ours, own):
        steps = np.arange(5, dtype=np.float32)
        obs = np.broadcast_to(steps[:, None, None], (5, 1, 3))
        infos: list[Any] = [[{}]] * 5
        buffer.extend(obs, obs + 1, np.ones((5, 1), int), steps[:, None], np.zeros((5, 1), bool), infos)
    assert_alike(ours, own)


def test_bad_steps_are_refused() -> None:
    ours, _ = both("vector", "choice", 20)
    feed([ours], 3)
    good = [np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1, int), np.zeros(1), np.zeros(1, bool), [{}]]
    for at, wrong in ((0, np.zeros((1, 4))), (1, np.zeros((1, 4))), (2, np.full(1, 0.5)), (3, np.zeros(2))):
        with pytest.raises(ValueError, match=r"reshape|obs|action|reward"):
            ours.add(*[wrong if i == at else value for i, value in enumerate(good)])  # type: ignore[arg-type]
    assert ours.size() == 3


def test_masked_values_are_refused() -> None:
    buffer = DramaReplayBuffer(10, BOX, ACTIONS["box"], n_envs=1)
    step: dict[str, Any] = {
        "obs": np.zeros((1, 3), np.float32),
        "next_obs": np.zeros((1, 3), np.float32),
        "action": np.zeros((1, 2)),
        "reward": np.zeros(1),
        "done": np.zeros(1),
    }
    for name, value in step.items():
        with pytest.raises(ValueError, match=r"got masked values, expected none"):
            buffer.add(**{**step, name: np.ma.masked_array(value, np.ones_like(value, bool))}, infos=[{}])
    assert buffer.size() == 0
    buffer.add(**step, infos=[{}])


def test_a_buffer_shows_what_it_holds() -> None:
    buffer = DramaReplayBuffer(10, OBSERVATIONS["dict"], ACTIONS["choice"], n_envs=2, n_steps=3)
    feed([buffer], 3)
    assert repr(buffer).startswith(
        "DramaReplayBuffer(buffer_size=5, size=3, n_steps=3, buffer=ReplayBuffer(capacity=10"
    )
    assert "obs/reward: float32[3]" in repr(buffer)


def test_learn_twice_does_not_join_episodes(tmp_path: Path) -> None:
    """The episode that `learn` left is broken off; each transition is as Stable-Baselines3's buffer has it."""
    found = []
    for kind in (DramaReplayBuffer, ReplayBuffer):
        options: dict[str, Any] = {"learning_starts": 100, "buffer_size": 100, "device": "cpu", "seed": 0}
        model = DQN("MlpPolicy", "CartPole-v1", replay_buffer_class=kind, **options)
        for _ in range(3):
            model.learn(10)
        found.append(rows(model.replay_buffer.sample(3000)))
        model.save_replay_buffer(tmp_path / "replay.pkl")
        model.load_replay_buffer(tmp_path / "replay.pkl")
        model.learn(10)
        found.append(rows(model.replay_buffer.sample(3000)))
    assert found[:2] == found[2:]
    assert (len(found[0]), len(found[1])) == (36, 48)  # `learn` takes steps by four


@pytest.mark.parametrize("n_steps", [1, 3])
def test_learning_may_start_at_once(n_steps: int) -> None:
    kwargs = {"n_steps": n_steps}
    model = DQN(
        "MlpPolicy",
        "CartPole-v1",
        replay_buffer_class=DramaReplayBuffer,
        replay_buffer_kwargs=kwargs,
        learning_starts=0,
        train_freq=1,
        batch_size=4,
        buffer_size=50,
        device="cpu",
    )
    model.learn(60)
    assert (model.replay_buffer.size(), model.replay_buffer.full) == (50, True)


def test_scalar_observations_and_several_environments_learn() -> None:
    options: dict[str, Any] = {"replay_buffer_class": DramaReplayBuffer, "learning_starts": 8, "device": "cpu"}
    env = make_vec_env(lambda: gym.make("FrozenLake-v1", max_episode_steps=7), n_envs=2)
    DQN("MlpPolicy", env, buffer_size=30, batch_size=8, **options).learn(64)
    kwargs = {"compress": True, "seed": 3}
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=30, replay_buffer_kwargs=kwargs, **options).learn(16)


def test_the_seed_of_the_model_decides_the_draws() -> None:
    drawn = []
    for seed in (1, 1, 2):
        model = DQN("MlpPolicy", "CartPole-v1", replay_buffer_class=DramaReplayBuffer, seed=seed, device="cpu")
        feed([model.replay_buffer], 30)
        drawn.append(model.replay_buffer.sample(32).rewards)
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])
