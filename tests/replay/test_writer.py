"""What vectors return becomes the rows of their episodes, in every autoreset mode, against a model of the episodes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from drama.envs import make_vector
from drama.replay import FieldSpec, ReplayBuffer, StepWriter

MODES = ["NextStep", "SameStep", "Disabled"]
FIELDS: dict[str, FieldSpec] = {"obs": ((3,), np.float32), "action": ((), np.int64), "reward": ((), np.float32)}
Vector = gym.vector.VectorEnv[Any, Any, Any]


def length(env: int, episode: int) -> int:
    """Steps of an episode; the odd ones are truncated, the others terminate."""
    return 1 + (2 * episode + 3 * env) % 5


class Counting(gym.Env[Any, Any]):
    """Observations tell environment, episode and step."""

    def __init__(self, number: int, shown: str = "array") -> None:
        self.action_space = spaces.Discrete(7)
        self.number, self.episode, self.shown = number, -1, shown
        box = spaces.Box(0, np.inf, (3,), np.float64)
        parts = spaces.Dict({"left": box, "right": spaces.Discrete(1000)})
        self.observation_space: spaces.Space[Any] = parts if shown == "dict" else box

    def _see(self) -> Any:
        seen = np.array([self.number, self.episode, self.count], np.float64)
        return {"left": seen, "right": np.int64(self.count)} if self.shown == "dict" else seen

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.episode, self.count = self.episode + 1, 0
        return self._see(), {"age": 0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        ended, odd = self.count == length(self.number, self.episode), self.episode % 2 == 1
        return self._see(), float(action) + 10 * self.count, ended and not odd, ended and odd, {"age": self.count}


def check(buffer: ReplayBuffer, breaks: set[tuple[int, int, int]] = frozenset(), obs: str = "obs") -> None:  # type: ignore[assignment]
    """Every episode is there from its first row to its last, or to where it is in `breaks` or under way; every
    transition leads where it should, and all are drawn whose end is known."""
    expected = {}
    for env in range(buffer.num_envs):
        rows = buffer.rows(env)
        episode, step = -1, 0
        for t, (number, ep, at) in enumerate(rows[obs].astype(int).tolist()):
            if rows["is_first"][t]:
                assert t == 0 or rows["terminated"][t - 1] or rows["truncated"][t - 1] or (env, episode, step) in breaks
                episode, step = ep, 0
            assert (number, ep, at) == (env, episode, step)
            step += 1
            assert rows["reward"][t] == rows["action"][t] + 10 * step
            ended = step == length(env, episode)
            assert rows["terminated"][t] == (ended and episode % 2 == 0)
            assert rows["truncated"][t] == (ended and episode % 2 == 1)
            newest = t == len(rows["reward"]) - 1
            if ended or not newest:
                expected[env, ep, at] = (env, ep, at + 1)
    assert len(expected) > 20
    batch = buffer.sample_transitions(3000, next_fields=(obs,))
    drawn = zip(batch[obs].astype(int).tolist(), batch[f"next_{obs}"].astype(int).tolist(), strict=True)
    found = {tuple(one): tuple(other) for one, other in drawn}
    assert found == expected


def play(envs: Vector, buffer: ReplayBuffer, steps: int = 60, with_reset: int | None = None) -> set[Any]:
    """The loop of the docs; gives the episodes broken off by a reset after `with_reset` steps."""
    writer = StepWriter(buffer, envs)
    writer.add_reset(*envs.reset(seed=0))
    envs.action_space.seed(0)
    breaks = set()
    for step in range(steps):
        action = envs.action_space.sample()
        obs, reward, terminated, truncated, infos = envs.step(action)
        writer.add_step(action, obs, reward, terminated, truncated, infos)
        if step == with_reset:
            for number, episode, count in obs.astype(int).tolist():
                breaks.add((number, episode, count))
            writer.add_reset(*envs.reset())
        elif envs.metadata["autoreset_mode"].value == "Disabled" and (ended := terminated | truncated).any():
            writer.add_reset(*envs.reset(options={"reset_mask": ended}), mask=ended)
    envs.close()
    return breaks


def makers(num: int, **options: Any) -> list[Callable[[], gym.Env[Any, Any]]]:
    return [lambda number=number: Counting(number, **options) for number in range(num)]  # type: ignore[misc]


def ours(workers: int) -> Callable[..., Vector]:
    return lambda fns, autoreset_mode: make_vector(fns, autoreset_mode=autoreset_mode, num_workers=workers, copy=False)


VECTORS: dict[str, Callable[..., Vector]] = {"ours": ours(0), "workers": ours(2), "sync": SyncVectorEnv}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vector", [*VECTORS, "async"])
def test_rows_are_those_of_the_episodes(vector: str, mode: str) -> None:
    num = 3
    make = VECTORS.get(vector, AsyncVectorEnv)
    envs = make(makers(num), autoreset_mode=gym.vector.AutoresetMode(mode))
    buffer = ReplayBuffer(400, FIELDS, num_envs=num)
    play(envs, buffer)
    check(buffer)
    assert buffer.totals.max() <= 60
    assert (buffer.totals < 60).any() == (mode == "NextStep")


@pytest.mark.parametrize("mode", MODES)
def test_a_reset_in_between_breaks_episodes_off(mode: str) -> None:
    """What was seen last is known then, so that their last rows are drawn too."""
    for after in range(12, 18):
        buffer = ReplayBuffer(400, FIELDS, num_envs=3)
        envs = make_vector(makers(3), autoreset_mode=mode, num_workers=0)
        breaks = play(envs, buffer, with_reset=after)
        check(buffer, breaks)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [VECTORS["ours"], SyncVectorEnv])
def test_dictionaries_and_further_fields(mode: str, make: Callable[..., Vector]) -> None:
    fields: dict[str, FieldSpec] = {"left": ((3,), np.float32), "right": ((), np.int16), "age": ((), np.uint8)}
    fields |= {"action": ((), np.uint8), "reward": ((), np.float64)}
    buffer = ReplayBuffer(400, fields, num_envs=2)
    envs = make(makers(2, shown="dict"), autoreset_mode=gym.vector.AutoresetMode(mode))
    writer = StepWriter(buffer, envs)
    writer.add_reset(*envs.reset())
    for _ in range(60):
        action = envs.action_space.sample()
        obs, reward, terminated, truncated, infos = envs.step(action)
        writer.add_step(action, obs, reward, terminated, truncated, infos, age=infos["age"])
        if mode == "Disabled" and (ended := terminated | truncated).any():
            writer.add_reset(*envs.reset(options={"reset_mask": ended}), mask=ended)
    check(buffer, obs="left")
    for env in range(2):
        rows = buffer.rows(env)
        np.testing.assert_array_equal(rows["right"], rows["left"][:, 2])
        if mode != "SameStep":  # where the infos of a step that ends an episode are those of the next one's reset
            np.testing.assert_array_equal(rows["age"], rows["left"][:, 2] + 1)
    batch = buffer.sample_transitions(500, next_fields=("left", "right"))
    np.testing.assert_array_equal(batch["next_right"], batch["next_left"][:, 2])


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_some_environments_at_a_time(mode: str) -> None:
    num = 5
    envs = make_vector(makers(num), autoreset_mode=mode, num_workers=2, batch_size=2)
    buffer = ReplayBuffer(1000, FIELDS, num_envs=num)
    writer = StepWriter(buffer, envs)
    writer.add_reset(*envs.reset(seed=0))
    action = envs.action_space.sample()
    envs.send(action)
    for _ in range(150):
        obs, reward, terminated, truncated, infos = envs.recv()
        ids = infos["env_id"]
        writer.add_step(action[ids], obs, reward, terminated, truncated, infos)
        action[ids] = envs.action_space.sample()[ids]
        envs.send(action[ids])
    envs.close()
    check(buffer)
    assert len(set(buffer.totals)) > 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [VECTORS["ours"], SyncVectorEnv])
def test_cartpole(mode: str, make: Callable[..., Vector]) -> None:
    """Beside the transitions that the single environments give for the same actions, one after the other."""
    num = 3
    seen: list[list[tuple[Any, ...]]] = [[] for _ in range(num)]

    class Witness(gym.Wrapper[Any, Any, Any, Any]):
        def __init__(self, number: int) -> None:
            super().__init__(gym.make("CartPole-v1", max_episode_steps=15))
            self.number = number

        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            self.last, info = super().reset(**options)
            return self.last, info

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            obs, reward, terminated, truncated, info = super().step(action)
            seen[self.number].append((self.last, int(action), obs, terminated, truncated))
            self.last = obs
            return obs, reward, terminated, truncated, info

    fns = [lambda number=number: Witness(number) for number in range(num)]
    envs = make(fns, autoreset_mode=gym.vector.AutoresetMode(mode))
    buffer = ReplayBuffer(3000, {**FIELDS, "obs": ((4,), np.float32)}, num_envs=num)
    play(envs, buffer, 200)
    for env in range(num):
        rows = buffer.rows(env)
        for name, at in (("obs", 0), ("action", 1), ("terminated", 3), ("truncated", 4)):
            np.testing.assert_array_equal(rows[name], [row[at] for row in seen[env]])
        assert rows["terminated"].any()
        assert rows["truncated"].any()
        known = [t for t, row in enumerate(seen[env]) if t + 1 < len(seen[env]) or row[3] or row[4]]
        batch = buffer.gather_transitions(env * buffer.rows_per_env + np.array(known))
        np.testing.assert_array_equal(batch["next_obs"], [seen[env][t][2] for t in known])


def test_a_single_environment() -> None:
    env, buffer = Counting(0), ReplayBuffer(200, FIELDS)
    writer = StepWriter(buffer, env)
    obs, info = env.reset()
    writer.add_reset(obs, info)
    for step in range(60):
        action = step % 7
        obs, reward, terminated, truncated, info = env.step(action)
        writer.add_step(action, obs, reward, terminated, truncated, {"env_id": 3})
        if terminated or truncated:
            with pytest.raises(RuntimeError, match="environment 0: add_reset must be given what reset returned"):
                writer.add_step(action, obs, reward, terminated, truncated)
            obs, info = env.reset()
            writer.add_reset(obs)
    check(buffer)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_restarted_worker_leaves_no_false_transition(mode: str) -> None:
    """What followed the last row before the crash is not known."""

    class Mortal(Counting):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            if self.number == 1 and action == 6 and self.count == 2:
                os._exit(1)
            return super().step(action)

    fns = [lambda number=number: Mortal(number) for number in range(2)]
    envs = make_vector(fns, autoreset_mode=mode, num_workers=2, on_worker_death="restart")
    buffer = ReplayBuffer(400, FIELDS, num_envs=2)
    writer = StepWriter(buffer, envs)
    writer.add_reset(*envs.reset())
    deaths = 0
    for step in range(40):
        action = np.full(2, 6 if step > 10 and not deaths else 1)
        obs, reward, terminated, truncated, infos = envs.step(action)
        writer.add_step(action, obs, reward, terminated, truncated, infos)
        deaths += int(np.sum(infos.get("worker_restarted", 0)))
    envs.close()
    assert deaths == 1
    batch = buffer.sample_transitions(1000)
    np.testing.assert_array_equal(batch["next_obs"], batch["obs"] + [0, 0, 1])
    rows = buffer.rows(1)
    assert (rows["truncated"] & (rows["reward"] == 0)).sum() == 1


def made(mode: str = "NextStep") -> StepWriter:
    envs = SyncVectorEnv(makers(2), autoreset_mode=gym.vector.AutoresetMode(mode))
    return StepWriter(ReplayBuffer(10, FIELDS, num_envs=2), envs)


STEP: dict[str, Any] = {
    "action": [1, 2],
    "obs": np.zeros((2, 3)),
    "reward": [0.5, 1.5],
    "terminated": [False, True],
    "truncated": [False, False],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": [1]}, r'field "action": got shape \[1\], expected \[2\]'),
        ({"action": {"move": [1, 2]}}, "the buffer has no field 'move'"),
        ({"obs": np.zeros((2, 4))}, r'field "obs": got shape \[2, 4\], expected \[2, 3\]'),
        ({"obs": {"left": np.zeros((2, 3))}}, "obs: got the parts left, expected obs"),
        ({"obs": (np.zeros((2, 3)), {})}, "obs: got a tuple, expected obs"),
        ({"terminated": [1, 2]}, r'field "terminated": got 2 \(dtype int64\), which bool does not hold'),
        ({"truncated": [True]}, r"truncated: got shape \[1\], expected \[2\]"),
        ({"envs": [0, 2]}, r"envs: got \[0, 2\], expected different numbers \[K\] from 0 to 1"),
        ({"envs": [1, 1]}, r"envs: got \[1, 1\], expected different numbers"),
        ({"log_prob": [0.1, 0.2]}, "the buffer has no field 'log_prob'"),
    ],
)
def test_a_bad_step_changes_nothing(change: dict[str, Any], message: str) -> None:
    writer, same = made(), made()
    for one in (writer, same):
        one.add_reset(np.zeros((2, 3)))
        one.add_step(**STEP)
    with pytest.raises(ValueError, match=message):
        writer.add_step(**{**STEP, **change})
    for one in (writer, same):
        one.add_step(**STEP)
    for env in range(2):
        for name, column in same.buffer.rows(env).items():
            np.testing.assert_array_equal(writer.buffer.rows(env)[name], column)


def test_misuse_is_refused() -> None:
    with pytest.raises(RuntimeError, match="environment 0: add_reset must be given what reset returned"):
        made().add_step(**STEP)
    writer = made("SameStep")
    writer.add_reset(np.zeros((2, 3)))
    masked = {"final_obs": np.zeros((2, 3)), "_final_obs": np.zeros(2, bool)}
    for infos in ({}, {"final_obs": np.array([None, None])}, masked):
        with pytest.raises(ValueError, match='infos: got no "final_obs" for an episode that ended'):
            writer.add_step(**STEP, infos=infos)
    assert len(writer.buffer) == 0
    envs = SyncVectorEnv(makers(2))
    with pytest.raises(ValueError, match="envs: got 2 environments, but the buffer has num_envs=3"):
        StepWriter(ReplayBuffer(9, FIELDS, num_envs=3), envs)
    with pytest.raises(ValueError, match="envs: got a single environment, but the buffer has num_envs=3"):
        StepWriter(ReplayBuffer(9, FIELDS, num_envs=3), Counting(0))
    with pytest.raises(ValueError, match="autoreset_mode: got 'never', expected one of NextStep, SameStep, Disabled"):
        StepWriter(ReplayBuffer(9, FIELDS, num_envs=2), envs, "never")
    assert StepWriter(ReplayBuffer(9, FIELDS, num_envs=2), envs, "SAME_STEP").autoreset_mode == "SameStep"


def test_a_buffer_cleared_under_way_goes_on() -> None:
    writer = made()
    writer.add_reset(np.zeros((2, 3)))
    writer.add_step(**{**STEP, "terminated": [False, False]})
    writer.buffer.clear()
    writer.add_reset(np.ones((2, 3)))
    writer.add_step(**STEP)
    flags: npt.NDArray[np.bool_] = writer.buffer.rows(0)["is_first"]
    assert flags.tolist() == [True]
