"""Vector environments when something goes wrong: in an environment, in a worker, in the process itself, in a call."""

from __future__ import annotations

import functools
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from vector_envs import (
    COUNT,
    HANG,
    HUGE,
    KILL,
    RAISE,
    UNSENDABLE,
    Calm,
    Counter,
    Mute,
    Nested,
    Painter,
    Slow,
    Unclosable,
)

from drama.envs import EnvError, VectorEnv, WorkerDied, make_vector
from drama.envs.processes import encode_make

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def slowly(value: Any) -> Any:
    """A parameter for the slow tests; starting workers is what takes time."""
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)


def children() -> set[int]:
    """Processes that this one started and has not waited for."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def holdings() -> tuple[set[int], int, int]:
    """Children, open files, and mappings of shared memory of this process."""
    maps = Path("/proc/self/maps").read_text()
    return children(), len(os.listdir("/proc/self/fd")), maps.count("drama-vector")


def gone(pid: int) -> bool:
    """Whether the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    """Raise if it does not come true in half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No test leaves a process, an open file or memory."""
    if sys.platform != "linux":
        yield
        return
    before = holdings()
    yield
    if holdings() != before:
        gc.collect()
    assert holdings() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_comes_with_its_traceback(workers: int) -> None:
    with closing(make_vector([Counter] * 4, num_workers=workers)) as env:
        for index in (0, 3):
            env.reset()
            env.step(np.zeros(4, int))
            actions = np.zeros(4, int)
            actions[index] = RAISE
            with pytest.raises(EnvError, match=f"environment {index} raised") as caught:
                env.step(actions)
            assert "ZeroDivisionError: as it was told" in str(caught.value)
            assert "vector_envs.py" in str(caught.value)
            assert caught.value.env_id == index
            with pytest.raises(RuntimeError, match="reset must come first"):
                env.step(np.zeros(4, int))
        env.reset()
        assert env.step(np.zeros(4, int))[0].tolist() == [1] * 4
        with pytest.raises(EnvError, match=r"(?s)environment 0 raised.*no reset today"):
            env.reset(options={"fail": True})
        with pytest.raises(EnvError, match=r"(?s)has no attribute.*nonsense"):
            env.call("nonsense")


def broken() -> gymnasium.Env[Any, Any]:
    raise OSError("no such machine")


@pytest.mark.parametrize(("workers", "index"), [(0, 0), (0, 2), slowly((2, 0)), (2, 2)])
def test_an_environment_that_cannot_be_made(workers: int, index: int) -> None:
    env_fns: list[Any] = [Counter] * 3
    env_fns[index] = broken
    with pytest.raises(EnvError, match=rf"(?s)environment {index} raised.*no such machine"):
        make_vector(env_fns, num_workers=workers)


def test_infos_of_any_size_arrive_and_others_are_refused() -> None:
    with closing(make_vector([Counter] * 4, num_workers=2)) as env:
        env.reset()
        for step in range(3):
            infos = env.step(np.full(4, HUGE))[4]
            assert infos["huge"].shape == (4, 300_000)
            assert (infos["huge"] == step).all()
        # Stepped here, so nothing has to be sent; then by a worker.
        assert env.step(np.array([UNSENDABLE, 0, 0, 0]))[4]["_lock"].tolist() == [True, False, False, False]
        with pytest.raises(EnvError, match="cannot be sent"):
            env.step(np.array([0, 0, 0, UNSENDABLE]))


def test_huge_infos_do_not_block_a_batch_of_others() -> None:
    with closing(make_vector([Counter] * 6, num_workers=2, batch_size=3)) as env:
        env.reset()
        env.send(np.full(6, HUGE))
        for _ in range(20):
            infos = env.recv()[4]
            assert infos["huge"].shape == (3, 300_000)
            env.send(np.full(3, HUGE))
        env.reset()


@linux
@pytest.mark.parametrize("moment", ["stepping", slowly("idle")])
def test_a_killed_worker_is_reported(moment: str) -> None:
    env = make_vector([Counter] * 4, num_workers=2)
    with closing(env):
        env.reset()
        pid = env.call("pid")[3]
        if moment == "idle":
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(
            WorkerDied, match=rf"process {pid}, environments 2 to 3\) was killed by signal SIGKILL"
        ) as e:
            env.step(np.array([0, 0, KILL, 0]) if moment == "stepping" else np.zeros(4, int))
        assert e.value.env_ids == (2, 3)
        with pytest.raises(RuntimeError, match="can only be closed: worker 1"):
            env.step(np.zeros(4, int))
        with pytest.raises(RuntimeError, match="can only be closed: worker 1"):
            env.reset()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["reset", "call"])
def test_a_worker_killed_before_a_call_is_reported(moment: str) -> None:
    with closing(make_vector([Counter] * 4, num_workers=2)) as env:
        env.reset()
        os.kill(env.call("pid")[3], signal.SIGKILL)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            env.reset() if moment == "reset" else env.call("pid")


@pytest.mark.parametrize(
    "mode", [slowly(AutoresetMode.NEXT_STEP), AutoresetMode.SAME_STEP, slowly(AutoresetMode.DISABLED)]
)
def test_restart_goes_on(mode: AutoresetMode) -> None:
    env = make_vector([Counter] * 4, num_workers=2, autoreset_mode=mode, on_worker_death="restart")
    with closing(env):
        env.reset()
        assert len(set(env.call("pid"))) == 2
        assert os.getpid() not in env.call("pid")
        env.step(np.zeros(4, int))
        observation, reward, terminated, truncated, infos = env.step(np.array([0, KILL, 0, 0]))
        assert observation.tolist() == [0, 0, 2, 2]
        assert reward.tolist() == [0, 0, 1, 1]
        assert truncated.tolist() == [True, True, False, False]
        assert not terminated.any()
        assert infos["worker_restarted"].tolist() == infos["_worker_restarted"].tolist() == truncated.tolist()
        assert ("final_obs" in infos) == (mode == AutoresetMode.SAME_STEP)
        if mode == AutoresetMode.DISABLED:
            with pytest.raises(RuntimeError, match=r"\[0, 1\] have ended"):
                env.step(np.zeros(4, int))
            env.reset(options={"reset_mask": truncated})
        expected = [0, 0] if mode == AutoresetMode.NEXT_STEP else [1, 1]
        assert env.step(np.zeros(4, int))[0].tolist() == [*expected, 3, 3]
        os.kill(env.call("pid")[3], signal.SIGKILL)
        assert env.reset()[0].tolist() == [0] * 4
        assert not env.step(np.zeros(4, int))[3].any()


