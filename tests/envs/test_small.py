"""The small tasks: what they show, what they pay, and that they are real environments."""

import dataclasses

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from drama.config import EnvConfig
from drama.envs import make_env
from drama.envs.making import SMALL
from drama.envs.small import GridTask

CONFIG = EnvConfig(size=16, grayscale=True)


@pytest.fixture(params=SMALL)
def env(request: pytest.FixtureRequest) -> GridTask:
    return SMALL[request.param](CONFIG)


def lit(frame: np.ndarray) -> set[tuple[int, int]]:
    """Grid cells that are not black, of a frame with two pixels to a cell."""
    return {(int(row), int(column)) for row, column in np.argwhere(frame[::2, ::2, 0])}


def play(env: GridTask, actions: list[int]) -> list[float]:
    return [env.step(action)[1] for action in actions]


def test_is_a_gymnasium_environment(env: GridTask) -> None:
    check_env(env, skip_render_check=True)


def test_state_decides_the_future(env: GridTask) -> None:
    env.reset(seed=3)
    env.step(0)
    state = env.get_state()
    other = make_env(type(env).__name__, CONFIG)
    assert isinstance(other, GridTask)
    other.set_state(state)
    random = np.random.default_rng(0)
    for _ in range(200):
        action = int(random.integers(env.action_space.n))
        (frame, *outcome), (other_frame, *other_outcome) = env.step(action), other.step(action)
        np.testing.assert_array_equal(frame, other_frame)
        assert outcome == other_outcome
        if outcome[1] or outcome[2]:
            np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


def test_colour_frames_have_three_equal_channels(env: GridTask) -> None:
    colour = SMALL[type(env).__name__](dataclasses.replace(CONFIG, grayscale=False))
    np.testing.assert_array_equal(colour.reset(seed=5)[0], env.reset(seed=5)[0].repeat(3, axis=-1))


def test_misuse_is_refused(env: GridTask) -> None:
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action: 9 is out of range; expected 0 to"):
        env.step(9)
    with pytest.raises(ValueError, match=r"env\.frame_skip: 2 is an option of Atari games"):
        type(env)(dataclasses.replace(CONFIG, frame_skip=2))
    with pytest.raises(ValueError, match=r"env\.size: 20 must be a multiple of 8"):
        type(env)(dataclasses.replace(CONFIG, size=20))


def test_catch_pays_for_being_under_the_object() -> None:
    env = SMALL["Catch"](CONFIG)
    for seed in range(10):
        frame, _ = env.reset(seed=seed)
        cells = sorted(lit(frame))
        object_column, paddle = cells[0][1], cells[-1][1]
        way = [1 if object_column < paddle else 2] * abs(object_column - paddle)
        rewards = play(env, (way + [0] * 7)[:7])
        assert rewards == [0.0] * 6 + [1.0]


@pytest.mark.parametrize("seed", range(6))
def test_recall_asks_for_the_cue_and_then_shows_it(seed: int) -> None:
    env = SMALL["Recall"](CONFIG)
    cue, _ = env.reset(seed=seed)
    side = 1 if min(column for _, column in lit(cue)) >= 4 else 0
    steps = [env.step(2 - side)[:4] for _ in range(22)]
    assert {tuple(outcome) for _, *outcome in steps} == {(0.0, False, False)}
    frames = [frame for frame, *_ in steps]
    assert not any(frame.any() for frame in frames[:20])
    for question in frames[20:]:
        assert lit(question) == {(row, column) for row in (0, 7) for column in range(8)}
    saved = env.get_state()
    for action, reward in ((1 + side, 1.0), (2 - side, -1.0), (0, -1.0)):
        env.set_state(saved)
        answer, *outcome = env.step(action)
        assert tuple(outcome[:3]) == (reward, False, False)
        np.testing.assert_array_equal(answer, cue)
        assert env.step(0)[1:4] == (0.0, True, False)


def test_recall_looks_the_same_for_both_cues_until_the_answer() -> None:
    frames: dict[int, list[np.ndarray]] = {}
    for seed in range(10):
        env = SMALL["Recall"](CONFIG)
        first, _ = env.reset(seed=seed)
        frames[min(column for _, column in lit(first))] = [env.step(0)[0] for _ in range(22)]
    left, right = frames.values()
    np.testing.assert_array_equal(left, right)


def test_doorway_needs_the_door_and_pays_at_the_goal_only() -> None:
    env = SMALL["Doorway"](CONFIG)
    for seed in range(20):
        frame, _ = env.reset(seed=seed)
        grid = frame[::2, ::2, 0]
        door, goal = int(np.flatnonzero(grid[:, 4] == 0)[0]), int(np.flatnonzero(grid[:, 7] == 160)[0])
        row, column = (int(i) for i in np.argwhere(grid == 255)[0])
        if row not in (door, door + 1):
            assert play(env, [3] * 8) == [0.0] * 8  # the wall holds
            column = 3
        to_door = [1 if door > row else 0] * abs(door - row)
        to_goal = [1 if goal > door else 0] * abs(goal - door)
        assert not any(play(env, to_door + [3] * (6 - column) + to_goal))
        assert env.step(3)[1:4] == (1.0, True, False)


def test_doorway_ends_after_its_limit() -> None:
    env = SMALL["Doorway"](CONFIG)
    env.reset(seed=0)
    outcomes = [env.step(2)[1:4] for _ in range(64)]
    assert outcomes == [(0.0, False, False)] * 63 + [(0.0, False, True)]
