"""Rollouts inside the world model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from drama.models.observation import Parts
from drama.models.world_model import Belief, WorldModel
from drama.runtime.recording import Record, Recorded, record_graph, uncached


class Policy(Protocol):
    """Anything that picks actions `[B]` or `[B, K]` from features `[B, features]`."""

    def act(self, features: Tensor) -> Tensor: ...


class Trajectory(NamedTuple):
    """Imagined steps: everything that belongs to action t has index t."""

    features: Tensor  # [B, H + 1, features], s_t = [z_t, d_{t-1}]
    action: Tensor  # [B, H]
    reward: Tensor  # [B, H]
    cont: Tensor  # [B, H], 0 where action t is predicted to end the episode, else 1
    weight: Tensor  # [B, H], 0 after a predicted end, else 1


Step = Callable[[WorldModel, Policy, Belief], tuple[Tensor, Belief]]
"""As `imagine_step`."""


@torch.no_grad()
def imagine_step(model: WorldModel, policy: Policy, belief: Belief) -> tuple[Tensor, Belief]:
    """Let `policy` act once: its action and the belief after it. One that opens no episode is given up."""
    action = policy.act(belief.features)
    return action, model.advance(belief, action, give_up=belief.first is None)


@torch.no_grad()
def imagine(model: WorldModel, policy: Policy, start: Belief, horizon: int, step: Step = imagine_step) -> Trajectory:
    """Let `policy` act for `horizon` steps in the model, from `start`, which stays as it is.

    No gradient flows through the model.
    """
    belief = start
    if start.first is None:
        belief = start._replace(first=torch.zeros(start.z.shape[0], dtype=torch.bool, device=start.z.device))
    features, actions, outputs = [start.features], [], []
    with model.autocast():
        for _ in range(horizon):
            action, belief = step(model, policy, belief)
            features.append(belief.features)
            actions.append(action)
            outputs.append(belief.d)
        seen = torch.stack(features, dim=1)
        reward, termination = model.predict_outcome(torch.stack(outputs, dim=1), seen[:, 1:, : model.latents])
        cont = (termination <= 0).float()
        before = torch.cat([torch.ones_like(cont[:, :1]), cont[:, :-1]], dim=1)
        return Trajectory(
            features=seen,
            action=torch.stack(actions, dim=1),
            reward=model.two_hot.decode(reward),
            cont=cont,
            weight=before.cumprod(dim=1),
        )


@torch.no_grad()
def dream(model: WorldModel, obs: Parts, action: Tensor, is_first: Tensor, context: int) -> tuple[Parts, Parts]:
    """Reconstruct real steps, and dream on from their first `context` observations with the same actions.

    Args:
        model: the world model.
        obs: by part, `[B, T, ...]`.
        action: `[B, T]` or `[B, T, K]`.
        is_first: `[B, T]`.
        context: real steps seen before the dream; at least 2, less than T.

    Returns:
        Reconstructions (each step through its own posterior) and dreams, both by part `[B, T, ...]` as the environment
        would show them. The first `context` steps of both are the same; from there on the dream sees nothing real.
    """
    with model.autocast():
        z = model.sample(model.encode(obs))
        belief = model.recall(z[:, :context], action[:, :context], is_first[:, :context])
        dreamt = []
        for t in range(context - 1, action.shape[1] - 1):
            belief = model.advance(belief, action[:, t], give_up=t >= context)
            dreamt.append(belief.z)
        open_loop = torch.cat([z[:, :context], torch.stack(dreamt, dim=1)], dim=1)
        return model.show(z), model.show(open_loop)


def recorded_imagination(
    model: WorldModel, policy: Policy, horizon: int, record: Record[Trajectory] = record_graph
) -> Recorded[Belief, Trajectory]:
    """`imagine` as a recording; the parameters of `model` and `policy` may change in place."""

    def run(start: Belief) -> Trajectory:
        return imagine(model, policy, start, horizon)

    def difference(found: Trajectory, expected: Trajectory) -> Tensor:
        # One step only: in bfloat16 a last bit may choose another latent, and after it everything is different.
        return (found.features[:, 1] - expected.features[:, 1]).abs().mean()

    return Recorded("imagination", uncached(run), difference, record)
