"""Exports on the Hugging Face hub: `hf://owner/name`, downloaded into that hub's cache (extra `hub`)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from drama.files import WEIGHTS

SCHEME = "hf:"
FILES = ["config.json", "interface.json", WEIGHTS, "README.md", "metrics.jsonl", "evaluation-*.json"]
"""All that is downloaded, whatever else is there."""


def local(run: str | Path) -> Path:
    """The folder that `run` names: itself, or where its download is.

    Args:
        run: a folder, or `hf://owner/name`, or `hf://owner/name@revision` for a branch, tag or commit.

    Raises:
        ValueError: there is no such export, or it cannot be had.
    """
    text = Path(run).as_posix()  # as a path, it has lost a slash
    if not text.startswith(SCHEME):
        return Path(run)
    parts = re.fullmatch(r"hf:/{1,2}([\w.-]+/[\w.-]+?)(?:@([^@]+))?", text)
    if parts is None:
        raise ValueError(f"{run}: expected hf://owner/name, or hf://owner/name@revision")
    name, revision = parts.groups()
    address = f"hf://{name}" + (f"@{revision}" if revision else "")
    import httpx
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shows = not are_progress_bars_disabled()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        what = "revision" if isinstance(error, errors.RevisionNotFoundError) else "model, or it is private"
        raise ValueError(f"{address}: the hub knows no such {what}") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{address}: {error}") from error
    except (OSError, httpx.HTTPError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(f"{address}: the hub cannot be reached, and there is no download of it ({reason})") from error
    finally:
        if shows:
            enable_progress_bars()
    if not (folder / WEIGHTS).exists():
        raise ValueError(f"{address}: holds no {WEIGHTS}, so it is no export of drama")
    return folder