@pytest.mark.slow
def test_restart_cuts_off_who_was_idle_too() -> None:
    with closing(make_vector([Counter] * 4, num_workers=2, batch_size=1, on_worker_death="restart")) as env:
        env.reset()
        env.send([KILL], [0])
        assert env.recv()[3].tolist() == [True]
        env.send([COUNT, COUNT, COUNT], [1, 2, 3])
        cut = {int(infos["env_id"][0]): bool(truncated[0]) for _, _, _, truncated, infos in (env.recv() for _ in "123")}
        assert cut == {1: True, 2: False, 3: False}


def test_what_dies_again_is_given_up(tmp_path: Path) -> None:
    env_fns = [functools.partial(Mortal, tmp_path / str(index)) for index in range(2)]
    with closing(make_vector(env_fns, num_workers=2, on_worker_death="restart")) as env:
        env.reset()
        with pytest.raises(WorkerDied, match=r"environment 0\) was killed.*could not be restarted.*was killed"):
            env.step(np.array([1, 0]))


class Mortal(Counter):
    """Dies of action 1, and from then on whenever it is made."""

    def __init__(self, grave: Path) -> None:
        super().__init__()
        self.grave = grave
        if grave.exists():
            os.kill(os.getpid(), signal.SIGKILL)

    def step(self, action: np.int64) -> Any:
        if action == 1:
            self.grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


@pytest.mark.parametrize("method", ["step", slowly("reset"), slowly("call")])
def test_an_environment_that_hangs(method: str) -> None:
    env = make_vector([Counter, Sleeper], num_workers=2, timeout=0.5)
    with closing(env):
        if method != "reset":
            env.reset(options={"quick": True})
        calls: dict[str, Callable[[], object]] = {
            "step": lambda: env.step(np.array([0, HANG])),
            "reset": lambda: env.reset(options={}),
            "call": lambda: env.call("rest"),
        }
        with pytest.raises(TimeoutError, match=r"environments \[1\] did not answer within 0.5 s"):
            calls[method]()
        with pytest.raises(RuntimeError, match="can only be closed"):
            env.step(np.zeros(2, int))


class Sleeper(Counter):
    """Hangs where the other does not."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if options == {}:
            time.sleep(3600)
        return super().reset(seed=seed, options=options)

    def rest(self) -> None:
        time.sleep(3600)


PARENT = """
import os, sys, time
sys.path.insert(0, {tests!r})
import numpy as np
from drama.envs import make_vector
from vector_envs import Counter, Slow
env = make_vector([Counter, Counter, {third}], num_workers=3)
env.reset()
print(*env.call("pid"), flush=True)
if {stepping}:
    env.send(np.array([0, 0, {action}]))
