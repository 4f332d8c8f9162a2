"""The conventions of Gymnasium: ids, render modes, recorders, numbers of any type."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from drama.config import EnvConfig
from drama.envs import AtariEnv, Catch, make_atari, make_env, make_vector
from drama.envs.making import AtariOptions

GAMES = ["drama/Pong-v0", "drama/Catch-v0"]
SHAPES = {"drama/Pong-v0": (210, 160, 3), "drama/Catch-v0": (256, 256, 3)}


@pytest.mark.parametrize("name", GAMES)
def test_environments_pass_the_checker_and_give_pictures(name: str) -> None:
    with closing(gymnasium.make(name, render_mode="rgb_array")) as env:
        assert env.render_mode == "rgb_array"
        assert env.spec is not None
        assert env.spec.kwargs["render_mode"] == "rgb_array"
        check_env(env.unwrapped, skip_render_check=True)
        env.reset(seed=0)
        first: Any = env.render()
        assert (first.shape, first.dtype) == (SHAPES[name], np.uint8)
        for _ in range(5):
            env.step(env.action_space.sample())
        assert not np.array_equal(np.asarray(env.render()), first)
    refused = pytest.raises(ValueError, match="render_mode: got 'ansi', expected None or one of")
    with pytest.warns(UserWarning, match="not in the possible render_modes"), refused:
        gymnasium.make(name, render_mode="ansi")


def test_pictures_come_as_often_as_steps_do() -> None:
    with closing(AtariEnv("Pong", EnvConfig(frame_skip=2))) as env:
        assert env.metadata["render_fps"] == 30
    with closing(Catch(EnvConfig())) as small:
        assert small.metadata["render_fps"] == 8
        with pytest.raises(RuntimeError, match="render: reset must come first"):
            small.render()
    with pytest.raises(ValueError, match=r"render_mode: got 'human', .*gymnasium.make shows it"):
        Catch(EnvConfig(), "human")


# The recorder leaves the pipes of its encoder to the garbage collector.
recorder = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def video_size(folder: Path) -> tuple[int, int]:
    """Width and height of the one video in a folder."""
    reader = pytest.importorskip("imageio_ffmpeg")
    (path,) = folder.glob("*.mp4")
    frames = reader.read_frames(str(path))
    size: tuple[int, int] = next(frames)["size"]
    assert sum(1 for _ in frames) >= 3
    return size


@recorder
@pytest.mark.parametrize("name", GAMES)
def test_videos_are_recorded(tmp_path: Path, name: str) -> None:
    pytest.importorskip("moviepy")
    env = gymnasium.make(name, render_mode="rgb_array")
    env = gymnasium.wrappers.RecordVideo(
        env, str(tmp_path / "one"), step_trigger=lambda step: step == 0, video_length=6
    )
    env.reset(seed=0)
    for _ in range(6):
        env.step(0)
    env.close()  # type: ignore[no-untyped-call]
    height, width, _ = SHAPES[name]
    assert video_size(tmp_path / "one") == (width, height)


@recorder
@pytest.mark.parametrize("name", GAMES)
def test_videos_of_vectors_are_recorded(tmp_path: Path, name: str) -> None:
    pytest.importorskip("moviepy")
    env = gymnasium.make_vec(name, num_envs=2, render_mode="rgb_array", num_workers=0)
    record = gymnasium.wrappers.vector.RecordVideo
    recorded = record(env, str(tmp_path / "two"), step_trigger=lambda step: step == 0, video_length=6)
    recorded.reset(seed=0)
    for _ in range(6):
        recorded.step(np.zeros(2, int))
    recorded.close()
    height, width, _ = SHAPES[name]
    assert video_size(tmp_path / "two") in ((2 * width, height), (width, 2 * height))


@pytest.mark.parametrize("name", GAMES)
def test_people_see_them(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setitem(os.environ, "SDL_VIDEODRIVER", "dummy")
    with pytest.warns(UserWarning, match="HumanRendering wrapper is being applied"):
        env: Any = gymnasium.make(name, render_mode="human")
    with closing(env):
        env.reset(seed=0)
        env.step(0)
        wrapper = env
        while not isinstance(wrapper, gymnasium.wrappers.HumanRendering):
            wrapper = wrapper.env
        window: Any = wrapper.window
        assert window.get_size() == SHAPES[name][1::-1]
    pytest.importorskip("cv2")
    vector = gymnasium.make_vec(name, num_envs=2, render_mode="rgb_array", num_workers=0)
    with closing(gymnasium.wrappers.vector.HumanRendering(vector)) as shown:
        shown.reset(seed=0)
        shown.step(np.zeros(2, int))
        assert shown.window is not None


def test_numbers_of_any_type_and_lists_are_taken() -> None:
    arguments: dict[str, Any] = {
        "num_workers": np.int8(0),
        "batch_size": np.uint16(1),
        "size": [np.int64(32), 24],
        "frame_skip": np.int32(2),
        "grayscale": np.bool_(True),
        "repeat_action_probability": np.float32(0.25),
    }
    with closing(make_atari("Pong", np.int64(2), **arguments)) as env:  # type: ignore[arg-type]
        observations, _ = env.reset(seed=[np.int64(1), None])  # type: ignore[list-item]
        assert observations.shape == (2, 32, 24, 1)
        env.reset(options={"reset_mask": [True, False]})
        env.step([np.int64(0), 1])
        env.send([1], env_ids=np.array([1]))
        assert env.recv()[4]["env_id"].tolist() == [1]
    config = EnvConfig(size=np.array([32, 24]), noop_max=np.int64(3))  # type: ignore[arg-type]
    assert config == EnvConfig(size=(32, 24), noop_max=3)
    assert [type(value) for value in (*config.frame_size, config.noop_max)] == [int] * 3
    with closing(make_env("Pong", config)) as one:
        assert one.action_space.contains(np.int64(0))
        one.reset(seed=np.int64(3))  # type: ignore[arg-type]
        one.step(np.int32(2))


def test_vectors_by_name_and_number() -> None:
    with closing(make_vector("CartPole-v1", np.int64(3), num_workers=0)) as env:  # type: ignore[arg-type]
        assert env.reset(seed=0)[0].shape == (3, 4)
    with closing(make_vector(lambda: gymnasium.make("CartPole-v1"), 2, num_workers=0)) as env:
        assert env.num_envs == 2
    for name, message in (
        ("CartPole-v9", r"env_fns: 'CartPole-v9' cannot be made: .*v1"),
        ("Pong", r"env_fns: 'Pong' cannot be made: .*make_atari makes Atari games"),
    ):
        with pytest.raises(ValueError, match=message):
            make_vector(name, 2)
    with pytest.raises(TypeError, match="num_envs: got None, expected the number"):
        make_vector("CartPole-v1")
    with pytest.raises(ValueError, match="num_envs: got 3, expected an integer from 1 to 1"):
        make_vector([lambda: gymnasium.make("CartPole-v1")], 3)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_modes_by_either_spelling(mode: AutoresetMode) -> None:
    for spelling in (mode, mode.value, mode.name, mode.name.lower()):
        with closing(make_atari("Catch", 1, num_workers=0, autoreset_mode=spelling)) as env:
            assert env.autoreset_mode is mode
            assert env.metadata["autoreset_mode"] is mode


def test_what_an_editor_shows_is_what_there_is() -> None:
    gymnasiums = {"imports", "kwargs", "render", "without", "action_repeat", "max_steps", "check"}
    fields = {field.name: field.type for field in dataclasses.fields(EnvConfig)}
    shown = {name: hint.__forward_arg__ for name, hint in AtariOptions.__annotations__.items()}
    assert shown == {name: hint for name, hint in fields.items() if name not in gymnasiums}


def test_without_ale_py_there_is_all_else() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_ALE], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


WITHOUT_ALE = """
import sys, warnings
sys.modules["ale_py"] = None
warnings.simplefilter("ignore")  # Gymnasium tells of the plugin that it does not find
import numpy as np
from drama.envs import game_names, make_atari, make_env, make_vector
assert game_names() == ["Catch", "Doorway", "Recall"], game_names()
for env in (make_vector("CartPole-v1", 2, num_workers=0), make_atari("Catch", 2, num_workers=0)):
    env.reset()
    env.step(np.zeros(2, int))
    env.close()
for make in (lambda: make_atari("Pong", 2), lambda: make_env("Pong")):
    try:
        make()
    except ValueError as error:
        assert "pip install 'drama-rl[atari]'" in str(error), error
    else:
        raise AssertionError
"""
