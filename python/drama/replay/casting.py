"""What is given for a field as an array of the field's dtype; the native half asks for it where it needs a cast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def as_array(what: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
    """`value` as a plain array, whose numbers are not looked at.

    Args:
        what: what an error names.
        value: what was given.

    Raises:
        ValueError: NumPy makes no array of it, or it has masked values, which a plain array would show as any others.
    """
    if type(value) is np.ndarray:
        return value
    masked = f"{what}: got masked values, expected none: `filled` of numpy.ma puts others in their place"
    if _has_masked(value):
        raise ValueError(masked)
    try:
        array = np.asanyarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{what}: got type {type(value).__name__}, which NumPy makes no array of: {error}") from None
    if np.ma.is_masked(array):  # of something that is no array itself
        raise ValueError(masked)
    return np.asarray(array)


def _has_masked(value: Any, depth: int = 64) -> bool:
    """Whether there is a masked value in an array or in lists, as deep as NumPy makes an array of."""
    if isinstance(value, list | tuple):
        return depth > 0 and any(_has_masked(each, depth - 1) for each in value)
    return isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value)


def as_indices(name: str, value: npt.ArrayLike, axis: str = "B") -> npt.NDArray[np.int64]:
    """`value` as int64 `[axis]`, whatever kind of integer it has.

    Raises:
        ValueError: it is none of that, a mask of booleans for instance.
    """
    array = as_array(name, value)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name}: got dtype {array.dtype} and shape {array.shape}, expected integers [{axis}]")
    if array.size and array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: got {array.max()}, expected integers [{axis}] below 2**63")
    return np.ascontiguousarray(array, np.int64)


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
        ValueError: it is no array of numbers, some are masked, or the cast would lose something.
    """
    array = as_array(f'field "{name}"', value)
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
