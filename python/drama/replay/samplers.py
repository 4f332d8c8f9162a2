"""How the starts of a batch are chosen; use it through `drama.replay`."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, SupportsFloat, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from drama import _native
from drama.replay.casting import as_array, as_column, as_indices

if TYPE_CHECKING:
    from drama.replay.buffer import ReplayBuffer

_FLOAT64 = np.dtype(np.float64)
# Made once, as making them costs a good part of a small draw.
_UNIFORM, _DISTINCT = _native.Sampler.uniform(True), _native.Sampler.uniform(False)
_RECENT = _native.Sampler.recent()

Array: TypeAlias = npt.NDArray[Any]
Batch: TypeAlias = dict[str, Array]
"""Arrays by field name, `indices` int64 `[B]`, which name the rows of the starts, and `weights` float32 `[B]`.

An index is one row's alone for ever, so what comes late for a row that was overwritten does no harm to the one in its
place. Row `t` of environment `e` is `e * L + t % L + (t // L) * E * L`, with E environments of L rows each: with one
environment, `t`. `indices % (E * L)` is the place, or slot, of a row in the counts and priorities of a sampler.
"""
Stack: TypeAlias = Mapping[str, int]
"""How many frames are stacked, by field name."""


def frames_of(stack: Stack | None, out: Batch | None) -> dict[str, int] | None:
    """Give `stack` as the native half takes it.

    Raises:
        TypeError: `stack` is no mapping or `out` is no dict.
    """
    if out is not None and not isinstance(out, dict):
        raise TypeError(f"out: got {type(out).__name__}, expected a dict of arrays by field name")
    if stack is None:
        return None
    if not isinstance(stack, Mapping) or not all(isinstance(name, str) for name in stack):
        raise TypeError(f"stack: got {stack!r}, expected numbers of frames by field name")
    return dict(stack)


def checked_flag(name: str, value: Any) -> bool:
    """A flag, of which no text is taken for true.

    Raises:
        TypeError: it is neither true nor false.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: got {value!r}, expected True or False")
    return bool(value)


def _counts(name: str, state: Mapping[str, Any], dtype: npt.DTypeLike) -> Array:
    """An entry of a `state_dict` that is an array of one axis."""
    array = as_column(name, dtype, 0, [None], state[name])
    if array.ndim != 1:
        raise ValueError(f"{name}: got shape {list(array.shape)}, expected one axis")
    return array


def _number(name: str, value: Any) -> float:
    if not isinstance(value, SupportsFloat) or isinstance(value, str | bytes):
        raise TypeError(f"{name}: got {value!r}, expected a number")
    return float(value)


def _checked_beta(value: Any) -> float:
    beta = _number("beta", value)
    if not 0 <= beta <= 1000:
        raise ValueError(f"beta: {value!r} is not from 0 to 1000")
    return beta


@runtime_checkable
class Sampler(Protocol):
    """Chooses the starts of a batch; anything with this method can be given to `ReplayBuffer.sample`.

    What `ReplayBuffer.sample` is asked for beyond that, `within_episode` or `stack`, it passes on by keyword.
    """

    def sample(self, buffer: ReplayBuffer, batch_size: int, length: int, out: Batch | None = None) -> Batch:
        """Draw `batch_size` sequences of `length` rows into `out`; `buffer.gather` copies chosen ones."""
        ...


@runtime_checkable
class TransitionSampler(Protocol):
    """Chooses the starts of transitions; anything with this method can be given to
    `ReplayBuffer.sample_transitions`.

    `stack` and `next_fields` are passed on by keyword where they were given.
    """

    def sample_transitions(
        self, buffer: ReplayBuffer, batch_size: int, n_step: int, discount: float, out: Batch | None = None
    ) -> Batch:
        """Draw `batch_size` transitions into `out`; `buffer.gather_transitions` puts chosen ones together."""
        ...


