"""Plain values as JSON and back: what environments tell of their state, without unpickling anything."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np


def dumps(value: Any) -> str:
    """JSON of numbers, text, bytes, arrays, and of lists and dictionaries of them. Raises TypeError for others."""
    return json.dumps(_told(value))


def loads(text: str) -> Any:
    """What `dumps` was given. Raises ValueError if the text is something else."""
    try:
        return _made(json.loads(text))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a stored value: {type(error).__name__} {error}") from error


def _told(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    if isinstance(value, bytes | bytearray):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": data, "dtype": value.dtype.str, "shape": value.shape}
    if isinstance(value, tuple):
        return {"tuple": [_told(item) for item in value]}
    if isinstance(value, list):
        return [_told(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[_told(key), _told(item)] for key, item in value.items()]}
    raise TypeError(f"{type(value).__name__} is no plain value")


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return [_made(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "bytes" in value:
        return base64.b64decode(value["bytes"])
    if "array" in value:
        dtype = np.dtype(value["dtype"])
        if dtype.kind not in "biuf":
            raise ValueError(f"dtype {dtype}")
        return np.frombuffer(base64.b64decode(value["array"]), dtype).reshape(value["shape"]).copy()
    if "tuple" in value:
        return tuple(_made(item) for item in value["tuple"])
    return {_made(key): _made(item) for key, item in value["dict"]}
