"""Batches drawn ahead by a thread, and batches as torch tensors. Importing this module imports NumPy only."""

from __future__ import annotations

import inspect
import operator
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast, overload

from drama.hints import needed_by

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from drama.replay.buffer import ReplayBuffer
    from drama.replay.samplers import Batch

__all__ = ["Prefetcher", "to_torch"]

T = TypeVar("T")


def to_torch(
    batch: Mapping[str, npt.NDArray[Any]], device: torch.device | str | int | None = None, pin: bool = False
) -> dict[str, torch.Tensor]:
    """Give the arrays of a batch as torch tensors.

    Args:
        batch: arrays by name, such as `ReplayBuffer.sample` returns.
        device: where the tensors go; by default they share memory with the arrays.
        pin: copy to pinned memory first, so that the copy to `device` runs beside the computation. Without CUDA it
            has no effect.

    Raises:
        ModuleNotFoundError: torch is not installed; names the extra that brings it.
    """
    with needed_by("drama.replay.to_torch", "train"):
        import torch

    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    pinned = pin and torch.cuda.is_available()
    if pinned:
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    if device is not None:
        tensors = {name: tensor.to(device, non_blocking=pinned) for name, tensor in tensors.items()}
    return tensors


class Prefetcher(Generic[T]):
    """An endless iterator over batches that a thread draws ahead; a context manager, too.

    Batches come in the order in which they were drawn, each from the generator of `buffer`: while nothing is added,
    and nobody else draws, they are the batches that as many calls of `sample` would return. Batch `i` is drawn after
    batch `i - depth` was handed out, so it misses some of the rows and priorities that came since. Which ones is left
    to chance, except after `settle`, when all draws due have been made: with `settle` before each change, equal seeds
    and equal calls give equal batches.

    A batch is the caller's, as one that `sample` returns; `depth` batches are in memory beside those in use.

    An error takes the place of its batch: `next` raises it, and the draw is tried again for the `next` after that.

    Args:
        buffer: where to draw from.
        sample: arguments of `buffer.sample` by name, as in `{"batch_size": 16, "length": 64}`, or a function without
            arguments that returns a batch, as in `functools.partial(buffer.sample_transitions, 32)`. It is called in
            the thread.
        depth: how many batches are kept ready.
        transform: called in the thread with each batch; what it returns is handed out in the batch's place, as with
            `functools.partial(to_torch, device="cuda", pin=True)`.

    Raises:
        ValueError: `depth` is less than 1, or `sample` has an entry `out`.
        TypeError: an argument is of the wrong type, `buffer.sample` does not take the entries of `sample`, or it is a
            function that cannot be called without arguments.
    """

    @overload
    def __init__(
        self: Prefetcher[Batch],
        buffer: ReplayBuffer,
        sample: Mapping[str, Any] | Callable[[], Batch],
        depth: int = 2,
        transform: None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        buffer: ReplayBuffer,
        sample: Mapping[str, Any] | Callable[[], Batch],
        depth: int = 2,
        *,
        transform: Callable[[Batch], T],
    ) -> None: ...

    def __init__(
        self,
        buffer: ReplayBuffer,
        sample: Mapping[str, Any] | Callable[[], Batch],
        depth: int = 2,
        transform: Callable[[Batch], Any] | None = None,
    ) -> None:
        try:
            depth = operator.index(depth)
        except TypeError:
            raise TypeError(f"depth: got {depth!r}, expected an integer of at least 1") from None
        if depth < 1:
            raise ValueError(f"depth: got {depth}, expected an integer of at least 1")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform: got {transform!r}, expected a function of a batch")
        self._line = _Line(_draw(buffer, sample), depth, transform)
        self._thread = threading.Thread(target=self._line.run, name="drama-prefetch", daemon=True)
        self._thread.start()
        # Also when the prefetcher is forgotten or the interpreter ends, which no thread may outlive inside a draw.
        self._close = weakref.finalize(self, _close, self._line, self._thread)

    def __iter__(self) -> Prefetcher[T]:
        return self

    def __next__(self) -> T:
        """Wait for the next batch; StopIteration once closed.

        Raises:
            RuntimeError: this process was forked from the one that draws.
        """
        self._check_process()
        return cast(T, self._line.take())

    def _check_process(self) -> None:
        if self._close.alive and not self._thread.is_alive():
            raise RuntimeError("the prefetcher's thread is not in this process: make a new one after a fork")

    def settle(self) -> None:
        """Wait until `depth` batches, or an error, are ready: then nothing is drawn before the next `next`.

        Raises:
            RuntimeError: this process was forked from the one that draws.
        """
        self._check_process()
        self._line.settle()

    def close(self) -> None:
        """Stop drawing and drop the batches that are ready, once the draw under way has ended (10 s at most)."""
        self._close()

    def __reduce__(self) -> NoReturn:
        what = "a Prefetcher cannot be pickled or copied, as it draws in a thread"
        raise TypeError(f"{what}: make another, of the buffer or of its copy")

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Line:
    """What the thread and its prefetcher share; apart, so that the thread does not keep the prefetcher alive."""

    def __init__(self, draw: Callable[[], Batch], depth: int, transform: Callable[[Batch], Any] | None) -> None:
        self.draw = draw
        self.depth = depth
        self.transform = transform
        self.changed = threading.Condition()
        self.ready: deque[tuple[Any, BaseException | None]] = deque()
        self.closed = False

    def full(self) -> bool:
        return self.closed or len(self.ready) >= self.depth or (bool(self.ready) and self.ready[-1][1] is not None)

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.closed or not self.full())
                if self.closed:
                    return
            made = self.make()
            with self.changed:
                if not self.closed:
                    self.ready.append(made)
                self.changed.notify_all()
            del made

    def make(self) -> tuple[Any, BaseException | None]:
        try:
            batch = self.draw()
            if not isinstance(batch, Mapping):
                raise TypeError(f"sample: the function returned {type(batch).__name__}, expected arrays by name")
            return (batch if self.transform is None else self.transform(batch)), None
        except BaseException as error:  # the caller's to handle, whatever it is
            return None, error

    def take(self) -> Any:
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self.ready)
            if self.closed:
                raise StopIteration
            batch, error = self.ready.popleft()
            self.changed.notify_all()
        if error is not None:
            raise error
        return batch

    def settle(self) -> None:
        with self.changed:
            self.changed.wait_for(self.full)


