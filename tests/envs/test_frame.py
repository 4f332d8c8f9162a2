"""The native Atari step: its arguments and faults. `test_atari.py` compares what it plays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drama._native import AtariStepper

gymnasium = pytest.importorskip("gymnasium")
ale_py = pytest.importorskip("ale_py")


def make(game: str, **options: Any) -> Any:
    gymnasium.register_envs(ale_py)
    env = gymnasium.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0, **options)
    return env.unwrapped


def test_state_is_of_the_same_settings() -> None:
    env = make("Pong")
    settings: dict[str, Any] = {"frame_skip": 4, "size": (64, 64), "grayscale": False}
    plain = AtariStepper(env.ale, **settings)
    state = plain.state()
    plain.set_state(state)
    assert plain.state() == state
    others: list[tuple[dict[str, Any], str]] = [
        ({"grayscale": True}, r"a screen has 134400 bytes, expected 33600"),
        ({"stack": 2}, r"a stack has 12288 bytes, expected 24576"),
        ({"repeat_action_probability": 0.25}, "sticky actions: one has none"),
    ]
    for other, message in others:
        with pytest.raises(ValueError, match=message):
            AtariStepper(env.ale, **(settings | other)).set_state(state)


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
        ({"stack": 0}, "a stack of 0 frames"),
        ({"repeat_action_probability": 1.5}, "repeat_action_probability must be from 0 to 1, got 1.5"),
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

        lives = game_over = getScreen = act

    stepper = AtariStepper(Broken(), frame_skip=4, size=(64, 64), grayscale=False)
    with pytest.raises(ZeroDivisionError, match="5"):
        stepper.step(5, np.zeros((64, 64, 3), np.uint8))
