"""What a run writes: TensorBoard events, a line-per-event JSON file, and GIFs."""

from __future__ import annotations

import io
import json
import math
import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.writer import SummaryWriter

from drama.files import write_atomically


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard events into a run folder.

    Each line of `metrics.jsonl` is one flat object with `event`, `step`, `time` (seconds since the epoch) and the
    values; `pandas.read_json(path, lines=True)` reads it. A resumed run appends, after `keep_until` has dropped what
    lay beyond the checkpoint.
    """

    def __init__(self, folder: Path, keep_until: int) -> None:
        path = folder / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines()
            write_atomically(path, "".join(line + "\n" for line in lines if _step(line) <= keep_until))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=keep_until + 1)

    def write(self, event: str, step: int, values: dict[str, float]) -> None:
        """Record named scalars. Values that are not finite become null in the JSON file."""
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"event": event, "step": step, "time": round(time.time(), 3), **plain}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{event}/{name}", value, step)

    def image(self, name: str, step: int, image: NDArray[np.uint8]) -> None:
        """Record a picture `[H, W, C]` in TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def video(self, name: str, step: int, frames: NDArray[np.uint8]) -> None:
        """Record a video `[T, H, W, C]` in TensorBoard, as the animated GIF that it shows."""
        _, height, width, channels = frames.shape
        image = Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=encode_video(frames, ".gif")
        )
        self._board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Flush and close both files. What fails after an earlier error is not told: it has the same cause."""
        try:
            self._file.close()
            self._board.close()
        except OSError:
            if error is None:
                raise


def _step(line: str) -> float:
    """The step of a line of `metrics.jsonl`; infinite for one that a kill cut off."""
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return math.inf


def encode_picture(picture: NDArray[np.uint8]) -> bytes:
    """Encode `[H, W, 3]` as PNG."""
    data: bytes = iio.imwrite("<bytes>", picture, extension=".png")
    return data


def encode_video(frames: NDArray[np.uint8], extension: str, fps: float = 15) -> bytes:
    """Encode `[T, H, W, 1 or 3]` frames as `.gif` or `.mp4`."""
    if frames.shape[-1] == 1:
        frames = np.repeat(frames, 3, axis=-1)
    if extension == ".gif":
        data = io.BytesIO()
        iio.imwrite(data, frames, extension=".gif", duration=1000 / fps, loop=0)
        return data.getvalue()
    height, width = (side - side % 2 for side in frames.shape[1:3])  # the codec wants even sides
    video: bytes = iio.imwrite(
        "<bytes>", frames[:, :height, :width], extension=extension, plugin="pyav", codec="libx264", fps=fps
    )
    return video
