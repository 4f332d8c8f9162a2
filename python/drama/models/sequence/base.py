"""The contract that every sequence model keeps, and the pre-norm residual stack that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from drama.models.norm import RMSNorm

State = Any  # a nested tuple of tensors, batch first; opaque to the caller


class SequenceModel(nn.Module, ABC):
    """A causal model of a token stream whose memory is an explicit value.

    The state is returned, never kept in the module: the caller may carry it, drop it, or index it. `is_first` marks
    the tokens that open an episode; nothing before such a token may influence the outputs from it on.

    `forward` (parallel) and `step` (recurrent) are two evaluations of one function.
    """

    @abstractmethod
    def initial_state(self, batch: int) -> State:
        """The state before the first token, for `batch` independent streams, on the module's device."""

    @abstractmethod
    def forward(self, x: Tensor, is_first: Tensor | None = None, state: State | None = None) -> tuple[Tensor, State]:
        """Evaluate `x[B, T, D]` with `is_first[B, T]` (bool; None: no starts); returns `y[B, T, D]` and the state."""

    @abstractmethod
    def step(self, x: Tensor, is_first: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Evaluate one token `x[B, D]` with `is_first[B]`; returns `y[B, D]` and the next state."""


class ResidualStack(SequenceModel):
    """Pre-norm residual layers of one mixer kind, closed by an RMS norm: `x + mixer(norm(x))`, repeated."""

    def __init__(self, mixers: Sequence[SequenceModel], width: int) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.norms = nn.ModuleList(RMSNorm(width) for _ in mixers)
        self.final_norm = RMSNorm(width)

    def initial_state(self, batch: int) -> State:
        return tuple(cast("SequenceModel", mixer).initial_state(batch) for mixer in self.mixers)

    def forward(self, x: Tensor, is_first: Tensor | None = None, state: State | None = None) -> tuple[Tensor, State]:
        states = (None,) * len(self.mixers) if state is None else state
        return self._run(x, states, lambda mixer, h, s: mixer(h, is_first, s))

    def step(self, x: Tensor, is_first: Tensor | None, state: State) -> tuple[Tensor, State]:
        return self._run(x, state, lambda mixer, h, s: mixer.step(h, is_first, s))

    def _run(self, x: Tensor, states: State, evaluate: Callable[..., tuple[Tensor, State]]) -> tuple[Tensor, State]:
        new_states = []
        for mixer, norm, state in zip(self.mixers, self.norms, states, strict=True):
            y, new_state = evaluate(mixer, norm(x), state)
            x = x + y
            new_states.append(new_state)
        return self.final_norm(x), tuple(new_states)


def episode_segments(is_first: Tensor | None) -> Tensor | None:
    """Number the episodes inside each sequence: `is_first[B, T]` to int64 `[B, T]`; 0 continues the incoming state."""
    return None if is_first is None else torch.cumsum(is_first, dim=1)
