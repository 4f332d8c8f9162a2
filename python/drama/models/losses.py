"""The world model's losses."""

from __future__ import annotations

from torch import Tensor

from drama.models.latent import kl_divergence


def reconstruction_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared error summed over the pixels of each frame, meaned over frames: `[B, T, H, W, C]` twice to a scalar."""
    return (predicted.float() - target.float()).square().sum((-3, -2, -1)).mean()


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
