"""The native Atari step against Gymnasium's wrapper around the same emulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from drama._native import AtariStepper

gymnasium = pytest.importorskip("gymnasium")
ale_py = pytest.importorskip("ale_py")
pytest.importorskip("cv2")

Frame = npt.NDArray[np.uint8]


def make(game: str, **options: Any) -> Any:
    gymnasium.register_envs(ale_py)
    env = gymnasium.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0, **options)
    return env.unwrapped


def close(ours: Frame, theirs: Frame) -> bool:
    return int(np.abs(ours.astype(int) - theirs.astype(int).reshape(ours.shape)).max()) <= 1


@pytest.mark.parametrize(
    ("game", "grayscale", "frame_skip", "size"),
    [
        ("Pong", False, 4, (64, 64)),
        ("Pong", True, 4, (84, 84)),
        ("Breakout", False, 4, (64, 64)),
        ("Breakout", True, 4, (64, 64)),
        ("Breakout", False, 1, (84, 84)),
        ("Pong", True, 1, (70, 80)),
        ("Breakout", False, 2, (210, 160)),
        ("Pong", True, 3, (70, 80)),
    ],
)
def test_equals_the_wrapper(game: str, grayscale: bool, frame_skip: int, size: tuple[int, int]) -> None:
    height, width = size
    # Cut off early, so that truncation is seen as well.
    reference, env = (make(game, max_num_frames_per_episode=170 * frame_skip + 2) for _ in range(2))
    wrapper = gymnasium.wrappers.AtariPreprocessing(
        reference, noop_max=0, frame_skip=frame_skip, screen_size=(width, height), grayscale_obs=grayscale
    )
    stepper = AtariStepper(env.ale, frame_skip=frame_skip, size=size, grayscale=grayscale)
    out = np.zeros((height, width, 1 if grayscale else 3), np.uint8)
    actions = np.random.default_rng(3)
    codes = [action.value for action in env.ale.getMinimalActionSet()]
    done, ends = True, 0
    for step in range(300):
        if done:
            theirs, _ = wrapper.reset(seed=step)
            env.reset(seed=step)
            stepper.reset(out)
            assert close(out, theirs), f"reset at step {step}"
        action = int(actions.integers(len(codes)))
        theirs, *expected, info = wrapper.step(action)
        assert stepper.step(codes[action], out) == (*expected, info["lives"])
        assert close(out, theirs), f"step {step}"
        done = expected[1] or expected[2]
        ends += done
    assert ends > 0


def test_state_resumes_exactly() -> None:
    env = make("Pong")
    env.reset(seed=0)
    stepper = AtariStepper(env.ale, frame_skip=4, size=(64, 64), grayscale=False)
    out = np.zeros((64, 64, 3), np.uint8)
    stepper.reset(out)
    for _ in range(20):
        stepper.step(3, out)
    emulator, screens = env.ale.cloneState(include_rng=True), stepper.state()
    expected = []
    for action in (2, 3, 0, 2):
        result = stepper.step(action, out)
        expected.append((result, out.copy()))
    env.ale.restoreState(emulator)
    other = AtariStepper(env.ale, frame_skip=4, size=(64, 64), grayscale=False)
    other.set_state(screens)
    assert other.state() == screens
    for action, (result, frame) in zip((2, 3, 0, 2), expected, strict=True):
        assert other.step(action, out) == result
        np.testing.assert_array_equal(out, frame)
    with pytest.raises(ValueError, match=r"a screen has 1 bytes, expected \d+"):
        other.set_state((b"x", screens[1]))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((64, 64, 1), np.uint8), r"out: got shape \[64, 64, 1\]"),
        (np.zeros((64, 64, 3), np.float32), r"out: got dtype float32 and shape \[64, 64, 3\]"),
        (np.zeros((64, 3, 64), np.uint8).swapaxes(1, 2), "out: got an array that is not C-contiguous"),
        ([0], "out: got list, expected a writable C-contiguous uint8 array"),
        (np.frombuffer(bytes(64 * 64 * 3), np.uint8).reshape(64, 64, 3), "out: got .*writ"),
    ],
)
def test_bad_outputs_are_refused(out: Any, message: str) -> None:
    env = make("Pong")
    env.reset(seed=0)
    stepper = AtariStepper(env.ale, frame_skip=4, size=(64, 64), grayscale=False)
    before = env.ale.getFrameNumber()
    for call in (lambda: stepper.reset(out), lambda: stepper.step(0, out)):
        with pytest.raises(ValueError, match=message):
            call()
    assert env.ale.getFrameNumber() == before


def test_bad_settings_are_refused_and_exceptions_of_the_emulator_come_through() -> None:
    env = make("Pong")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"frame_skip": 0}, "frame_skip must be at least 1"),
        ({"size": (0, 64)}, "size must be at least"),
        ({"size": (64, 161)}, r"at most the screen's \(210, 160\), got \(64, 161\)"),
        ({"size": (-1, 64)}, "size must not be negative"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            AtariStepper(env.ale, **{"frame_skip": 4, "size": (64, 64), "grayscale": False, **settings})
    with pytest.raises(AttributeError, match="getScreenDims"):
        AtariStepper(object(), frame_skip=4, size=(64, 64), grayscale=False)

    class Broken:
        def getScreenDims(self) -> tuple[int, int]:
            return 210, 160

        def act(self, action: int) -> int:
            raise ZeroDivisionError(action)

        def game_over(self) -> bool:
            return False

    stepper = AtariStepper(Broken(), frame_skip=4, size=(64, 64), grayscale=False)
    with pytest.raises(ZeroDivisionError, match="5"):
        stepper.step(5, np.zeros((64, 64, 3), np.uint8))