time.sleep(3600)
"""


def parent(
    third: str = "Counter", stepping: bool = False, action: int = COUNT
) -> tuple[subprocess.Popen[str], list[int]]:
    """A process with a vector environment, and the processes of its environments."""
    code = PARENT.format(tests=str(Path(__file__).parent), third=third, stepping=stepping, action=action)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(set(pids)) == 3
    assert pids[0] == process.pid
    return process, pids


@linux
@pytest.mark.parametrize("state", [slowly("idle"), "hanging"])
def test_killing_the_parent_leaves_nothing(state: str) -> None:
    process, pids = parent(stepping=state == "hanging", action=HANG)
    with process:
        names = set(os.listdir("/dev/shm"))
        process.kill()
        process.wait()
        wait_until(lambda: all(gone(pid) for pid in pids))
        assert set(os.listdir("/dev/shm")) <= names


@linux
def test_ctrl_c_is_for_the_parent() -> None:
    process, pids = parent()
    with process:
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert errors.count("KeyboardInterrupt") == 1
        wait_until(lambda: all(gone(pid) for pid in pids))


@linux
def test_ctrl_c_while_waiting() -> None:
    env = make_vector([Counter, functools.partial(Slow, 0.7)], num_workers=2)
    with closing(env):
        env.reset()
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            env.step(np.zeros(2, int))
        timer.join()
        with pytest.raises(RuntimeError, match="cut short"):
            env.step(np.zeros(2, int))
        assert env.reset()[0].tolist() == [0, 0]
        assert env.step(np.zeros(2, int))[0].tolist() == [1, 1]


@linux
def test_a_fork_keeps_its_hands_off() -> None:
    env = make_vector([Counter] * 2, num_workers=2)
    with closing(env):
        env.reset()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                calls: list[Callable[[], object]] = [lambda: env.step(np.zeros(2, int)), env.reset, env.render]
                for call in calls:
                    with pytest.raises(RuntimeError, match="not to a fork"):
                        call()
                env.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert env.step(np.zeros(2, int))[0].tolist() == [1, 1]


@linux
@pytest.mark.slow
def test_threads_may_end() -> None:
    """The workers belong to the process, not to the thread that made them."""
    made: list[VectorEnv] = []
    thread = threading.Thread(target=lambda: made.append(make_vector([Counter] * 2, num_workers=2)))
    thread.start()
    thread.join()
    time.sleep(0.5)
    with closing(made.pop()) as env:
        env.reset()
        assert env.step(np.zeros(2, int))[0].tolist() == [1, 1]


@linux
@pytest.mark.parametrize("way", ["twice", "del", *map(slowly, ("close", "unused", "busy", "terminate"))])
def test_every_way_to_end(way: str) -> None:
    before = holdings()
    env = make_vector([Counter] * 3, num_workers=2)
    assert holdings() != before
    if way != "unused":
        env.reset()
        env.step(np.zeros(3, int))
    if way == "busy":
        env.send(np.zeros(3, int))
    if way in ("close", "twice", "busy", "terminate"):
        env.close(**({"terminate": True} if way == "terminate" else {}))
        assert env.closed
    if way == "twice":
        env.close()
        with pytest.raises(RuntimeError, match="closed"):
            env.step(np.zeros(3, int))
    del env
    gc.collect()
    assert holdings() == before


@linux
@pytest.mark.parametrize("rounds", [2, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_nothing_leaks(rounds: int) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def once(workers: int) -> None:
        with closing(make_vector([Painter] * 4, num_workers=workers)) as env:
            env.reset()
            for _ in range(5):
                env.step(np.zeros(4, int))

    for workers in (0, 2):
        once(workers)
    gc.collect()
    before, memory = holdings(), resident()
    for index in range(rounds):
        once(2 if index % 2 == 0 else 0)
    for _ in range(rounds * 10):
        once(0)
    gc.collect()
    assert holdings() == before
    assert resident() - memory < 8 << 20


def test_bad_arguments() -> None:
    lock = threading.Lock()

    def unpicklable() -> Counter:
        assert lock
        return Counter()

    with pytest.raises(ValueError, match=r"env_fns: got none"):
        make_vector([])
    with pytest.raises(TypeError, match=r"env_fns\[1\]: got Counter, expected a function"):
        make_vector([Counter, Counter()])  # type: ignore[list-item]
    vector = make_vector([Counter], num_workers=0)
    for given, got in ((Counter(), r"an environment \(Counter\)"), (vector, r"an environment \(VectorEnv\)")):
        with pytest.raises(TypeError, match=f"env_fns: got {got}, expected what makes one: its id, or a function"):
            make_vector(given, 2)  # type: ignore[arg-type]
    vector.close()
    others: tuple[Any, ...] = (None, 3, b"CartPole-v1", {"CartPole-v1": 2}, gymnasium.spec("CartPole-v1"))
    for other in others:
        with pytest.raises(TypeError, match=f"env_fns: got {type(other).__name__}, expected functions that make one"):
            make_vector(other, 2)
    for workers in (None, 2):
        with pytest.raises(ValueError, match=r"env_fns\[1\]: cannot be pickled.*lock"):
            make_vector([Counter, unpicklable], num_workers=workers)
    make_vector([Counter, unpicklable], num_workers=0).close()
    make_vector([unpicklable]).close()
    for arguments, message in (
        (
            {"autoreset_mode": "Never"},
            r"autoreset_mode: got 'Never', expected one of 'NextStep', 'SameStep', 'Disabled'",
        ),
        ({"batch_size": 0}, "batch_size: got 0, expected an integer from 1 to 2"),
        ({"batch_size": 3}, "batch_size: got 3, expected an integer from 1 to 2"),
        ({"num_workers": -1}, "num_workers: got -1, expected an integer of at least 0"),
        ({"on_worker_death": "ignore"}, "on_worker_death: got 'ignore', expected 'raise' or 'restart'"),
        ({"timeout": 0}, "timeout: got 0, expected seconds above 0 or None"),
        ({"timeout": 1, "num_workers": 0}, "num_workers: got 0, but timeout and .* need worker processes"),
    ):
        with pytest.raises(ValueError, match=message):
            make_vector([Counter] * 2, **arguments)
    for name, value, expected in (
        ("num_workers", "many", "an integer of at least 0"),
        ("num_workers", np.array([1, 2]), "an integer of at least 0"),
        ("num_workers", True, "an integer of at least 0"),
        ("batch_size", 1.5, "an integer from 1 to 2"),
        ("timeout", "3", "seconds above 0 or None"),
        ("timeout", [3], "seconds above 0 or None"),
        ("timeout", True, "seconds above 0 or None"),
        ("copy", "no", "True or False"),
        ("copy", None, "True or False"),
        ("on_worker_death", np.array(["raise", "restart"]), "'raise' or 'restart'"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(f"{name}: got {value!r}, expected {expected}")):
            make_vector([Counter] * 2, **{name: cast(Any, value)})
    with closing(make_vector([Counter] * 2, timeout=np.float32(60), copy=np.True_)) as env:  # type: ignore[arg-type]
        for call, message in (
            (lambda: env.close(timeout="a"), "timeout: got 'a', expected seconds of at least 0 or None"),
            (lambda: env.reset(options=3), "options: got 3, expected a dict or None"),  # type: ignore[arg-type]
            (lambda: env.call(3), "name: got 3, expected that of a method or attribute"),  # type: ignore[arg-type]
            (lambda: env.set_attr(3, 3), "name: got 3, expected that of a method or attribute"),  # type: ignore[arg-type]
        ):
            with pytest.raises(TypeError, match=message):
                call()
        env.reset()
        with pytest.raises(ValueError, match="state: got dict, expected what get_state gave: envs, ended, observ"):
            env.set_state({})


def nothing() -> Any:
    """Makes no environment."""


@pytest.mark.parametrize("workers", ["auto", 0, 2])
def test_what_makes_no_environment_is_named_in_a_line(workers: Any) -> None:
    """It is the caller's fault, of which a traceback from wherever it was called says nothing."""

    def message(*arguments: Any, **options: Any) -> str:
        with pytest.raises(ValueError, match="env_fns") as caught:
            make_vector(*arguments, num_workers=workers, **options)
        assert type(caught.value) is ValueError
        assert caught.value.__cause__ is None
        return str(caught.value)

    returned = "returned NoneType, expected a gymnasium.Env"
    assert message(nothing, 3) == f"env_fns[0]: {returned}"
    assert message([functools.partial(Calm, 0)] * 2 + [nothing]) == f"env_fns[2]: {returned}"
    assert message("os:system", 2).startswith("env_fns: 'os:system' cannot be made: ")
    assert "No module named 'no_such_module'" in message("no_such_module:Thing-v0", 2)
    assert "did you mean num_workers" in message("CartPole-v1", 2, num_worker=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_keywords_go_to_each_environment(workers: int) -> None:
    """Those of an id as gymnasium.make_vec gives them, those of a function as they are."""
    options: dict[str, Any] = {"render_mode": "ansi", "is_slippery": False, "max_episode_steps": 7}
    peer = gymnasium.make_vec("FrozenLake-v1", 2, "sync", **options)
    made = make_vector("FrozenLake-v1", 2, num_workers=workers, **options)
    with closing(peer), closing(made) as env:
        for vector in (peer, env):
            vector.reset(seed=0)
        assert env.render_mode == peer.render_mode == "ansi"
        assert env.render() == peer.render()
        ends = [[vector.step(np.zeros(2, int))[3].tolist() for _ in range(8)] for vector in (peer, env)]
        assert ends[0] == ends[1]
        assert ends[0][6] == [True, True]
    with closing(make_vector(Counter, 2, num_workers=workers, limit=3)) as env:
        env.reset()
        assert [env.step(np.zeros(2, int))[3].tolist() for _ in range(3)][2] == [True, True]
    with pytest.raises(TypeError, match=r"env_fns: the function cannot be called with \{'limits': 3\}: .*'limits'"):
        make_vector(Counter, 2, limits=3)
    with pytest.raises(TypeError, match=r"num_worker: is no option of a vector, .* \(did you mean num_workers"):
        make_vector([Counter] * 2, num_worker=2)


class Wide(Counter):
    action_space = spaces.Discrete(8)


@pytest.mark.parametrize("workers", [0, 2])
def test_environments_must_have_the_same_spaces(workers: int) -> None:
    with pytest.raises(ValueError, match=r"environment 2: action_space: got Discrete\(8\), expected Discrete\(7\)"):
        make_vector([Counter, Counter, Wide], num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_actions_change_nothing(workers: int) -> None:
    with closing(make_vector([Counter] * 3, num_workers=workers)) as env:
        with pytest.raises(RuntimeError, match="reset must come first"):
            env.step(np.zeros(3, int))
        env.reset()
        for actions, message in (
            (np.zeros(2, int), r"got shape \[2\], expected \[3\]"),
            (np.zeros((3, 1), int), r"got dtype int64 and shape \(3, 1\), expected integers of shape \(3,\)"),
            (np.zeros(3), r"got dtype float64 and shape \(3,\), expected integers"),
            (np.array([0, 7, 0]), "got 7 for environment 1, expected 0 to 6"),
            (np.array([0, 0, -1]), "got -1 for environment 2, expected 0 to 6"),
            ("abc", "got dtype <U3 and shape .*, expected integers"),
            (np.ma.masked_array([0, 0, 0], [True, False, False]), "got masked values, expected none"),
            ([[0], [0, 0], 0], "got list, which NumPy makes no array of"),
            (np.array([0, 0, 2**64 - 1], np.uint64), "got 18446744073709551615, expected 0 to 6"),
        ):
            with pytest.raises(ValueError, match=f"actions: {message}"):
                env.step(actions)
        assert env.step(np.zeros(3, np.uint8))[0].tolist() == [1] * 3
        assert env.step([0, 0, 0])[0].tolist() == [2] * 3
        with pytest.raises(RuntimeError, match="recv: 0 environments have been sent actions, expected 3"):
            env.recv()
        env.send(np.zeros(2, int), [0, 2])
        for call, message in (
            (lambda: env.send(np.zeros(1, int), [2]), r"environments \[2\] have not been received"),
            (lambda: env.send(np.zeros(3, int)), "env_ids must be given"),
            (lambda: env.call("pid"), "recv first"),
            (lambda: env.set_attr("limit", 3), "recv first"),
            (env.get_state, "recv first"),
        ):
            with pytest.raises(RuntimeError, match=message):
                call()
        for ids in ([1, 1], [], [3], [-1]):
            with pytest.raises(ValueError, match="env_ids: got"):
                env.send(np.zeros(len(ids), int), ids)


def test_bad_nested_actions() -> None:
    with closing(make_vector([Nested] * 2, num_workers=0)) as env:
        env.reset()
        good = {"move": np.zeros(2, int), "push": (np.zeros((2, 2)), np.zeros((2, 2), int))}
        env.step(good)
        for change, message in (
            ({"move": np.array([0, 2])}, r"actions\['move'\]: got .* expected values from -1 to 1"),
            ({"push": (np.zeros((2, 2)),)}, r"actions\['push'\]: got 1, expected a tuple of 2"),
            ({"push": (np.zeros(2), np.zeros((2, 2), int))}, r"actions\['push'\]\[0\]: got float64 and shape \(2,\)"),
            ({"push": (np.zeros((2, 2)), np.zeros((2, 2)))}, r"actions\['push'\]\[1\]: got float64 .* int8"),
            ({"push": (np.zeros((2, 2)), np.full((2, 2), 2))}, r"(?s)actions\['push'\]\[1\]: .* from 0 to 1"),
        ):
            with pytest.raises(ValueError, match=message):
                env.step({**good, **change})
        with pytest.raises(ValueError, match=r"actions: got the keys \['move'\], expected a mapping"):
            env.step({"move": good["move"]})


def test_an_environment_that_finishes_between_two_looks_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(make_vector("CartPole-v1", 4, num_workers=2)) as env:
        env.reset(seed=0)
        board = env._board

        class Slow:
            """The board, some time after each look at what is pending."""

            def pending(self) -> list[int]:
                found = board.pending()
                time.sleep(0.05)
                return found

            def __getattr__(self, name: str) -> Any:
                return getattr(board, name)

        monkeypatch.setattr(env, "_board", Slow())
        for _ in range(3):
            env.send(np.zeros(4, int))
            env.recv()
            env.step(np.zeros(4, int))  # nothing is in flight any more
        env.send(np.zeros(4, int))
        env.reset()  # waits for no more than there is


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reset_of_some_does_not_lose_what_the_others_have_sent(workers: int) -> None:
    env = make_vector("CartPole-v1", 2, batch_size=1, autoreset_mode="Disabled", num_workers=workers)
    with closing(env):
        env.reset(seed=0)
        env.send([0, 1])
        first = env.recv()[4]["env_id"]
        mask = np.isin(np.arange(2), first)
        other = int(np.flatnonzero(~mask)[0])
        env.reset(options={"reset_mask": mask})
        assert env.recv()[4]["env_id"].tolist() == [other]
        env.reset(options={"reset_mask": mask})
        env.send([0, 1], env_ids=[0, 1])
        env.reset()  # all: what was sent is given up


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reset_of_some_while_others_step(workers: int) -> None:
    """The results of the others are what they would have been; those of the environments reset are dropped."""
    env = make_vector([Counter] * 5, batch_size=2, autoreset_mode="Disabled", num_workers=workers)
    with closing(env):
        env.reset()
        env.send([COUNT, HUGE, COUNT, HUGE, COUNT])
        got = env.recv()[4]["env_id"].tolist()
        again = [next(index for index in range(5) if index not in got)]  # on its way
        mask = np.isin(np.arange(5), again)
        observations, infos = env.reset(seed=7, options={"reset_mask": mask})
        assert (observations[mask].tolist(), infos) == ([0], {})
        with pytest.raises(RuntimeError, match="call: actions have been sent"):
            env.call("pid")
        env.send([COUNT] * 3)  # to those received and those reset
        seen: dict[int, tuple[int, bool]] = {}
        while len(seen) < 4:
            observations, *_, infos = env.recv()
            for place, index in enumerate(infos["env_id"].tolist()):
                large = "huge" in infos and infos["_huge"][place]
                seen[index] = (int(observations[place]), bool(large))
        with pytest.raises(RuntimeError, match="recv: 1 environments have been sent"):
            env.recv()
        for index, (observation, large) in seen.items():
            assert observation == (2 if index in got else 1)
            assert large == (index in (1, 3) and index not in got + again)


@pytest.mark.parametrize("workers", [0, slowly(2)])
def test_bad_observations_and_resets(workers: int) -> None:
    env = make_vector([functools.partial(Liar, shape=(3,))] * 2, num_workers=workers)
    with (
        closing(env),
        pytest.raises(EnvError, match=r"(?s)environment 0.*observation: got shape \(3,\), expected \(2,\)"),
    ):
        env.reset()
    with closing(make_vector([functools.partial(Liar, shape=(2,))] * 2, num_workers=workers)) as env:
        with pytest.raises(ValueError, match="seed: got 3 seeds, expected 2"):
            env.reset(seed=[1, 2, 3])
        with pytest.raises(TypeError, match=r"seed: got 1\.5, expected an integer"):
            env.reset(seed=1.5)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="all environments must have been reset"):
            env.reset(options={"reset_mask": np.array([True, False])})
        env.reset(seed=np.int64(3))  # type: ignore[arg-type]
        for mask in (np.array([True]), np.zeros(2, bool), [1, 0], np.array([1, 0]), None):
            with pytest.raises((ValueError, TypeError), match=r"options\['reset_mask'\]: got"):
                env.reset(options={"reset_mask": mask})
        with pytest.raises(EnvError, match="got 4 values, expected observation, reward"):
            env.step(np.zeros(2, int))


class Says(gymnasium.Env[Any, Any]):
    """Gives what it is told to."""

    observation_space = spaces.Box(0, 9, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, reset: Any, step: Any) -> None:
        self.gives = reset, step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed, options=options)
        return self.gives[0]

    def step(self, _: np.int64) -> Any:
        return self.gives[1]


