"""The networks, their optimizers, and one update of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from drama.agent.actor_critic import ActorCritic, Replayed, Targets
from drama.agent.imagination import Step, Trajectory, imagine, imagine_step, recorded_imagination
from drama.agent.player import Player
from drama.agent.ppo import minibatches
from drama.config import Config
from drama.interface import Interface, Observations
from drama.models.heads import TwoHot
from drama.models.norm import batch_norms, batch_statistics, fresh_statistics
from drama.models.observation import Parts
from drama.models.world_model import Batch, Belief, WorldModel
from drama.runtime.compiling import Compiled, wants_compiling
from drama.runtime.device import keep_freed_memory, resolve_precision
from drama.runtime.recording import Recorded
from drama.training.laprop import LaProp

LEAST_RATE = 0.05
"""Factor to which learning rates fall."""


class Descent(NamedTuple):
    """What a network makes of a batch, detached."""

    losses: dict[str, Tensor]
    gradients: list[Tensor | None]  # of each parameter
    z: Tensor | None = None  # [B, T, latents], the latents that were sampled; None of the agent
    d: Tensor | None = None  # [B, T, width], the outputs of the world model; None of the agent


class Learner:
    """World model and agent with everything that training changes in them.

    Between updates both networks are in evaluation mode.
    """

    def __init__(self, config: Config, interface: Interface, device: torch.device) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        elif device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all shapes stay the same, and its first guess can be far off
        self.config = config
        self.device = device
        model_config = config.world_model
        precision = resolve_precision(config.train.precision, device)
        self.world_model = WorldModel(model_config, interface, precision).to(device).eval()
        if config.train.statistics_frames:  # the encoder's; nothing acts on the decoder's: the last batch's will do
            for norm in batch_norms(self.world_model.decoder):
                norm.momentum = 1.0
        self.agent = ActorCritic(
            config.agent,
            self.world_model.features,
            interface.action,
            TwoHot(model_config.bins, model_config.bin_limit, model_config.two_hot_mean),
        )
        self.agent.to(device).eval()
        self.imagine: Callable[[Belief], Trajectory] = self._imagined
        self._descent: Callable[[Batch], Descent] = partial(self._differentiated, self.world_model.evaluate)
        self._agent_descent: Callable[[Targets], Descent] = partial(self._differentiated_agent, self.agent.loss)
        self._recall = self.world_model.recall
        self._targets = self.agent.targets
        self._imagine_step: Step = imagine_step
        if device.type == "cuda" and config.train.cuda_graph:
            self.imagine = recorded_imagination(self.world_model, self.agent, config.train.horizon)
            self._descent = Recorded("world-model update", self._descent, difference)
            self._agent_descent = Recorded("agent update", self._agent_descent, difference)
        elif wants_compiling(config, device):
            model, agent = self.world_model, self.agent
            if model.sequence.one_piece:
                self._descent = Compiled(
                    "world-model update", lambda c: partial(self._differentiated, c(model.evaluate))
                )
                self._recall = Compiled("context", lambda c: c(model.recall))
            self._agent_descent = Compiled("agent update", lambda c: partial(self._differentiated_agent, c(agent.loss)))
            self._targets = Compiled("agent's targets", lambda c: c(agent.targets))
            self._imagine_step = Compiled("imagined step", lambda c: c(imagine_step))
        train = config.train
        first = {"world_model": train.start_step, "agent": max(train.start_step, train.agent_start)}
        schedules = {
            name: Schedule(train.warmup_updates, (config.steps - step) // train.train_every, train.cooldown)
            for name, step in first.items()
        }
        self._optimizers = {
            "world_model": _Optimizer(
                self.world_model, train.world_model_lr, train.world_model_clip, schedules["world_model"]
            ),
            "agent": _Optimizer(self.agent, train.agent_lr, train.agent_clip, schedules["agent"]),
        }

    def player(self, num_envs: int) -> Player:
        """What acts while the networks learn, recorded or compiled as their updates are."""
        recorded, compiling = self.config.train.cuda_graph, wants_compiling(self.config, self.device)
        return Player(self.world_model, self.agent, num_envs, record=recorded, compile=compiling)

    def to_batch(self, sample: dict[str, NDArray[Any]]) -> Batch:
        """Move sequences sampled from the replay to the device."""

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(sample[name]).to(self.device, non_blocking=True)

        return Batch(
            obs={name: tensor(name) for name in self.world_model.interface.observation},
            action=tensor("action"),
            reward=tensor("reward"),
            ended=tensor("terminated") | tensor("life_lost"),
            is_first=tensor("is_first"),
        )

    def update_world_model(self, batch: Batch, frames: Parts | None = None) -> dict[str, Tensor]:
        """One step of the world model on real sequences; returns detached scalars, without waiting for the device.

        Batch norm's statistics in the encoder are then those of the observations `frames`, by part, or else means over
        past batches.
        """
        return self._step_world_model(batch, frames)[0]

    def update_together(self, batch: Batch, frames: Parts | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`update_world_model`, then `update_agent_within` on the latents that it has learned from."""
        scalars, z, d = self._step_world_model(batch, frames)
        return scalars, self.update_agent_within(batch, z, d)

    def update_agent_within(self, batch: Batch, z: Tensor, d: Tensor) -> dict[str, Tensor]:
        """One step of actor and critic on trajectories imagined from inside sequences with latents `z[B, T, latents]`
        and the world model's outputs `d[B, T, width]`.

        They start after `train.context` steps at `train.imagination_batch` places, drawn from all, each at most once.
        From these steps on the critic learns of what really came, too (`agent.replay_value_scale`).
        """
        train = self.config.train
        rows, length = z.shape[:2]
        places = length - train.context + 1
        drawn = torch.randperm(rows * places, device=self.device)[: train.imagination_batch]
        row = drawn.div(places, rounding_mode="floor")[:, None]
        times = drawn.remainder(places)[:, None] + torch.arange(train.context, device=self.device)
        with self.world_model.autocast():
            start = self._recall(z[row, times], batch.action[row, times], batch.is_first[row, times])
        replayed = None
        if self.config.agent.replay_value_scale:
            features = self.world_model.beliefs(z, d, batch.is_first)
            real = Replayed(features, batch.action, batch.reward, batch.ended, batch.is_first)
            replayed = Replayed(*(part[:, train.context - 1 :] for part in real))
        return self._update_agent(start, replayed)

    @torch.no_grad()
    def kl_by_mode(self, batch: Batch) -> dict[str, float]:
        """The KL of one batch with the statistics that the agent acts and imagines on, and with the batch's own.

        Far apart, what acts is not what learned (docs/metrics.md). Changes nothing, random numbers included; waits for
        the device.
        """
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), self.world_model.autocast():
            acting = self.world_model.kl(batch)
            with batch_statistics(self.world_model):
                learning = self.world_model.kl(batch)
        return {"world_model/kl_acting": acting.item(), "world_model/kl_learning": learning.item()}

    @torch.no_grad()
    def on_new_rows(self, batch: Batch) -> dict[str, float]:
        """The KL and the reward's loss on rows that were hardly learned from yet, as `kl_by_mode` takes its KL.

        Far above those of the update, the world model knows its replay by heart (docs/metrics.md).
        """
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), self.world_model.autocast():
            losses = self.world_model.loss(batch)
        return {f"world_model/{name}_new": losses[name].item() for name in ("kl", "reward")}

    def _step_world_model(self, batch: Batch, frames: Parts | None) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """One step of the world model: its scalars, and the latents and outputs of the batch."""
        if limit := self.config.train.shift:
            images = self.world_model.interface.images
            moved = {name: shifted(x, limit) if name in images else x for name, x in batch.obs.items()}
            batch = batch._replace(obs=moved)
        self.world_model.train()
        descent = self._descent(batch)
        self.world_model.eval()
        assert descent.z is not None
        assert descent.d is not None
        losses = self._step("world_model", self.world_model, descent)
        if frames is not None:
            model = self.world_model
            with torch.no_grad(), self.world_model.autocast(), fresh_statistics(model):
                model.encode(frames)
        return losses, descent.z, descent.d

    def _differentiated(
        self, evaluate: Callable[[Batch], tuple[dict[str, Tensor], Tensor, Tensor]], batch: Batch
    ) -> Descent:
        """Losses and gradients of the world model by its `evaluate`."""
        self._optimizers["world_model"].zero_grad()
        with self.world_model.autocast():
            losses, z, d = evaluate(batch)
        losses["loss"].backward()
        losses = {name: value.detach() for name, value in losses.items()}
        return Descent(losses, [p.grad for p in self.world_model.parameters()], z, d)

    def update_agent(self, context: Batch) -> dict[str, Tensor]:
        """One step of actor and critic on trajectories imagined from the last steps of `context`."""
        model = self.world_model
        with torch.no_grad(), model.autocast():
            start = model.recall(model.sample(model.encode(context.obs)), context.action, context.is_first)
        return self._update_agent(start)

    def _update_agent(self, start: Belief, replayed: Replayed | None = None) -> dict[str, Tensor]:
        """One step of actor and critic on trajectories imagined from `start`; of the critic on `replayed` ones, too."""
        with self.world_model.autocast():
            trajectory = self.imagine(start)
            targets, watched = self._targets(trajectory, replayed)
        losses = self._descend_ppo(targets) if self.config.agent.policy == "ppo" else self._descend(targets)
        self.agent.update_slow_critic()
        self.agent.observe_features(trajectory.features[:, :-1])
        return {name: value.detach() for name, value in (losses | watched).items()}

    def _imagined(self, start: Belief) -> Trajectory:
        """`imagine` with this learner's networks."""
        return imagine(self.world_model, self.agent, start, self.config.train.horizon, self._imagine_step)

    def _descend(self, targets: Targets) -> dict[str, Tensor]:
        """One gradient step of the agent."""
        return self._step("agent", self.agent, self._agent_descent(targets))

    def _step(self, name: str, network: nn.Module, descent: Descent) -> dict[str, Tensor]:
        """One step of an optimizer; the scalars of the descent, which the next may overwrite, and the gradient norm."""
        for parameter, gradient in zip(network.parameters(), descent.gradients, strict=True):
            parameter.grad = gradient
        losses = {key: value.clone() for key, value in descent.losses.items()}
        return losses | {"gradient_norm": self._optimizers[name].step()}

    def _differentiated_agent(self, loss: Callable[[Targets], dict[str, Tensor]], targets: Targets) -> Descent:
        """Losses and gradients of actor and critic by their `loss`."""
        self._optimizers["agent"].zero_grad()
        # An autocast apart from the rollout's: older torch would reuse the weights that it cast there without gradient.
        with self.world_model.autocast():
            losses = loss(targets)
        losses["loss"].backward()
        losses = {name: value.detach() for name, value in losses.items()}
        return Descent(losses, [p.grad for p in self.agent.parameters()])

    def _descend_ppo(self, targets: Targets) -> dict[str, Tensor]:
        """Several passes in minibatches, until the policy has moved too far from the one that acted."""
        config, count = self.config.agent, targets.action.shape[0]
        losses: dict[str, Tensor] = {}
        for index in minibatches(count, config.ppo_minibatch, config.ppo_epochs, self.device):
            losses = self._descend(Targets(*(t[index] for t in targets)))
            if losses["policy_kl"] > config.ppo_kl_limit:
                break
        return losses

    def start_from_frames(self, obs: Observations) -> None:
        """Let the decoders of images start from the mean pixel of `obs`, if the config asks for it."""
        if self.config.world_model.vision.mean_pixel_bias:
            parts = {name: torch.from_numpy(array).to(self.device) for name, array in obs.items()}
            self.world_model.decoder.set_mean_pixel(parts)

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizers and schedules."""
        return {
            "world_model": self.world_model.state_dict(),
            "agent": self.agent.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`. Raises ValueError if the weights belong to another configuration."""
        if not isinstance(state, dict) or not all(
            isinstance(state.get(name), dict) for name in ("world_model", "agent")
        ):
            raise ValueError("the checkpoint holds no networks")
        try:
            self.world_model.load_state_dict(state["world_model"])
            self.agent.load_state_dict(state["agent"])
            for name, optimizer in self._optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            sequence = self.config.world_model.sequence
            raise ValueError(
                f"the checkpoint does not fit the run's config: {_misfit(self.world_model, state, error)}; give the"
                " run's config.json the values it was trained with (world_model.sequence.backend is"
                f" {sequence.backend!r}, width {sequence.width}, layers {sequence.layers})"
            ) from error


