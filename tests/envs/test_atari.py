"""`AtariEnv` against Gymnasium's wrappers around the same emulator; its options, states and faults."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

gymnasium = pytest.importorskip("gymnasium")
ale_py = pytest.importorskip("ale_py")
pytest.importorskip("cv2")

from drama.config import Config, EnvConfig  # noqa: E402
from drama.envs import AtariEnv, Catch, FrameEnv  # noqa: E402
from drama.results.scores import published_scores  # noqa: E402

Frame = npt.NDArray[np.uint8]


def reference(game: str, config: EnvConfig) -> Any:
    """The same environment of Gymnasium's wrappers."""
    env = gymnasium.make(
        f"ALE/{game}-v5",
        frameskip=1,
        repeat_action_probability=config.repeat_action_probability,
        full_action_space=config.full_action_space,
        max_num_frames_per_episode=config.max_frames,
    )
    height, width = config.frame_size
    env = gymnasium.wrappers.AtariPreprocessing(
        env,
        noop_max=config.noops,
        frame_skip=config.frame_skip,
        screen_size=(width, height),
        terminal_on_life_loss=config.life_loss_terminal,
        grayscale_obs=config.grayscale,
        grayscale_newaxis=True,
    )
    if config.frame_stack > 1:
        env = gymnasium.wrappers.FrameStackObservation(env, config.frame_stack)
    return env


def assert_close(ours: Frame, theirs: Frame) -> None:
    """Within one level: the means are exact in neither."""
    assert ours.shape == theirs.shape
    assert int(np.abs(ours.astype(np.int16) - theirs.astype(np.int16)).max()) <= 1


def play_both(game: str, config: EnvConfig, steps: int, seed: int = 7) -> int:
    """Play the same actions in both and compare everything; returns the number of episodes that ended."""
    env, wrapper = AtariEnv(game, config), reference(game, config)
    assert env.action_space == wrapper.action_space
    assert env.observation_space == wrapper.observation_space
    random = np.random.default_rng(seed)
    ends, ended, begin = 0, True, seed
    for step in range(steps):
        if ended:
            # Seeded at first and now and then; else both go on with their own random numbers.
            begin_seed = begin + ends if ends % 3 == 0 else None
            ours, own_info = env.reset(seed=begin_seed)
            theirs, info = wrapper.reset(seed=begin_seed)
            assert_close(ours, theirs)
            assert own_info == {"lives": info["lives"], "life_lost": False}
        action = int(random.integers(env.action_space.n))
        ours, *result, own_info = env.step(action)
        theirs, *expected, info = wrapper.step(action)
        assert result == expected, f"step {step}"
        assert own_info["lives"] == info["lives"], f"step {step}"
        assert_close(ours, theirs)
        ended = expected[1] or expected[2]
        ends += ended
    return ends


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("Pong", {}),
    ("Breakout", {"grayscale": True, "size": 84, "life_loss_terminal": True}),
    ("Breakout", {"protocol": "paper", "repeat_action_probability": 0.25, "frame_stack": 4, "max_frames": 300}),
    ("Pong", {"repeat_action_probability": 0.6, "full_action_space": True, "frame_skip": 3, "size": (70, 80)}),
    ("MsPacman", {"frame_skip": 2, "noop_max": 5, "size": (210, 160), "max_frames": 330}),
    ("Breakout", {"frame_skip": 1, "size": (105, 40), "grayscale": True, "frame_stack": 2, "life_loss_terminal": True}),
    # Games that end among the no-ops of their start.
    ("Pong", {"max_frames": 21, "repeat_action_probability": 0.25}),
]


@pytest.mark.parametrize(("game", "options"), VARIANTS)
def test_equals_gymnasiums_wrappers(game: str, options: dict[str, Any]) -> None:
    config = EnvConfig(**options)
    ends = play_both(game, config, 250 if config.max_frames > 100 else 20)
    assert ends > 0 or config.max_frames == EnvConfig.max_frames


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("game", sorted(published_scores()))
def test_all_atari100k_games_equal_gymnasiums_wrappers(game: str) -> None:
    play_both(game, EnvConfig(), 2000)
    play_both(game, EnvConfig(grayscale=True, size=84, life_loss_terminal=True), 2000)
    play_both(game, EnvConfig(repeat_action_probability=0.25, protocol="paper", frame_stack=4), 500)