class NativeSampler:
    """A sampler of this package: its draws are made in Rust, of sequences and of transitions."""

    @property
    def native_sampler(self) -> _native.Sampler:
        """The sampler as the native half draws with it."""
        raise NotImplementedError

    def sample(
        self,
        buffer: ReplayBuffer,
        batch_size: int,
        length: int,
        out: Batch | None = None,
        within_episode: bool = False,
        stack: Stack | None = None,
    ) -> Batch:
        """Draw a batch; see `ReplayBuffer.sample`."""
        sampler, inside = self.native_sampler, checked_flag("within_episode", within_episode)
        return buffer.native.sample(batch_size, length, sampler, inside, frames_of(stack, out), out)

    def sample_transitions(
        self,
        buffer: ReplayBuffer,
        batch_size: int,
        n_step: int,
        discount: float,
        out: Batch | None = None,
        stack: Stack | None = None,
        next_fields: Sequence[str] = ("obs",),
    ) -> Batch:
        """Draw transitions; see `ReplayBuffer.sample_transitions`."""
        frames = frames_of(stack, out)
        return buffer.native.sample_transitions(
            batch_size, n_step, discount, self.native_sampler, list(next_fields), frames, out
        )


class Uniform(NativeSampler):
    """Every start of every environment is equally likely.

    Args:
        replacement: whether a start can be drawn twice for one batch.
    """

    def __init__(self, replacement: bool = True) -> None:
        self.replacement = checked_flag("replacement", replacement)

    @property
    def native_sampler(self) -> _native.Sampler:
        """The sampler as the native half draws with it."""
        return _UNIFORM if self.replacement else _DISTINCT

    def __repr__(self) -> str:
        return f"Uniform(replacement={self.replacement})"


class MostRecent(NativeSampler):
    """The newest starts, each once: the last of every environment, then the ones before, and so on."""

    @property
    def native_sampler(self) -> _native.Sampler:
        """The sampler as the native half draws with it."""
        return _RECENT

    def __repr__(self) -> str:
        return "MostRecent()"


