"""Dreams of a trained run: an agent plays the real game, and its world model dreams on from what it saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drama.agent.imagination import dream_frames
from drama.agent.player import Player
from drama.config import Config
from drama.envs import make_env
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
        self._player = Player(learner.world_model, learner.agent, 1)
        torch.manual_seed(seed)
        self._frame, _ = self.env.reset(seed=seed)
        self._first = True

    def last(self, count: int, *, of: int) -> tuple[Tensor, Tensor, Tensor]:
        """Play `of` steps; gives the last `count`: `obs[1, count, H, W, C]`, `action` and `is_first[1, count]`."""
        rows = []
        for _ in range(of):
            with self._learner.autocast:
                action = int(self._player.act(self._frame[None], np.array([self._first]))[0])
            rows.append((self._frame, action, self._first))
            self._frame, _, terminated, truncated, _ = self.env.step(action)
            self._first = terminated or truncated
            if self._first:
                self._frame, _ = self.env.reset()
        obs, actions, is_first = (
            torch.from_numpy(np.stack(column))[None].to(self._learner.device)
            for column in zip(*rows[-count:], strict=True)
        )
        return obs, actions, is_first


def dream_run(run: Path, *, steps: int, context: int, skip: int, seed: int, device: str = "auto") -> np.ndarray:
    """Play, then dream from the same frames: a video of real frames, reconstructions and the open-loop dream.

    Args:
        run: the run folder.
        steps: frames of the video.
        context: real frames that the dream starts from.
        skip: steps played before the first frame of the video.
        seed: seed of the environment and of the sampling.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        `[steps, height, width, 3]` uint8.
    """
    if not 2 <= context < steps:
        raise ValueError(f"context: {context} must be at least 2 and less than steps = {steps}")
    for name, value in (("skip", skip), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name}: {value} must not be negative")
    config, learner, _ = load_learner(run, device)
    obs, actions, is_first = RealPlay(config, learner, seed).last(steps, of=skip + steps)
    with learner.autocast:
        pictures = dream_frames(learner.world_model, obs, actions, is_first, context)
    return dream_video(obs, *pictures, context)
