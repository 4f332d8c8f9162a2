"""Watching the agent and playing inside its world model, in a real window system where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from drama.cli import main
from drama.config import Config
from drama.results.play import Dream, action_of_keys, frames_per_second, watch

# A person at the keyboard: events come between two frames, and what the window shows is looked at in its pixels.
PERSON = """
import sys
from pathlib import Path
import pygame
from drama.results.play import Dream, Window, play_dream

dream = Dream(Path(sys.argv[1]), seed=0, device="cpu")
script = [("down", pygame.K_LEFT), None, ("up", pygame.K_LEFT), None, ("tap", pygame.K_SPACE), None,
          ("tap", pygame.K_p), None, None, ("tap", pygame.K_p), None, ("tap", pygame.K_r), None, ("tap", pygame.K_q)]

class Watched(Window):
    def wait(self, fps):
        lit = pygame.surfarray.array3d(self._screen)[:, :640].std() > 0
        print(dream.steps, self.lines[2].split()[-1], "paused" in self.lines[0], lit)
        entry = script.pop(0)
        if entry:
            kind, key = entry
            for name in {"down": [pygame.KEYDOWN], "up": [pygame.KEYUP], "tap": [pygame.KEYDOWN, pygame.KEYUP]}[kind]:
                pygame.event.post(pygame.event.Event(name, key=key))
    def show(self, picture, lines):
        self.lines = lines
        super().show(picture, lines)

with Watched("test", "or else") as window:
    print(pygame.display.get_driver())
    play_dream(dream, window, 1000.0)
"""


def test_a_person_plays_in_the_dream_with_the_keyboard(pong_run: Path) -> None:
    """Held keys go on, taps last one frame, P pauses, R starts again, Q ends."""
    xvfb = shutil.which("xvfb-run")
    command = [sys.executable, "-c", PERSON, str(pong_run)]
    if xvfb:
        command, env = [xvfb, "-a", *command], {**os.environ, "SDL_VIDEODRIVER": "x11"}
    else:
        env = {**os.environ, "SDL_VIDEODRIVER": "dummy"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    driver, *shown = lines[-15:]
    assert driver == ("x11" if xvfb else "dummy")
    steps, actions, paused, lit = zip(*(line.split() for line in shown), strict=True)
    assert actions[:9] == ("NOOP", "LEFT", "LEFT", "NOOP", "NOOP", "FIRE", "NOOP", "NOOP", "NOOP")
    assert steps[:12] == ("1", "2", "3", "4", "5", "6", "7", "7", "7", "7", "8", "9")
    assert steps[12:] == ("1", "2")
    assert paused == tuple(str(7 <= i <= 9) for i in range(14))
    assert set(lit) == {"True"}


def test_a_dream_begins_from_fresh_real_frames_and_repeats_with_its_seed(pong_run: Path) -> None:
    def dreamt(seed: int) -> list[np.ndarray]:
        dream = Dream(pong_run, seed=seed, device="cpu")
        frames = []
        for _ in range(2):
            frames.append(dream.frame)
            for _ in range(5):
                dream.step(2)
                assert 0 <= dream.continuation <= 1
                frames.append(dream.frame)
            assert dream.steps == 5
            dream.restart()
            assert (dream.steps, dream.score) == (0, 0.0)
        return frames

    first, again, other = dreamt(0), dreamt(0), dreamt(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert first[0].shape == (32, 32, 3)
    assert (first[0] == first[0][..., :1]).all()  # gray
    assert not np.array_equal(first[0], first[6])


@pytest.mark.parametrize(
    ("pressed", "meaning"),
    [
        ({"UP", "RIGHT", "FIRE"}, "UPRIGHTFIRE"),
        ({"LEFT"}, "LEFT"),
        ({"FIRE", "p"}, "FIRE"),
        (set(), "NOOP"),
        ({"UP", "DOWN"}, "UP"),
    ],
)
def test_keys_are_the_actions_that_the_game_calls_so(pressed: set[str], meaning: str) -> None:
    meanings = ["NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPFIRE", "UPRIGHTFIRE"]
    assert meanings[action_of_keys(pressed, meanings)] == meaning


def test_keys_take_the_nearest_action_and_digits_those_without_a_name() -> None:
    assert action_of_keys({"LEFT", "FIRE"}, ["NOOP", "RIGHTFIRE", "LEFT"]) == 2
    assert action_of_keys({"UP"}, ["NOOP", "LEFT"]) == 0
    assert action_of_keys({"2"}, ["0", "1", "2"]) == 2


def test_watching_shows_whole_episodes_of_the_real_game(pong_run: Path) -> None:
    steps = list(watch(pong_run, episodes=1, greedy=None, seed=0, device="cpu"))
    assert [played.step for played in steps] == list(range(len(steps)))
    assert steps[0].picture.shape == (210, 160, 3)
    assert len(steps) > 500
    assert -21 <= steps[-1].score < 0 or steps[-1].score == 21
    assert {played.action for played in steps} <= {"NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE", "-"}


def test_a_recording_holds_every_step_at_the_chosen_speed(pong_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "pong.mp4"
    with pytest.raises(SystemExit) as stop:
        main(["play", str(pong_run), "--out", str(out), "--speed", "4", "--device", "cpu"])
    assert not stop.value.code
    assert iio.improps(out, plugin="pyav").shape[0] > 500
    assert iio.immeta(out, plugin="pyav")["fps"] == 60


def test_speed_one_is_that_of_the_real_game(debug: Config) -> None:
    assert frames_per_second(debug, 1.0) == 15
    with pytest.raises(ValueError, match="speed: 0"):
        frames_per_second(debug, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--speed", "-1"], "speed: -1"),
        (["--out", "x.txt"], "must end in .gif or .mp4"),
        (["--episodes", "0"], "episodes: 0"),
        (["--seed", "-1"], "seed: -1"),
        (["--dream", "--out", "x.gif"], "drama dream"),
    ],
)
def test_bad_options_give_one_line(
    pong_run: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["play", str(pong_run), *options])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("options", "said"), [(["--dream"], "drama dream {run}` writes a video of a dream instead"), ([], "--out FILE.mp4")]
)
def test_without_a_display_it_is_said_what_can_be_done_instead(
    pong_run: Path, options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--out`, which records an agent, is refused beside `--dream`, so that is not what a dream points to."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    if sys.platform != "linux":
        pytest.skip("there is a display without these variables")
    with pytest.raises(SystemExit) as stop:
        main(["play", str(pong_run), "--device", "cpu", *options])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.count("\n") == 1
    assert "no window can be opened" in err
    assert said.format(run=pong_run) in err
    assert not options or "--out" not in err
