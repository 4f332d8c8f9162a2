"""Checkpoints: atomic, the last two kept, the replay beside the weights."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from drama.files import fsync_folder
from drama.replay import ReplayBuffer

KEEP = 2
VERSION = 3
NAMES = {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch.storage UntypedStorage"}
"""What a state.pt refers to, besides storages, dtypes and ordered dictionaries."""
PARTS = {"learner", "collector", "updater", "recent", "torch_random", "cuda_random"}


def save(run: Path, step: int, state: dict[str, Any], replay: ReplayBuffer, *, replace: bool = False) -> Path:
    """Write `run/checkpoints/step-N/` and drop all but the last two.

    The folder gets its name only once everything in it is on disk, and loses it before anything in it is removed, so
    a kill at any instant leaves whole ones. What a failure had written is removed: it would fill a full disk further.
    A checkpoint of the same step is written anew only with `replace`.

    Raises:
        OSError: it cannot be written; the earlier ones are untouched.
    """
    assert state.keys() == PARTS, state.keys() ^ PARTS
    parent = run / "checkpoints"
    parent.mkdir(parents=True, exist_ok=True)
    for stale in parent.glob(".tmp-*"):
        shutil.rmtree(stale)
    final = parent / f"step-{step:09d}"
    if final.exists() and not replace:
        return final
    folder = parent / f".tmp-{final.name}"
    try:
        folder.mkdir()
        replay.save(folder / "replay")
        # Serialised in memory first: torch's writer answers a full disk with an error that does not tell of it.
        data = io.BytesIO()
        torch.save({"version": VERSION, "step": step, **state}, data)
        with (folder / "state.pt").open("wb") as file:
            file.write(data.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        fsync_folder(folder)
        if final.exists():
            shutil.rmtree(final.rename(parent / f".tmp-old-{final.name}"))
        folder.rename(final)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    fsync_folder(parent)
    for old in list_checkpoints(run)[:-KEEP]:
        shutil.rmtree(old.rename(parent / f".tmp-{old.name}"))
    return final


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def latest(run: Path) -> Path:
    """The newest checkpoint of a run. Raises ValueError where there is none."""
    if not run.is_dir():
        raise ValueError(f"{run}: no such run folder")
    found = list_checkpoints(run)
    if not found:
        raise ValueError(f"{run}: holds no checkpoint")
    return found[-1]


def at_step(run: Path, step: int) -> Path:
    """The checkpoint of a run at this step. Raises ValueError, listing those that are there, if it is not."""
    newest = latest(run)
    folder = newest.with_name(f"step-{step:09d}")
    if not folder.is_dir():
        there = ", ".join(str(int(path.name.removeprefix("step-"))) for path in list_checkpoints(run))
        raise ValueError(f"{run}: holds no checkpoint of step {step}; there are {there}")
    return folder


def load_state(folder: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint's `state.pt`. Raises ValueError, naming the file, if it cannot be read or lacks a part.

    The file may be somebody else's: it takes no more memory than its size.
    """
    path = folder / "state.pt"
    try:
        _check_file(path)
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        _check_tensors(state)
    except FileNotFoundError:
        if not folder.is_dir():
            raise ValueError(f"{folder}: the run has gone on and removed this checkpoint; try again") from None
        raise ValueError(f"{path}: the checkpoint lacks this file") from None
    except (
        *(OSError, RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, MemoryError),
        *(pickle.UnpicklingError, zipfile.BadZipFile),
    ) as error:
        raise ValueError(f"{path}: truncated, damaged, or not a checkpoint") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        found = state.get("version") if isinstance(state, dict) else None
        raise ValueError(f"{path}: checkpoint version {found}, this package reads version {VERSION}")
    if missing := sorted((PARTS | {"step"}) - state.keys()):
        raise ValueError(f"{path}: the checkpoint lacks {', '.join(missing)}")
    return state


def _check_file(path: Path) -> None:
    """Raise ValueError where reading the file would take more memory than it is large, or make what no checkpoint has.

    PyTorch unpacks compressed records, and lets a file make byte arrays and tensors of any size.
    """
    with zipfile.ZipFile(path) as file:
        records = file.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("a record is compressed")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("the records are larger than the file")
        (name,) = [record.filename for record in records if record.filename.endswith("/data.pkl")]
        for code, argument, _ in pickletools.genops(file.read(name)):
            if code.name in ("STACK_GLOBAL", "INST"):  # which torch does not write
                raise ValueError(f"{code.name} is in it")
            if code.name == "GLOBAL" and not _is_ours(str(argument)):
                raise ValueError(f"{argument} is in it")


def _is_ours(name: str) -> bool:
    """Whether a checkpoint refers to what has this name in `torch`'s or Python's modules."""
    module, _, kind = name.partition(" ")
    of_torch = module == "torch" and (kind.endswith("Storage") or isinstance(getattr(torch, kind, None), torch.dtype))
    return of_torch or name in NAMES or name == "collections OrderedDict"


def _check_tensors(state: Any) -> None:
    """Raise ValueError for a tensor that stands for more values than it holds."""
    left, seen = [state], set()
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value
        elif isinstance(value, torch.Tensor) and value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {list(value.shape)} repeats what it holds")
