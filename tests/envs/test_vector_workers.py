"""Which process makes, steps and closes what, how often, and that nothing of an earlier step is told later."""

from __future__ import annotations

import functools
import os
import signal
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
from gymnasium.vector import AutoresetMode
from vector_envs import COUNT, HUGE, KILL, RAISE, Calm, Counter, Mute, Unclosable

from drama.envs import EnvError, make_atari, make_vector


class Noted(Calm):
    """Writes down which process does what with it."""

    def __init__(self, notes: Path) -> None:
        super().__init__(0)
        self._notes = notes
        self._note("made")

    def _note(self, what: str) -> None:
        with self._notes.open("a") as file:
            file.write(f"{what} {os.getpid()}\n")

    @property
    def observation_space(self) -> spaces.Space[Any]:  # type: ignore[override]
        self._note("space")
        return spaces.Discrete(1 << 40)

    def close(self) -> None:
        self._note("closed")


def noted(notes: Path) -> dict[str, list[int]]:
    """The processes in which each thing was done."""
    found: dict[str, list[int]] = {}
    for line in notes.read_text().splitlines():
        what, pid = line.split()
        found.setdefault(what, []).append(int(pid))
    return found


@pytest.mark.parametrize("options", [{"timeout": 60}, {"on_worker_death": "restart", "num_workers": 1}])
def test_nothing_of_an_isolated_environment_runs_here(tmp_path: Path, options: dict[str, Any]) -> None:
    """Not even to read its spaces; and each is made once, where it is stepped."""
    with closing(make_vector([functools.partial(Noted, tmp_path / "notes")] * 3, **options)) as env:
        env.reset()
        assert env.step(np.zeros(3, int))[0].tolist() == [1, 1, 1]
        assert env.single_observation_space == spaces.Discrete(1 << 40)
    found = noted(tmp_path / "notes")
    assert all(os.getpid() not in pids for pids in found.values())
    assert len(found["made"]) == len(found["closed"]) == 3
    assert sorted(found["made"]) == sorted(found["closed"])


@pytest.mark.parametrize(("number", "workers", "made"), [(1, "auto", 1), (3, 0, 3), (3, 2, 3)])
def test_each_environment_is_made_once(tmp_path: Path, number: int, workers: Any, made: int) -> None:
    env = make_vector([functools.partial(Noted, tmp_path / "notes")] * number, num_workers=workers)
    with closing(env):
        env.reset()
    found = noted(tmp_path / "notes")
    assert len(found["made"]) == len(found["closed"]) == made


def test_workers_tell_of_environments_that_cannot_be_closed() -> None:
    env = make_vector([Counter, Unclosable], num_workers=2)
    env.reset()
    with pytest.raises(EnvError, match=r"(?s)environment 1 raised.*stuck"):
        env.close()
    assert env.closed
    env.close()


