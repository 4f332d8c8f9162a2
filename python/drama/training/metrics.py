"""What a run writes: TensorBoard events, a line-per-event JSON file, and GIFs."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.writer import SummaryWriter

from drama.files import write_atomically
from drama.training.callbacks import Callback

if TYPE_CHECKING:
    from drama.training.trainer import Trainer


class JsonLines(Callback):
    """Writes `metrics.jsonl` into the run folder.

    Each line is one flat object with `event`, `step`, `time` (seconds since the epoch) and the values;
    `pandas.read_json(path, lines=True)` reads it. A resumed run appends, after what lay beyond the checkpoint was
    dropped.
    """

    def on_start(self, trainer: Trainer) -> None:
        path = trainer.run / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines()
            write_atomically(path, "".join(line + "\n" for line in lines if _step(line) <= trainer.step))
        self._file = path.open("a", buffering=1)

    def on_episode(self, trainer: Trainer, episode: Mapping[str, float]) -> None:
        self._write("episode", trainer.step, episode)

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        self._write("train", trainer.step, values)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        del trainer, error
        self._file.close()

    def _write(self, event: str, step: int, values: Mapping[str, float]) -> None:
        """Record named scalars. Values that are not finite become null."""
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"event": event, "step": step, "time": round(time.time(), 3), **plain}) + "\n")


class TensorBoard(Callback):
    """Writes scalars, dreams and reconstructions as TensorBoard events into `tensorboard/` of the run folder."""

    def on_start(self, trainer: Trainer) -> None:
        self._board = SummaryWriter(str(trainer.run / "tensorboard"), purge_step=trainer.step + 1)

    def on_episode(self, trainer: Trainer, episode: Mapping[str, float]) -> None:
        self._write("episode", trainer.step, episode)

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        self._write("train", trainer.step, values)

    def on_pictures(self, trainer: Trainer, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        for name, picture in pictures.items():
            if picture.ndim == 3:
                self._board.add_image(name, picture, trainer.step, dataformats="HWC")
                continue
            _, height, width, channels = picture.shape  # as the animated GIF that it shows
            image = Summary.Image(
                height=height, width=width, colorspace=channels, encoded_image_string=encode_video(picture, ".gif")
            )
            video = Summary(value=[Summary.Value(tag=name, image=image)])
            self._board._get_file_writer().add_summary(video, trainer.step)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        del trainer, error
        self._board.close()

    def _write(self, event: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"{event}/{name}", value, step)


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
