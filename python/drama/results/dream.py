"""Dreams of a trained run: an agent plays the real game, and its world model dreams on from what it saw."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drama.agent.imagination import dream
from drama.agent.player import Player
from drama.config import Config
from drama.envs import failing, make_env
from drama.interface import Observations
from drama.models.observation import Parts
from drama.results.evaluation import load_learner, untold
from drama.training.learner import Learner
from drama.training.pictures import dream_video

FRAMES = 2000
"""Of a dream at most: its pictures are decoded together."""


class RealPlay:
    """The agent in the real game, as long as somebody asks for more: what dreams begin with.

    Args:
        config: of the run.
        learner: its networks.
        seed: seed of the game and of torch's random numbers.
    """

    def __init__(self, config: Config, learner: Learner, seed: int) -> None:
        self.env = make_env(config.game, config.env)
        self._learner = learner
        self._interface = learner.world_model.interface
        self._player = Player(learner.world_model, learner.agent, 1)
        torch.manual_seed(seed)
        observation, _ = self.env.reset(seed=seed)
        self._obs = self._interface.parts(observation)
        self._first = True

    def last(self, count: int, *, of: int, told: Callable[[int], None] = untold) -> tuple[Parts, Tensor, Tensor]:
        """Play `of` steps; gives the last `count`: observations by part, actions, `is_first`, all `[1, count, ...]`.

        `told` hears how many are played.
        """
        rows: deque[tuple[Observations, Any, bool]] = deque(maxlen=count)
        for played in range(1, of + 1):
            batch = {name: array[None] for name, array in self._obs.items()}
            action = self._player.act(batch, np.array([self._first]))[0]
            rows.append((self._obs, action, self._first))
            with failing(0):
                observation, _, terminated, truncated, _ = self.env.step(action)
            self._first = bool(terminated or truncated)
            if self._first:
                observation, _ = self.env.reset()
            self._obs = self._interface.parts(observation)
            told(played)
        obs, actions, is_first = zip(*rows, strict=True)

        def tensor(column: Sequence[Any]) -> Tensor:
            return torch.from_numpy(np.stack(column))[None].to(self._learner.device)

        parts = {name: tensor([step[name] for step in obs]) for name in self._interface.observation}
        return parts, tensor(actions), tensor(is_first)


def dream_run(
    run: Path,
    *,
    steps: int,
    context: int,
    skip: int,
    seed: int,
    device: str = "auto",
    trust: bool = False,
    told: Callable[[int], None] = untold,
) -> np.ndarray:
    """Play, then dream from the same frames: a video of real frames, reconstructions and the open-loop dream.

    Args:
        run: the run folder.
        steps: frames of the video.
        context: real frames that the dream starts from.
        skip: steps played before the first frame of the video.
        seed: seed of the environment and of the sampling.
        device: `auto`, `cpu` or `cuda`.
        trust: import what an export names to make its environment.
        told: hears how many steps of the game are played, of `skip + steps`.

    Returns:
        `[steps, height, width, 3]` uint8.
    """
    if not 2 <= context < steps:
        raise ValueError(f"context: {context} must be at least 2 and less than steps = {steps}")
    if steps > FRAMES:
        raise ValueError(
            f"steps: {steps} are more than the {FRAMES} frames that a dream, which lies in memory, may have"
        )
    for name, value in (("skip", skip), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name}: {value} must not be negative")
    config, learner, _ = load_learner(run, device, trust=trust)
    obs, actions, is_first = RealPlay(config, learner, seed).last(steps, of=skip + steps, told=told)
    model = learner.world_model
    return dream_video(model.interface, obs, *dream(model, obs, actions, is_first, context), context)
