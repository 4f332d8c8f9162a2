"""Atari games, one emulator per environment, each step one call into Rust."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from drama._native import AtariStepper
from drama.config import EnvConfig, did_you_mean
from drama.envs.frames import Frame, FrameEnv
from drama.hints import install

try:
    import ale_py
except ModuleNotFoundError:
    ale_py = None  # type: ignore[assignment]
else:
    gymnasium.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)

NOOP, FIRE = 0, 1
MISSING = "" if ale_py else f"; Atari games need ale_py: `{install('atari')}` brings it"
"""To be said where a game is unknown."""
SCREENS_PER_SECOND = 60


def atari_games() -> list[str]:
    """Names of the games, as in `ALE/<game>-v5`; none without ale_py."""
    ids = (name for name in gymnasium.registry if name.startswith("ALE/") and name.endswith("-v5"))
    return sorted(name.removeprefix("ALE/").removesuffix("-v5") for name in ids)


class AtariEnv(FrameEnv):
    """One Atari game: by default four emulator frames per step, the last two pooled, resized by area.

    With the same seed, options and actions it equals `gymnasium.wrappers.AtariPreprocessing`, no-ops and sticky actions
    included. The first `reset` must be given a seed for a reproducible run; later ones without a seed go on with the
    same random numbers. `info` holds `lives` and `life_lost`. A pickle, or a copy by the module `copy`, goes on exactly
    from where this one is.

    Args:
        game: name as in `ALE/<game>-v5`.
        config: all options. Observations are uint8 `[H, W, C]`, with a stack `[frame_stack, H, W, C]`.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: for an unknown game; the message names the nearest ones. For an option that has no meaning.
    """

    def __init__(self, game: str, config: EnvConfig, render_mode: str | None = None) -> None:
        config.validate()
        games = atari_games()
        if game not in games:
            raise ValueError(f"game: {game!r} is no Atari game{did_you_mean(game, games)}{MISSING}")
        from ale_py.env import AtariEnv as _AleEnv

        self._made = (game, config, render_mode)

        ale_env = gymnasium.make(
            f"ALE/{game}-v5",
            obs_type="grayscale",
            frameskip=1,
            repeat_action_probability=0.0,  # The stepper repeats them, for the emulator's state would not hold them.
            full_action_space=config.full_action_space,
            max_num_frames_per_episode=config.max_frames,
        ).unwrapped
        assert isinstance(ale_env, _AleEnv)
        self._env = ale_env
        self._stepper = AtariStepper(
            ale_env.ale,
            frame_skip=config.frame_skip,
            size=config.frame_size,
            grayscale=config.grayscale,
            pool=config.pool,
            stack=config.frame_stack,
            repeat_action_probability=config.repeat_action_probability,
            life_loss_terminal=config.life_loss_terminal,
        )
        self._noop_max = config.noops
        self._clip_rewards = config.clip_rewards
        self._actions = [action.value for action in ale_env._action_set]
        self.action_meanings = [action.name for action in ale_env._action_set]
        self._fire = config.fire_reset and FIRE in self._actions
        stack = () if config.frame_stack == 1 else (config.frame_stack,)
        self._describe((*stack, *config.frame_size, 1 if config.grayscale else 3), render_mode)
        self.metadata = {**self.metadata, "render_fps": SCREENS_PER_SECOND / config.frame_skip}
        _, seed = ale_env.seed_game()
        self._stepper.begin(int(seed))

    def reset_into(
        self, out: Frame, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        seed = self._seed(seed, options)
        self._restart(seed)
        if self._noop_max:
            for _ in range(int(self._env.np_random.integers(1, self._noop_max + 1))):
                self._play(NOOP, seed)
        if self._fire:
            self._play(FIRE, seed)
        return {"lives": self._stepper.reset(out), "life_lost": False}

    def step_into(self, action: np.int64 | int, out: Frame) -> tuple[float, bool, bool, dict[str, Any]]:
        self._check_action(action)
        reward, terminated, truncated, lives, life_lost = self._stepper.step(self._actions[action], out)
        if self._clip_rewards:
            reward = float(np.sign(reward))
        return reward, terminated, truncated, {"lives": lives, "life_lost": life_lost}

    def render(self) -> Frame:
        """The emulator's own picture, `[210, 160, 3]` for most games."""
        screen: Frame = self._env.ale.getScreenRGB()
        return screen

    def get_state(self) -> dict[str, Any]:
        return {
            "ale": self._env.ale.cloneSystemState().__getstate__(),
            "stepper": self._stepper.state(),
            "random": self._env.np_random.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        system = ale_py.ALEState.__new__(ale_py.ALEState)
        system.__setstate__(state["ale"])
        self._env.ale.restoreSystemState(system)
        self._stepper.set_state(state["stepper"])
        self._env.np_random.bit_generator.state = state["random"]

    def __reduce__(self) -> tuple[Any, ...]:
        others = {name: value for name, value in vars(self).items() if name not in ("_env", "_stepper")}
        return type(self), self._made, (others, self.get_state())

    def __setstate__(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        others, emulator = state
        vars(self).update(others)
        self.set_state(emulator)

    def _restart(self, seed: int | None) -> None:
        """A new game; with a seed, random numbers begin again."""
        _, info = self._env.reset(seed=seed)
        self._stepper.begin(int(info["seeds"][1]) if seed is not None else None)

    def _play(self, action: int, seed: int | None) -> None:
        """One emulator frame at reset. If it ends the game another begins, with the seed as in Gymnasium's wrapper."""
        self._stepper.act(action)
        if self._env.ale.game_over():
            self._restart(seed)
