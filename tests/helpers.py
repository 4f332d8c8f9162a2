"""What the tests of several rooms need: the interface of a config's frames, and a policy's numbers."""

from __future__ import annotations

from torch import Tensor

from drama.agent.actor_critic import ActorCritic
from drama.agent.policy import Categorical
from drama.config import Config
from drama.interface import Interface


def frames(config: Config, channels: int = 1, actions: int = 6) -> Interface:
    """The interface of an environment with the config's frames and one choice, as Atari games have."""
    return Interface.of_frames((*config.env.frame_size, channels), actions)


def log_policy(agent: ActorCritic, features: Tensor) -> Tensor:
    """Log-probabilities `[..., actions]` of an agent with one choice."""
    policy = agent.policy(features)
    assert isinstance(policy, Categorical)
    return policy.log_probs
