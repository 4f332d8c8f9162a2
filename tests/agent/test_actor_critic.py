"""The actor's and the critic's losses on hand-made trajectories."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from drama.agent.actor_critic import ActorCritic, Replayed
from drama.agent.imagination import Trajectory
from drama.config import AgentConfig, preset
from drama.interface import LONE, Choices
from drama.models.heads import TwoHot
from drama.models.world_model import Batch
from drama.training.learner import Learner
from helpers import frames, log_policy

FEATURES, ACTIONS, BINS = 6, 3, 41  # with limit 20 the bins are the whole numbers of symlog space
CONFIG = AgentConfig(actor_units=16, critic_units=16, layers=1, entropy=0.0)


def losses_of(agent: ActorCritic, trajectory: Trajectory) -> dict[str, Tensor]:
    targets, watched = agent.targets(trajectory)
    return agent.loss(targets) | watched


def make_agent(config: AgentConfig = CONFIG) -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(config, FEATURES, Choices((ACTIONS,)), TwoHot(BINS, 20.0))


def make_trajectory(
    reward: list[list[float]], action: list[list[int]], cont: list[list[float]], weight: list[list[float]]
) -> Trajectory:
    """Features at random, everything else by hand."""
    features = torch.randn(len(reward), len(reward[0]) + 1, FEATURES, generator=torch.Generator().manual_seed(1))
    return Trajectory(features, torch.tensor(action), torch.tensor(reward), torch.tensor(cont), torch.tensor(weight))


def make_replayed(reward: list[list[float]], ended: list[list[int]], is_first: list[list[int]]) -> Replayed:
    """Features at random, actions all alike, everything else by hand."""
    rows, steps = len(reward), len(reward[0])
    features = torch.randn(rows, steps, FEATURES, generator=torch.Generator().manual_seed(2))
    action = torch.zeros(rows, steps, dtype=torch.int64)
    return Replayed(features, action, torch.tensor(reward), torch.tensor(ended).bool(), torch.tensor(is_first).bool())


def last_layer(net: nn.Sequential) -> nn.Linear:
    last = net[-1]
    assert isinstance(last, nn.Linear)
    return last


@torch.no_grad()
def set_value(net: nn.Sequential, symlog_value: int) -> None:
    """Let a critic answer one value everywhere."""
    last = last_layer(net)
    last.weight.zero_()
    last.bias.fill_(-100.0)[20 + symlog_value] = 0.0


def gradients(loss: Tensor, agent: ActorCritic) -> dict[str, Tensor]:
    named = {name: p for name, p in agent.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def probability(agent: ActorCritic, trajectory: Trajectory, action: int) -> float:
    return log_policy(agent, trajectory.features[:, :-1]).exp()[..., action].mean().item()


@pytest.mark.parametrize(("reward", "raised"), [(1.0, True), (-1.0, False)])
@pytest.mark.parametrize("action", range(ACTIONS))
def test_a_positive_advantage_raises_the_chosen_action(action: int, reward: float, raised: bool) -> None:
    agent = make_agent()
    trajectory = make_trajectory([[reward]] * 4, [[action]] * 4, [[0.0]] * 4, [[1.0]] * 4)
    before = probability(agent, trajectory, action)
    optimizer = torch.optim.SGD(agent.actor.parameters(), lr=0.1)
    for parameter, gradient in gradients(losses_of(agent, trajectory)["loss"], agent).items():
        agent.get_parameter(parameter).grad = gradient
    optimizer.step()
    assert (probability(agent, trajectory, action) > before) == raised
    assert abs(probability(agent, trajectory, action) - before) > 1e-3


def test_losses_by_hand() -> None:
    """A uniform policy, values e - 1 everywhere, one row that goes on and one that ends; discount 1/2.

    Returns 2 + (e - 1)/2 and -1; the range between their 5 % and 95 % quantiles is 0.9 of their difference.
    """
    agent = make_agent(dataclasses.replace(CONFIG, discount=0.5, entropy=0.25, return_scale_decay=0.0))
    last_layer(agent.actor).weight.data.zero_()
    set_value(agent.critic, 1)
    set_value(agent.slow_critic, 1)
    losses = losses_of(agent, make_trajectory([[2.0], [-1.0]], [[0], [2]], [[1.0], [0.0]], [[1.0], [1.0]]))
    value = math.e - 1
    going, ended = 2 + value / 2, -1.0
    scale = 0.9 * (going - ended)
    advantage = ((going - value) + (ended - value)) / 2 / scale
    assert losses["return_scale"].item() == pytest.approx(scale, rel=1e-4)
    assert losses["policy"].item() == pytest.approx(advantage * math.log(3), rel=1e-4)
    assert losses["entropy"].item() == pytest.approx(math.log(3), rel=1e-5)
    assert losses["return"].item() == pytest.approx((going + ended) / 2, rel=1e-5)
    assert losses["value"].item() == pytest.approx(value, rel=1e-5)
    # Cross-entropy: 100 nats for all weight off bin 1. ln(1 + going) lies between bins 1 and 2, the other at -ln 2.
    off = ((math.log(1 + going) - 1) + 1) / 2 * 100
    assert losses["critic"].item() == pytest.approx(2 * off, rel=1e-4)
    total = losses["policy"] - 0.25 * losses["entropy"] + losses["critic"]
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-6)


def test_the_critic_learns_its_own_and_the_slow_critics_return() -> None:
    """Critic 0 and slow critic e - 1, reward 0, discount 1: targets 0 (no cost) and symlog 1 (100 nats)."""
    agent = make_agent(dataclasses.replace(CONFIG, discount=1.0))
    set_value(agent.critic, 0)
    set_value(agent.slow_critic, 1)
    losses = losses_of(agent, make_trajectory([[0.0]], [[0]], [[1.0]], [[1.0]]))
    assert losses["critic"].item() == pytest.approx(100.0, rel=1e-4)
    assert losses["return"].item() == pytest.approx(0.0, abs=1e-5)


def test_no_weight_no_gradient() -> None:
    agent = make_agent(dataclasses.replace(CONFIG, entropy=0.1))
    trajectory = make_trajectory([[1.0, 2.0]], [[0, 1]], [[1.0, 1.0]], [[0.0, 0.0]])
    losses = losses_of(agent, trajectory)
    assert losses["loss"].item() == 0
    for gradient in gradients(losses["loss"], agent).values():
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_steps_after_the_end_change_nothing() -> None:
    """A trajectory whose second step has no weight gives the gradients of the same trajectory cut before it."""
    agent = make_agent(dataclasses.replace(CONFIG, entropy=0.1))
    long = make_trajectory([[0.3, 0.9], [0.1, 0.2]], [[0, 1], [2, 2]], [[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0]] * 2)
    cut = Trajectory(long.features[:, :2], *(v[:, :1] for v in long[1:]))
    expected = gradients(losses_of(agent, cut)["loss"], agent)
    actual = gradients(losses_of(agent, long)["loss"], agent)
    assert max(g.abs().max().item() for g in expected.values()) > 1e-3
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


def test_entropy_bonus_flattens_the_policy() -> None:
    agent = make_agent(dataclasses.replace(CONFIG, entropy=1.0))
    last_layer(agent.actor).bias.data.copy_(torch.tensor([1.0, 0.0, 0.0]))
    set_value(agent.critic, 0)
    trajectory = make_trajectory([[0.0]] * 4, [[0]] * 4, [[0.0]] * 4, [[1.0]] * 4)
    gradient = gradients(losses_of(agent, trajectory)["loss"], agent)[f"actor.{len(agent.actor) - 1}.bias"]
    assert gradient[0] > 0.01  # descending lowers the favourite
    assert gradient[1] < 0
    assert gradient[2] < 0


def test_the_slow_critic_moves_by_one_minus_the_decay() -> None:
    agent = make_agent()
    for fast, slow in zip(agent.critic.parameters(), agent.slow_critic.parameters(), strict=True):
        fast.data.fill_(1.0)
        slow.data.fill_(0.0)
    for expected in (0.02, 0.0396):
        agent.update_slow_critic()
        for fast, slow in zip(agent.critic.parameters(), agent.slow_critic.parameters(), strict=True):
            torch.testing.assert_close(slow, torch.full_like(slow, expected))
            assert torch.equal(fast, torch.ones_like(fast))


def test_the_slow_critic_starts_as_the_critic_and_is_not_trained() -> None:
    agent = make_agent()
    for fast, slow in zip(agent.critic.parameters(), agent.slow_critic.parameters(), strict=True):
        assert torch.equal(fast, slow)
        assert fast is not slow
        assert not slow.requires_grad


def test_first_policy_is_uniform_and_first_value_zero() -> None:
    """Of the paper's sizes, on large inputs."""
    torch.manual_seed(0)
    agent = ActorCritic(AgentConfig(), 1536, Choices((6,)), TwoHot(255, 20.0))
    features = torch.randn(64, 1536) * 5
    assert (log_policy(agent, features).exp() - 1 / 6).abs().max() < 0.01
    assert agent.two_hot.decode(agent.critic(features)).abs().max() < 0.1


