"""Replay buffer of per-environment streams, and the samplers that draw sequences from it.

Row `t` of a stream is `(o_t, a_t, r_t, terminated_t, truncated_t, is_first_t)`: the frame seen before acting, the
action, and what came of it. Sequences are consecutive rows of one environment; they may run over the end of an
episode, which `is_first` shows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from drama import _native

__all__ = ["Batch", "DynamicFrequency", "ReplayBuffer", "Sampler", "Uniform"]

Array: TypeAlias = npt.NDArray[Any]
Batch: TypeAlias = dict[str, Array]
"""Arrays `[B, T, ...]` by field name, `indices` int64 `[B]` (slots of the starts) and `weights` float32 `[B]`."""
FieldSpec: TypeAlias = tuple[Sequence[int], npt.DTypeLike]


@runtime_checkable
class Sampler(Protocol):
    """Chooses the starts of a batch; anything with this method can be given to `ReplayBuffer.sample`."""

    def sample(self, buffer: ReplayBuffer, batch_size: int, length: int, out: Batch | None = None) -> Batch:
        """Draw `batch_size` sequences of `length` rows into `out`; `buffer.gather` copies chosen ones."""
        ...


class Uniform:
    """Every start of every environment is equally likely.

    Args:
        replacement: whether a start can be drawn twice for one batch.
    """

    def __init__(self, replacement: bool = True) -> None:
        self.replacement = replacement

    def sample(self, buffer: ReplayBuffer, batch_size: int, length: int, out: Batch | None = None) -> Batch:
        """Draw a batch; see `ReplayBuffer.sample`."""
        return buffer.native.sample_uniform(batch_size, length, self.replacement, out)

    def __repr__(self) -> str:
        return f"Uniform(replacement={self.replacement})"


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
        self.temperature = temperature
        self.ratio = ratio
        self.alpha = alpha
        self.beta = beta
        self.native = _native.DynamicFrequency(temperature, ratio, alpha, beta)

    @property
    def world_model(self) -> Sampler:
        """The sampler of world-model batches."""
        return _Role(self, "world_model")

    @property
    def imagination(self) -> Sampler:
        """The sampler of the starts of imagination."""
        return _Role(self, "imagination")

    def counts(self, buffer: ReplayBuffer) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Return copies of `n` and `b`, uint32 `[slots]`, indexed as a batch's `indices` are."""
        return self.native.counts(buffer.native)

    def state_dict(self) -> dict[str, Any]:
        """Return the counters as of the last use: arrays `n` and `b`, integers `seen` and `num_envs`."""
        n, b, seen, num_envs = self.native.state()
        return {"n": n, "b": b, "seen": seen, "num_envs": num_envs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            KeyError: an entry is missing.
            ValueError: the entries do not belong together.
        """
        n, b = (np.asarray(state[name], dtype=np.uint32) for name in ("n", "b"))
        self.native.set_state(n, b, int(state["seen"]), int(state["num_envs"]))

    def __repr__(self) -> str:
        arguments = f"temperature={self.temperature}, ratio={self.ratio}, alpha={self.alpha}, beta={self.beta}"
        return f"DynamicFrequency({arguments})"


class _Role:
    def __init__(self, frequency: DynamicFrequency, role: str) -> None:
        self.frequency = frequency
        self.role = role

    def sample(self, buffer: ReplayBuffer, batch_size: int, length: int, out: Batch | None = None) -> Batch:
        return buffer.native.sample_dfs(batch_size, length, self.frequency.native, self.role, out)

    def __repr__(self) -> str:
        return f"{self.frequency}.{self.role}"


class ReplayBuffer:
    """Stores the last rows of `num_envs` streams and draws sequences from them.

    Memory is taken as rows are written. All methods may be called from several threads.

    Args:
        capacity: rows to keep over all environments, rounded up to a multiple of `num_envs`.
        fields: row shape and dtype by name. `terminated` and `truncated`, both `((), bool)`, are always there, as is
            `is_first`, which is derived.
        num_envs: number of streams.
        seed: seed of the draws.

    Raises:
        ValueError: a size is not positive, or a field has a reserved name or an unsupported dtype.
    """

    def __init__(self, capacity: int, fields: Mapping[str, FieldSpec], num_envs: int = 1, seed: int = 0) -> None:
        native_fields = [
            (name, np.dtype(dtype).name, [int(side) for side in shape]) for name, (shape, dtype) in fields.items()
        ]
        self.native = _native.Replay(capacity, native_fields, num_envs, seed)

    def add(self, **columns: Array) -> None:
        """Add one row to every environment.

        Args:
            columns: one C-contiguous array `[num_envs, ...]` per field. `is_first` is optional: the first row of a
                stream and each row after an episode's end are marked in any case.

        Raises:
            ValueError: a field is unknown or missing, or an array has the wrong shape, dtype or order; then nothing
                is added.
        """
        self.native.add(columns)

    def add_block(self, **columns: Array) -> None:
        """Add T rows to every environment: as `add`, with arrays `[T, num_envs, ...]`."""
        self.native.add_block(columns)

    def sample(self, batch_size: int, length: int, sampler: Sampler | None = None, out: Batch | None = None) -> Batch:
        """Draw `batch_size` sequences of `length` rows.

        Args:
            batch_size: number of sequences B.
            length: rows of each sequence T.
            sampler: how starts are chosen; by default uniformly, with replacement.
            out: arrays to use again, such as an earlier batch of the same shape or pinned memory. Large batches are
                drawn several times faster into memory that is there already.

        Returns:
            Arrays `[B, T, ...]` by field name, `indices` int64 `[B]` and `weights` float32 `[B]`.

        Raises:
            ValueError: there are too few starts, a size is out of range, or an array of `out` does not fit.
        """
        return (sampler or Uniform()).sample(self, batch_size, length, out)

    def gather(self, indices: npt.ArrayLike, length: int, out: Batch | None = None) -> Batch:
        """Copy the sequences of `length` rows that start in the slots `indices`, `[B]`, into `out` as `sample` does.

        Raises:
            IndexError: a slot holds no row, or fewer than `length` rows follow from it.
        """
        return self.native.gather(np.asarray(indices, dtype=np.int64), length, out)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to the directory `path`, writing only what changed since the last save or load.

        A save that is cut off leaves the one before it intact.

        Raises:
            OSError: a file cannot be written.
        """
        self.native.save(os.fspath(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReplayBuffer:
        """Load what `save` wrote; draws continue as they would have.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is damaged, foreign or of a newer version; the message names it.
        """
        buffer = cls.__new__(cls)
        buffer.native = _native.Replay.load(os.fspath(path))
        return buffer

    def __len__(self) -> int:
        """Rows held now, over all environments."""
        return len(self.native)

    @property
    def total(self) -> int:
        """Rows that each environment has ever been given."""
        return self.native.total

    @property
    def capacity(self) -> int:
        """Capacity as asked for, over all environments."""
        return self.native.capacity

    @property
    def num_envs(self) -> int:
        """Number of streams."""
        return self.native.num_envs

    @property
    def rows_per_env(self) -> int:
        """Rows L that each environment keeps: row `t` of environment `e` is in slot `e * L + t % L`."""
        return self.native.rows_per_env

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Row shape and dtype of every field, built-in ones included."""
        return {name: (tuple(shape), np.dtype(dtype)) for name, dtype, shape in self.native.fields}

    @property
    def nbytes(self) -> int:
        """Size in bytes once every row is written."""
        return self.native.nbytes

    def __repr__(self) -> str:
        return f"ReplayBuffer(capacity={self.capacity}, num_envs={self.num_envs}, rows={len(self)})"
