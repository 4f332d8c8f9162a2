"""A causal transformer with a sliding window, cut at episode starts, under the recurrent contract."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drama.models.norm import RMSNorm
from drama.models.sequence.base import (
    SequenceModel,
    check_positive,
    check_state,
    check_token,
    check_tokens,
    episode_segments,
)


class AttentionState(NamedTuple):
    """What one layer remembers between calls: the last keys and values of the current episode."""

    key: Tensor  # [B, window - 1, heads, head_dim], rotated to their positions
    value: Tensor  # [B, window - 1, heads, head_dim]
    valid: Tensor  # [B, window - 1] bool
    position: Tensor  # [B] int64, of the next token


class TransformerLayer(SequenceModel):
    """Self-attention and a feed-forward part, both with inner residuals: a mixer for the residual stack.

    Each token attends to itself and the `window - 1` tokens before it, as far as they lie in its episode. Positions
    are rotary (arXiv 2104.09864), so that only distances count.

    Args:
        d_model: width of the input and output.
        heads: attention heads; the width per head must be even.
        window: tokens in reach.
        dropout: rate on the attention and feed-forward outputs while training.

    Raises:
        ValueError: if a size is not positive, or the heads do not divide the width into even parts.
    """

    def __init__(self, d_model: int, heads: int = 8, window: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        check_positive(d_model=d_model, heads=heads, window=window)
        if d_model % (2 * heads):
            raise ValueError(f"heads: {heads} does not divide the width {d_model} into even parts")
        self.heads, self.window, self.head_dim = heads, window, d_model // heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.norm = RMSNorm(d_model)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.SiLU(), nn.Linear(2 * d_model, d_model))
        self.dropout = nn.Dropout(dropout)
        rates = 10_000.0 ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        self.register_buffer("rates", rates, persistent=False)

    rates: Tensor

    def initial_state(self, batch: int) -> AttentionState:
        weight = self.out.weight
        cache = weight.new_zeros(batch, self.window - 1, self.heads, self.head_dim)
        return AttentionState(
            key=cache,
            value=cache,
            valid=torch.zeros(batch, self.window - 1, dtype=torch.bool, device=weight.device),
            position=torch.zeros(batch, dtype=torch.long, device=weight.device),
        )

    def forward(
        self, x: Tensor, is_first: Tensor | None = None, state: AttentionState | None = None
    ) -> tuple[Tensor, AttentionState]:
        check_tokens(x, self.qkv.in_features, is_first, self.out.weight)
        if state is not None:
            check_state(state, self.initial_state, x.shape[0])
        batch, length, _ = x.shape
        old_key, old_value, old_valid, start = self.initial_state(batch) if state is None else state
        segment = episode_segments(is_first)
        if segment is None:
            segment = torch.zeros(batch, length, dtype=torch.long, device=x.device)
        position = start[:, None] + torch.arange(length, device=x.device)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        key = torch.cat([old_key.to(key.dtype), self._rotate(key, position)], dim=1)
        value = torch.cat([old_value.to(value.dtype), value], dim=1)
        past = self.window - 1
        segments = F.pad(segment, (past, 0))
        valid = F.pad(old_valid, (0, length), value=True)

        distance = past + torch.arange(length, device=x.device)[:, None] - torch.arange(past + length, device=x.device)
        near = (distance >= 0) & (distance < self.window)
        mask = near & (segments[:, None] == segment[..., None]) & valid[:, None]
        attended = F.scaled_dot_product_attention(
            self._rotate(query, position).transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask[:, None]
        )
        x_attended = self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        y = x_attended + self.dropout(self.feed_forward(self.norm(x + x_attended)))
        kept = valid[:, length:] & (segments[:, length:] == segments[:, -1:])
        return y, AttentionState(key[:, length:], value[:, length:], kept, start + length)

    def step(self, x: Tensor, is_first: Tensor | None, state: AttentionState) -> tuple[Tensor, AttentionState]:
        check_token(x, self.qkv.in_features, is_first, self.out.weight)
        y, state = self(x[:, None], None if is_first is None else is_first[:, None], state)
        return y[:, 0], state

    def _rotate(self, x: Tensor, position: Tensor) -> Tensor:
        """Rotate pairs of channels of `x[B, T, heads, head_dim]` by angles that grow with `position[B, T]`."""
        angle = (position[..., None] * self.rates)[:, :, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
