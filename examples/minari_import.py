"""Reads a Minari dataset into the replay buffer. `python examples/minari_import.py [dataset id]`

Without an id, a small dataset of random play on CartPole is recorded first, so that nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings

import gymnasium as gym
import minari
import numpy as np
from gymnasium import spaces

from drama.replay import FieldSpec, ReplayBuffer


def import_dataset(dataset: minari.MinariDataset) -> ReplayBuffer:
    """A buffer with every step of `dataset`, whose observations and actions are single arrays or numbers."""
    fields: dict[str, FieldSpec] = {"reward": ((), np.float32)}
    for name, space in (("obs", dataset.observation_space), ("action", dataset.action_space)):
        if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            raise SystemExit(f"{name}: a {type(space).__name__} space would need a field for each of its parts")
        fields[name] = (space.shape, space.dtype)  # type: ignore[assignment]
    buffer = ReplayBuffer(int(dataset.total_steps), fields)
    for episode in dataset.iterate_episodes():
        steps = len(episode.rewards)
        terminated, truncated = (np.array(end, bool) for end in (episode.terminations, episode.truncations))
        truncated[-1] |= not terminated[-1]  # some datasets cut episodes without saying so
        columns = {
            "obs": episode.observations[:steps],  # one more was recorded: the observation after the last step
            "action": episode.actions,
            "reward": episode.rewards,
            "terminated": terminated,
            "truncated": truncated,
        }
        # One environment: [steps, 1, ...]. The first row of each episode is marked `is_first` by itself.
        buffer.add_block(
            **{n: np.ascontiguousarray(column, buffer.fields[n][1])[:, None] for n, column in columns.items()}
        )
        if not terminated[-1]:  # what the last step led to still has a value to bootstrap from
            final = np.ascontiguousarray(episode.observations[steps], buffer.fields["obs"][1])
            buffer.set_final(envs=np.array([0]), obs=final[None])
    return buffer


def record(episodes: int) -> minari.MinariDataset:
    """Random play on CartPole, cut off after 25 steps."""
    env = minari.DataCollector(gym.make("CartPole-v1", max_episode_steps=25))
    env.action_space.seed(0)
    for seed in range(episodes):
        env.reset(seed=seed)
        ended = False
        while not ended:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            ended = terminated or truncated
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nobody is named as the author
        return env.create_dataset("cartpole/random-v0", algorithm_name="random", description="Random play on CartPole")


def report(buffer: ReplayBuffer) -> None:
    """Say what is there and draw from it."""
    everything = buffer.gather([0], len(buffer))
    counts = {name: int(everything[name].sum()) for name in ("is_first", "terminated", "truncated")}
    ends = f"{counts['terminated']} terminated, {counts['truncated']} truncated"
    print(f"{len(buffer)} steps in {counts['is_first']} episodes: {ends}")
    batch = buffer.sample_transitions(256, n_step=3, discount=0.99)
    means = ", ".join(f"mean {name} {batch[name].mean():.2f}" for name in ("reward", "discount", "steps"))
    print(f"256 transitions of three steps: {means}")
    sequences = buffer.sample(16, 8)
    print("16 sequences of 8: " + ", ".join(f"{name} {array.shape}" for name, array in sequences.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="such as D4RL/pointmaze/umaze-v2; downloaded if it is not there")
    parser.add_argument("--episodes", type=int, default=50, help="to record where no dataset is given")
    args = parser.parse_args()
    if args.dataset:
        report(import_dataset(minari.load_dataset(args.dataset, download=True)))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        report(import_dataset(record(args.episodes)))


if __name__ == "__main__":
    main()
