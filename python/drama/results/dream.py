"""Dreams of a trained run: an agent plays the real game, and its world model dreams on from what it saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drama.agent.imagination import dream
from drama.agent.player import Player
from drama.config import Config
from drama.envs import failing, make_env
from drama.models.observation import Parts
from drama.results.evaluation import load_learner
from drama.training.learner import Learner
from drama.training.pictures import dream_video


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

    def last(self, count: int, *, of: int) -> tuple[Parts, Tensor, Tensor]:
        """Play `of` steps; gives the last `count`: observations by part, actions, `is_first`, all `[1, count, ...]`."""
        rows = []
        for _ in range(of):
            batch = {name: array[None] for name, array in self._obs.items()}
            action = self._player.act(batch, np.array([self._first]))[0]
            rows.append((self._obs, action, self._first))
            with failing(0):
                observation, _, terminated, truncated, _ = self.env.step(action)
            self._first = bool(terminated or truncated)
            if self._first:
                observation, _ = self.env.reset()
            self._obs = self._interface.parts(observation)
        obs, actions, is_first = zip(*rows[-count:], strict=True)

        def tensor(column: Sequence[Any]) -> Tensor:
            return torch.from_numpy(np.stack(column))[None].to(self._learner.device)

        parts = {name: tensor([step[name] for step in obs]) for name in self._interface.observation}
        return parts, tensor(actions), tensor(is_first)


def dream_run(
    run: Path, *, steps: int, context: int, skip: int, seed: int, device: str = "auto", trust: bool = False
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

    Returns:
        `[steps, height, width, 3]` uint8.
    """
    if not 2 <= context < steps:
        raise ValueError(f"context: {context} must be at least 2 and less than steps = {steps}")
    for name, value in (("skip", skip), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name}: {value} must not be negative")
    config, learner, _ = load_learner(run, device, trust=trust)
    obs, actions, is_first = RealPlay(config, learner, seed).last(steps, of=skip + steps)
    model = learner.world_model
    return dream_video(model.interface, obs, *dream(model, obs, actions, is_first, context), context)