def test_without_pooling_the_last_screen_is_shown() -> None:
    config = EnvConfig(pool=False, size=(210, 160), protocol="paper")
    env, plain = AtariEnv("Pong", config), gymnasium.make("ALE/Pong-v5", frameskip=4, repeat_action_probability=0.0)
    frame, _ = env.reset(seed=1)
    screen, _ = plain.reset(seed=1)
    np.testing.assert_array_equal(frame, screen)
    pooled = AtariEnv("Pong", EnvConfig(size=(210, 160), protocol="paper"))
    pooled.reset(seed=1)
    differs = False
    for step in range(60):
        frame = env.step(step % 6)[0]
        np.testing.assert_array_equal(frame, plain.step(step % 6)[0])
        differs |= bool((frame != pooled.step(step % 6)[0]).any())
    assert differs


def test_fire_at_reset_and_clipped_rewards_equal_ale_pys_environment() -> None:
    """ale_py fires before its no-ops and counts that as one of them, so with one both start alike."""
    vector = ale_py.vector_env.AtariVectorEnv("breakout", 1, noop_max=1, use_fire_reset=True, stack_num=1)
    env = AtariEnv("Breakout", EnvConfig(protocol="paper", fire_reset=True, clip_rewards=True, grayscale=True, size=84))
    theirs, _ = vector.reset(seed=np.array([3]))
    ours, _ = env.reset(seed=3)
    assert_close(ours[..., 0], theirs[0, 0])
    rewards = []
    for _ in range(120):
        action = 3 if paddle(env) > ball(env)[0] else 2
        ours, reward, terminated, truncated, _ = env.step(action)
        theirs, *expected, _ = vector.step(np.array([action]))
        assert [reward, terminated, truncated] == [values[0] for values in expected]
        assert_close(ours[..., 0], theirs[0, 0])
        rewards.append(reward)
    assert 1.0 in rewards
    vector.close()


def ball(env: AtariEnv) -> tuple[int, int]:
    """Where Breakout's ball is; its height is 0 while there is none."""
    ram = env._env.ale.getRAM()
    return int(ram[99]), int(ram[101])


def paddle(env: AtariEnv) -> int:
    return int(env._env.ale.getRAM()[72])


@pytest.mark.parametrize("fire", [True, False])
def test_fire_serves_the_ball_at_reset(fire: bool) -> None:
    env = AtariEnv("Breakout", EnvConfig(fire_reset=fire))
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(5):
            env.step(0)
        assert (ball(env)[1] > 0) == fire


def test_rewards_are_clipped_to_their_sign() -> None:
    full, clipped = (AtariEnv("MsPacman", EnvConfig(clip_rewards=clip)) for clip in (False, True))
    for env in (full, clipped):
        env.reset(seed=0)
    pairs = [(full.step(step % 9)[1], clipped.step(step % 9)[1]) for step in range(150)]
    assert max(reward for reward, _ in pairs) > 1
    assert all(type(sign) is float and sign == np.sign(reward) for reward, sign in pairs)


