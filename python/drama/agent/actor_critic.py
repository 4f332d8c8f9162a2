"""The actor and the critic, and their losses on imagined trajectories."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from drama.agent.imagination import Trajectory
from drama.agent.normalize import ReturnScale, RunningNorm
from drama.agent.policy import Distribution, distribution, outputs
from drama.agent.ppo import approximate_kl, clipped_loss
from drama.agent.returns import lambda_return
from drama.config import AgentConfig
from drama.interface import Choices, Continuous
from drama.models.heads import TwoHot, mlp


class Replayed(NamedTuple):
    """Real steps in their order, with all that came of them; episodes end and begin among them."""

    features: Tensor  # [B, T, features]
    action: Tensor  # [B, T] or [B, T, K]
    reward: Tensor  # [B, T]
    ended: Tensor  # [B, T] bool, where the action ended the episode
    is_first: Tensor  # [B, T] bool


class Targets(NamedTuple):
    """Steps with what the losses want of them; every tensor has the same leading axis."""

    features: Tensor  # [N, features]
    action: Tensor  # [N] or [N, K]
    weight: Tensor  # [N], 0 of real steps: the actor learns from imagined ones alone
    critic_weight: Tensor  # [N]
    advantage: Tensor  # [N], normalised
    returns: Tensor  # [N], lambda-returns with the critic's values
    slow_returns: Tensor  # [N], with the slow critic's
    log_prob: Tensor  # [N], of the action under the policy that acted


class ActorCritic(nn.Module):
    """An actor, a two-hot critic, and a slow copy of it (as in DreamerV3, arXiv 2301.04104).

    The actor learns by REINFORCE on normalised advantages, or by PPO (`config.policy`). Losses are returned, never
    stepped. Running statistics and the slow critic are buffers and parameters of this module, so a checkpoint holds
    them; they change only in `observe_features`, `targets` and `update_slow_critic`.
    """

    def __init__(self, config: AgentConfig, features: int, action: Choices | Continuous, two_hot: TwoHot) -> None:
        super().__init__()
        self.action = action
        self.config = config
        self.normalize = RunningNorm(features)
        # Near-zero output layers: the first policy is uniform, or around 0, the first values are 0.
        self.actor = mlp(features, config.actor_units, config.layers, outputs(action), output_scale=0.01)
        # Where huge bins count in full, even a little noise among them would be a huge value.
        scale = 0.0 if two_hot.raw else 0.01
        self.critic = mlp(features, config.critic_units, config.layers, two_hot.bins.shape[0], output_scale=scale)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.two_hot = two_hot
        self.return_scale = ReturnScale(config.return_scale_decay)

    def policy(self, features: Tensor) -> Distribution:
        """The distribution of actions at features `[..., features]`."""
        seen = self.normalize(features) if self.config.normalize else features
        return distribution(self.action, self.actor(seen), self.config.unimix)

    @torch.no_grad()
    def act(self, features: Tensor, *, greedy: bool = False) -> Tensor:
        """Actions `[B]` or `[B, K]` at features `[B, features]`: the most probable, or a sample."""
        policy = self.policy(features)
        return policy.mode() if greedy else policy.sample()

    @torch.no_grad()
    def targets(self, trajectory: Trajectory, replayed: Replayed | None = None) -> tuple[Targets, dict[str, Tensor]]:
        """What the losses need of a batch of trajectories, and scalars to watch. Moves the return scale.

        Of `replayed` the critic learns too, with `agent.replay_value_scale`: it is told what really came where the
        world model imagines something else (the replay's value loss of DreamerV3, arXiv 2301.04104, of 2024).
        """
        config = self.config
        value, slow_value = (
            self.two_hot.decode(critic(trajectory.features)) for critic in (self.critic, self.slow_critic)
        )
        returns, slow_returns = (
            lambda_return(trajectory.reward, trajectory.cont, v, config.discount, config.lambda_)
            for v in (value, slow_value)
        )
        weight = trajectory.weight
        scale = self.return_scale.update(returns, weight)
        states = trajectory.features[:, :-1]
        targets = Targets(
            features=states,
            action=trajectory.action,
            weight=weight,
            critic_weight=weight,
            advantage=(returns - value[:, :-1]) / scale,
            returns=returns,
            slow_returns=slow_returns,
            log_prob=self.policy(states).log_prob(trajectory.action),
        )
        watched = {
            "return": _weighted_mean(returns, weight),
            "value": _weighted_mean(value[:, :-1], weight),
            "return_scale": scale,
            "imagined_reward": _weighted_mean(trajectory.reward, weight),
        }
        flat = Targets(*(t.flatten(0, 1) for t in targets))
        if replayed is None:
            return flat, watched
        real, known = self._real_targets(replayed)
        watched["replay_return"] = _weighted_mean(real.returns, known)
        # Means over either kind of steps count, not how many there are of each.
        share = config.replay_value_scale * weight.sum() / known.sum().clamp(min=1)
        real = real._replace(critic_weight=share * known)
        return Targets(*(torch.cat([a, b.flatten(0, 1)]) for a, b in zip(flat, real, strict=True))), watched

    def _real_targets(self, replayed: Replayed) -> tuple[Targets, Tensor]:
        """What the critic learns of all real steps but the last `[B, T - 1]`, and 1 where it is known what came of
        them: not where an episode was broken off."""
        config = self.config
        goes_on = ~replayed.is_first[:, 1:] & ~replayed.ended[:, :-1]
        known = goes_on | replayed.ended[:, :-1]

        def returns(critic: nn.Module) -> Tensor:
            value = self.two_hot.decode(critic(replayed.features))
            reward = torch.where(known, replayed.reward[:, :-1], value[:, :-1])  # the value stands for what is unknown
            return lambda_return(reward, goes_on.float(), value, config.discount, config.lambda_)

        zeros = torch.zeros_like(replayed.reward[:, :-1])
        steps = Targets(
            features=replayed.features[:, :-1],
            action=replayed.action[:, :-1],
            weight=zeros,
            critic_weight=zeros,
            advantage=zeros,
            returns=returns(self.critic),
            slow_returns=returns(self.slow_critic),
            log_prob=zeros,
        )
        return steps, known.float()

    def loss(self, targets: Targets) -> dict[str, Tensor]:
        """Scalars of a batch of steps: `loss` (to minimise), its parts, and the KL from the acting policy."""

        def mean(x: Tensor) -> Tensor:
            return _weighted_mean(x, targets.weight)

        policy = self.policy(targets.features)
        log_prob = policy.log_prob(targets.action)
        entropy = mean(policy.entropy())
        if self.config.policy == "ppo":
            policy_loss = mean(clipped_loss(log_prob, targets.log_prob, targets.advantage, self.config.ppo_clip))
        else:
            policy_loss = mean(-targets.advantage * log_prob)
        logits = self.critic(targets.features)
        errors = self.two_hot.loss(logits, targets.returns) + self.two_hot.loss(logits, targets.slow_returns)
        critic_loss = (errors * targets.critic_weight).sum() / targets.weight.sum().clamp(min=1)
        return {
            "loss": policy_loss - self.config.entropy * entropy + critic_loss,
            "policy": policy_loss.detach(),
            "critic": critic_loss.detach(),
            "entropy": entropy.detach(),
            "policy_kl": mean(approximate_kl(log_prob, targets.log_prob)).detach(),
        }

    def observe_features(self, features: Tensor) -> None:
        """Take `features[..., features]` into the statistics that normalise the actor's input."""
        if self.config.normalize:
            self.normalize.update(features)

    @torch.no_grad()
    def update_slow_critic(self) -> None:
        """Move the slow critic towards the critic, once per update."""
        for slow, fast in zip(self.slow_critic.parameters(), self.critic.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.config.slow_critic_decay)


def _weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum() / weight.sum().clamp(min=1)
