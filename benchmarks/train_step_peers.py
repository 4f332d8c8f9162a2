"""The training step of sheeprl's DreamerV3 on batches of our sizes, for benchmarks/train_step.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from drama.config import Config

SIZES: dict[str, list[str]] = {
    "paper": [],
    "cpu": [
        "algo.dense_units=128",
        "algo.world_model.stochastic_size=16",
        "algo.world_model.discrete_size=16",
        "algo.world_model.encoder.cnn_channels_multiplier=8",
        "algo.world_model.recurrent_model.recurrent_state_size=192",
        "algo.world_model.transition_model.hidden_size=128",
        "algo.world_model.representation_model.hidden_size=128",
    ],
}
"""What is changed in sheeprl's smallest size, XS, to come near our preset: nothing for `paper`, widths for `cpu`."""


@dataclass(frozen=True)
class Peer:
    """Both updates, and how many parameters they train."""

    world_model: Callable[[], object]
    behaviour: Callable[[], object]
    world_model_parameters: int
    behaviour_parameters: int


def dreamer_v3(config: Config, channels: int, actions: int, precision: str) -> Peer:
    """DreamerV3 of the smallest size, XS, with the changes in `SIZES`.

    The batch has our batch size, length and frames; the behaviour is learned from as many starts and steps as ours,
    which are latents of the batch, so that no context has to be encoded. The other options are sheeprl's own.
    """
    import hydra
    from lightning.fabric import Fabric
    from omegaconf import OmegaConf
    from sheeprl.algos.dreamer_v3.agent import build_agent
    from sheeprl.algos.dreamer_v3.dreamer_v3 import behaviour_learning, world_model_learning
    from sheeprl.algos.dreamer_v3.utils import Moments
    from sheeprl.utils.metric import MetricAggregator
    from sheeprl.utils.utils import dotdict

    MetricAggregator.disabled = True
    torch.distributions.Distribution.set_default_validate_args(False)  # as sheeprl does
    train, (height, width) = config.train, config.env.frame_size
    options = [
        "exp=dreamer_v3",
        "algo=dreamer_v3_XS",
        f"env.screen_size={height}",
        f"algo.horizon={train.horizon}",
        "algo.mlp_keys.encoder=[]",
        f"algo.per_rank_batch_size={train.batch_size}",
        f"algo.per_rank_sequence_length={train.batch_length}",
        *SIZES[config.preset],
    ]
    with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
        cfg = dotdict(OmegaConf.to_container(hydra.compose("config", overrides=options), resolve=True))
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    space = gymnasium.spaces.Dict({"rgb": gymnasium.spaces.Box(0, 255, (channels, height, width), np.uint8)})
    world_model, actor, critic, target_critic, _ = build_agent(fabric, [actions], False, cfg, space)

    def optimizer(module: nn.Module, options: object) -> torch.optim.Optimizer:
        return fabric.setup_optimizers(hydra.utils.instantiate(options, params=module.parameters(), _convert_="all"))

    world_optimizer = optimizer(world_model, cfg.algo.world_model.optimizer)
    actor_optimizer = optimizer(actor, cfg.algo.actor.optimizer)
    critic_optimizer = optimizer(critic, cfg.algo.critic.optimizer)
    moments = Moments(cfg.algo.actor.moments.decay, cfg.algo.actor.moments.max)

    time_batch = (train.batch_length, train.batch_size)
    flags = torch.zeros(*time_batch, 1)
    data = {
        "rgb": torch.randint(0, 256, (*time_batch, channels, height, width)).float(),
        "actions": nn.functional.one_hot(torch.randint(0, actions, time_batch), actions).float(),
        "rewards": flags,
        "terminated": flags,
        "truncated": flags,
        "is_first": flags.clone(),
    }
    latents: list[Tensor] = []

    def world_model_update() -> None:
        posteriors, recurrent, _ = world_model_learning(fabric, cfg, world_model, world_optimizer, data)
        flat = (x.detach().flatten(0, 1)[None, : train.imagination_batch] for x in (posteriors, recurrent))
        latents[:] = [*flat, flags.flatten(0, 1)[None, : train.imagination_batch]]
        world_optimizer.zero_grad(set_to_none=True)

    def behaviour_update() -> None:
        behaviour_learning(
            fabric, cfg, world_model, actor, critic, target_critic, actor_optimizer, critic_optimizer, moments,
            *latents, False, [actions],
        )  # fmt: skip
        actor_optimizer.zero_grad(set_to_none=True)
        critic_optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for slow, fast in zip(target_critic.parameters(), critic.parameters(), strict=True):
                slow.lerp_(fast, cfg.algo.critic.tau)

    world_model_update()
    if latents[0].shape[1] < train.imagination_batch:
        raise ValueError(f"train.imagination_batch: {train.imagination_batch} is more than the batch's latents")

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    return Peer(world_model_update, behaviour_update, count(world_model), count(actor, critic))
