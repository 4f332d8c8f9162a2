"""Rollouts inside the world model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from drama.models.sequence.base import State
from drama.models.world_model import WorldModel
from drama.runtime.recording import Record, Recorded, record_graph, uncached


class Policy(Protocol):
    """Anything that picks actions `[B]` from features `[B, features]`."""

    def act(self, features: Tensor) -> Tensor: ...


class Start(NamedTuple):
    """Where an imagination begins: a real frame seen, its action not yet taken."""

    z: Tensor  # [B, latents]
    d: Tensor  # [B, width], the output before this step; zero at an episode start
    is_first: Tensor  # [B] bool
    state: State


class Trajectory(NamedTuple):
    """Imagined steps: everything that belongs to action t has index t."""

    features: Tensor  # [B, H + 1, features], s_t = [z_t, d_{t-1}]
    action: Tensor  # [B, H]
    reward: Tensor  # [B, H]
    cont: Tensor  # [B, H], 0 where action t is predicted to end the episode, else 1
    weight: Tensor  # [B, H], 0 after a predicted end, else 1


@torch.no_grad()
def observe(model: WorldModel, obs: Tensor, action: Tensor, is_first: Tensor) -> Start:
    """Run the model over real steps `obs[B, T, H, W, C]`, `action[B, T]`, `is_first[B, T]`; start at the last frame.

    The last action is not used: the imagination chooses its own.
    """
    return start_from(model, model.sample(model.encode(obs)), action, is_first)


@torch.no_grad()
def start_from(model: WorldModel, z: Tensor, action: Tensor, is_first: Tensor) -> Start:
    """As `observe`, from latents `z[B, T, latents]` that were sampled already."""
    d, state = model(z[:, :-1], action[:, :-1], is_first[:, :-1])
    last_first = is_first[:, -1]
    return Start(z[:, -1], d[:, -1] * ~model.forgets(last_first)[:, None], last_first, state)


class Imagined(NamedTuple):
    """One imagined step."""

    features: Tensor  # [B, features], after the action
    z: Tensor  # [B, latents], likewise
    action: Tensor  # [B]
    d: Tensor  # [B, width]
    state: State


Step = Callable[[WorldModel, Policy, Tensor, Tensor, State], Imagined]
"""As `imagine_step`."""


@torch.no_grad()
def imagine_step(model: WorldModel, policy: Policy, features: Tensor, z: Tensor, state: State) -> Imagined:
    """Let `policy` act once at `features[B, features]` with the latents `z[B, latents]`, inside an episode.

    The `state` may be overwritten.
    """
    action = policy.act(features)
    return _imagined(model, z, action, *model.step_(z, action, state))


def _imagined(model: WorldModel, z: Tensor, action: Tensor, d: Tensor, state: State) -> Imagined:
    z = model.sample(model.predict_latent(d))
    return Imagined(torch.cat([z, d], dim=-1).float(), z, action, d, state)


@torch.no_grad()
def imagine(model: WorldModel, policy: Policy, start: Start, horizon: int, step: Step = imagine_step) -> Trajectory:
    """Let `policy` act for `horizon` steps in the model, from `start`. No gradient flows through the model.

    `step` does every step but the first, whose state belongs to the caller and is left as it is.
    """
    z, d, is_first, state = start
    features = [torch.cat([z, d], dim=-1).float()]
    action = policy.act(features[0])
    now = _imagined(model, z, action, *model.step(z, action, is_first, state))
    features, actions, outputs = [*features, now.features], [now.action], [now.d]
    for _ in range(horizon - 1):
        now = step(model, policy, now.features, now.z, now.state)
        features.append(now.features)
        actions.append(now.action)
        outputs.append(now.d)
    reward, termination = model.predict_outcome(torch.stack(outputs, dim=1))
    cont = (termination <= 0).float()
    before = torch.cat([torch.ones_like(cont[:, :1]), cont[:, :-1]], dim=1)
    return Trajectory(
        features=torch.stack(features, dim=1),
        action=torch.stack(actions, dim=1),
        reward=model.two_hot.decode(reward),
        cont=cont,
        weight=before.cumprod(dim=1),
    )


def recorded_imagination(
    model: WorldModel, policy: Policy, horizon: int, record: Record[Trajectory] = record_graph
) -> Recorded[Start, Trajectory]:
    """`imagine` as a recording; the parameters of `model` and `policy` may change in place."""

    def run(start: Start) -> Trajectory:
        return imagine(model, policy, start, horizon)

    def difference(found: Trajectory, expected: Trajectory) -> Tensor:
        # One step only: in bfloat16 a last bit may choose another latent, and after it everything is different.
        return (found.features[:, 1] - expected.features[:, 1]).abs().mean()

    return Recorded("imagination", uncached(run), difference, record)


@torch.no_grad()
def dream_frames(
    model: WorldModel, obs: Tensor, action: Tensor, is_first: Tensor, context: int
) -> tuple[Tensor, Tensor]:
    """Reconstruct real steps, and dream on from their first `context` frames with the same actions.

    Args:
        obs: `[B, T, H, W, C]` uint8.
        action: `[B, T]`.
        is_first: `[B, T]`.
        context: real frames seen before the dream; at least 2, less than T.

    Returns:
        Reconstructions (each frame through its own posterior) and dreams, both `[B, T, H, W, C]` uint8. The first
        `context` frames of both are the same; from there on the dream sees no real frame.
    """
    z = model.sample(model.encode(obs))
    start = start_from(model, z[:, :context], action[:, :context], is_first[:, :context])
    dreamt, state = start.z, start.state
    latents = []
    for t in range(context - 1, obs.shape[1] - 1):
        first = start.is_first if t == context - 1 else None
        d, state = model.step(dreamt, action[:, t], first, state)
        dreamt = model.sample(model.predict_latent(d))
        latents.append(dreamt)
    open_loop = torch.cat([z[:, :context], torch.stack(latents, dim=1)], dim=1)
    return to_uint8(model.decode(z)), to_uint8(model.decode(open_loop))


def to_uint8(frames: Tensor) -> Tensor:
    """Frames in [0, 1] as uint8."""
    return (frames.float().clamp(0, 1) * 255).round().to(torch.uint8)
