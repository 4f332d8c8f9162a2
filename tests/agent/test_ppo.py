"""PPO's parts against hand-made numbers, and both policy options on a bandit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drama.agent.imagination import Trajectory
from drama.agent.player import Player
from drama.agent.ppo import approximate_kl, clipped_loss, minibatches
from drama.config import AgentConfig, preset
from drama.interface import LONE
from drama.training.learner import Learner
from helpers import frames, log_policy


def logs(*values: float) -> Tensor:
    return torch.log(torch.tensor(values))


def test_clipped_loss_by_hand() -> None:
    """The gain stops at the clip range; a loss does not."""
    old, advantage = logs(0.5, 0.5, 0.5, 0.5), torch.tensor([2.0, 2.0, -2.0, -2.0])
    loss = clipped_loss(logs(0.55, 0.75, 0.75, 0.25), old, advantage, 0.2)
    torch.testing.assert_close(loss, torch.tensor([-2.2, -2.4, 3.0, 1.6]))


def test_no_gradient_beyond_the_clip_range() -> None:
    log_prob = logs(0.75, 0.55).requires_grad_()
    clipped_loss(log_prob, logs(0.5, 0.5), torch.ones(2), 0.2).sum().backward()
    assert log_prob.grad is not None
    assert log_prob.grad[0] == 0
    assert log_prob.grad[1] == pytest.approx(-1.1)


def test_approximate_kl_averages_to_the_kl() -> None:
    """Weighted by the old policy's probabilities, the estimate is exact."""
    old, new = torch.tensor([0.2, 0.8]), torch.tensor([0.5, 0.5])
    estimate = (old * approximate_kl(new.log(), old.log())).sum().item()
    assert estimate == pytest.approx(0.2 * math.log(0.4) + 0.8 * math.log(1.6), abs=1e-6)


def test_minibatches_pass_over_everything_each_epoch() -> None:
    torch.manual_seed(0)
    parts = list(minibatches(10, 4, 3, torch.device("cpu")))
    assert [len(p) for p in parts] == [4, 4, 2] * 3
    epochs = [torch.cat(parts[i : i + 3]) for i in (0, 3, 6)]
    assert all(sorted(e.tolist()) == list(range(10)) for e in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.parametrize("policy", ["reinforce", "ppo"])
def test_each_policy_option_learns_a_bandit(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imagined steps that pay for action 0 alone: within 150 updates the learner chooses it."""
    torch.manual_seed(0)
    base = preset("debug")
    agent = AgentConfig(policy=policy, actor_units=16, critic_units=16, layers=1, ppo_minibatch=32)  # type: ignore[arg-type]
    config = dataclasses.replace(base, agent=agent, train=dataclasses.replace(base.train, agent_lr=1e-2))
    learner = Learner(config, frames(config, 1, 3), torch.device("cpu"))

    def pays_for_action_0(model: object, actor: object, start: object, horizon: int, step: object) -> Trajectory:  # noqa: ARG001
        features = torch.randn(16, horizon + 1, learner.world_model.features)
        action = learner.agent.act(features[:, :-1].flatten(0, 1)).unflatten(0, (16, horizon))
        ones = torch.ones(16, horizon)
        return Trajectory(features, action, (action == 0).float(), ones * 0, ones)

    monkeypatch.setattr("drama.training.learner.imagine", pays_for_action_0)
    monkeypatch.setattr(learner.world_model, "recall", lambda *_: None)
    context = learner.to_batch(
        {
            LONE: np.zeros((1, 2, 32, 32, 1), np.uint8),
            "action": np.zeros((1, 2), np.int64),
            "reward": np.zeros((1, 2), np.float32),
            **{name: np.zeros((1, 2), np.bool_) for name in ("terminated", "life_lost", "is_first")},
        }
    )
    for _ in range(150):
        losses = learner.update_agent(context)
        assert losses["policy_kl"] >= 0
    probabilities = log_policy(learner.agent, torch.randn(100, learner.world_model.features)).exp().mean(0)
    assert probabilities[0] > 0.9


def test_ppo_stops_when_the_policy_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of 0 the first step is the last; with a wide one all passes are made."""
    base = preset("debug")
    counts = {}
    for limit in (-1.0, 1e9):
        agent = AgentConfig(policy="ppo", actor_units=8, critic_units=8, layers=1, ppo_minibatch=32, ppo_kl_limit=limit)
        learner = Learner(dataclasses.replace(base, agent=agent), frames(base, 1, 3), torch.device("cpu"))
        steps: list[int] = []
        descend = learner._descend
        monkeypatch.setattr(learner, "_descend", lambda targets, s=steps, d=descend: (s.append(1), d(targets))[1])
        features = torch.randn(16, 5, learner.world_model.features)
        ones = torch.ones(16, 4)
        trajectory = Trajectory(features, torch.zeros(16, 4, dtype=torch.long), ones, ones, ones)
        learner._descend_ppo(learner.agent.targets(trajectory)[0])
        counts[limit] = len(steps)
    assert counts == {-1.0: 1, 1e9: 6}


def test_acting_on_the_prior_does_not_see_the_present_frame() -> None:
    """With `act_on="prior"` a frame changes later actions only; at an episode start and on the posterior, at once."""
    base = preset("debug")

    def seen(act_on: Any, frame: int, first: bool) -> Tensor:
        agent = dataclasses.replace(base.agent, act_on=act_on)
        torch.manual_seed(0)
        learner = Learner(dataclasses.replace(base, agent=agent), frames(base, 1, 3), torch.device("cpu"))
        (linear,) = learner.world_model.posterior
        assert isinstance(linear, torch.nn.Linear)
        torch.nn.init.normal_(linear.weight, std=5.0)
        features: list[Tensor] = []
        learner.agent.normalize.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        player = Player(learner.world_model, learner.agent, 1)
        torch.manual_seed(1)
        noise = np.random.default_rng(frame).integers(0, 255, (1, 32, 32, 1), np.uint8)
        player.act({LONE: np.zeros((1, 32, 32, 1), np.uint8)}, np.array([True]))
        torch.manual_seed(2)
        player.act({LONE: noise}, np.array([first]))
        return features[1]

    assert torch.equal(seen("prior", 1, first=False), seen("prior", 2, first=False))
    assert not torch.equal(seen("prior", 1, first=True), seen("prior", 2, first=True))
    assert not torch.equal(seen("posterior", 1, first=False), seen("posterior", 2, first=False))
