"""A training loop of one's own, from the parts of drama: collect, update, look. `python examples/own_loop.py`"""

from __future__ import annotations

import argparse

import torch

from drama.agent.player import Player
from drama.choosing import make_config
from drama.training.collector import Collector, make_envs, make_replay
from drama.training.learner import Learner
from drama.training.updater import Updater


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--preset", default="auto")
    args = parser.parse_args()

    config, _ = make_config(args.env, args.preset, {"steps": args.steps})
    torch.manual_seed(config.seed)
    envs, interface = make_envs(config)
    learner = Learner(config, interface, torch.device("cpu"))
    player = Player(learner.world_model, learner.agent, config.train.num_envs)
    collector = Collector(config, envs, interface, player)
    replay = make_replay(config, interface)
    updater = Updater(config, learner, replay)

    for step in range(1, args.steps + 1):
        early = step <= config.train.start_step
        for episode in collector.collect(replay, randomly=early):
            print(f"step {step}: an episode of {episode['length']:.0f} steps, return {episode['return']:g}")
        if not early and step % config.train.train_every == 0:
            updater.update(step)
        if step % 500 == 0 and (means := updater.means()):
            print(f"step {step}: " + ", ".join(f"{name} {value:.3g}" for name, value in means.items()))
            updater.clear()
    collector.close()


if __name__ == "__main__":
    main()
