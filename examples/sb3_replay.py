"""Stable-Baselines3's DQN with its own replay buffer and with ours. `python examples/sb3_replay.py`

`drama.sb3.DramaReplayBuffer` as `replay_buffer_class` is all it takes. Both learn CartPole with the same seeds; the
curves are printed and drawn to a PNG. It takes some minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from PIL import Image, ImageDraw
from stable_baselines3 import DQN
from stable_baselines3.common.monitor import Monitor

from drama.sb3 import DramaReplayBuffer

BINS = 20
COLOURS = {"Stable-Baselines3": (31, 119, 180), "drama": (214, 39, 40)}


def learn(name: str, steps: int, seed: int) -> np.ndarray:
    """Train once; gives the mean return of the episodes that ended in each of `BINS` equal parts of the run."""
    torch.set_num_threads(1)  # the networks are too small for more
    env = Monitor(gym.make("CartPole-v1"))
    model = DQN(
        "MlpPolicy",
        env,
        learning_rate=2.3e-3,
        buffer_size=100_000,
        learning_starts=min(1000, steps // 4),
        batch_size=64,
        train_freq=256,
        gradient_steps=128,
        target_update_interval=10,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [256, 256]},
        seed=seed,
        device="cpu",
        replay_buffer_class=DramaReplayBuffer if name == "drama" else None,
    )
    model.learn(steps)
    ends = np.cumsum(env.get_episode_lengths())
    returns = np.array(env.get_episode_rewards())
    part = np.minimum(ends * BINS // steps, BINS - 1)
    curve = np.full(BINS, np.nan)
    for i in range(BINS):
        if (part == i).any():
            curve[i] = returns[part == i].mean()
        elif i:
            curve[i] = curve[i - 1]
    return curve


def draw(curves: dict[str, np.ndarray], steps: int, path: Path) -> None:
    """One thin line per seed and a thick one for their mean."""
    width, height, left, top, bottom = 720, 420, 60, 30, 50
    image = Image.new("RGB", (width, height), "white")
    canvas = ImageDraw.Draw(image)

    def point(i: float, value: float) -> tuple[float, float]:
        return left + (width - left - 20) * i / BINS, height - bottom - (height - top - bottom) * value / 500

    for value in range(0, 501, 100):
        canvas.line([point(0, value), point(BINS, value)], fill=(220, 220, 220))
        canvas.text((20, point(0, value)[1] - 6), str(value), fill="black")
    for i in range(0, BINS + 1, 5):
        canvas.text((point(i, 0)[0] - 15, height - bottom + 8), str(steps * i // BINS), fill="black")
    canvas.text((width // 2 - 30, height - 20), "environment steps", fill="black")
    canvas.text((20, 8), "mean return", fill="black")
    for row, (name, runs) in enumerate(curves.items()):
        for curve, thickness in [*((run, 1) for run in runs), (runs.mean(0), 4)]:
            points = [point(i + 0.5, value) for i, value in enumerate(curve) if np.isfinite(value)]
            canvas.line(points, fill=COLOURS[name], width=thickness)
        canvas.text((left + 20, top + 10 + 16 * row), f"DQN, replay buffer of {name}", fill=COLOURS[name])
    image.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--png", type=Path, default=Path("sb3_replay.png"))
    args = parser.parse_args()
    print(f"mean return over each {args.steps // BINS} steps")
    curves = {}
    for name in COLOURS:
        runs = []
        for seed in args.seeds:
            runs.append(learn(name, args.steps, seed))
            print(f"{name:18} seed {seed}: " + " ".join(f"{value:4.0f}" for value in runs[-1]), flush=True)
        curves[name] = np.stack(runs)
    draw(curves, args.steps, args.png)
    print(f"drawn to {args.png}")


if __name__ == "__main__":
    main()