@pytest.mark.parametrize("how", ["pickle", "copy", "deepcopy"])
@pytest.mark.parametrize("steps", [0, 20])
def test_a_copy_goes_on_by_itself(how: str, steps: int) -> None:
    env = AtariEnv("Breakout", EnvConfig(repeat_action_probability=0.25, frame_stack=2), "rgb_array")
    env.reset(seed=3)
    for step in range(steps):
        env.step(step % 4)
    copies: dict[str, Callable[[AtariEnv], AtariEnv]] = {
        "pickle": lambda one: pickle.loads(pickle.dumps(one)),
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
    }
    other = copies[how](env)
    assert (other.render_mode, other.observation_space) == (env.render_mode, env.observation_space)
    expected = [env.step(step % 4) for step in range(30)] + [env.reset()]
    got = [other.step(step % 4) for step in range(30)] + [other.reset()]
    for one, two in zip(expected, got, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        assert one[1:] == two[1:]


def test_steps_into_memory_of_others() -> None:
    config = EnvConfig(frame_stack=2, grayscale=True)
    env, other = AtariEnv("Breakout", config), AtariEnv("Breakout", config)
    slots = np.full((3, 2, 64, 64, 1), 9, np.uint8)
    frame, info = env.reset(seed=5)
    assert other.reset_into(slots[1], seed=5) == info
    np.testing.assert_array_equal(slots[1], frame)
    for action in (1, 2, 3, 3, 2):
        frame, *result = env.step(action)
        assert list(other.step_into(action, slots[1])) == result
        np.testing.assert_array_equal(slots[1], frame)
    assert (slots[[0, 2]] == 9).all()
    assert {name: kind(info[name]) for name, kind in AtariEnv.info_fields.items()} == info


CONTINUE = """
import sys
import numpy as np
from drama.config import EnvConfig
from drama.envs import make_env
from drama.training import plain
import test_atari
state, out = sys.argv[1:]
game, options = test_atari.STATES[int(out.split("-")[-1])]
env = make_env(game, EnvConfig(**options))
env.set_state(plain.loads(open(state).read()))
np.savez(out, **test_atari.record(env))
"""

STATES: list[tuple[str, dict[str, Any]]] = [
    ("Breakout", {"repeat_action_probability": 0.7, "frame_stack": 4, "life_loss_terminal": True, "fire_reset": True}),
    ("Pong", {"grayscale": True}),
    ("Catch", {}),
]


def record(env: Any) -> dict[str, Any]:
    """What 500 steps give, resets without a seed among them."""
    random = np.random.default_rng(11)
    rows = []
    for _ in range(500):
        frame, reward, terminated, truncated, info = env.step(int(random.integers(env.action_space.n)))
        rows.append((frame, reward, terminated, truncated, info["lives"], info["life_lost"]))
        if terminated or truncated:
            frame, info = env.reset()
            rows.append((frame, 0.0, False, False, info["lives"], info["life_lost"]))
    return {f"column{i}": np.array(column) for i, column in enumerate(zip(*rows, strict=True))}


@pytest.mark.parametrize("case", range(len(STATES)))
def test_a_state_goes_on_in_another_process(case: int, tmp_path: Path) -> None:
    from drama.envs import make_env
    from drama.training import plain  # needs the extra `train`

    game, options = STATES[case]
    env = make_env(game, EnvConfig(**options))
    assert isinstance(env, FrameEnv)
    env.reset(seed=4)
    for step in range(5 if game == "Catch" else 60):
        env.step((3, 3, 3, 2)[step // 15] if game != "Catch" else 1)
    (tmp_path / "state").write_text(plain.dumps(env.get_state()))
    expected = record(env)
    out = tmp_path / f"out-{case}"
    subprocess.run([sys.executable, "-c", CONTINUE, tmp_path / "state", out], check=True, cwd=Path(__file__).parent)
    with np.load(f"{out}.npz") as got:
        assert got.keys() == expected.keys()
        for name, column in expected.items():
            np.testing.assert_array_equal(got[name], column, err_msg=name)
    # Back in time in the same environment as well.
    env.set_state(plain.loads((tmp_path / "state").read_text()))
    for name, column in record(env).items():
        np.testing.assert_array_equal(expected[name], column, err_msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "mine"}, "env.protocol: 'mine' must be"),
        ({"size": 0}, "env.size: 0 must be"),
        ({"size": (64,)}, r"env.size: \(64,\) must be"),
        ({"size": (64, 1.5)}, r"env.size: \(64, 1.5\) must be"),
        ({"size": 300}, r"size must be at least .*got \(300, 300\)"),
        ({"frame_skip": 0}, "env.frame_skip: 0 must be a whole number of at least 1"),
        ({"frame_skip": True}, "env.frame_skip: True must be a whole number"),
        ({"frame_stack": 0}, "env.frame_stack: 0 must be"),
        ({"noop_max": -1}, "env.noop_max: -1 must be a whole number of at least 0"),
        ({"max_frames": -1}, "env.max_frames: -1 must be"),
        ({"max_frames": None}, "env.max_frames: None must be"),
        ({"repeat_action_probability": 1.1}, "env.repeat_action_probability: 1.1 must be"),
        ({"repeat_action_probability": float("nan")}, "env.repeat_action_probability: nan must be"),
        ({"grayscale": "no"}, "env.grayscale: 'no' must be True or False"),
        ({"clip_rewards": 1}, "env.clip_rewards: 1 must be True or False"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AtariEnv("Pong", EnvConfig(**options))


def test_training_and_catch_refuse_what_they_cannot_do() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"size": (64, 32)}, "env.size: .* must be square"),
        ({"frame_stack": 4}, "env.frame_stack: 4 must be 1"),
        ({"frame_skip": -4}, "env.frame_skip: -4"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            Config(env=EnvConfig(**options)).validate()
    wrong = [
        ({"frame_stack": 4}, "env.frame_stack: 4 is an option of Atari games"),
        ({"size": 60}, "env.size: 60 must be a multiple of 8"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            Catch(EnvConfig(**options))


def test_options_survive_the_config_file() -> None:
    config = Config(env=EnvConfig(size=(84, 84), noop_max=3, repeat_action_probability=0.25, frame_stack=4, pool=False))
    assert Config.from_json(config.to_json()) == config


def test_catch_takes_any_shape_and_refuses_steps_after_the_end() -> None:
    env = Catch(EnvConfig(size=(32, 64)))
    frame, _ = env.reset(seed=0)
    assert frame.shape == (32, 64, 3)
    assert (frame == 255).sum() == 2 * 4 * 8 * 3  # object and paddle
    for _ in range(7):
        *_, terminated, _, _ = env.step(0)
    assert terminated
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(0)
    env.reset()
    with pytest.raises(ValueError, match="action: 3 is out of range"):
        env.step(3)
