"""Categorical latent variables: uniform mix, straight-through samples, KL divergence.

All functions take log-probabilities `[..., variables, classes]` in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mixed_log_probs(logits: Tensor, unimix: float) -> Tensor:
    """Log-probabilities of `(1 - unimix) softmax(logits) + unimix / classes`, in float32."""
    if not unimix:
        return F.log_softmax(logits.float(), dim=-1)
    probs = F.softmax(logits.float(), dim=-1)
    return torch.log((1 - unimix) * probs + unimix / probs.shape[-1])


def sample(log_probs: Tensor) -> Tensor:
    """One one-hot sample per variable, without gradient."""
    log_probs = log_probs.detach()
    if log_probs.is_cuda:  # a race of exponential clocks: sums along a short axis are slow there
        index = (log_probs - torch.empty_like(log_probs).exponential_().log_()).argmax(-1, keepdim=True)
        return torch.zeros_like(log_probs).scatter_(-1, index, 1.0)
    # Not `rand_like`, whose numbers go to the places in memory that a compiler has chosen for its argument.
    return sample_from(log_probs, torch.rand(log_probs.shape[:-1], dtype=log_probs.dtype, device=log_probs.device))


def sample_from(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """The one-hot sample that numbers `uniform[..., variables]` from [0, 1) choose, one for each variable."""
    reached: list[Tensor] = []  # its inverse: a random number per variable, not per class
    for prob in log_probs.exp().unbind(-1):
        reached.append(reached[-1] + prob if reached else prob)
    target = uniform * reached[-1]
    before = [torch.ones_like(target, dtype=torch.bool), *(sum_ <= target for sum_ in reached[:-1])]
    # Class by class, which a compiler makes one loop of; sums along so short an axis would be calls.
    return torch.stack([a & (sum_ > target) for a, sum_ in zip(before, reached, strict=True)], dim=-1).to(
        log_probs.dtype
    )


def straight_through_sample(log_probs: Tensor) -> Tensor:
    """One one-hot sample per variable whose gradient is that of the probabilities (arXiv 1308.3432)."""
    probs = log_probs.exp()
    return sample(log_probs) + (probs - probs.detach())


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q), summed over the variables: `[..., variables, classes]` to `[...]`, in nats."""
    return (log_p.exp() * (log_p - log_q)).sum((-2, -1))
