"""Proximal policy optimisation (arXiv 1707.06347): the clipped loss and the passes over a batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def clipped_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The negated clipped surrogate objective of each step (equation 7); all tensors `[N]`."""
    ratio = torch.exp(log_prob - old_log_prob)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def approximate_kl(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """`(ratio - 1) - log ratio` of each step: its mean under the old policy is KL(old || new), never negative."""
    log_ratio = log_prob - old_log_prob
    return torch.expm1(log_ratio) - log_ratio


def minibatches(count: int, size: int, epochs: int, device: torch.device) -> Iterator[Tensor]:
    """Indices `[<= size]` that pass `epochs` times over `count` steps, each time in a new order."""
    for _ in range(epochs):
        yield from torch.randperm(count, device=device).split(size)