def _draw(buffer: ReplayBuffer, sample: Mapping[str, Any] | Callable[[], Batch]) -> Callable[[], Batch]:
    """The function that draws a batch. Refuses what the first batch would tell."""
    if callable(sample):
        try:
            inspect.signature(sample).bind()
        except ValueError:  # written in C
            pass
        except TypeError as error:
            raise TypeError(f"sample: {_named(sample)} is called without arguments: {error}") from None
        return sample
    if not isinstance(sample, Mapping) or not all(isinstance(name, str) for name in sample):
        raise TypeError(f"sample: got {sample!r}, expected arguments by name or a function")
    if not callable(getattr(buffer, "sample", None)):
        raise TypeError(f"buffer: got {type(buffer).__name__}, expected a ReplayBuffer")
    if "out" in sample:
        raise ValueError("sample: got an entry 'out', but batches that wait cannot share memory")
    try:
        inspect.signature(buffer.sample).bind(**sample)
    except TypeError as error:
        given = ", ".join(sample) or "no arguments"
        raise TypeError(f"sample: got {given} for ReplayBuffer.sample: {error}") from None
    return partial(buffer.sample, **sample)


def _named(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _close(line: _Line, thread: threading.Thread) -> None:
    if not thread.is_alive():  # in a forked process, where the lock may be held for ever
        return
    with line.changed:
        line.closed = True
        line.ready.clear()
        line.changed.notify_all()
    if thread is not threading.current_thread():
        thread.join(timeout=10)
