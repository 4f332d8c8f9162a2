"""Making vectors of environments, from functions or by name, and telling gymnasium of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import gymnasium
from gymnasium.vector import AutoresetMode

from drama.config import EnvConfig, did_you_mean
from drama.envs.atari import AtariEnv, atari_games
from drama.envs.frames import FrameEnv
from drama.envs.small import Catch, Doorway, GridTask, Recall
from drama.envs.vector import VectorEnv
from drama.envs.worker import EnvError

make_vector = VectorEnv  # the name that goes with `make_atari`
SMALL: dict[str, type[GridTask]] = {"Catch": Catch, "Doorway": Doorway, "Recall": Recall}


def game_names() -> list[str]:
    """All names that `make_env` takes."""
    return [*atari_games(), *SMALL]


def make_env(game: str, config: EnvConfig | None = None) -> FrameEnv:
    """Make the Atari game or small task `game`. Raises ValueError that names the nearest ones if there is none."""
    config = config or EnvConfig()
    _check_game(game)
    return SMALL[game](config) if game in SMALL else AtariEnv(game, config)


def _check_game(game: str) -> None:
    if game not in (names := game_names()):
        raise ValueError(f"game: {game!r} is unknown{did_you_mean(game, names)}; `drama games` lists all {len(names)}")


def make_atari(
    game: str,
    num_envs: int,
    *,
    config: EnvConfig | None = None,
    num_workers: int | Literal["auto"] | None = "auto",
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    batch_size: int | None = None,
    copy: bool = True,
    on_worker_death: Literal["raise", "restart"] = "raise",
    timeout: float | None = None,
    **options: Any,
) -> VectorEnv:
    """Make a vector of `num_envs` environments of the Atari game or small task `game`.

    `options` replace fields of `config`, as in `make_atari("Pong", 8, grayscale=True)`; the other arguments are those
    of `make_vector`. Observations are uint8 frames `[num_envs, H, W, C]`; the infos hold `lives` and `life_lost`.

    Raises:
        ValueError: for an unknown game or option; the message names the nearest ones.
    """
    _check_game(game)
    if not isinstance(num_envs, int) or num_envs < 1:
        raise ValueError(f"num_envs: got {num_envs!r}, expected an integer of at least 1")
    env_fn = functools.partial(make_env, game, _configured(config, options))
    try:
        return VectorEnv(
            [env_fn] * num_envs,
            num_workers=num_workers,
            autoreset_mode=autoreset_mode,
            batch_size=batch_size,
            copy=copy,
            on_worker_death=on_worker_death,
            timeout=timeout,
        )
    except EnvError as error:
        if isinstance(error.__cause__, ValueError):  # a mistake in the arguments, not an environment that broke
            raise error.__cause__ from None
        raise


def make_frames(game: str, num_envs: int, config: EnvConfig) -> VectorEnv:
    """What training and evaluation step: as `make_atari`, an episode's end and the next one's start in one step."""
    return make_atari(game, num_envs, config=config, autoreset_mode=AutoresetMode.SAME_STEP)


def _make_one(game: str, config: EnvConfig | None = None, **options: Any) -> FrameEnv:
    """What `gymnasium.make("drama/<game>-v0", ...)` calls."""
    return make_env(game, _configured(config, options))


def _configured(config: EnvConfig | None, options: dict[str, Any]) -> EnvConfig:
    fields = [field.name for field in dataclasses.fields(EnvConfig)]
    for name in options:
        if name not in fields:
            raise ValueError(f"option: {name!r} is unknown{did_you_mean(name, fields)}; there are {', '.join(fields)}")
    config = dataclasses.replace(config or EnvConfig(), **options)
    config.validate()
    return config


def register() -> None:
    """Tell gymnasium of every game as `drama/<game>-v0`, for `gymnasium.make` and `gymnasium.make_vec`."""
    for game in game_names():
        if (name := f"drama/{game}-v0") not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point=f"{__name__}:_make_one",
                vector_entry_point=f"{__name__}:make_atari",
                kwargs={"game": game},
            )
