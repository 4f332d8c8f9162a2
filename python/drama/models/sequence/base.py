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

    one_piece: bool = True
    """Whether `forward` is worth compiling: a loop over tokens would be unrolled, for minutes."""

    @abstractmethod
    def initial_state(self, batch: int) -> State:
        """The state before the first token, for `batch` independent streams, on the module's device."""

    @abstractmethod
    def forward(self, x: Tensor, is_first: Tensor | None = None, state: State | None = None) -> tuple[Tensor, State]:
        """Evaluate `x[B, T, D]` with `is_first[B, T]` (bool; None: no starts); returns `y[B, T, D]` and the state."""

    @abstractmethod
    def step(self, x: Tensor, is_first: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Evaluate one token `x[B, D]` with `is_first[B]`; returns `y[B, D]` and the next state."""

    def step_(self, x: Tensor, is_first: Tensor | None, state: State) -> tuple[Tensor, State]:
        """As `step`, for a `state` that the caller gives up: the next state may be written over it. No gradients."""
        return self.step(x, is_first, state)


class ResidualStack(SequenceModel):
    """Pre-norm residual layers of one mixer kind, closed by an RMS norm: `x + mixer(norm(x))`, repeated.

    A value that is not finite makes the rest of its episode so, and nothing beyond it: the stack keeps such inputs from
    the mixers, whose masks multiply.
    """

    def __init__(self, mixers: Sequence[SequenceModel], width: int) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.norms = nn.ModuleList(RMSNorm(width) for _ in mixers)
        self.final_norm = RMSNorm(width)
        self.one_piece = all(mixer.one_piece for mixer in mixers)

    def initial_state(self, batch: int) -> State:
        return tuple(cast("SequenceModel", mixer).initial_state(batch) for mixer in self.mixers)

    def forward(self, x: Tensor, is_first: Tensor | None = None, state: State | None = None) -> tuple[Tensor, State]:
        weight = self.final_norm.weight
        check_tokens(x, len(weight), is_first, weight)
        spoilt = None
        if is_first is not None:
            bad, broken = ~x.isfinite().all(-1), None
            x = x.masked_fill(bad[..., None], 0.0)
            if state is not None:
                self._check_states(state, x.shape[0])
                broken = _broken(state)
                state = _where(broken, self.initial_state(x.shape[0]), state)
            spoilt = _after(bad, is_first, broken)
        states = (None,) * len(self.mixers) if state is None else state
        y, state = self._run(x, states, lambda mixer, h, s: mixer(h, is_first, s))
        if spoilt is None:
            return y, state
        return y.masked_fill(spoilt[..., None], torch.nan), _spoil(spoilt[:, -1], state)

    def step(self, x: Tensor, is_first: Tensor | None, state: State) -> tuple[Tensor, State]:
        weight = self.final_norm.weight
        check_token(x, len(weight), is_first, weight)
        y, state = self._run(x, state, lambda mixer, h, s: mixer.step(h, is_first, _started(mixer, is_first, s)))
        return y, state if is_first is None else _spoil(~y.isfinite().all(-1), state)

    def step_(self, x: Tensor, is_first: Tensor | None, state: State) -> tuple[Tensor, State]:
        y, state = self._run(x, state, lambda mixer, h, s: mixer.step_(h, is_first, _started(mixer, is_first, s)))
        return y, state if is_first is None else _spoil(~y.isfinite().all(-1), state)

    def _run(
        self, x: Tensor, states: State, evaluate: Callable[[SequenceModel, Tensor, State], tuple[Tensor, State]]
    ) -> tuple[Tensor, State]:
        self._check_states(states)
        new_states = []
        for mixer, norm, state in zip(self.mixers, self.norms, states, strict=True):
            y, new_state = evaluate(cast("SequenceModel", mixer), norm(x), state)
            x = x + y
            new_states.append(new_state)
        return self.final_norm(x), tuple(new_states)

    def _check_states(self, states: State, batch: int | None = None) -> None:
        """Raise ValueError unless there is one state for each layer, for `batch` streams; None leaves each to them."""
        if not isinstance(states, tuple) or len(states) != len(self.mixers):
            found = f"{len(states)} of them" if isinstance(states, tuple) else type(states).__name__
            raise ValueError(
                f"state: expected a tuple of one state for each of {len(self.mixers)} layers, found {found}"
            )
        if batch is not None:
            for mixer, state in zip(self.mixers, states, strict=True):
                check_state(state, cast("SequenceModel", mixer).initial_state, batch)


def _map(function: Callable[..., Tensor], *states: State) -> State:
    """`function` of the tensors at each place of states of one kind."""
    first = states[0]
    if isinstance(first, Tensor):
        return function(*states)
    parts = [_map(function, *parts) for parts in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def _where(rows: Tensor, there: State, elsewhere: State) -> State:
    """The state `there` in `rows[B]`, which are bool, and `elsewhere` in the others."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        chosen = rows.view(-1, *[1] * (b.dim() - 1))
        if b.dtype == torch.bool:  # onnxruntime has no `where` of these
            return (chosen & a) | (~chosen & b)
        return torch.where(chosen, a.to(b.dtype), b)

    return _map(choose, there, elsewhere)


def _spoil(rows: Tensor, state: State) -> State:
    """The state with nothing finite in `rows[B]`, for the rest of their episodes."""
    nans = _map(lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else t, state)
    return _where(rows, nans, state)


def _started(mixer: SequenceModel, is_first: Tensor | None, state: State) -> State:
    """The state before a token: the initial one where an episode begins."""
    if is_first is None:
        return state
    check_state(state, mixer.initial_state, is_first.shape[0])
    return _where(is_first, mixer.initial_state(is_first.shape[0]), state)


def _broken(state: State) -> Tensor:
    """`[B]` bool, whose state holds a value that is not finite."""
    if isinstance(state, Tensor):
        return ~state.isfinite().flatten(1).all(1) if state.dim() > 1 else ~state.isfinite()
    return torch.stack([_broken(part) for part in state]).any(0)


def _after(bad: Tensor, is_first: Tensor, broken: Tensor | None) -> Tensor:
    """`[B, T]` bool: in each episode, the tokens from its first `bad[B, T]` on, and all if its state is `broken[B]`."""
    if broken is not None:
        bad = torch.cat([bad[:, :1] | (broken & ~is_first[:, 0])[:, None], bad[:, 1:]], dim=1)
    count = bad.long().cumsum(1)
    before = torch.where(is_first, count - bad.long(), 0).cummax(1).values  # what earlier episodes count
    return count > before


def episode_segments(is_first: Tensor | None) -> Tensor | None:
    """Number the episodes inside each sequence: `is_first[B, T]` to int64 `[B, T]`; 0 continues the incoming state."""
    return None if is_first is None else torch.cumsum(is_first, dim=1)


def check_positive(**sizes: int) -> None:
    """Raise ValueError that names a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: {size} must be at least 1")


def check_tokens(x: Tensor, width: int, is_first: Tensor | None, parameter: Tensor) -> None:
    """Raise ValueError, naming the argument, unless `x` is `[B, T >= 1, width]` and fits `is_first` and the model."""
    if x.dim() != 3 or x.shape[1] < 1 or x.shape[2] != width:
        raise ValueError(f"x: expected [B, T >= 1, {width}], found {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x: expected a floating dtype, found {x.dtype}; convert it first")
    if x.device != parameter.device:
        raise ValueError(f"x: is on {x.device}, the model on {parameter.device}; move one of them")
    if is_first is not None and (is_first.shape != x.shape[:2] or is_first.dtype != torch.bool):
        raise ValueError(f"is_first: expected bool {list(x.shape[:2])}, found {is_first.dtype} {list(is_first.shape)}")


def check_token(x: Tensor, width: int, is_first: Tensor | None, parameter: Tensor) -> None:
    """As `check_tokens`, for one token of each stream: `x[B, width]` and `is_first[B]`."""
    if x.dim() != 2:
        raise ValueError(f"x: expected [B, {width}], found {list(x.shape)}")
    check_tokens(x[:, None], width, None if is_first is None else is_first[:, None], parameter)


def check_state(state: State, initial: Callable[[int], State], batch: int) -> None:
    """Raise ValueError, naming what differs, unless the tuple of tensors `state` is shaped as `initial(batch)` is."""
    expected = initial(0)
    names = getattr(expected, "_fields", range(len(expected)))
    if not isinstance(state, tuple) or len(state) != len(expected):
        raise ValueError(
            f"state: expected {len(expected)} tensors, {', '.join(map(str, names))}; is it another backend's?"
        )
    for name, found, like in zip(names, state, expected, strict=True):
        shape = [batch, *like.shape[1:]]
        if not isinstance(found, Tensor) or list(found.shape) != shape:
            raise ValueError(
                f"state.{name}: expected {shape}, found {list(getattr(found, 'shape', []))}; is it another batch's or"
                " another backend's?"
            )
        if found.device != like.device:
            raise ValueError(f"state.{name}: is on {found.device}, the model on {like.device}; move one of them")
        if found.is_floating_point() != like.is_floating_point():
            raise ValueError(f"state.{name}: expected a dtype like {like.dtype}, found {found.dtype}; convert it first")
