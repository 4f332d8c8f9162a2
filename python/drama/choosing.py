"""Which config a run gets: the preset that suits an environment, the fields that are given, its folder.

What can be refused here is refused before PyTorch is imported, which takes seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drama.config import Config, EnvConfig, preset, with_options
from drama.envs import interface_of, known_game
from drama.envs.making import SMALL


def make_config(game: str, preset_name: str, options: Mapping[str, Any]) -> tuple[Config, str | None]:
    """The config of a run, and a line on how its preset was chosen, or None if it was given.

    Raises ValueError, naming the field, if it cannot work.
    """
    game = known_game(game) or game
    why = None
    if preset_name == "auto":
        env = with_options(Config(), {name: value for name, value in options.items() if name.startswith("env.")}).env
        preset_name, why = choose_preset(game, env, str(options.get("device", "auto")))
    config = with_options(preset_for(game, preset_name), options)
    config.validate()
    return config, why


def preset_for(game: str, name: str) -> Config:
    """The preset `name` for an environment: in colour, but for Atari games and small tasks, which need none."""
    config = dataclasses.replace(preset(name), game=game)
    if known_game(game) is None:
        config = dataclasses.replace(config, env=dataclasses.replace(config.env, grayscale=False))
    return config


def choose_preset(game: str, env: EnvConfig, device: str) -> tuple[str, str]:
    """The preset for an environment on this machine, and why, in a line."""
    if game in SMALL:
        return "small", f"preset small: {game} is a small task"
    if not interface_of(game, env).images:
        return "vector", f"preset vector: {game} shows numbers"
    import torch

    from drama.runtime.device import resolve_device

    if resolve_device(device).type == "cuda":
        return "paper", f"preset paper: {game} shows images, and there is a GPU ({torch.cuda.get_device_name()})"
    return "cpu", f"preset cpu: {game} shows images, and there is no GPU"


def default_run(config: Config) -> Path:
    """The folder of a run that is given none."""
    name = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in config.game.lower()).strip("-")
    return Path("runs") / f"{name}-{config.preset}-seed{config.seed}"