OBS = np.zeros(1, np.float32)


@pytest.mark.parametrize("workers", [0, slowly(2)])
@pytest.mark.parametrize(
    ("reset", "step", "message"),
    [
        (OBS, None, r"reset: got array\(\[0\.\], dtype=float32\), expected observation and info"),
        ((OBS, {}, 3), None, "reset: got 3 values, expected observation and info"),
        ((OBS, [1]), None, r"info: got \[1\], expected a dict"),
        ((OBS, {}), None, "step: got None, expected observation, reward, terminated, truncated and info"),
        ((OBS, {}), (OBS, None, False, False, {}), "reward: got None, expected a number"),
        ((OBS, {}), (OBS, np.ones(2), False, False, {}), r"reward: got array\(\[1\., 1\.\]\), expected a number"),
        ((OBS, {}), (OBS, 1, np.ones(2, bool), False, {}), "terminated: got array.*, expected a boolean"),
        ((OBS, {}), (OBS, 1, False, np.ones(2, bool), {}), "truncated: got array.*, expected a boolean"),
        ((OBS, {}), (OBS, 1, "False", False, {}), "terminated: got 'False', expected a boolean"),
        ((OBS, {}), (OBS, 1, False, float("nan"), {}), "truncated: got nan, expected a boolean"),
        ((OBS, {}), (OBS, 1, None, False, {}), "terminated: got None, expected a boolean"),
        ((OBS, {}), (OBS, 1, False, False, [1]), r"info: got \[1\], expected a dict"),
        ((OBS, {}), (np.ma.masked_array(OBS, [True]), 1, False, False, {}), "observation: got masked values, expected"),
    ],
)
def test_what_an_environment_gives_is_named(workers: int, reset: Any, step: Any, message: str) -> None:
    env = make_vector([functools.partial(Says, reset, step)] * 2, num_workers=workers)

    def begin() -> None:
        env.reset()
        env.step(np.zeros(2, int))

    with closing(env), pytest.raises(EnvError, match=f"(?s)environment 0 raised.*{message}"):
        begin()


