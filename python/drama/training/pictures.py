"""Pictures of what the world model sees and imagines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def dream_video(real: Tensor, reconstruction: Tensor, dream: Tensor, context: int, scale: int = 3) -> NDArray[np.uint8]:
    """Stack three rows, real, reconstruction and dream, into a video `[T, H, W, 3]`, sequences side by side.

    Each is `[B, T, H, W, C]` uint8; `scale` enlarges the pixels. A bar below the dream is green during the context and
    red while the model dreams.
    """
    rows = []
    for frames in (real, reconstruction, dream):
        x = frames.cpu().numpy()
        x = np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
        x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        rows.append(np.concatenate(list(x), axis=2))
    video = np.concatenate(rows, axis=1).repeat(scale, axis=1).repeat(scale, axis=2)
    bar = np.zeros((video.shape[0], 2 * scale, video.shape[2], 3), np.uint8)
    bar[:context, ..., 1] = 200
    bar[context:, ..., 0] = 200
    return np.concatenate([video, bar], axis=1)


def dream_strip(video: NDArray[np.uint8], columns: int = 8) -> NDArray[np.uint8]:
    """`columns` moments of a dream video, evenly spaced, side by side in one picture `[H, W, 3]`."""
    moments = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
    return np.concatenate([video[t] for t in moments], axis=1)
