"""Reads a Minari dataset into the replay buffer. `python examples/minari_import.py [dataset id]`

Without an id, a small dataset of random play on CartPole is recorded first, so that nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium import spaces

from drama.replay import FieldSpec, ReplayBuffer


def fields_of(name: str, space: spaces.Space[Any]) -> dict[str, FieldSpec]:
    """A field for a space that is an array or a number, and one for each part of a dictionary."""
    if isinstance(space, spaces.Dict):
        parts = [fields_of(f"{name}/{key}", part) for key, part in space.items()]
        return {field: spec for part in parts for field, spec in part.items()}
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise SystemExit(f"{name}: a {type(space).__name__} space has no array of fixed size")
    return {name: (space.shape, space.dtype)}  # type: ignore[dict-item]


def columns_of(name: str, values: Any) -> dict[str, np.ndarray]:
    """The arrays `[steps, ...]` of an episode by field."""
    if isinstance(values, dict):
        parts = [columns_of(f"{name}/{key}", part) for key, part in values.items()]
        return {field: column for part in parts for field, column in part.items()}
    return {name: np.asarray(values)}


def import_dataset(dataset: minari.MinariDataset) -> ReplayBuffer:
    """A buffer with every step of `dataset`, and what was seen after the last one of each episode."""
    fields = {**fields_of("obs", dataset.observation_space), **fields_of("action", dataset.action_space)}
    buffer = ReplayBuffer(max(int(dataset.total_steps), 1), {**fields, "reward": ((), np.float32)})
    for episode in dataset.iterate_episodes():
        steps = len(episode.rewards)
        if steps == 0:
            continue
        truncated = np.array(episode.truncations, bool)
        truncated[-1] |= not episode.terminations[-1]  # some datasets cut episodes without saying so
        seen = columns_of("obs", episode.observations)  # one more than there are steps
        # One environment, so arrays need no axis for it. The first row of each episode is marked by itself.
        buffer.add_block(
            **{name: column[:steps] for name, column in seen.items()},
            **columns_of("action", episode.actions),
            reward=episode.rewards,
            terminated=episode.terminations,
            truncated=truncated,
        )
        buffer.set_final(envs=[0], **{name: column[steps] for name, column in seen.items()})
    return buffer


def record(episodes: int, env_id: str = "CartPole-v1", steps: int = 25) -> minari.MinariDataset:
    """Random play, cut off after so many steps."""
    env = minari.DataCollector(gym.make(env_id, max_episode_steps=steps))
    env.action_space.seed(0)
    for seed in range(episodes):
        env.reset(seed=seed)
        ended = False
        while not ended:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            ended = terminated or truncated
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nobody is named as the author
        name = env_id.split("-")[0].lower()
        return env.create_dataset(f"{name}/random-v0", algorithm_name="random", description=f"Random play on {env_id}")


def report(buffer: ReplayBuffer) -> None:
    """Say what is there and draw from it."""
    everything = buffer.rows()
    counts = {name: int(everything[name].sum()) for name in ("is_first", "terminated", "truncated")}
    ends = f"{counts['terminated']} terminated, {counts['truncated']} truncated"
    print(f"{len(buffer)} steps in {counts['is_first']} episodes: {ends}")
    seen = [name for name in buffer.fields if name.split("/")[0] == "obs"]
    batch = buffer.sample_transitions(256, n_step=3, discount=0.99, next_fields=seen)
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
