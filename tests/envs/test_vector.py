"""Vector environments give what gymnasium's own give."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from vector_envs import Calm, Counter, Nested, Painter, Slow, Words

from drama._native import cores
from drama.config import EnvConfig
from drama.envs import VectorEnv, make_atari, make_env, make_vector

Env = gymnasium.Env[Any, Any]
MODES = list(AutoresetMode)
# Starting workers takes most of a test's time, so most of that is for the slow tests.
SLOW_TWO = [0, pytest.param(2, marks=pytest.mark.slow)]
ONE_MODE = [mode if mode == AutoresetMode.NEXT_STEP else pytest.param(mode, marks=pytest.mark.slow) for mode in MODES]
# Short limits, so that episodes end often. FrozenLake and Blackjack end by themselves.
REAL: dict[str, Callable[[], Env]] = {
    "CartPole": functools.partial(gymnasium.make, "CartPole-v1"),
    "Acrobot": functools.partial(gymnasium.make, "Acrobot-v1", max_episode_steps=37),
    "Pendulum": functools.partial(gymnasium.make, "Pendulum-v1", max_episode_steps=23),
    "MountainCarContinuous": functools.partial(gymnasium.make, "MountainCarContinuous-v0", max_episode_steps=31),
    "Blackjack": functools.partial(gymnasium.make, "Blackjack-v1"),
    "Taxi": functools.partial(gymnasium.make, "Taxi-v4", max_episode_steps=29),
    "FrozenLake": functools.partial(gymnasium.make, "FrozenLake-v1"),
    "CliffWalking": functools.partial(gymnasium.make, "CliffWalking-v1", max_episode_steps=19),
    "Nested": Nested,
    "Words": Words,
    "Painter": Painter,
    "Catch": functools.partial(make_env, "Catch", EnvConfig(size=16)),
}


def same(got: Any, expected: Any, where: str = "result") -> None:
    """Raise unless both are equal in value, type, dtype and nesting."""
    if isinstance(expected, dict):
        assert isinstance(got, dict), where
        assert set(got) == set(expected), where
        for key in expected:
            same(got[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, np.ndarray) and expected.dtype != object:
        assert isinstance(got, np.ndarray), where
        assert got.dtype == expected.dtype, where
        np.testing.assert_array_equal(got, expected, where)
    elif isinstance(expected, tuple | np.ndarray):
        assert type(got) is type(expected), where
        assert len(got) == len(expected), where
        for index, (one, other) in enumerate(zip(got, expected, strict=True)):
            same(one, other, f"{where}[{index}]")
    else:
        assert type(got) is type(expected), where
        assert got == expected, where


def pairs(env_fns: list[Callable[[], Env]], mode: AutoresetMode, workers: int, steps: int) -> int:
    """Run ours and gymnasium's side by side; gives how many episodes ended."""
    ended = 0
    theirs = SyncVectorEnv(env_fns, autoreset_mode=mode)
    with_workers = make_vector(env_fns, num_workers=workers, autoreset_mode=mode)
    assert with_workers.num_workers == workers
    with_workers.action_space.seed(7)
    try:
        same(with_workers.reset(seed=5, options={"a": 1}), theirs.reset(seed=5, options={"a": 1}), "reset")
        for step in range(steps):
            actions = with_workers.action_space.sample()
            got, expected = with_workers.step(actions), theirs.step(actions)
            same(got, expected, f"step {step}")
            done = expected[2] | expected[3]
            ended += int(done.sum())
            if mode == AutoresetMode.DISABLED and done.any():
                same(
                    with_workers.reset(options={"reset_mask": done.copy()}),
                    theirs.reset(options={"reset_mask": done.copy()}),
                    f"partial reset {step}",
                )
        same(with_workers.reset(seed=[3, None, 4, 8, 1]), theirs.reset(seed=[3, None, 4, 8, 1]), "second reset")
    finally:
        with_workers.close()
        theirs.close()
    return ended


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["CartPole", "Blackjack", "Nested", "Words", "Painter"])
def test_equals_gymnasium(name: str, mode: AutoresetMode) -> None:
    assert pairs([REAL[name]] * 5, mode, 0, 120) >= 5


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("Nested", AutoresetMode.SAME_STEP),
        ("CartPole", AutoresetMode.DISABLED),
        ("Painter", AutoresetMode.SAME_STEP),
        ("Words", AutoresetMode.NEXT_STEP),
    ],
)
def test_workers_equal_gymnasium(name: str, mode: AutoresetMode) -> None:
    assert pairs([REAL[name]] * 5, mode, 2, 120) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REAL)
