"""Evaluation of an agent on the real game."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np

from drama import __version__
from drama.agent.player import Player
from drama.config import Config
from drama.envs import interface_of, known_game, make_frames, runs_code
from drama.files import WEIGHTS, check_run, write_atomically
from drama.interface import Image, Interface
from drama.results.scores import human_normalised, random_and_human
from drama.runtime.device import random_from, resolve_device
from drama.training import checkpoint
from drama.training.learner import Learner
from drama.training.weights import check_contents, check_state, is_export, load_weights

STEPS = 27_000
"""After which an episode that nothing else ends is truncated: the half hour that Atari games have."""


def untold(count: int) -> None:
    """Hears how far something is, and tells nobody."""


def load_learner(
    run: Path, device: str = "auto", step: int | None = None, *, trust: bool = False
) -> tuple[Config, Learner, int]:
    """The config, networks and step of a run's last checkpoint, or of the one at `step`, or of an export.

    Raises ValueError if any of them cannot be read, or if it is an export, which may be somebody else's, whose
    environment would import what its config names, without `trust`.
    """
    where = resolve_device(device)
    check_loadable(run)
    exported = step is None and is_export(run)
    if exported:
        check_contents(run)
    folder = run if exported else checkpoint.latest(run) if step is None else checkpoint.at_step(run, step)
    config = Config.load(run / "config.json")
    if exported and not trust and runs_code(config.game, config.env):
        named = ", ".join([*config.env.imports, config.game])
        raise ValueError(
            f"{run}: to make its environment is to import and run {named}, as this export says; --trust (trust=True)"
            " does so, for one whose origin you know"
        )
    path = run / "interface.json"
    if exported and not path.exists() and known_game(config.game) is None:
        raise ValueError(f"{path}: the export lacks this file")
    interface = Interface.load(path) if path.exists() else interface_of(config.game, config.env)
    config.validate()
    _check_frames(config, interface, run)
    if exported:
        return config, *load_weights(run, config, interface, where)
    state = checkpoint.load_state(folder, where)
    check_state(config, interface, state, folder / "state.pt")
    with random_from(0, where):  # its first weights are nobody's random numbers
        learner = Learner(config, interface, where)
    try:
        learner.load_state_dict(state["learner"])
    except ValueError as error:
        raise ValueError(f"{folder / 'state.pt'}: {error}") from error
    return config, learner, state["step"]


def _check_frames(config: Config, interface: Interface, run: Path) -> None:
    """Refuse sizes of frames with which the environment would be made, but which no weight was learned on."""
    for name, part in interface.observation.items():
        if isinstance(part, Image) and part.shape[:2] != config.env.frame_size:
            raise ValueError(
                f"{run}: env.size is {config.env.size} in config.json, and the image {name!r} {part.shape} in"
                " interface.json"
            )


def check_loadable(run: Path) -> None:
    """Raise ValueError where there is neither a checkpoint nor an export."""
    check_run(run)
    if not (run / WEIGHTS).exists() and not checkpoint.list_checkpoints(run):
        raise ValueError(f"{run}: holds neither a checkpoint nor the {WEIGHTS} of an export")


def scored(config: Config, steps_limit: int | None = None) -> Config:
    """The config with the game's own rewards and whole episodes, whatever training was given: scores are of those.

    An episode is truncated after `steps_limit` steps; None leaves that to `env.max_steps` or `env.max_frames`, or takes
    `STEPS` where they set no limit.
    """
    env = dataclasses.replace(config.env, clip_rewards=False, life_loss_terminal=False)
    if known_game(config.game) is None:
        env = dataclasses.replace(env, max_steps=steps_limit or env.max_steps or STEPS)
    else:
        frames = steps_limit * env.frame_skip if steps_limit else env.max_frames or STEPS * env.frame_skip
        env = dataclasses.replace(env, max_frames=frames)
    return dataclasses.replace(config, env=env)


def evaluate(
    config: Config,
    learner: Learner,
    *,
    episodes: int,
    greedy: bool,
    seed: int,
    told: Callable[[int], None] = untold,
    steps_limit: int | None = None,
) -> list[dict[str, Any]]:
    """Play `episodes` episodes to their ends; returns one record each.

    Several environments are stepped together. Each plays a share of the episodes that is fixed beforehand, because
    taking the first to finish would favour short episodes. Environment i is seeded with `seed + i`. Games go on to
    their ends, or the limit of `scored`, and rewards count in full, whatever training sees of them. `told` hears how
    many episodes are done.
    """
    count = min(config.log.eval_envs, episodes)
    left = np.array([episodes // count + (i < episodes % count) for i in range(count)])
    player = Player(learner.world_model, learner.agent, count, greedy=greedy)
    interface, first = learner.world_model.interface, np.ones(count, np.bool_)
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)
    records: list[dict[str, Any]] = []
    with (
        random_from(seed, learner.device),
        closing(make_frames(config.game, count, scored(config, steps_limit).env)) as envs,
    ):
        obs, _ = envs.reset(seed=seed)
        while left.any():
            actions = player.act(interface.parts(obs), first)
            obs, rewards, terminated, truncated, _ = envs.step(actions)
            returns += rewards
            lengths += 1
            first = terminated | truncated
            for i in np.flatnonzero(first & (left > 0)).tolist():
                records.append(
                    {
                        "env": i,
                        "return": returns[i].item(),
                        "length": lengths[i].item(),
                        "truncated": truncated[i].item(),
                    }
                )
                left[i] -= 1
                told(len(records))
            returns[first], lengths[first] = 0, 0
    return records


def evaluate_run(
    run: Path,
    *,
    episodes: int,
    protocol: Literal["standard", "paper"] | None = None,
    greedy: bool | None = None,
    step: int | None = None,
    seed: int = 1_000_000,
    device: str = "auto",
    told: Callable[[int], None] = untold,
    trust: bool = False,
    steps_limit: int | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint of a run and write the result into the run's folder.

    The file is named by everything that decides the result, so no evaluation overwrites a different one.

    Args:
        run: the run folder.
        episodes: how many episodes.
        protocol: `standard` (up to 30 no-ops at reset) or `paper` (none); None is the run's own.
        greedy: the most probable action instead of a sample; None follows the protocol (`paper`: greedy).
        step: the checkpoint of this step; None is the last.
        seed: seed of the environments and of the sampling; its default is none that training uses.
        device: `auto`, `cpu` or `cuda`.
        told: hears how many episodes are done.
        trust: import what an export names to make its environment.
        steps_limit: after how many steps an episode is truncated; see `scored`.

    Returns:
        What was written: the settings, each episode, mean, median, standard deviation, human-normalised mean with the
        constants that it was made from, and under `file` where it was written, None if it could not be.
    """
    if episodes < 1:
        raise ValueError(f"episodes: {episodes} must be at least 1")
    if seed < 0:
        raise ValueError(f"seed: {seed} must not be negative")
    if steps_limit is not None and steps_limit < 1:
        raise ValueError(f"steps_limit: {steps_limit} must be at least 1")
    config, learner, step = load_learner(run, device, step, trust=trust)
    if protocol is not None:
        config = dataclasses.replace(config, env=dataclasses.replace(config.env, protocol=protocol))
    greedy = config.env.protocol == "paper" if greedy is None else greedy
    records = evaluate(config, learner, episodes=episodes, greedy=greedy, seed=seed, told=told, steps_limit=steps_limit)
    returns = np.array([record["return"] for record in records])
    mode = "greedy" if greedy else "sampled"
    limit = "" if steps_limit is None else f"-limit{steps_limit}"
    name = f"evaluation-step-{step:09d}-{config.env.protocol}-{mode}-{episodes}x-seed{seed}{limit}.json"
    result = {
        "game": config.game,
        "step": step,
        "protocol": config.env.protocol,
        "greedy": greedy,
        "seed": seed,
        "steps_limit": steps_limit,
        "envs": min(config.log.eval_envs, episodes),
        "device": learner.device.type,
        "drama": __version__,
        "mean": float(returns.mean()),
        "median": float(np.median(returns)),
        "std": float(returns.std()),
        "human_normalised_mean": human_normalised(config.game, float(returns.mean())),
        "random_and_human": random_and_human(config.game),
        "episodes": records,
    }
    try:
        write_atomically(run / name, json.dumps(result, indent=2) + "\n")
    except OSError as error:  # what was played is not lost for where it cannot be kept
        return result | {"file": None, "not_written": f"{run / name}: {error.strerror}"}
    return result | {"file": str(run / name)}
