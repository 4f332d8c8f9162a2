import os
from collections.abc import Sequence
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

__all__ = ["AtariStepper", "DynamicFrequency", "Prioritized", "Replay", "__version__"]

__version__: str

_AtariState: TypeAlias = tuple[bytes, bytes, tuple[list[int], int, int] | None, int]
_Source: TypeAlias = str | tuple[DynamicFrequency, str] | tuple[Prioritized, bool, float]

@final
class Replay:
    def __new__(
        cls,
        capacity: int,
        fields: Sequence[tuple[str, str, Sequence[int]]],
        num_envs: int,
        seed: int,
        storage: str | os.PathLike[str] | None = None,
    ) -> Replay: ...
    def add(self, columns: dict[str, npt.NDArray[Any]], envs: npt.NDArray[np.int64] | None = None) -> None: ...
    def add_block(self, columns: dict[str, npt.NDArray[Any]]) -> None: ...
    def set_final(self, envs: npt.NDArray[np.int64], columns: dict[str, npt.NDArray[Any]]) -> None: ...
    def sample(
        self,
        batch_size: int,
        length: int,
        sampler: _Source,
        within_episode: bool = False,
        stack: dict[str, int] | None = None,
        out: dict[str, npt.NDArray[Any]] | None = None,
    ) -> dict[str, npt.NDArray[Any]]: ...
    def sample_transitions(
        self,
        batch_size: int,
        n_step: int,
        discount: float,
        sampler: _Source,
        next_fields: Sequence[str],
        stack: dict[str, int] | None = None,
        out: dict[str, npt.NDArray[Any]] | None = None,
    ) -> dict[str, npt.NDArray[Any]]: ...
    def gather(
        self,
        indices: npt.NDArray[np.int64],
        length: int,
        within_episode: bool = False,
        stack: dict[str, int] | None = None,
        out: dict[str, npt.NDArray[Any]] | None = None,
    ) -> dict[str, npt.NDArray[Any]]: ...
    def save(self, path: str | os.PathLike[str]) -> None: ...
    @staticmethod
    def load(path: str | os.PathLike[str], storage: str | os.PathLike[str] | None = None) -> Replay: ...
    def __len__(self) -> int: ...
    @property
    def totals(self) -> npt.NDArray[np.int64]: ...
    @property
    def capacity(self) -> int: ...
    @property
    def num_envs(self) -> int: ...
    @property
    def rows_per_env(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def fields(self) -> list[tuple[str, str, list[int]]]: ...

@final
class DynamicFrequency:
    def __new__(cls, temperature: float, ratio: float, alpha: float, beta: float) -> DynamicFrequency: ...
    def counts(self, replay: Replay) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]: ...
    def state(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint64], int]: ...
    def set_state(
        self, n: npt.NDArray[np.uint32], b: npt.NDArray[np.uint32], seen: npt.NDArray[np.uint64], num_envs: int
    ) -> None: ...

@final
class Prioritized:
    def __new__(cls, alpha: float) -> Prioritized: ...
    def update(self, indices: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None: ...
    def priorities(self, replay: Replay) -> npt.NDArray[np.float64]: ...
    def state(self) -> tuple[npt.NDArray[np.float64], float, npt.NDArray[np.uint64]]: ...
    def set_state(self, values: npt.NDArray[np.float64], largest: float, seen: npt.NDArray[np.uint64]) -> None: ...

@final
class AtariStepper:
    def __new__(
        cls,
        ale: Any,
        *,
        frame_skip: int,
        size: tuple[int, int],
        grayscale: bool,
        pool: bool = True,
        stack: int = 1,
        repeat_action_probability: float = 0.0,
        life_loss_terminal: bool = False,
    ) -> AtariStepper: ...
    def begin(self, seed: int | None = None) -> None: ...
    def act(self, action: int) -> float: ...
    def reset(self, out: npt.NDArray[np.uint8]) -> int: ...
    def step(self, action: int, out: npt.NDArray[np.uint8]) -> tuple[float, bool, bool, int, bool]: ...
    def state(self) -> _AtariState: ...
    def set_state(self, state: _AtariState) -> None: ...
