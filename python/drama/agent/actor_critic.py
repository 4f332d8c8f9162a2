"""The actor and the critic, and their losses on imagined trajectories."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drama.agent.normalize import ReturnScale, RunningNorm
from drama.agent.returns import lambda_return
from drama.config import AgentConfig
from drama.imagination import Trajectory
from drama.models import latent
from drama.models.heads import TwoHot, mlp


class ActorCritic(nn.Module):
    """REINFORCE actor with a two-hot critic and a slow copy of it (as in DreamerV3, arXiv 2301.04104).

    Losses are returned, never stepped. Running statistics and the slow critic are buffers and parameters of this
    module, so a checkpoint holds them; they change only in `observe_features`, `loss` and `update_slow_critic`.
    """

    def __init__(self, config: AgentConfig, features: int, actions: int, bins: int, bin_limit: float) -> None:
        super().__init__()
        self.config = config
        self.normalize = RunningNorm(features)
        # Near-zero output layers: the first policy is uniform, the first values are 0.
        self.actor = mlp(features, config.actor_units, config.layers, actions, output_scale=0.01)
        self.critic = mlp(features, config.critic_units, config.layers, bins, output_scale=0.01)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.two_hot = TwoHot(bins, bin_limit)
        self.return_scale = ReturnScale(config.return_scale_decay)

    def log_policy(self, features: Tensor) -> Tensor:
        """Log-probabilities `[..., actions]` of the actions at features `[..., features]`."""
        return F.log_softmax(self.actor(self.normalize(features)).float(), dim=-1)

    @torch.no_grad()
    def act(self, features: Tensor, *, greedy: bool = False) -> Tensor:
        """Actions `[B]` at features `[B, features]`: the most probable, or a sample."""
        log_probs = self.log_policy(features)
        return log_probs.argmax(-1) if greedy else latent.sample(log_probs).argmax(-1)

    def loss(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Scalars of one batch of trajectories: `loss` (to minimise), its parts, and what is only watched."""
        config = self.config
        states = trajectory.features[:, :-1]
        weight = trajectory.weight
        total = weight.sum().clamp(min=1)

        value_logits = self.critic(states)
        with torch.no_grad():
            value = self.two_hot.decode(self.critic(trajectory.features))
            slow_value = self.two_hot.decode(self.slow_critic(trajectory.features))
            returns, slow_returns = (
                lambda_return(trajectory.reward, trajectory.cont, v, config.discount, config.lambda_)
                for v in (value, slow_value)
            )
            scale = self.return_scale.update(returns)
            advantage = (returns - value[:, :-1]) / scale

        log_probs = self.log_policy(states)
        chosen = log_probs.gather(-1, trajectory.action[..., None]).squeeze(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        policy_loss = -(advantage * chosen * weight).sum() / total
        mean_entropy = (entropy * weight).sum() / total
        critic_loss = self.two_hot.loss(value_logits, returns) + self.two_hot.loss(value_logits, slow_returns)
        critic_loss = (critic_loss * weight).sum() / total
        return {
            "loss": policy_loss - config.entropy * mean_entropy + critic_loss,
            "policy": policy_loss.detach(),
            "critic": critic_loss.detach(),
            "entropy": mean_entropy.detach(),
            "return": returns.mean(),
            "value": value.mean(),
            "return_scale": scale,
            "imagined_reward": trajectory.reward.mean(),
        }

    def observe_features(self, features: Tensor) -> None:
        """Take `features[..., features]` into the statistics that normalise the actor's input."""
        self.normalize.update(features)

    @torch.no_grad()
    def update_slow_critic(self) -> None:
        """Move the slow critic towards the critic, once per update."""
        for slow, fast in zip(self.slow_critic.parameters(), self.critic.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.config.slow_critic_decay)
