"""Replay buffer of per-environment streams, and the samplers that draw sequences from it.

Row `t` of a stream is `(o_t, a_t, r_t, terminated_t, truncated_t, is_first_t)`: the frame seen before acting, the
action, and what came of it. Sequences are consecutive rows of one environment; they may run over the end of an
episode, which `is_first` shows.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from drama import _native
from drama.replay.casting import as_indices
from drama.replay.samplers import Batch, Sampler, Stack, TransitionSampler, Uniform, checked_flag, frames_of

FieldSpec: TypeAlias = tuple[Sequence[int], npt.DTypeLike]

_SAMPLERS = "Uniform(), MostRecent(), Prioritized() or a role of DynamicFrequency()"


if TYPE_CHECKING:
    _of_class = classmethod
else:

    class _of_class(classmethod):
        """A class method that an instance refuses, as its result would be lost on most who call it there."""

        def __get__(self, instance: object, owner: type | None = None) -> Any:
            return super().__get__(instance, owner) if instance is None else self._refuse

        def _refuse(self, *_: object, **__: object) -> NoReturn:
            name = self.__func__.__name__
            raise TypeError(f"{name} makes a new buffer: call ReplayBuffer.{name}(...) and keep what it returns")


def _unpickle(cls: type[ReplayBuffer], files: dict[str, bytes]) -> ReplayBuffer:
    with TemporaryDirectory(prefix="drama-") as folder:
        for name, content in files.items():
            (Path(folder) / Path(name).name).write_bytes(content)
        buffer = cls.__new__(cls)
        buffer.native = _native.Replay.restore(folder)
        return buffer


def _path(name: str, given: str | os.PathLike[str]) -> str:
    """The path of a directory, as the native half takes it."""
    try:
        path = os.fsdecode(given)
    except TypeError:
        raise TypeError(f"{name}: got {given!r}, expected the path of a directory") from None
    if not path or "\0" in path:
        raise ValueError(f"{name}: got {path!r}, expected the path of a directory")
    return path


def _next_names(next_fields: Sequence[str]) -> list[str]:
    names = isinstance(next_fields, Collection) and all(isinstance(name, str) for name in next_fields)
    if isinstance(next_fields, str) or not names:
        raise TypeError(f"next_fields: got {next_fields!r}, expected a sequence of names")
    return list(next_fields)


def _declared(name: str, spec: FieldSpec) -> tuple[list[int], str]:
    """Shape and dtype of a field, as the native half takes them."""
    if not isinstance(name, str):
        raise TypeError(f"fields: got the name {name!r}, expected a str")
    if not name.isprintable():
        raise ValueError(f"fields: got the name {name!r}, expected one that can be printed")
    try:
        shape, given = spec
        sides = list(shape)
    except (TypeError, ValueError):
        raise TypeError(f'field "{name}": got {spec!r}, expected (shape, dtype) such as ((84, 84), np.uint8)') from None
    try:
        if given is None:  # which NumPy takes for float64
            raise TypeError("expected one of NumPy's")
        dtype = np.dtype(given)
    except TypeError as error:
        raise TypeError(f'field "{name}": dtype {given!r}: {error}') from None
    if not dtype.isnative:
        raise ValueError(f'field "{name}": dtype {dtype} is not supported, expected native byte order')
    return sides, dtype.name


class ReplayBuffer:
    """Stores the last rows of `num_envs` streams and draws sequences from them.

    Memory is taken as rows are written. All methods may be called from several threads, and a process may fork
    meanwhile: the child's buffer is a copy. `StepWriter` adds what an environment's `step` returns; a pickle, or a copy
    by the module `copy`, has all rows and draws what this one would.

    With `storage` the rows lie in mapped files instead, for more data than there is memory. These files are working
    memory, not a save: they have no name, and their room is free again when the buffer is gone or the process ends,
    however it ends. All of that room is reserved at once, so that a disk that fills up later does not matter. A
    forked process shares the rows rather than having a copy.

    With `compress` each row of the fields named is compressed by itself (LZ4, lossless) when added, and decompressed
    into the batch when drawn, by several threads for large batches. A row takes as much memory as it needs, which is
    free again once it is overwritten; rows that do not get smaller are kept as they are.

    Args:
        capacity: rows to keep over all environments. Each keeps `capacity / num_envs` of them, rounded up: of 10 rows
            for 3 environments, each keeps 4 (`rows_per_env`).
        fields: row shape and dtype by name. `terminated` and `truncated`, both `((), bool)`, are always there, as is
            `is_first`, which is derived.
        num_envs: number of streams.
        seed: seed of the draws. With None they differ from run to run, and only a save or a copy can repeat them.
        storage: a directory for the mapped files, created if need be; Linux and macOS only.
        compress: names of the fields whose rows are compressed; not together with `storage`.

    Raises:
        ValueError: a size is not positive, a field has a reserved name or an unsupported dtype, or a field cannot be
            compressed.
        TypeError: a number is no integer, or `fields` is no mapping of names to shape and dtype.
        OSError: `storage` cannot be written or has too little room.
        MemoryError: there is no memory for the rows.
    """

    def __init__(
        self,
        capacity: int,
        fields: Mapping[str, FieldSpec],
        num_envs: int = 1,
        seed: int | None = 0,
        storage: str | os.PathLike[str] | None = None,
        compress: Collection[str] = (),
    ) -> None:
        if not isinstance(fields, Mapping):
            raise TypeError(f"fields: got {type(fields).__name__}, expected a mapping of names to (shape, dtype)")
        declared = {name: _declared(name, spec) for name, spec in fields.items()}
        names = isinstance(compress, Collection) and all(name in list(declared) for name in compress)
        if isinstance(compress, str) or not names:
            raise ValueError(f"compress: got {compress!r}, expected names of declared fields ({', '.join(declared)})")
        native_fields = [(name, dtype, shape, name in compress) for name, (shape, dtype) in declared.items()]
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        directory = None if storage is None else _path("storage", storage)
        self.native = _native.Replay(capacity, native_fields, num_envs, seed, directory)
        self.storage = storage

    def add(self, *, envs: npt.ArrayLike | None = None, **columns: npt.ArrayLike) -> None:
        """Add one row to every environment, or to some.

        A row holds what was seen before its action. With a vector that resets by itself, not every step makes a row:
        `StepWriter` knows which.

        Arrays of another dtype, lists and numbers are cast, which may round floating-point numbers and must not lose
        anything else; arrays that need no cast and are C-contiguous are fastest.

        Args:
            envs: the different environments, integers `[K]`, that the rows belong to; by default all in order.
            columns: one array `[K, ...]` per field, or the row alone where K is 1. `is_first` is optional: the first
                row of a stream and each row after an episode's end are marked in any case.

        Raises:
            ValueError: a field is unknown or missing, an array has the wrong shape or does not fit the field's dtype,
                `is_first` is false after an episode's end, or an environment does not exist or is named twice; then
                nothing is added.
        """
        self.native.add(columns, envs)

    def add_block(self, **columns: npt.ArrayLike) -> None:
        """Add T rows to every environment: as `add`, with arrays `[T, num_envs, ...]`, or `[T, ...]` for one."""
        self.native.add_block(columns)

    def set_final(self, *, envs: npt.ArrayLike, **columns: npt.ArrayLike) -> None:
        """Keep what was seen after the last row of some environments, for `sample_transitions` to go on from.

        It is kept until the row is overwritten, or a next row goes on with the episode.

        Args:
            envs: the different environments, integers `[K]`.
            columns: one array `[K, ...]` for each field that is known, such as `obs`; cast as by `add`.

        Raises:
            ValueError: as `add`, or an environment has no row; then nothing is kept.
        """
        self.native.set_final(envs, columns)

    def clear(self) -> None:
        """Forget all rows, but not how far the random numbers are. Memory stays for the rows to come.

        A sampler with a memory has to be made anew. Rows are named from the beginning again: `indices` of batches that
        were drawn before name other rows afterwards.
        """
        self.native.clear()

    def rows(self, env: int = 0) -> Batch:
        """Copies of the rows that an environment holds, `[rows, ...]` by field name, oldest first.

        Raises:
            IndexError: there is no such environment.
        """
        return self.native.rows(env)

    def sample(
        self,
        batch_size: int,
        length: int,
        sampler: Sampler | None = None,
        out: Batch | None = None,
        within_episode: bool = False,
        stack: Stack | None = None,
    ) -> Batch:
        """Draw `batch_size` sequences of `length` rows.

        Args:
            batch_size: number of sequences B.
            length: rows of each sequence T.
            sampler: how starts are chosen; by default uniformly, with replacement.
            out: arrays to use again, such as an earlier batch of the same shape or pinned memory. Without it the memory
                of earlier batches is used again, once nobody has anything of them any more.
            within_episode: end a sequence with its episode or with the newest row. What is lacking is zero, and `mask`,
                bool `[B, T]`, is true for the rows that are real. Every row is a start then.
            stack: frames k by field: the field becomes `[B, T, k, ...]`, the last k frames of the episode up to each
                row, oldest first, its first frame repeated where there are fewer. A start is not drawn once a frame of
                its stack is overwritten.

        Returns:
            Arrays `[B, T, ...]` by field name, `indices` int64 `[B]` and `weights` float32 `[B]`.

        Raises:
            ValueError: there are too few starts, a size is out of range, or an array of `out` does not fit.
            TypeError: an argument is of the wrong type.
            MemoryError: there is no memory for the batch.
        """
        options: dict[str, Any] = {}
        if checked_flag("within_episode", within_episode):
            options["within_episode"] = True
        if stack is not None:
            options["stack"] = stack
        if sampler is None:
            sampler = Uniform()
        elif isinstance(sampler, type) or not hasattr(sampler, "sample"):
            raise TypeError(f"sampler: got {sampler!r}, expected {_SAMPLERS} or an object with a method `sample`")
        return sampler.sample(self, batch_size, length, out, **options)

    def sample_transitions(
        self,
        batch_size: int,
        n_step: int = 1,
        discount: float = 0.99,
        sampler: TransitionSampler | None = None,
        out: Batch | None = None,
        stack: Stack | None = None,
        next_fields: Sequence[str] = ("obs",),
    ) -> Batch:
        """Draw `batch_size` transitions over `n_step` rows, or fewer where the episode ends.

        What follows the last row is read from the next one; where there is none that goes on, it is what `set_final`
        was given, or zero after a termination. A row is no start where it is unknown: those before the end of an
        episode truncated or broken off without `set_final`, and the newest rows of an episode under way.

        Args:
            batch_size: number of transitions B.
            n_step: rows of each, at most.
            discount: factor of a reward one row later, from 0 to 1.
            sampler: how starts are chosen; by default uniformly, with replacement.
            out: arrays to use again, as in `sample`.
            stack: frames by field, as in `sample`.
            next_fields: the fields wanted of what follows.

        Returns:
            Arrays `[B, ...]` by field name, of the first row, but `reward` the discounted sum (float32, or float64 if
            stored so), `terminated` and `truncated` of the last row; `next_<field>` for each of `next_fields`;
            `steps` int64 `[B]`, the rows k used; `discount` float32 `[B]`, `discount**k`, or 0 after a termination;
            `indices` and `weights` as in `sample`.

        Raises:
            ValueError: there are too few starts, no field `reward`, a name is unknown, a number is out of range, or an
                array of `out` does not fit.
            TypeError: an argument is of the wrong type.
        """
        options: dict[str, Any] = {}
        if stack is not None:
            options["stack"] = stack
        given = type(next_fields) is not tuple or next_fields != ("obs",)  # a look costs a part of a small draw
        if given and (names := _next_names(next_fields)) != ["obs"]:
            options["next_fields"] = names
        if sampler is None:
            sampler = Uniform()
        elif isinstance(sampler, type) or not hasattr(sampler, "sample_transitions"):
            what = "an object with a method `sample_transitions`"
            raise TypeError(f"sampler: got {sampler!r}, expected {_SAMPLERS} or {what}")
        return sampler.sample_transitions(self, batch_size, n_step, discount, out, **options)

    def gather(
        self,
        indices: npt.ArrayLike,
        length: int,
        out: Batch | None = None,
        within_episode: bool = False,
        stack: Stack | None = None,
    ) -> Batch:
        """Copy the sequences of `length` rows that start in the rows `indices`, `[B]`, into `out` as `sample` does.

        Rows are named as in `Batch`, which `sample` returns.

        Raises:
            ValueError: `indices` are no integers `[B]`.
            IndexError: a row is not there or was overwritten, fewer than `length` rows follow from it, or a frame to
                stack is gone.
        """
        inside = checked_flag("within_episode", within_episode)
        return self.native.gather(as_indices("indices", indices), length, inside, frames_of(stack, out), out)

    def gather_transitions(
        self,
        indices: npt.ArrayLike,
        n_step: int = 1,
        discount: float = 0.99,
        out: Batch | None = None,
        stack: Stack | None = None,
        next_fields: Sequence[str] = ("obs",),
    ) -> Batch:
        """Put together the transitions that start in the rows `indices`, `[B]`, as `sample_transitions` does.

        Raises:
            ValueError: as `sample_transitions`, or `indices` are no integers `[B]`.
            IndexError: a row is not there or was overwritten, what follows its transition is unknown, or a frame to
                stack is gone.
        """
        frames = frames_of(stack, out)
        return self.native.gather_transitions(
            as_indices("indices", indices), n_step, discount, _next_names(next_fields), frames, out
        )

    def indices_at(self, slots: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """What batches name the rows by that lie in `slots`, integers `[B]` (see `rows_per_env`); int64 `[B]`.

        Raises:
            ValueError: `slots` are no integers `[B]`.
            IndexError: a slot holds no row.
        """
        return self.native.indices_at(as_indices("slots", slots))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to the directory `path`, writing only what changed since the last save or load.

        A save that is cut off leaves the one before it intact. Rows can be added and drawn meanwhile. Several savers of
        one buffer, in several processes too, take turns; no file is touched but those of this buffer.

        Raises:
            OSError: a file cannot be written.
            ValueError: the directory has the save of another buffer; a copy or pickle of this one is another.
        """
        self.native.save(_path("path", path))

    @_of_class
    def load(cls, path: str | os.PathLike[str], storage: str | os.PathLike[str] | None = None) -> ReplayBuffer:
        """Load what `save` wrote, into mapped files if `storage` is given; draws continue as they would have.

        Raises:
            FileNotFoundError: there is no save.
            OSError: a file cannot be read, or `storage` cannot be written or has too little room.
            ValueError: a file is damaged, foreign or of another version; the message names it.
        """
        directory = Path(_path("path", path))
        if directory.is_dir() and not os.path.lexists(directory / "manifest.json"):
            what = "No buffer was saved to this directory, or it would have a manifest.json"
            raise FileNotFoundError(errno.ENOENT, what, str(directory))
        buffer = cls.__new__(cls)
        buffer.native = _native.Replay.load(str(directory), None if storage is None else _path("storage", storage))
        buffer.storage = storage
        return buffer

    def __reduce__(self) -> tuple[Any, ...]:
        if self.storage is not None:
            what = "a buffer with storage= cannot be pickled or copied"
            raise TypeError(f"{what}: save it, and load it with another storage=")
        with TemporaryDirectory(prefix="drama-") as folder:
            self.native.dump(folder)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        others = {name: value for name, value in vars(self).items() if name != "native"}
        return _unpickle, (type(self), files), others

    def __len__(self) -> int:
        """Rows held now, over all environments."""
        return len(self.native)

    @property
    def totals(self) -> npt.NDArray[np.int64]:
        """Rows that each environment has ever been given, `[num_envs]`."""
        return self.native.totals

    @property
    def total(self) -> int:
        """The largest of `totals`; where rows are always added to all environments, the rows of each."""
        return int(self.native.totals.max())

    @property
    def capacity(self) -> int:
        """Capacity as asked for, over all environments; `num_envs * rows_per_env` is what it was rounded up to."""
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
        return {name: (tuple(shape), np.dtype(dtype)) for name, dtype, shape, _ in self.native.fields}

    @property
    def nbytes(self) -> int:
        """Size in bytes once every row is written, before compression."""
        return self.native.nbytes

    @property
    def stored_nbytes(self) -> int:
        """Bytes that the rows held now take, compressed where asked for."""
        return self.native.stored_nbytes

    @property
    def compress(self) -> tuple[str, ...]:
        """The fields whose rows are compressed."""
        return tuple(name for name, *_, compressed in self.native.fields if compressed)

    def __repr__(self) -> str:
        fields = (f"{name}: {dtype}{list(shape) if shape else ''}" for name, (shape, dtype) in self.fields.items())
        each = f", rows_per_env={self.rows_per_env}" if self.num_envs > 1 else ""
        size = f"capacity={self.capacity}, num_envs={self.num_envs}{each}, rows={len(self)}"
        return f"ReplayBuffer({size}, fields={{{', '.join(fields)}}})"