def test_equals_gymnasium_for_long(name: str, mode: AutoresetMode, workers: int) -> None:
    assert pairs([REAL[name]] * 5, mode, workers, 600) >= 20


@pytest.mark.parametrize("workers", [0, 2])
def test_spaces_metadata_and_calls(workers: int) -> None:
    env_fns = [functools.partial(gymnasium.make, "CartPole-v1", render_mode="rgb_array")] * 3
    theirs = SyncVectorEnv(env_fns, autoreset_mode=AutoresetMode.SAME_STEP)
    with closing(make_vector(env_fns, num_workers=workers, autoreset_mode=AutoresetMode.SAME_STEP)) as ours:
        for name in ("single_observation_space", "observation_space", "single_action_space", "action_space"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.metadata == theirs.metadata
        assert ours.render_mode == "rgb_array"
        assert isinstance(ours, gymnasium.vector.VectorEnv)
        for env in (ours, theirs):
            env.reset(seed=3)
            env.set_attr("gravity", [1.0, 2.0, 3.0])
            env.set_attr("masspole", 0.5)
        assert ours.get_attr("gravity") == (1.0, 2.0, 3.0)
        assert ours.call("get_wrapper_attr", "masspole") == (0.5,) * 3
        assert ours.np_random_seed == theirs.np_random_seed
        actions = np.array([0, 1, 0])
        same(ours.step(actions), theirs.step(actions))
        frames = theirs.render()
        assert frames is not None
        same(ours.render(), tuple(frames))


@pytest.mark.parametrize("workers", SLOW_TWO)
def test_copy_false_gives_the_memory_itself(workers: int) -> None:
    with closing(make_vector([Painter] * 4, num_workers=workers, copy=False)) as env:
        first, _ = env.reset(seed=1)
        before = first.copy()
        second = env.step(np.zeros(4, int))[0]
        assert np.shares_memory(first, second)
        assert not np.array_equal(first, before)
    first[:] = 1  # it outlives the vector


def test_copies_are_apart() -> None:
    with closing(make_vector([Painter] * 4, num_workers=0)) as env:
        first, infos = env.reset(seed=1)
        before, lives = first.copy(), infos["lives"].copy()
        for _ in range(20):
            env.step(np.zeros(4, int))
        np.testing.assert_array_equal(first, before)
        np.testing.assert_array_equal(infos["lives"], lives)


@pytest.mark.parametrize("workers", [0, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_send_and_recv_give_each_environment_its_own_steps(workers: int) -> None:
    """Whatever comes when, the results of each environment are those of stepping it alone."""
    alone = [Painter() for _ in range(6)]
    for index, env in enumerate(alone):
        env.reset(seed=index)
    random = np.random.default_rng(0)
    seen, over = np.zeros(6, int), np.zeros(6, bool)
    with closing(make_vector([Painter] * 6, num_workers=workers, batch_size=2)) as ours:
        ours.reset(seed=0)
        ours.send(actions := random.integers(0, 4, 6))
        given = dict(enumerate(actions.tolist()))
        while not (seen > 50).all():
            frames, rewards, terminated, truncated, infos = ours.recv()
            ids = infos["env_id"]
            assert len(ids) == len(frames) == 2
            for position, index in enumerate(ids.tolist()):
                action, reward, ended, info = np.int64(given.pop(index)), 0.0, False, {}
                if over[index]:
                    frame, info = alone[index].reset()
                else:
                    frame, reward, ended, _, info = alone[index].step(action)
                over[index] = ended
                same(frames[position], frame)
                assert (rewards[position], terminated[position], truncated[position]) == (reward, ended, False)
                assert (infos["lives"][position], infos["hurt"][position]) == (info["lives"], info["hurt"])
                assert infos["_lives"].tolist() == [True, True]
                assert ("rare" in info) == ("rare" in infos and bool(infos["_rare"][position]))
            seen[ids] += 1
            actions = random.integers(0, 4, 2)
            given.update(zip(ids.tolist(), actions.tolist(), strict=True))
            if random.random() < 0.5:
                ours.send(actions)
            else:
                ours.send(actions[::-1].copy(), ids[::-1])
        with pytest.raises(RuntimeError, match="recv first"):
            ours.step(np.zeros(6, int))
        ours.reset(seed=1)
        ours.step(np.zeros(6, int))


def test_recv_does_not_wait_for_the_slow() -> None:
    env_fns: list[Callable[[], Env]] = [Counter, Counter, functools.partial(Slow, 0.4), functools.partial(Slow, 0.4)]
    with closing(make_vector(env_fns, num_workers=2, batch_size=2)) as env:
        env.reset()
        env.send(np.zeros(4, int))
        assert env.recv()[4]["env_id"].tolist() == [0, 1]
        assert env.recv()[4]["env_id"].tolist() == [2, 3]


class Telling(gymnasium.Env[Any, Any]):
    """Observes a text, which has no place in an array, beside the count; can give and take its state."""

    observation_space = spaces.Dict({"t": spaces.Text(9), "x": spaces.Box(0, 99, (1,), np.float32)})
    action_space = spaces.Discrete(2)

    def _told(self) -> Any:
        return {"t": f"n{self.count}", "x": np.full(1, self.count, np.float32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:  # noqa: ARG002
        self.count = 0
        return self._told(), {}

    def step(self, action: Any) -> Any:  # noqa: ARG002
        self.count += 1
        return self._told(), 0.0, False, False, {}

    def get_state(self) -> int:
        return self.count

    def set_state(self, state: int) -> None:
        self.count = state


def test_a_state_stays_as_it_was() -> None:
    with closing(make_vector([Telling] * 2, num_workers=0)) as env:
        env.reset()
        env.step(np.zeros(2, int))
        state = env.get_state()
        before = copy.deepcopy(state)
        env.step(np.zeros(2, int))
        assert repr(state) == repr(before)


@pytest.mark.parametrize("mode", ONE_MODE)
def test_state_goes_on_exactly(mode: AutoresetMode) -> None:
    env_fns = [functools.partial(make_env, "Catch", EnvConfig(size=16))] * 3
    actions = np.random.default_rng(1).integers(0, 3, (25, 3))

    def run(env: VectorEnv, actions: np.ndarray[Any, Any]) -> list[Any]:
        results: list[Any] = []
        for row in actions:
            results.append(env.step(row))
            if mode == AutoresetMode.DISABLED and (done := results[-1][2]).any():
                results.append(env.reset(options={"reset_mask": done}))
        return results

    with closing(make_vector(env_fns, num_workers=0, autoreset_mode=mode)) as env:
        env.reset(seed=1)
        run(env, actions[:7])  # here the episodes end
        state = pickle.dumps(env.get_state())
        expected = run(env, actions[7:])
    for workers in (0, 2):
        with closing(make_vector(env_fns, num_workers=workers, autoreset_mode=mode)) as env:
            env.reset(seed=2)
            env.set_state(pickle.loads(state))
            for got, other in zip(run(env, actions[7:]), expected, strict=True):
                same(got, other)


@pytest.mark.parametrize("workers", SLOW_TWO)
def test_wrappers_of_gymnasium_work(workers: int) -> None:
    env_fns = [REAL["CartPole"]] * 4

    def run(env: Any) -> list[Any]:
        env = gymnasium.wrappers.vector.NormalizeObservation(gymnasium.wrappers.vector.RecordEpisodeStatistics(env))
        results = [env.reset(seed=1)]
        for step in range(80):
            observation, reward, terminated, truncated, info = env.step(np.array([0, 1, step % 2, 1]))
            if "episode" in info:
                info["episode"].pop("t")
            results.append((observation, reward, terminated, truncated, info))
        env.close()
        return results

    got, expected = run(make_vector(env_fns, num_workers=workers)), run(SyncVectorEnv(env_fns))
    assert any("episode" in result[-1] for result in expected)
    for one, other in zip(got, expected, strict=True):
        same(one, other)


def test_environments_that_keep_their_actions() -> None:
    """What is handed to an environment is its own, and so is what the caller gave."""
    with closing(make_vector([Nested] * 2, num_workers=0)) as env:
        env.reset(seed=0)
        actions = env.action_space.sample()
        given = copy.deepcopy(actions)
        env.step(actions)
        same(actions, given)


def test_auto_decides_without_changing_results() -> None:
    """With either decision, and global random numbers are left alone."""
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    light = make_vector([functools.partial(Calm, 0)] * 2)
    heavy = make_vector([functools.partial(Calm, 0.05)] * 2)
    after = np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
    np.testing.assert_array_equal(before, after)
    with closing(light), closing(heavy):
        assert light.num_workers == 0
        assert heavy.num_workers == min(cores(), 2) * (cores() > 1)
        same(light.reset(seed=0), heavy.reset(seed=0))
        same(light.step(np.zeros(2, int)), heavy.step(np.zeros(2, int)))


@pytest.mark.parametrize("mode", ONE_MODE)
def test_atari_equals_gymnasium(mode: AutoresetMode) -> None:
    """Frames, lives and ends of Breakout, which the environments write into the shared memory."""
    config = EnvConfig(max_frames=160, frame_stack=2, grayscale=True)
    theirs = SyncVectorEnv([functools.partial(make_env, "Breakout", config)] * 3, autoreset_mode=mode)
    ended = 0
    with closing(make_atari("Breakout", 3, config=config, num_workers=2, autoreset_mode=mode)) as ours:
        same(ours.reset(seed=5), theirs.reset(seed=5))
        for row in np.random.default_rng(0).integers(0, 4, (100, 3)):
            got, expected = ours.step(row), theirs.step(row)
            same(got, expected)
            done = expected[2] | expected[3]
            ended += int(done.sum())
            if mode == AutoresetMode.DISABLED and done.any():
                options = {"reset_mask": done}
                same(ours.reset(options=dict(options)), theirs.reset(options=dict(options)))
    theirs.close()
    assert ended >= 3


def test_gymnasium_makes_them_by_name() -> None:
    env = gymnasium.make_vec("drama/Pong-v0", num_envs=3, num_workers=0, grayscale=True)
    with closing(env):
        assert isinstance(env, VectorEnv)
        assert env.observation_space.shape == (3, 64, 64, 1)
        assert env.spec is not None
        assert env.spec.kwargs["num_envs"] == 3
    plain = gymnasium.make_vec("drama/Catch-v0", num_envs=2, vectorization_mode="sync")
    with closing(plain), closing(make_atari("Catch", 2, num_workers=0)) as ours:
        same(ours.reset(seed=2), plain.reset(seed=2))
    with pytest.raises(ValueError, match=r"game: 'Pon' is unknown \(did you mean Pong"):
        make_atari("Pon", 2, num_workers=0)
    with pytest.raises(ValueError, match="option: 'grey' is unknown"):
        make_atari("Pong", 2, num_workers=0, grey=True)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="frame_skip"):
        make_atari("Pong", 2, num_workers=0, frame_skip=0)
    with pytest.raises(ValueError, match="num_envs: got 0, expected an integer of at least 1"):
        make_atari("Pong", 0)


def test_workers_need_no_main_guard(tmp_path: Path) -> None:
    """What a script defines itself reaches the workers though they do not run the script, and they end quietly: ale_py
    complains of emulators that are left."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("[1.0, 1.0, 1.0]\n", "")


SCRIPT = """
import gymnasium, numpy as np
from drama.envs import make_atari, make_vector

class Env(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}

env = make_vector([Env] * 3, num_workers=2)
env.reset()
print(env.step(np.zeros(3, int))[1].tolist())
games = make_atari("Pong", 2, num_workers=2)
games.reset()
games.close()
"""


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_vector_is_not_copied_and_says_what_is(how: Callable[[Any], object]) -> None:
    with (
        closing(make_vector([Counter] * 2, num_workers=0)) as env,
        pytest.raises(TypeError, match=r"make another and give it the state, other\.set_state\(this\.get_state\(\)\)"),
    ):
        how(env)