def test_what_caused_an_error_comes_from_workers_too() -> None:
    """A mistake in the options is a ValueError, wherever the environment that does not take them would be made."""
    for options in ({"num_workers": 0}, {"timeout": 60}):
        with pytest.raises(ValueError, match=r"^env.size: 20 must be a multiple of 8 for Catch$"):
            make_atari("Catch", 2, size=20, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_leaves_nothing_for_later_steps(workers: int) -> None:
    """The infos of other environments at the step that failed are not those of a step to come."""
    with closing(make_vector([Counter] * 4, num_workers=workers)) as env:
        for culprit in (0, 3):
            env.reset()
            with pytest.raises(EnvError, match=f"environment {culprit} raised"):
                env.step(np.array([RAISE if index == culprit else HUGE for index in range(4)]))
            assert env.reset()[1] == {}
            observations, rewards, *_, infos = env.step(np.zeros(4, int))
            assert (observations.tolist(), rewards.tolist(), infos) == ([1] * 4, [1.0] * 4, {})
            infos = env.step(np.array([COUNT, HUGE, COUNT, HUGE]))[4]
            assert (infos["huge"][[1, 3]] == 1).all()
            assert infos["_huge"].tolist() == [False, True, False, True]


def test_a_restart_leaves_nothing_for_later_steps() -> None:
    options: dict[str, Any] = {"num_workers": 2, "on_worker_death": "restart", "autoreset_mode": "SameStep"}
    with closing(make_vector([Counter] * 2, **options)) as env:
        env.reset()
        with pytest.raises(EnvError, match="environment 0 raised"):
            env.step(np.array([RAISE, KILL]))
        env.reset()
        infos = env.step(np.array([COUNT, HUGE]))[4]
        assert "worker_restarted" not in infos
        assert infos["huge"].shape == (2, 300_000)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_who_was_idle_at_a_restart_is_cut_off_once(mode: AutoresetMode) -> None:
    options: dict[str, Any] = {"num_workers": 1, "batch_size": 1, "on_worker_death": "restart"}
    with closing(make_vector([Counter] * 2, autoreset_mode=mode, **options)) as env:
        env.reset()
        env.send([KILL], [0])
        assert env.recv()[3].tolist() == [True]
        expected = [(0, True), (0, False), (1, False)] if mode == AutoresetMode.NEXT_STEP else [(0, True), (1, False)]
        for count, cut in expected:
            env.send([COUNT], [1])
            observations, _, _, truncated, infos = env.recv()
            assert (observations.tolist(), truncated.tolist()) == ([count], [cut])
            assert ("worker_restarted" in infos) == cut


CLOSED = """
import os, sys
sys.path.insert(0, {tests!r})
import numpy as np
from drama.envs import make_vector
from vector_envs import Counter
for stream in {streams}:
    os.close(stream)
env = make_vector([Counter] * 4, num_workers=2)
env.reset()
for stream in {streams}:  # what prints to it does not reach the vector's memory
    try:
        os.write(stream, bytes(range(256)) * 64)
    except OSError:
        pass
for _ in range(20):
    observations = env.step(np.zeros(4, int))[0]
env.close()
sys.exit(0 if observations.tolist() == [20] * 4 else 5)
"""


@pytest.mark.parametrize("streams", [[0], [1], [2], [0, 1, 2]])
def test_standard_streams_may_be_closed(streams: list[int]) -> None:
    code = CLOSED.format(tests=str(Path(__file__).parent), streams=streams)
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == 0


class Interrupted(Counter):
    """Ctrl-C comes while this process steps it, if the action is 1."""

    def step(self, action: np.int64) -> Any:
        if action == RAISE:
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the signal came too late")
        return super().step(action)


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_in_an_environment_of_this_process(workers: int) -> None:
    env_fns: list[Callable[[], gymnasium.Env[Any, Any]]] = [Counter, Interrupted, Counter, Counter]
    with closing(make_vector(env_fns, num_workers=workers)) as env:
        env.reset()
        with pytest.raises(KeyboardInterrupt):
            env.step(np.array([HUGE, RAISE, HUGE, HUGE]))
        with pytest.raises(RuntimeError, match="reset must come first, also after what was cut short"):
            env.step(np.zeros(4, int))
        observations, infos = env.reset()
        assert (observations.tolist(), infos) == ([0] * 4, {})
        observations, *_, infos = env.step(np.zeros(4, int))
        assert (observations.tolist(), infos) == ([1] * 4, {})


def test_a_worker_that_dies_with_its_mail_is_replaced() -> None:
    """Actions of megabytes lie in the vector's memory alone, which is gone with it."""
    options: dict[str, Any] = {"num_workers": 2, "on_worker_death": "restart"}
    with closing(make_vector([Mute] * 2, **options)) as env:
        env.reset()
        assert env.step(["x" * 3_000_000, "yes"])[1].tolist() == [3_000_000, 3]
        *_, truncated, infos = env.step(["die" * 1_000_000, "yes"])
        assert truncated.tolist() == infos["worker_restarted"].tolist() == [True, False]
        env.reset()
        assert env.step(["x" * 2_000_000, ""])[1].tolist() == [2_000_000, 0]
