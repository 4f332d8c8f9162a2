"""The world model's losses."""

from __future__ import annotations

import torch
from torch import Tensor

from drama.models.latent import kl_divergence

CHANGE = 0.05
"""Difference of two pixels in [0, 1] from which on they count as changed."""
MOVING_SHARE = 0.01
"""Where more of a frame moves than this, as when it flashes, moving pixels share the weight of this many."""


def reconstruction_losses(predicted: Tensor, target: Tensor, motion_scale: float = 0.0) -> tuple[Tensor, Tensor]:
    """Squared error of each frame in [0, 1], summed over its pixels.

    Args:
        predicted: frames `[B, T, H, W, C]`.
        target: frames `[B, T, H, W, C]`, consecutive ones.
        motion_scale: extra weight of the pixels that change from the frame before or to the next.

    Returns:
        The error in which moving pixels have their extra weight, and the plain one, both `[B, T]`.
    """
    error = (predicted.float() - target.float()).square()
    plain = error.sum((-3, -2, -1))
    if motion_scale == 0:
        return plain, plain
    changed = (target[:, 1:] - target[:, :-1]).abs() > CHANGE
    moving = torch.zeros_like(target, dtype=torch.bool)
    moving[:, 1:] |= changed
    moving[:, :-1] |= changed
    share = moving.float().mean((-3, -2, -1)).clamp(min=MOVING_SHARE)
    extra = (error * moving).sum((-3, -2, -1)) * (motion_scale * MOVING_SHARE / share)
    return plain + extra, plain


def kl_losses(posterior: Tensor, prior: Tensor, is_first: Tensor, free_bits: float) -> tuple[Tensor, Tensor, Tensor]:
    """The dynamics and representation losses of a batch of sequences.

    The prior predicted after step t answers for the posterior of step t + 1, unless step t + 1 opens an episode. The
    free bits clip the mean over the batch, as published.

    Args:
        posterior: log-probabilities `[B, T, variables, classes]`.
        prior: log-probabilities `[B, T, variables, classes]`.
        is_first: `[B, T]` bool.
        free_bits: nats that cost nothing.

    Returns:
        KL(stop(posterior) || prior) and KL(posterior || stop(prior)), both clipped, and the unclipped mean.
    """
    posterior, prior = posterior[:, 1:], prior[:, :-1]
    inside = (~is_first[:, 1:]).float()
    count = inside.sum().clamp(min=1)
    dynamics = (kl_divergence(posterior.detach(), prior) * inside).sum() / count
    representation = (kl_divergence(posterior, prior.detach()) * inside).sum() / count
    return dynamics.clamp(min=free_bits), representation.clamp(min=free_bits), dynamics.detach()
