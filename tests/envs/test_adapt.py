"""Any Gymnasium environment: what its spaces become, by which names it is found, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from drama.config import EnvConfig
from drama.envs import Adapted, env_maker, given_name, interface_of, make_env, make_frames
from drama.envs.adapt import resize_by_area
from drama.interface import Choices, Continuous, Image, Interface, Vector

SMALL = EnvConfig(size=32)


class Shown(gymnasium.Env[Any, Any]):
    """Shows what it is given and notes the actions it gets."""

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any], shown: Any = None) -> None:
        self.observation_space, self.action_space = observation, action
        self.shown = observation.sample() if shown is None else shown
        self.got: list[Any] = []
        self.reward: Any = 1.0

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return self.shown, {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.got.append(action)
        return self.shown, self.reward, False, False, {}


BUTTONS = spaces.Discrete(3)


def adapted(observation: spaces.Space[Any], shown: Any = None, config: EnvConfig = SMALL) -> Adapted:
    return Adapted(Shown(observation, BUTTONS, shown), config, "Mine")


def parts(env: Adapted) -> dict[str, np.ndarray]:
    return env.interface.parts(env.reset()[0])


def test_areas_are_averaged_as_by_opencv() -> None:
    image = np.random.default_rng(0).random((210, 96, 3), np.float32)
    for size in ((64, 64), (84, 32), (210, 96)):
        expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA).reshape(*size, 3)
        np.testing.assert_allclose(resize_by_area(image, size), expected, atol=1e-4)


def test_a_small_image_is_enlarged_by_area() -> None:
    image = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
    np.testing.assert_array_equal(resize_by_area(image, (4, 4)), image.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    ("shape", "seen"),
    [((64, 48, 3), (32, 32, 3)), ((3, 64, 48), (32, 32, 3)), ((64, 48), (32, 32, 1)), ((4, 84, 84), (32, 32, 4))],
)
def test_images_of_any_layout_are_rows_columns_channels(shape: tuple[int, ...], seen: tuple[int, int, int]) -> None:
    space = spaces.Box(0, 255, shape, np.uint8)
    picture = np.zeros(shape, np.uint8)
    channel = (..., 0) if shape[-1] <= 4 else (0,) if shape[0] <= 4 else ...
    picture[channel] = 200
    env = adapted(space, picture)
    assert env.interface.observation == {"obs": Image(seen)}
    frame = parts(env)["obs"]
    assert frame.shape == seen
    assert frame.dtype == np.uint8
    assert (frame[..., 0] == 200).all()
    assert (frame[..., 1:] == 0).all()


def test_a_picture_of_fractions_becomes_bytes_and_gray_if_asked_for() -> None:
    space = spaces.Box(0.0, 1.0, (32, 32, 3), np.float32)
    shown = np.full((32, 32, 3), 0.5, np.float32)
    assert (parts(adapted(space, shown))["obs"] == 128).all()
    gray = adapted(space, shown, EnvConfig(size=32, grayscale=True))
    assert parts(gray)["obs"].shape == (32, 32, 1)
    assert (parts(gray)["obs"] == 128).all()


def test_numbers_are_one_vector_and_choices_are_one_hot() -> None:
    space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (32, 32, 1), np.uint8),
            "speed": spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "gear": spaces.Discrete(3, start=1),
            "doors": spaces.MultiBinary(2),
            "pair": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(0, 9, (), np.int64))),
        }
    )
    frame = np.full((32, 32, 1), 7, np.uint8)
    shown = {
        "camera": frame,
        "speed": np.array([1.5, -2.0]),
        "gear": 3,
        "doors": np.array([0, 1], np.int8),
        "pair": (np.array([1, 2]), np.array(4)),
    }
    env = adapted(space, shown)
    vector = env.interface.observation["obs_vector"]
    assert isinstance(vector, Vector)
    found = dict(zip(vector.labels, parts(env)["obs_vector"].tolist(), strict=True))
    assert found == {
        "speed[0]": 1.5,
        "speed[1]": -2.0,
        "gear=1": 0,
        "gear=2": 0,
        "gear=3": 1,
        "doors[0]": 0,
        "doors[1]": 1,
        "pair.0[0]=0": 0,
        "pair.0[0]=1": 1,
        "pair.0[1]=0": 0,
        "pair.0[1]=1": 0,
        "pair.0[1]=2": 1,
        "pair.1": 4,
    }
    np.testing.assert_array_equal(parts(env)["obs_camera"], frame)
    assert env.observation_space.contains(env.reset()[0])
    without = adapted(space, shown, EnvConfig(size=32, without=("camera", "pair", "doors")))
    kept = ("gear=1", "gear=2", "gear=3", "speed[0]", "speed[1]")  # in the order of the space, which sorts its keys
    assert without.interface.observation == {"obs": Vector(kept)}


@pytest.mark.parametrize(
    ("space", "kind", "given", "native"),
    [
        (spaces.Discrete(4, start=-1), Choices((4,)), 3, 2),
        (spaces.MultiDiscrete([2, 5]), Choices((2, 5), single=False), [1, 4], [1, 4]),
        (spaces.MultiDiscrete([2, 5], start=[3, 1]), Choices((2, 5), single=False), [1, 4], [4, 5]),
        (spaces.MultiBinary((2, 2)), Choices((2,) * 4, single=False), [1, 0, 0, 1], [[1, 0], [0, 1]]),
        (spaces.Box(-2, 4, (2,), np.float32), Continuous(2), [0.0, 1.0], [1.0, 4.0]),
        (spaces.Box(0, 1, (1, 2), np.float64), Continuous(2), [-3.0, 0.5], [[0.0, 0.75]]),
    ],
)
def test_actions_are_choices_from_zero_or_numbers_from_minus_one_to_one(
    space: spaces.Space[Any], kind: Choices | Continuous, given: Any, native: Any
) -> None:
    inner = Shown(spaces.Box(0, 1, (3,), np.float32), space)
    env = Adapted(inner, SMALL, "Mine")
    env.reset()
    assert env.interface.action == kind
    env.step(np.asarray(given, kind.dtype))
    np.testing.assert_allclose(np.asarray(inner.got[0], float), np.asarray(native, float))
    assert space.contains(inner.got[0])
    sampled = kind.sample(np.random.default_rng(0), 50)
    assert sampled.shape == (50, *kind.shape)
    assert all(env.action_space.contains(action) for action in sampled)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (spaces.Text(5), r"the observation of Mine is Text.*gymnasium\.ObservationWrapper"),
        (
            spaces.Dict({"mission": spaces.Text(5), "x": BUTTONS}),
            r"part 'mission'.*--env\.without mission \(`env\.without`\) leaves it out",
        ),
        (spaces.Graph(spaces.Box(0, 1, (2,)), None), "is Graph"),
    ],
)
def test_observations_that_cannot_be_learned_from_are_named(space: spaces.Space[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        adapted(space)


def test_actions_that_cannot_be_learned_are_named() -> None:
    box = spaces.Box(0, 1, (3,), np.float32)
    with pytest.raises(ValueError, match=r"numbers without bounds.*RescaleAction"):
        Adapted(Shown(box, spaces.Box(-np.inf, np.inf, (1,))), SMALL, "Mine")
    with pytest.raises(ValueError, match=r"takes Dict.*gymnasium\.ActionWrapper"):
        Adapted(Shown(box, spaces.Dict({"a": BUTTONS})), SMALL, "Mine")


@pytest.mark.parametrize(
    ("space", "shown", "said"),
    [
        (spaces.Box(0, 1, (2,), np.float32), [0, np.nan], "not a finite number"),
        (
            spaces.Box(0, 1, (2,), np.float32),
            [0, 3],
            r"3\.0 is outside of its space, from 0\.0 to 1\.0; --env\.no-check",
        ),
        (spaces.Box(0, 1, (2,), np.float32), [0, 0, 0], r"got shape \(3,\), expected \(2,\)"),
        (spaces.Discrete(3), 7, "7 is not in its space"),
        (spaces.Dict({"a": BUTTONS}), {"b": 1}, r"expected a mapping with the keys \['a'\]"),
    ],
)
def test_observations_outside_of_their_space_say_at_which_step(space: spaces.Space[Any], shown: Any, said: str) -> None:
    env = adapted(space, shown if isinstance(shown, dict | int) else np.array(shown, np.float32))
    with pytest.raises(ValueError, match=said):
        env.reset()


def test_a_reward_that_is_no_number_says_at_which_step() -> None:
    inner = Shown(spaces.Box(0, 1, (2,), np.float32), BUTTONS, np.zeros(2, np.float32))
    env = Adapted(inner, SMALL, "Mine")
    env.reset()
    env.step(0)
    inner.reward = np.float32("nan")
    with pytest.raises(ValueError, match="reward at step 2 of the episode: nan"):
        env.step(0)


def test_bounds_are_not_checked_if_not_asked_for() -> None:
    adapted(spaces.Box(0, 1, (2,), np.float32), np.array([0, 3], np.float32), EnvConfig(size=32, check=False)).reset()


def test_lives_are_told_and_a_lost_one_can_end_the_episode() -> None:
    class Lives(Shown):
        def step(self, action: Any) -> Any:
            del action
            return self.shown, 1.0, False, False, {"lives": 2}

        def reset(self, **_: Any) -> Any:
            return self.shown, {"lives": 3}

    box = spaces.Box(0, 1, (2,), np.float32)
    for ends in (False, True):
        env = Adapted(Lives(box, BUTTONS), EnvConfig(size=32, life_loss_terminal=ends), "Mine")
        env.reset()
        _, _, terminated, _, info = env.step(0)
        assert (terminated, info) == (ends, {"lives": 2, "life_lost": True})


def test_a_repeated_action_sums_rewards_and_stops_at_the_end() -> None:
    env = make_env("CartPole-v1", EnvConfig(action_repeat=4))
    env.reset(seed=0)
    rewards, ended = [], False
    while not ended:
        _, reward, ended, _, _ = env.step(1)
        rewards.append(float(reward))
    plain = gymnasium.make("CartPole-v1")
    plain.reset(seed=0)
    steps, ended = 0, False
    while not ended:
        _, _, ended, _, _ = plain.step(1)
        steps += 1
    assert sum(rewards) == steps
    assert set(rewards[:-1]) == {4.0}


def test_rendered_frames_can_be_seen_instead() -> None:
    env = make_env("CartPole-v1", EnvConfig(size=32, render=True))
    assert interface_of("CartPole-v1", EnvConfig(size=32, render=True)).observation == {"obs": Image((32, 32, 3))}
    frame = env.reset(seed=0)[0]
    assert frame.std() > 1
    assert not np.array_equal(frame, [env.step(1)[0] for _ in range(5)][-1])


def pendulum() -> gymnasium.Env[Any, Any]:
    """What `test_adapt:pendulum` names."""
    return gymnasium.make("Pendulum-v1")


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("pong", Choices((6,))),
        ("ALE/Pong-v5", Choices((6,))),
        ("catch", Choices((3,))),
        ("CartPole-v1", Choices((2,))),
        ("test_adapt:pendulum", Continuous(1)),
        ("gymnasium.envs.classic_control:PendulumEnv", Continuous(1)),
    ],
)
def test_environments_by_name(name: str, action: Any) -> None:
    assert interface_of(name, SMALL).action == action


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Pogn", r"'Pogn' is unknown \(did you mean Pong"),
        ("CartPole-v11", r"did you mean CartPole-v1"),
        ("no_such_module:make", "there is no module 'no_such_module'"),
        ("test_adapt:pendulun", r"test_adapt has no 'pendulun' \(did you mean pendulum"),
        ("test_adapt:SMALL", "is EnvConfig, expected a function"),
        ("builtins:dict", "returns dict, expected a gymnasium.Env"),
    ],
)
def test_names_that_are_none_say_what_is_near(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_env(name)


def test_options_of_another_kind_of_environment_are_refused() -> None:
    with pytest.raises(ValueError, match=r"env\.frame_skip: 2 is an option of Atari games; CartPole-v1 has none"):
        make_env("CartPole-v1", EnvConfig(frame_skip=2))
    with pytest.raises(ValueError, match=r"env\.kwargs: \{'a': 1\} is an option of Gymnasium environments; Pong"):
        make_env("Pong", EnvConfig(kwargs={"a": 1}))
    with pytest.raises(ValueError, match=r"env\.kwargs: CartPole-v1 cannot be made with \{'no': 1\}"):
        make_env("CartPole-v1", EnvConfig(kwargs={"no": 1}))
    with pytest.raises(ValueError, match=r"env\.without: 'a' is no part"):
        make_env("CartPole-v1", EnvConfig(without=("a",)))
    with pytest.raises(ValueError, match=r"env\.imports: there is no module 'nothing_here'"):
        make_env("CartPole-v1", EnvConfig(imports=("nothing_here",)))


def test_imports_register_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "registers_mine.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v3', entry_point='gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    config = EnvConfig(imports=("registers_mine",), kwargs={"sutton_barto_reward": True})
    try:
        env = make_env("Mine-v3", config)
        env.reset(seed=0)
        assert env.step(0)[1] == 0.0  # the reward that was asked for
    finally:
        gymnasium.registry.pop("Mine-v3", None)


class Held(gymnasium.Env[Any, Any]):
    """Registered by a test of this process alone."""

    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = BUTTONS

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed, options=options)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.full(2, 0.5, np.float32), float(action), False, False, {}


def test_workers_make_what_only_this_process_has_registered() -> None:
    """A function that is given, and an id that is registered here, in worker processes."""
    gymnasium.register("Held-v0", entry_point=lambda **_: Held())
    try:
        for name in ("Held-v0", given_name(lambda: Held())):
            maker = env_maker(name, SMALL)
            from drama.envs import make_vector

            envs = make_vector([maker] * 2, num_workers=2)
            envs.reset(seed=0)
            assert envs.step(np.array([1, 2]))[1].tolist() == [1.0, 2.0]
            envs.close()
    finally:
        gymnasium.registry.pop("Held-v0", None)


def test_a_vector_shows_parts_as_arrays() -> None:
    envs = make_frames("CartPole-v1", 3, SMALL)
    obs, _ = envs.reset(seed=0)
    assert obs.shape == (3, 4)
    assert obs.dtype == np.float32
    infos = envs.step(np.zeros(3, np.int64))[4]
    assert infos["life_lost"].tolist() == [False] * 3
    envs.close()


def test_an_interface_survives_its_json() -> None:
    for interface in (
        Interface.of_frames((64, 64, 1), 6),
        interface_of("Pendulum-v1", SMALL),
        Interface({"obs_a": Image((8, 8, 3)), "obs_vector": Vector(("x", "y"))}, Choices((2, 3), single=False)),
    ):
        assert Interface.from_json(interface.to_json()) == interface


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"observation": {"obs": {"image": [1e9, 8, 1]}}, "action": {"continuous": 1}, "meanings": []}',
        '{"observation": {"obs": {"vector": ["x"]}}, "action": {"choices": [], "single": true}, "meanings": []}',
    ],
)
def test_a_damaged_interface_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the interface of an environment"):
        Interface.from_json(text)


class Counting(gymnasium.Env[Any, Any]):
    """Can give its state."""

    observation_space = spaces.Box(0, np.inf, (1,), np.float32)
    action_space = BUTTONS
    count = 0

    def reset(self, **_: Any) -> Any:
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        del action
        self.count += 1
        return np.array([self.count], np.float32), 0.0, False, False, {}

    def get_state(self) -> int:
        return self.count

    def set_state(self, state: int) -> None:
        self.count = state


def test_a_state_goes_on_where_the_environment_has_one() -> None:
    first, second = (Adapted(gymnasium.wrappers.TimeLimit(Counting(), 5), SMALL, "Counting") for _ in range(2))
    first.reset()
    first.step(0)
    first.step(0)
    second.reset()
    second.set_state(first.get_state())
    for _ in range(3):
        (one, *a), (two, *b) = first.step(0), second.step(0)
        assert one == two
        assert a == b
    assert a[2]  # the time limit counts on
    assert make_env("CartPole-v1").get_state() is None  # type: ignore[attr-defined]


def test_steps_can_be_limited() -> None:
    env = make_env("Pendulum-v1", EnvConfig(max_steps=7))
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[2:4] for _ in range(7)][-1] == (False, True)


def test_an_image_without_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has the shape of an image, \(64, 64, 3\), but no bounds"):
        adapted(spaces.Box(-np.inf, np.inf, (64, 64, 3), np.float32), np.zeros((64, 64, 3), np.float32))


def test_an_environment_without_spaces_is_refused() -> None:
    class Bare(gymnasium.Env[Any, Any]):
        action_space = BUTTONS

    with pytest.raises(ValueError, match="Bare has no observation_space"):
        Adapted(Bare(), SMALL, "Bare")


def test_scaled_actions_stay_in_their_space() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        low, high = np.sort(random.normal(scale=10.0 ** random.integers(-3, 6), size=2)).astype(np.float32)
        space = spaces.Box(low, high, (1,), np.float32)
        inner = Shown(spaces.Box(0, 1, (2,), np.float32), space, np.zeros(2, np.float32))
        env = Adapted(inner, SMALL, "Mine")
        env.reset()
        for action in (-1.0, 1.0, 0.3):
            env.step(np.array([action], np.float32))
            assert space.contains(inner.got[-1]), (low, high, action)
    most = np.finfo(np.float32).max
    inner = Shown(
        spaces.Box(0, 1, (2,), np.float32), spaces.Box(-most, most, (1,), np.float32), np.zeros(2, np.float32)
    )
    env = Adapted(inner, SMALL, "Mine")
    env.reset()
    env.step(np.ones(1, np.float32))
    assert inner.got[-1] == most


def test_bytes_in_an_image_of_fractions_are_fractions() -> None:
    space = spaces.Box(0.0, 1.0, (32, 32, 1), np.float32)
    assert (parts(adapted(space, np.ones((32, 32, 1), np.uint8)))["obs"] == 255).all()


def test_lives_that_are_not_told_of_again_are_not_lost() -> None:
    class Once(Shown):
        def reset(self, **_: Any) -> Any:
            return self.shown, {"lives": 3}

    env = Adapted(Once(spaces.Box(0, 1, (2,), np.float32), BUTTONS, np.zeros(2, np.float32)), SMALL, "Mine")
    env.reset()
    assert env.step(0)[4] == {"lives": 3, "life_lost": False}