def test_the_papers_sizes() -> None:
    agent = ActorCritic(AgentConfig(), 1536, Choices((6,)), TwoHot(255, 20.0))

    def shapes(net: nn.Sequential) -> list[tuple[int, ...]]:
        return [tuple(m.weight.shape) for m in net if isinstance(m, nn.Linear)]

    assert shapes(agent.actor) == [(256, 1536), (256, 256), (256, 256), (6, 256)]
    assert shapes(agent.critic) == [(512, 1536), (512, 512), (512, 512), (255, 512)]
    assert agent.return_scale.decay == 0.99


def test_act_follows_the_policy() -> None:
    """Greedy takes the most probable; a sample takes each action as often as the policy says."""
    agent = make_agent()
    last_layer(agent.actor).weight.data.zero_()
    last_layer(agent.actor).bias.data.copy_(torch.tensor([0.2, 0.5, 0.3]).log())
    torch.manual_seed(0)
    features = torch.randn(10_000, FEATURES)
    assert torch.equal(agent.act(features, greedy=True), torch.ones(10_000, dtype=torch.long))
    share = torch.bincount(agent.act(features), minlength=3) / 10_000
    torch.testing.assert_close(share, torch.tensor([0.2, 0.5, 0.3]), atol=0.02, rtol=0)