class Prioritized(NativeSampler):
    """Draws starts in proportion to `priority ** alpha`.

    New rows get the largest priority so far, at first 1. The batch's `weights` are `(N * P) ** -beta` over the largest
    of the batch, where N is the number of starts and P the probability of the start.

    Args:
        alpha: 0 draws uniformly, 1 in proportion to the priorities.
        beta: how far the weights make up for it, 1 for fully; may be set at any time.
        replacement: whether a start can be drawn twice for one batch.

    Raises:
        ValueError: `alpha` or `beta` is not from 0 to 1000.
    """

    def __init__(self, alpha: float = 0.6, beta: float = 0.4, replacement: bool = True) -> None:
        self._alpha = alpha
        self.beta = beta
        self.replacement = checked_flag("replacement", replacement)
        self.native = _native.Prioritized(alpha)
        self._drawn_with: tuple[tuple[bool, float], _native.Sampler] | None = None

    @property
    def beta(self) -> float:
        """How far the weights make up for the priorities; may be set at any time."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        self._beta = _checked_beta(value)

    @property
    def alpha(self) -> float:
        """Exponent of the priorities; it stays as it was given."""
        return self._alpha

    @property
    def native_sampler(self) -> _native.Sampler:
        """The sampler as the native half draws with it."""
        options = (bool(self.replacement), self.beta)
        if self._drawn_with is None or self._drawn_with[0] != options:
            self._drawn_with = (options, _native.Sampler.prioritized(self.native, *options))
        return self._drawn_with[1]

    def update_priorities(self, indices: npt.ArrayLike, priorities: npt.ArrayLike) -> None:
        """Set the priorities, `[B]`, of the rows `indices`, `[B]`, as a batch names them.

        Where a row is named twice, the last priority counts; rows that were overwritten since are passed over.

        Raises:
            ValueError: a row is none that the sampler knows, a priority is negative or not finite, or the lengths
                differ; the message names the first offender and nothing is changed.
        """
        rows, values = as_indices("indices", indices), as_array("priorities", priorities)
        if values.ndim != 1 or (values.size and values.dtype.kind not in "fiu"):
            raise ValueError(f"priorities: got dtype {values.dtype} and shape {values.shape}, expected numbers [B]")
        self.native.update(rows, values if values.dtype == _FLOAT64 else values.astype(np.float64))

    def priorities(self, buffer: ReplayBuffer) -> npt.NDArray[np.float64]:
        """Return a copy of the priorities, float64 `[slots]`; `indices % slots` are the places of a batch's rows."""
        return self.native.priorities(buffer.native)

    def state_dict(self) -> dict[str, Any]:
        """Return `priorities` as of the last use, the `largest` so far, rows `seen` by environment, and `beta`."""
        priorities, largest, seen = self.native.state()
        return {"priorities": priorities, "largest": largest, "seen": seen, "beta": self.beta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            KeyError: an entry is missing.
            ValueError: the entries do not belong together.
        """
        largest, beta = _number("largest", state["largest"]), _checked_beta(state["beta"])
        self.native.set_state(_counts("priorities", state, np.float64), largest, _counts("seen", state, np.uint64))
        self._beta = beta

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.alpha, self.beta, self.replacement), self.state_dict()

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state)

    def __repr__(self) -> str:
        return f"Prioritized(alpha={self.alpha}, beta={self.beta}, replacement={self.replacement})"


class DynamicFrequency:
    """Draws starts by how often they were used: one set of counters, two samplers.

    A start was drawn `n` times by `world_model` and `b` times by `imagination`; `m = b * ratio`. The weights are
    `exp(-n / temperature)` and `exp((n - alpha * m - beta * max(0, n - m)) / temperature)`. No start is drawn twice
    for one batch, and the counts of a slot begin anew when it is overwritten.

    Args:
        temperature: how many uses change the weight by a factor of e; above 0.
        ratio: world-model batch size over imagination batch size.
        alpha: weight of imagination's own use.
        beta: weight of the world model's use beyond imagination's.

    Raises:
        ValueError: `temperature` is not above 0, or another argument is not from 0 to 1e6.
    """

    def __init__(
        self, temperature: float = 10.0, ratio: float = 16 / 1024, alpha: float = 1.0, beta: float = 1.0
    ) -> None:
        self._options = (temperature, ratio, alpha, beta)
        self.native = _native.DynamicFrequency(temperature, ratio, alpha, beta)

    # They stay as they were given: the weights of all rows are computed from them.

    @property
    def temperature(self) -> float:
        """How many uses change the weight by a factor of e."""
        return self._options[0]

    @property
    def ratio(self) -> float:
        """World-model batch size over imagination batch size."""
        return self._options[1]

    @property
    def alpha(self) -> float:
        """Weight of imagination's own use."""
        return self._options[2]

    @property
    def beta(self) -> float:
        """Weight of the world model's use beyond imagination's."""
        return self._options[3]

    @property
    def world_model(self) -> NativeSampler:
        """The sampler of world-model batches."""
        return _Role(self, "world_model")

    @property
    def imagination(self) -> NativeSampler:
        """The sampler of the starts of imagination."""
        return _Role(self, "imagination")

    def counts(self, buffer: ReplayBuffer) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Return copies of `n` and `b`, uint32 `[slots]`; `indices % slots` are the places of a batch's rows."""
        return self.native.counts(buffer.native)

    def state_dict(self) -> dict[str, Any]:
        """Return the counters as of the last use: arrays `n`, `b` and `seen`, integer `num_envs`."""
        n, b, seen, num_envs = self.native.state()
        return {"n": n, "b": b, "seen": seen, "num_envs": num_envs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            KeyError: an entry is missing.
            ValueError: the entries do not belong together.
        """
        n, b = (_counts(name, state, np.uint32) for name in ("n", "b"))
        alike = np.ndim(state["seen"]) == 0
        num_envs = operator.index(state["num_envs"])
        if not 0 <= num_envs <= len(n):  # before memory of that size is asked for
            raise ValueError(f"num_envs: got {num_envs}, expected one that {len(n)} counts can be shared by")
        seen = np.full(num_envs, state["seen"], np.uint64) if alike else _counts("seen", state, np.uint64)
        self.native.set_state(n, b, seen, num_envs)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.temperature, self.ratio, self.alpha, self.beta), self.state_dict()

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state)

    def __repr__(self) -> str:
        arguments = f"temperature={self.temperature}, ratio={self.ratio}, alpha={self.alpha}, beta={self.beta}"
        return f"DynamicFrequency({arguments})"


class _Role(NativeSampler):
    def __init__(self, frequency: DynamicFrequency, role: str) -> None:
        self.frequency = frequency
        self.role = role

    @property
    def native_sampler(self) -> _native.Sampler:
        make = _native.Sampler.world_model if self.role == "world_model" else _native.Sampler.imagination
        return make(self.frequency.native)

    def __repr__(self) -> str:
        return f"{self.frequency}.{self.role}"
