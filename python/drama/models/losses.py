"""The world model's losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drama.models.latent import kl_divergence
from drama.models.vision import to_unit

CHANGE = 13
"""Difference of two pixels, of 255, from which on they count as changed."""
MOVING_SHARE = 0.01
"""Where more of a frame moves than this, as when it flashes, moving pixels share the weight of this many."""


def reconstruction_losses(
    predicted: Tensor, target: Tensor, motion_scale: float = 0.0, steps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Squared error of each frame in [0, 1], summed over its pixels.

    Args:
        predicted: frames `[B, T, H, W, C]`, or their patches, in [0, 1].
        target: frames `[B, T, H, W, C]` uint8, consecutive ones, or their patches.
        motion_scale: extra weight of the pixels that change from the frame before or to the next.
        steps: int64 `[N]`, those of the T steps that `predicted[B, N, ...]` is of; None for all.

    Returns:
        The error in which moving pixels have their extra weight, and the plain one, both `[B, T]`, or `[B, N]` with
        `steps`.
    """
    scored = target if steps is None else target.index_select(1, steps)
    error = (predicted.float() - to_unit(scored)).square()
    plain = error.sum((-3, -2, -1))
    if motion_scale == 0:
        return plain, plain
    moving = moving_pixels(target)
    if steps is not None:
        moving = moving.index_select(1, steps)
    share = moving.float().mean((-3, -2, -1)).clamp(min=MOVING_SHARE)
    extra = (error * moving).sum((-3, -2, -1)) * (motion_scale * MOVING_SHARE / share)
    return plain + extra, plain


@torch.library.custom_op("drama::moving_pixels", mutates_args=())
def moving_pixels(frames: Tensor) -> Tensor:
    """Which pixels of consecutive `frames[B, T, ...]` uint8 change from the frame before or to the next: bool.

    An operator of its own, as a compiler makes a slow loop over single bytes of it.
    """
    before, after = frames[:, :-1], frames[:, 1:]
    changed = torch.maximum(before, after).sub_(torch.minimum(before, after)).ge_(CHANGE)
    moving = torch.zeros_like(frames)
    moving[:, 1:].copy_(changed)
    moving[:, :-1].bitwise_or_(changed)
    return moving.view(torch.bool)


@moving_pixels.register_fake
def _(frames: Tensor) -> Tensor:
    return torch.empty_like(frames, dtype=torch.bool)


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


class Sum(nn.Module):
    """The sum of losses by name."""

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        return torch.stack(list(losses.values())).sum()


BALANCED = {
    "observation": ("reconstruction", "vector"),
    "reward": ("reward",),
    "latent": ("dynamics", "representation"),
}
"""What `Harmony` balances, with the losses that each is the sum of."""


class Harmony(nn.Module):
    """The sum of losses by name in which observation, reward and latent count alike, whatever their sizes.

    Each of the three, L, enters as `L / sigma + log(1 + sigma)` with a learned `sigma = exp(s)` (HarmonyDream, arXiv
    2310.00344, section 4): sigma follows the size of L, and the second term bounds the weight of small ones. What is
    in none of the three has a weight of 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_sigma = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in BALANCED})

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        rest = dict(losses)
        terms = []
        for part, names in BALANCED.items():
            s = self.log_sigma[part]
            size = torch.stack([rest.pop(name) for name in names if name in rest]).sum()
            terms.append(size * torch.exp(-s) + F.softplus(s))  # log(1 + exp(s))
        return torch.stack([*terms, *rest.values()]).sum()