def test_the_actors_input_is_normalised_and_only_by_what_was_observed() -> None:
    """Features of another scale and offset give the same policy once their statistics are known."""
    agent = make_agent()
    last_layer(agent.actor).weight.data.normal_()
    x = torch.randn(500, FEATURES)
    agent.observe_features(x)
    expected = log_policy(agent, x)
    other = make_agent()
    other.load_state_dict({k: v for k, v in agent.state_dict().items() if "normalize" not in k}, strict=False)
    scaled = x * 40 + 7
    assert (log_policy(other, scaled) - expected).abs().max() > 0.1
    other.observe_features(scaled.reshape(5, 100, FEATURES))
    torch.testing.assert_close(log_policy(other, scaled), expected, atol=1e-3, rtol=1e-3)


def test_state_dict_carries_the_running_statistics() -> None:
    agent, copy = make_agent(), make_agent()
    agent.observe_features(torch.randn(50, FEATURES) * 3 + 1)
    losses_of(agent, make_trajectory([[50.0], [-50.0]], [[0], [1]], [[0.0]] * 2, [[1.0]] * 2))
    copy.load_state_dict(agent.state_dict())
    assert copy.return_scale.value.item() == agent.return_scale.value.item() > 0
    assert torch.equal(copy.normalize.mean, agent.normalize.mean)
    assert copy.normalize.count.item() == 50


