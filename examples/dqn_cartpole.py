"""DQN on CartPole: prioritized replay and three-step returns. `python examples/dqn_cartpole.py`

Stops when the last 20 episodes reach a mean return of 195, which counts as solved.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import deque

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from drama.replay import Prioritized, ReplayBuffer, StepWriter, to_torch

SOLVED = 195.0


class Agent:
    """A Q-network, its slowly following target, and one learning step."""

    def __init__(self, observations: int, actions: int, learning_rate: float = 1e-3) -> None:
        hidden = 128
        self.q = nn.Sequential(
            nn.Linear(observations, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, actions)
        )
        self.target = copy.deepcopy(self.q)
        self.optimizer = torch.optim.Adam(self.q.parameters(), lr=learning_rate)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> int:
        return int(self.q(torch.from_numpy(obs)).argmax())

    def learn(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """One step of double DQN; gives the absolute errors, which become priorities."""
        with torch.no_grad():
            action = self.q(batch["next_obs"]).argmax(1, keepdim=True)
            bootstrap = self.target(batch["next_obs"]).gather(1, action).squeeze(1)
            # `reward` is the n-step return and `discount` is 0 where the episode terminated on the way.
            goal = batch["reward"] + batch["discount"] * bootstrap
        value = self.q(batch["obs"]).gather(1, batch["action"][:, None]).squeeze(1)
        loss = (batch["weights"] * nn.functional.smooth_l1_loss(value, goal, reduction="none")).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.q.parameters(), strict=True):
                slow.lerp_(fast, 0.01)
        return (value - goal).detach().abs().numpy()


def train(steps: int, seed: int = 0, warm_up: int = 500, batch_size: int = 64) -> float:
    """Train for at most `steps` steps; gives the mean return of the last 20 episodes."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    env = gym.make("CartPole-v1")
    agent = Agent(observations=4, actions=2)
    buffer = ReplayBuffer(
        20_000, {"obs": ((4,), np.float32), "action": ((), np.int64), "reward": ((), np.float32)}, seed=seed
    )
    sampler = Prioritized(alpha=0.6, beta=0.4)
    returns: deque[float] = deque(maxlen=20)
    begin, episodes, episode_return = time.perf_counter(), 0, 0.0

    writer = StepWriter(buffer, env)
    obs, _ = env.reset(seed=seed)
    writer.add_reset(obs)
    for step in range(1, steps + 1):
        explore = max(0.02, 1 - step / 4000)
        action = int(random.integers(2)) if step <= warm_up or random.random() < explore else agent.act(obs)
        following, reward, terminated, truncated, _ = env.step(action)
        writer.add_step(action, following, reward, terminated, truncated)
        episode_return += float(reward)
        if terminated or truncated:
            returns.append(episode_return)
            episodes, episode_return = episodes + 1, 0.0
            following, _ = env.reset()
            writer.add_reset(following)
        obs = following

        if step > warm_up:
            sampler.beta = 0.4 + 0.6 * step / steps
            batch = buffer.sample_transitions(batch_size, n_step=3, discount=0.99, sampler=sampler)
            errors = agent.learn(to_torch(batch))
            sampler.update_priorities(batch["indices"], errors + 1e-3)

        mean = float(np.mean(returns)) if returns else 0.0
        solved = len(returns) == 20 and mean >= SOLVED
        if step % 1000 == 0 or step == steps or solved:
            seconds = time.perf_counter() - begin
            print(
                f"step {step:6}, {seconds:4.0f} s: {episodes:4} episodes, "
                f"mean return of the last {len(returns)}: {mean:5.1f} (random play 22, solved {SOLVED:.0f}, best 500)"
            )
        if solved:
            print(f"solved after {step} steps and {seconds:.0f} s")
            break
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.steps, args.seed)


if __name__ == "__main__":
    main()
