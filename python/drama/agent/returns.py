"""Returns of imagined trajectories."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_return(reward: Tensor, cont: Tensor, value: Tensor, discount: float, lambda_: float) -> Tensor:
    """`G_t = r_t + discount c_t ((1 - lambda) V(s_{t+1}) + lambda G_{t+1})` with `G_H = V(s_H)`.

    Args:
        reward: `[B, H]`, r_t after action t.
        cont: `[B, H]`, 0 where action t ended the episode, else 1.
        value: `[B, H + 1]`, V(s_0) to V(s_H).
        discount: discount of one step.
        lambda_: mixing; 0 gives one-step targets, 1 the full return.

    Returns:
        `[B, H]`.
    """
    future = value[:, -1]
    returns = []
    for t in reversed(range(reward.shape[1])):
        future = reward[:, t] + discount * cont[:, t] * ((1 - lambda_) * value[:, t + 1] + lambda_ * future)
        returns.append(future)
    return torch.stack(returns[::-1], dim=1)