def test_it_learns_a_bandit() -> None:
    """Reward 1 for action 0, else 0: the policy comes to choose action 0, and the critic to expect it."""
    agent = make_agent(dataclasses.replace(CONFIG, entropy=3e-4))
    optimizer = torch.optim.Adam([p for p in agent.parameters() if p.requires_grad], lr=0.02)
    generator = torch.Generator().manual_seed(2)
    for _ in range(120):
        features = torch.randn(32, 2, FEATURES, generator=generator)
        action = agent.act(features[:, 0])[:, None]
        trajectory = Trajectory(features, action, (action == 0).float(), torch.zeros(32, 1), torch.ones(32, 1))
        loss = losses_of(agent, trajectory)["loss"]
        for name, gradient in gradients(loss, agent).items():
            agent.get_parameter(name).grad = gradient
        optimizer.step()
        agent.update_slow_critic()
        agent.observe_features(features[:, :-1])
    features = torch.randn(256, FEATURES, generator=generator)
    assert log_policy(agent, features).exp()[:, 0].min() > 0.9
    assert agent.two_hot.decode(agent.critic(features)).mean().item() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_layer_gets_a_gradient_in_an_update(precision: Literal["float32", "bfloat16"]) -> None:
    """Imagination runs without gradients in the same precision just before: its cached casts must not be reused."""
    config = preset("debug")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
    torch.manual_seed(0)
    learner = Learner(config, frames(config, 1, ACTIONS), torch.device("cpu"))
    size = config.env.frame_size[0]
    context = Batch(
        obs={LONE: torch.randint(0, 256, (8, 4, size, size, 1), dtype=torch.uint8)},
        action=torch.randint(0, ACTIONS, (8, 4)),
        reward=torch.zeros(8, 4),
        ended=torch.zeros(8, 4, dtype=torch.bool),
        is_first=torch.zeros(8, 4, dtype=torch.bool),
    )
    last_layer(learner.world_model.reward).weight.data.normal_()  # rewards differ, so that there is an advantage
    learner.update_agent(context)
    for name, parameter in learner.agent.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_the_uniform_mix_leaves_no_action_out() -> None:
    agent = make_agent(dataclasses.replace(AgentConfig(), unimix=0.06))
    with torch.no_grad():
        bias = agent.actor[-1].bias
        assert isinstance(bias, Tensor)
        bias.copy_(torch.tensor([100.0] + [0.0] * (ACTIONS - 1)))
        probs = log_policy(agent, torch.zeros(2, FEATURES)).exp()
    torch.testing.assert_close(probs[:, 1:], torch.full((2, ACTIONS - 1), 0.06 / ACTIONS), atol=1e-4, rtol=0)


def test_the_critic_learns_what_came_of_real_steps() -> None:
    """The end after a step gives its reward, a new episode without an end nothing, the last step its value."""
    config = dataclasses.replace(CONFIG, replay_value_scale=0.3, discount=0.5, lambda_=1.0)
    agent = make_agent(config)
    set_value(agent.critic, 1)  # math.e - 1
    set_value(agent.slow_critic, 0)
    trajectory = make_trajectory([[0.0, 0.0]], [[0, 1]], [[1.0, 1.0]], [[1.0, 1.0]])
    replayed = make_replayed(
        [[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]], [[0, 1, 0, 0, 0, 0]], [[0, 0, 1, 0, 1, 0]]
    )  # an end after step 1, one that was broken off after step 3, and step 5 without anything after it
    targets, watched = agent.targets(trajectory, replayed)
    v = math.e - 1
    expected = [1 + 0.5 * 2, 2.0, 4 + 0.5 * v, v, 16 + 0.5 * v]
    assert targets.returns[2:].tolist() == pytest.approx(expected, rel=1e-5)
    assert targets.slow_returns[2:].tolist() == pytest.approx([2.0, 2.0, 4.0, 0.0, 16.0], rel=1e-5)
    assert targets.weight[2:].tolist() == [0.0] * 5
    share = 0.3 * 2 / 4  # of two imagined and four known steps
    assert targets.critic_weight.tolist() == pytest.approx([1.0, 1.0, share, share, share, 0.0, share])
    assert watched["replay_return"].item() == pytest.approx((sum(expected) - v) / 4, rel=1e-5)
    known = torch.tensor([0, 1, 2, 4])
    logits = agent.critic(replayed.features[0, known])
    wanted = [targets.returns[2:][known], targets.slow_returns[2:][known]]
    real = torch.stack([agent.two_hot.loss(logits, returns).mean() for returns in wanted]).sum()
    both, imagined = agent.loss(targets), agent.loss(agent.targets(trajectory)[0])
    assert both["critic"].item() == pytest.approx((imagined["critic"] + 0.3 * real).item(), rel=1e-5)
    for name in ("policy", "entropy"):
        assert both[name].item() == pytest.approx(imagined[name].item(), abs=1e-6)