def difference(found: Descent, expected: Descent) -> Tensor:
    """Of two losses, in parts of the second."""
    return (found.losses["loss"] / expected.losses["loss"] - 1).abs()


def shifted(obs: Tensor, limit: int) -> Tensor:
    """Frames `obs[B, T, H, W, C]`, those of each sequence moved by the same -`limit` to `limit` pixels each way.

    What comes in at an edge repeats the edge.
    """
    batch, _, height, width, _ = obs.shape
    down, right = torch.randint(-limit, limit + 1, (2, batch, 1), device=obs.device)
    rows = (torch.arange(height, device=obs.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=obs.device) - right).clamp(0, width - 1)
    return torch.stack([obs[i][:, rows[i]][:, :, columns[i]] for i in range(batch)])


def first_misfit(
    found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]
) -> tuple[str, list[int] | str, list[int] | str] | None:
    """The first weight that is missing, unknown or of another shape, with both shapes; None where all are alike."""
    for name in sorted(found.keys() | wanted.keys()):
        there, here = (list(shapes[name]) if name in shapes else "none" for shapes in (found, wanted))
        if there != here:
            return name, there, here
    return None


def _misfit(model: WorldModel, state: dict[str, Any], error: Exception) -> str:
    """What does not fit in the world model, in one line."""
    there, here = ({name: w.shape for name, w in state.items()} for state in (state["world_model"], model.state_dict()))
    if misfit := first_misfit(there, here):
        name, found, wanted = misfit
        return f"world_model.{name} is {found} in the checkpoint and {wanted} here"
    return str(error).replace("\n", " ")


class Schedule(NamedTuple):
    """The learning rate of each update, as a factor."""

    warmup: int  # updates over which it rises
    updates: int  # of the whole run
    cooldown: float  # share of them, at the end, over which it falls

    def __call__(self, update: int) -> float:
        rising = min(1.0, (update + 1) / max(1, self.warmup))
        last = self.cooldown * self.updates
        if not last or update < self.updates - last:
            return rising
        return rising * max(LEAST_RATE, (self.updates - update) / last)


class _Optimizer:
    """LaProp with a schedule and gradient-norm clipping."""

    def __init__(self, module: nn.Module, lr: float, clip: float, schedule: Schedule) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._clip = clip
        self._optimizer = LaProp(self._parameters, lr=lr)
        self._schedule = LambdaLR(self._optimizer, lambda update: schedule(update))  # a tuple would be several

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> Tensor:
        """Descend along the gradients; returns their norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        self._schedule.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict(), "schedule": self._schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
