"""What one step of the environment costs in training: multiply-adds counted, milliseconds measured."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from drama.config import Config
from drama.interface import Choices, Image, Interface
from drama.models.world_model import Batch
from drama.training.learner import Learner

REPEATS = 3
"""Measured updates of each kind."""


def multiply_adds(config: Config, interface: Interface) -> dict[str, float]:
    """Multiply-adds of the matrix products and convolutions of one environment step: both updates and their sum.

    They are counted while one update of each kind runs on the least batch, and scaled up, as each is linear in the
    batch; then divided by `train.train_every`. All passes of PPO are counted, `train.statistics_frames` not.
    """
    t = config.train
    rows = 1 if t.batch_length > 1 else 2  # batch norm needs two frames
    config = dataclasses.replace(
        config,
        agent=dataclasses.replace(config.agent, ppo_kl_limit=float("inf")),
        train=dataclasses.replace(t, compile="off"),  # what is compiled cannot be counted
    )
    with torch.random.fork_rng():
        learner = Learner(config, interface, torch.device("cpu"))
        counts = {}
        for name, update, length, size in (
            ("world_model", learner.update_world_model, t.batch_length, t.batch_size),
            ("agent", agent_update(learner), t.context, t.imagination_batch),
        ):
            with FlopCounterMode(display=False) as counter:
                update(_blank_batch(interface, rows, length, learner.device))
            counts[name] = counter.get_total_flops() / 2 * size / rows / t.train_every
    return counts | {"sum": sum(counts.values())}


def milliseconds(config: Config, learner: Learner, env: gym.Env) -> dict[str, float]:
    """Median milliseconds of one environment step on this machine, on blank batches; changes the learner's weights."""
    t, device, interface = config.train, learner.device, learner.world_model.interface
    seen, _ = env.reset(seed=0)
    obs = {name: array[None] for name, array in interface.parts(seen).items()}
    sequences = _blank_batch(interface, t.batch_size, t.batch_length, device)
    starts = sequences
    if t.imagine_from == "replay":
        starts = _blank_batch(interface, t.imagination_batch, t.context, device)
    player = learner.player(1)
    frames = None
    if t.statistics_frames:
        frames = {name: x.flatten(0, 1)[: t.statistics_frames] for name, x in sequences.obs.items()}

    def act() -> None:
        action = player.act(obs, np.array([False]))
        *_, terminated, truncated, _ = env.step(action[0])
        if terminated or truncated:
            env.reset()

    times = {
        "world_model": median_milliseconds(lambda: learner.update_world_model(sequences, frames), device)
        / t.train_every,
        "agent": median_milliseconds(lambda: agent_update(learner)(starts), device) / t.train_every,
        "acting": median_milliseconds(act, device),
    }
    return times | {"sum": sum(times.values())}


def agent_update(learner: Learner) -> Callable[[Batch], object]:
    """The agent's update as the config has it: on contexts, or inside of sequences, of zeros here."""
    if learner.config.train.imagine_from == "replay":
        return learner.update_agent

    def within(batch: Batch) -> object:
        model = learner.world_model
        z, d = (batch.reward.new_zeros(*batch.reward.shape, width) for width in (model.latents, model.width))
        return learner.update_agent_within(batch, z, d)

    return within


def median_milliseconds(
    part: Callable[[], object], device: torch.device, repeats: int = REPEATS, uncounted: int = 1
) -> float:
    """Median time of `part`, the work on the device included, after some calls that do not count."""
    times = []
    for _ in range(uncounted + repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        part()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times[uncounted:])


def _blank_batch(interface: Interface, rows: int, length: int, device: torch.device) -> Batch:
    action = interface.action
    kind = torch.long if isinstance(action, Choices) else torch.float32
    return Batch(
        obs={
            name: torch.zeros(rows, length, *part.shape, dtype=torch.uint8 if isinstance(part, Image) else None).to(
                device
            )
            for name, part in interface.observation.items()
        },
        action=torch.zeros(rows, length, *action.shape, dtype=kind, device=device),
        reward=torch.zeros(rows, length, device=device),
        ended=torch.zeros(rows, length, dtype=torch.bool, device=device),
        is_first=torch.zeros(rows, length, dtype=torch.bool, device=device),
    )