@pytest.mark.parametrize("ends", [1, np.True_, np.array(True), np.array([1]), 1.0])
def test_what_stands_for_a_boolean_is_one(ends: Any) -> None:
    with closing(make_vector([functools.partial(Says, (OBS, {}), (OBS, 1, ends, 0 * ends, {}))], num_workers=0)) as env:
        env.reset()
        assert [flags.tolist() for flags in env.step([0])[2:4]] == [[True], [False]]


@pytest.mark.parametrize("workers", [0, slowly(2)])
def test_the_last_observation_of_an_episode_is_checked_too(workers: int) -> None:
    make = functools.partial(Says, (OBS, {}), (np.zeros(2), 1, True, False, {}))
    with closing(make_vector([make] * 2, num_workers=workers, autoreset_mode="SameStep")) as env:
        env.reset()
        with pytest.raises(EnvError, match=r"observation: got shape \(2,\), expected \(1,\)"):
            env.step([0, 0])


class Hoards(Says):
    """Writes over what it was given and over what it gave."""

    def __init__(self) -> None:
        super().__init__(None, None)
        self.log: list[int] = []
        self.seen: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return OBS, {"level": (options or {}).pop("level", None), "log": self.log}

    def step(self, action: np.int64) -> Any:
        self.log.append(int(action))
        return OBS, 0.0, False, False, {"log": self.log, "n": len(self.log)}

    def take(self, *given: Any) -> int:
        self.seen.append(given[0].pop())
        return len(given[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_environments_share_nothing_whatever_the_workers(workers: int) -> None:
    with closing(make_vector([Hoards] * 4, num_workers=workers)) as env:
        options = {"level": 3}
        first = env.reset(options=options)[1]
        assert first["level"].tolist() == [3] * 4
        assert options == {"level": 3}
        one = env.step([1] * 4)[4]
        two = env.step([0] * 4)[4]
        assert [infos["log"].tolist() for infos in (first, one, two)] == [[[]] * 4, [[1]] * 4, [[1, 0]] * 4]
        assert env.call("take", [1, 2, 3]) == (2,) * 4
        given: list[int] = [5]
        env.set_attr("log", [given] * 4)
        env.step([1] * 4)
        assert (given, env.get_attr("log")) == ([5], ([5, 1],) * 4)


class Gone:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise LookupError('it is gone')",)


class Leaves(Says):
    """Its infos cannot be unpickled, from reset on or from the first step on."""

    def __init__(self, at: str) -> None:
        super().__init__((OBS, {"x": Gone()} if at == "reset" else {}), (OBS, 1, 0, 0, {"x": Gone()}))

    def get(self) -> Gone:
        return Gone()


def test_what_cannot_be_unpickled_is_that_environment_s_fault() -> None:
    what = r"(?s)environment 1.*it is gone.*came from a worker process, and cannot be unpickled"
    with closing(make_vector([functools.partial(Leaves, "step")] * 2, num_workers=2)) as env:
        env.reset()
        with pytest.raises(EnvError, match=what) as raised:
            env.step([0, 0])
        assert raised.value.env_id == 1
        with pytest.raises(RuntimeError, match="reset must come first"):
            env.step([0, 0])
        env.reset()
        with pytest.raises(EnvError, match=what):
            env.call("get")
        assert env.get_attr("render_mode") == (None, None)
    with closing(make_vector([functools.partial(Leaves, "reset")] * 2, num_workers=2)) as env:
        for _ in range(2):
            with pytest.raises(EnvError, match=what):
                env.reset()


class Interrupting:
    """A board where Ctrl-C comes after call number `at`."""

    def __init__(self, board: Any, at: int) -> None:
        self.board, self.left = board, at

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.board, name)

        def call(*args: Any) -> Any:
            result = found(*args)
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return result

        return call


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", ["step", "send"])
def test_ctrl_c_at_any_instant_mixes_no_two_steps(workers: int, way: str) -> None:
    def play(actions: list[int]) -> Any:
        if way == "step":
            return env.step(actions)
        env.send(actions)
        return env.recv()

    with closing(make_vector([Counter] * 4, num_workers=workers)) as env:
        board, interrupted = env._board, 0
        for at in range(1, 12):
            env.reset()
            env._board = Interrupting(board, at)  # type: ignore[assignment]
            try:
                play([HUGE] * 4)
            except KeyboardInterrupt:
                interrupted += 1
                env._board = board
                refused = "reset must come first"
                try:
                    observations, *_, infos = env.step([COUNT] * 4)  # where nothing had begun yet
                    assert (observations.tolist(), infos) == ([1] * 4, {})
                except RuntimeError as error:
                    refused = str(error)
                assert re.search("reset must come first|must be received", refused)
                observations, infos = env.reset()
                assert (observations.tolist(), infos) == ([0] * 4, {})
            finally:
                env._board = board
            env.reset()
            observations, *_, infos = play([COUNT] * 4)
            assert observations.tolist() == [1] * 4
            assert infos.keys() <= {"env_id"}
        assert interrupted >= 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", ["reset", "call", "set_state"])
def test_ctrl_c_at_any_instant_of_a_call(workers: int, way: str) -> None:
    """No answer is taken for that to another call, and what was begun is not gone on with."""
    with closing(make_vector([Counter] * 4, num_workers=workers)) as env:
        env.reset()
        state = env.get_state()
        calls: dict[str, Callable[[], Any]] = {
            "reset": lambda: env.reset(options={"reset_mask": np.array([True, False, True, False])}),
            "call": lambda: env.call("get_state"),
            "set_state": lambda: env.set_state(state),
        }
        board, workers_boards, interrupted = env._board, [worker.board for worker in env._engine.workers], 0
        for at in range(1, 10):
            env.reset()
            env.step([COUNT] * 4)
            cutting = Interrupting(board, at)
            env._board = cutting  # type: ignore[assignment]
            for worker in env._engine.workers:
                worker.board = cutting  # type: ignore[assignment]
            try:
                calls[way]()
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                env._board = board
                for worker, theirs in zip(env._engine.workers, workers_boards, strict=True):
                    worker.board = theirs
            assert len(env.call("pid")) == 4
            observations, infos = env.reset()
            assert (observations.tolist(), infos) == ([0] * 4, {})
            assert env.step([COUNT] * 4)[0].tolist() == [1] * 4
        assert interrupted >= (workers > 0 or way != "call")


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_during_a_long_call(workers: int) -> None:
    with closing(
        make_vector([functools.partial(Drowsy, 0.0), functools.partial(Drowsy, 0.5)], num_workers=workers)
    ) as env:
        calls: list[Callable[[], object]] = [lambda: env.call("nap"), lambda: env.reset(options={"nap": True})]
        for call in calls:
            env.reset()
            with ctrl_c(0.2), pytest.raises(KeyboardInterrupt):
                call()
            with pytest.raises(RuntimeError, match="reset must come first, also after what was cut short"):
                env.step([COUNT] * 2)
            assert env.reset()[0].tolist() == [0, 0]
            assert env.step([COUNT] * 2)[0].tolist() == [1, 1]


class Drowsy(Counter):
    """Takes its time when it is asked to."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if options:
            self.nap()
        return super().reset(seed=seed, options=options)

    def nap(self) -> None:
        time.sleep(self.seconds)


class Late(Counter):
    """Does not close in good time."""

    def close(self) -> None:
        time.sleep(3600)


@contextmanager
def ctrl_c(after: float) -> Iterator[None]:
    """Ctrl-C comes so many seconds later."""
    timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    yield
    timer.join()


@linux
def test_ctrl_c_while_closing_leaves_no_process() -> None:
    env = make_vector([Counter, Late], num_workers=2)
    env.reset()
    pid = env.call("pid")[1]
    with ctrl_c(0.2), pytest.raises(KeyboardInterrupt):
        env.close()
    assert gone(pid)


def test_ctrl_c_during_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(make_vector([Counter] * 2, num_workers=2, on_worker_death="restart")) as env:
        env.reset()
        spawn = env._spawn

        def interrupted(number: int) -> Any:
            """Ctrl-C comes while the new worker makes its environments."""
            worker = spawn(number)
            patch.setattr(worker, "receive", Mock(side_effect=KeyboardInterrupt))
            return worker

        with monkeypatch.context() as patch:
            patch.setattr(env, "_spawn", interrupted)
            with pytest.raises(KeyboardInterrupt):
                env.step(np.array([COUNT, KILL]))
        assert env.reset()[0].tolist() == [0, 0]
        assert env.step([COUNT] * 2)[0].tolist() == [1, 1]


def test_ctrl_c_in_recv_steps_no_environment_twice() -> None:
    with closing(make_vector([Counter, Stung, Counter, Counter], num_workers=0, batch_size=2)) as env:
        env.reset()
        env.send([COUNT] * 4)
        with pytest.raises(KeyboardInterrupt):
            env.recv()
        with pytest.raises(RuntimeError, match="recv: reset must come first"):
            env.recv()
        assert env.reset()[0].tolist() == [0] * 4


class Stung(Counter):
    """Ctrl-C comes once its step is done."""

    def step(self, action: np.int64) -> Any:
        super().step(action)
        raise KeyboardInterrupt


class Unreadable:
    """Can be pickled, and raises `error` when it is unpickled."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return raising, (self.error,)


def raising(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", [TypeError("odd"), ValueError("odd"), EnvError(0, "odd")])
def test_an_argument_that_a_worker_cannot_read_does_not_end_the_vector(error: Exception) -> None:
    with closing(make_vector([Counter] * 2, num_workers=2)) as env:
        env.reset()
        with pytest.raises(EnvError, match="odd"):
            env.call("set_state", Unreadable(error))
        env.reset()
        assert env.step([COUNT] * 2)[0].tolist() == [1, 1]


class Picky(Counter):
    """Takes no state but its own."""

    def set_state(self, state: int) -> None:
        super().set_state(int(state))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_that_not_all_take_is_not_gone_on_from(workers: int) -> None:
    with closing(make_vector([Picky] * 2, num_workers=workers)) as env:
        env.reset()
        state = env.get_state()
        env.step([COUNT] * 2)
        bad = {**state, "envs": (state["envs"][0], "none")}
        with pytest.raises(EnvError, match="environment 1"):
            env.set_state(bad)
        with pytest.raises(RuntimeError, match="reset must come first"):
            env.step([COUNT] * 2)


@pytest.mark.parametrize("value", ["text", np.zeros(3), 1 << 100])
@pytest.mark.parametrize("workers", [0, 2])
def test_infos_that_do_not_go_together_name_their_environment(value: object, workers: int) -> None:
    makers = [functools.partial(Says, [OBS, {}], [OBS, 1, 0, 0, {"key": each}]) for each in (1, value)]
    with closing(make_vector(makers, num_workers=workers)) as env:
        env.reset()
        with pytest.raises(EnvError, match=r"(?s)environment 1 .* info: {'key': "):
            env.step(np.zeros(2, int))
        env.reset()


def test_lists_are_as_good_as_tuples() -> None:
    """As they are to gymnasium's vectors; and an info of the vector's own name does not hide which ones answered."""
    makers = [functools.partial(Says, [OBS, {}], [[3.0], 1, 0, 0, {"env_id": 7}])] * 4
    with closing(make_vector(makers, num_workers=0, batch_size=2)) as env:
        env.reset()
        env.send(np.zeros(4, int))
        observations, rewards, *_, infos = env.recv()
        assert (observations.tolist(), rewards.tolist()) == ([[3.0]] * 2, [1.0] * 2)
        assert {name: value.tolist() for name, value in infos.items()} == {"env_id": [0, 1]}


def test_spaces_are_spaces() -> None:
    for name in ("observation_space", "action_space"):
        made = type("Bare", (Says,), {name: None})
        with pytest.raises(EnvError, match=f"(?s)environment 0.*{name}: got None, expected a space of Gymnasium's"):
            make_vector([functools.partial(made, (OBS, {}), None)] * 2, num_workers=0)


class Liar(gymnasium.Env[Any, Any]):
    """Does not keep to its spaces, nor to the form of a step."""

    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return np.zeros(self.shape, np.float32), {}

    def step(self, action: np.int64) -> Any:
        return np.zeros(2), float(action), False, False


def script_env() -> type[gymnasium.Env[Any, Any]]:
    """A class that only this process knows, as those of a script are."""
    namespace: dict[str, Any] = {"__name__": "__main__", "gymnasium": gymnasium, "spaces": spaces, "np": np}
    code = """
import dataclasses, enum

class Word(enum.Enum):
    YES = 1

@dataclasses.dataclass
class Note:
    value: int

class Env(gymnasium.Env):
    observation_space = spaces.Box(0, 99, (1,), np.float32)
    action_space = spaces.Discrete(2)
    made = 0

    def __init__(self, render_mode=None):
        self.o, self.i = np.zeros(1, np.float32), {}

    def reset(self, *, seed=None, options=None):
        self.o[:] = 0
        self.i["score"] = 0
        self.i["note"] = Note(0)
        self.i["given"] = (options or {}).get("word")
        return self.o, self.i

    def step(self, action):
        self.o += 1
        self.i["score"] += 10
        self.i["word"] = Word.YES
        self.i["note"].value += 1
        return self.o, 1.0, bool(self.o[0] == 2), False, self.i
"""
    exec(code, namespace)
    found: type[gymnasium.Env[Any, Any]] = namespace["Env"]
    found.Word, found.Note = namespace["Word"], namespace["Note"]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_classes_of_a_script_travel_to_workers_and_back(workers: int) -> None:
    made: Any = script_env()
    with closing(make_vector([made] * 4, num_workers=workers)) as env:
        infos = env.reset(options={"word": made.Word.YES})[1]
        assert all(given is made.Word.YES for given in infos["given"])
        infos = env.step(np.zeros(4, int))[4]
        assert all(word is made.Word.YES for word in infos["word"])
        assert [note.value for note in infos["note"]] == [1] * 4
        assert all(isinstance(note, made.Note) for note in infos["note"])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_last_observation_and_info_are_those_before_the_reset(workers: int) -> None:
    """Of an environment that gives the same array and dictionary each time."""
    with closing(make_vector([script_env()] * 4, num_workers=workers, autoreset_mode="SameStep")) as env:
        env.reset()
        env.step(np.zeros(4, int))
        observations, _, terminated, _, infos = env.step(np.zeros(4, int))
        assert terminated.all()
        assert [float(last[0]) for last in infos["final_obs"]] == [2.0] * 4
        assert infos["final_info"]["score"].tolist() == [20] * 4
        assert [note.value for note in infos["final_info"]["note"]] == [2] * 4
        assert observations.tolist() == [[0.0]] * 4


@pytest.mark.parametrize("workers", ["auto", 2])
def test_workers_know_what_was_registered_here(workers: Any) -> None:
    made: Any = script_env()
    gymnasium.register("Mine-v0", entry_point=made)
    try:
        make = functools.partial(gymnasium.make, "Mine-v0", disable_env_checker=True)
        with closing(make_vector([make] * 4, num_workers=workers)) as env:
            env.reset()
            assert env.step(np.zeros(4, int))[1].tolist() == [1.0] * 4
    finally:
        gymnasium.registry.pop("Mine-v0")


def test_auto_stays_in_one_process_where_workers_cannot_follow() -> None:
    lock, made = threading.Lock(), script_env()

    def make() -> gymnasium.Env[Any, Any]:
        assert not lock.locked()
        return made()

    with closing(make_vector([make] * 4, num_workers="auto")) as env:
        assert env.num_workers == 0
        env.reset()
    with pytest.raises(ValueError, match=r"env_fns\[2\]: cannot be pickled.*lock.*num_workers=0 needs no pickling"):
        make_vector([make] * 4, num_workers=2)


def test_orders_and_states_of_megabytes_arrive() -> None:
    """More than a pipe holds, both ways, with several environments to a worker."""
    with closing(make_vector([Stateful] * 4, num_workers=2, timeout=60)) as env:
        env.reset()
        states = env.get_state()
        assert sum(len(state) for state in states["envs"]) > 8_000_000
        env.set_state(states)
        assert env.call("size", np.zeros(1_000_000, np.uint8)) == (1_000_000,) * 4
        env.step(np.zeros(4, int))


class Stateful(Counter):
    """Its state is large."""

    def get_state(self) -> bytes:  # type: ignore[override]
        return bytes(3_000_000)

    def set_state(self, state: bytes) -> None:  # type: ignore[override]
        assert len(state) == 3_000_000

    def size(self, array: np.ndarray) -> int:
        return len(array)


def test_an_argument_that_cannot_be_pickled_does_not_end_the_vector() -> None:
    with closing(make_vector([Counter] * 4, num_workers=2)) as env:
        env.reset()
        with pytest.raises(ValueError, match=r"call: its arguments cannot be sent to a worker process.*lock"):
            env.call("size", threading.Lock())
        assert env.step(np.zeros(4, int))[0].tolist() == [1] * 4


def test_what_functions_share_is_sent_once() -> None:
    shared = np.zeros(5_000_000, np.uint8)

    def maker(index: int) -> Callable[[], gymnasium.Env[Any, Any]]:
        return lambda: Counter() if len(shared) > index else Slow(1)

    assert len(encode_make(0, [maker(index) for index in range(8)])) < 6_000_000


def test_every_environment_is_closed_and_the_first_error_told() -> None:
    Unclosable.closed.clear()
    env = make_vector([Unclosable] * 3, num_workers=0)
    env.reset()
    with pytest.raises(EnvError, match=r"(?s)environment 0.*stuck"):
        env.close()
    assert len(Unclosable.closed) == 3
    assert env.closed
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()


def test_cores_are_those_of_the_affinity_and_of_the_quota() -> None:
    script = "import os, sys; {}; from drama._native import cores; print(cores())"

    def counted(before: str) -> int:
        return int(
            subprocess.run([sys.executable, "-c", script.format(before)], stdout=-1, text=True, check=True).stdout
        )

    if hasattr(os, "sched_setaffinity"):
        assert counted("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})") == 1
    # Version 1 or 2, where this user may make a group.
    for root, limits in (
        (Path("/sys/fs/cgroup/cpu"), {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}),
        (Path("/sys/fs/cgroup"), {"cpu.max": "100000 100000"}),
    ):
        group = root / f"drama-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if all((group / name).exists() for name in limits):
                for name, value in limits.items():
                    (group / name).write_text(value)
                assert counted(f"open('{group}/cgroup.procs', 'w').write(str(os.getpid()))") == 1
        finally:
            group.rmdir()


@pytest.mark.parametrize("workers", [0, 2])
def test_actions_of_any_size_arrive(workers: int) -> None:
    with closing(make_vector([Mute] * 2, num_workers=workers)) as env:
        env.reset()
        for lengths in ([200_000, 3], [5, 250_000], [70_000, 59_000]):
            assert env.step(["x" * length for length in lengths])[1].tolist() == lengths


class LateAfterDeath(Counter):
    """Dies of action 1; what is made in its place resets too late."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if self.path.exists():
            time.sleep(60)
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        if action == 1:
            self.path.touch()
            os._exit(3)
        return super().step(action)


def test_a_replacement_that_hangs_is_given_up_in_time(tmp_path: Path) -> None:
    env_fns = [functools.partial(LateAfterDeath, tmp_path / str(index)) for index in range(2)]
    with closing(make_vector(env_fns, num_workers=2, on_worker_death="restart", timeout=0.5)) as env:
        env.reset()
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"did not answer within 0\.5 s"):
            env.step(np.array([1, 0]))
        assert time.monotonic() - began < 30
