"""What is given for a field as an array of the field's dtype; the native half asks for it where it needs a cast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def as_column(
    name: str, dtype: npt.DTypeLike, sides: int, leading: Sequence[int | None], value: npt.ArrayLike
) -> npt.NDArray[Any]:
    """Cast `value`, which may be a list or a number, to a C-contiguous array.

    A cast may round floating-point numbers, as from float64 to float32, and nothing else.

    Args:
        name: of the field.
        dtype: of the field.
        sides: number of axes of a row.
        leading: lengths of the axes before those; the last one may be left out where it is 1.
        value: what was given.

    Raises:
        ValueError: it is no array of numbers, or the cast would lose something.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        kind = type(value).__name__
        raise ValueError(f'field "{name}": got type {kind}, which NumPy makes no array of: {error}') from None
    wanted = np.dtype(dtype)
    if array.dtype.kind not in "biuf":
        got = f"dtype {array.dtype}" if isinstance(value, np.ndarray) else f"type {type(value).__name__}"
        raise ValueError(f'field "{name}": got {got}, expected numbers that {wanted} holds')
    if array.dtype != wanted:
        array = _cast(name, array, wanted)
    if array.ndim == sides + len(leading) - 1 and leading[-1] == 1:
        array = np.expand_dims(array, len(leading) - 1)
    return array if array.flags.c_contiguous else array.copy(order="C")


def _cast(name: str, array: npt.NDArray[Any], wanted: np.dtype[Any]) -> npt.NDArray[Any]:
    with np.errstate(all="ignore"):
        cast = array.astype(wanted)
        lost = np.isfinite(array) & ~np.isfinite(cast)
        if not array.dtype.kind == wanted.kind == "f":  # -1 comes back from an unsigned type as it was
            lost |= (cast.astype(array.dtype) != array) | ((cast < 0) != (array < 0))
    if lost.any():
        first = array[lost].flat[0]
        raise ValueError(f'field "{name}": got {first} (dtype {array.dtype}), which {wanted} does not hold')
    return cast
