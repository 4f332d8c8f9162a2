"""Pictures of what the world model sees and imagines."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drama.imagination import start_from
from drama.models.world_model import WorldModel


@torch.no_grad()
def dream_frames(
    model: WorldModel, obs: Tensor, action: Tensor, is_first: Tensor, context: int
) -> tuple[Tensor, Tensor]:
    """Reconstruct real steps, and dream on from their first `context` frames with the same actions.

    Args:
        obs: `[B, T, H, W, C]` uint8.
        action: `[B, T]`.
        is_first: `[B, T]`.
        context: real frames seen before the dream; at least 2, less than T.

    Returns:
        Reconstructions (each frame through its own posterior) and dreams, both `[B, T, H, W, C]` uint8. The first
        `context` frames of both are the same; from there on the dream sees no real frame.
    """
    z = model.sample(model.encode(obs))
    start = start_from(model, z[:, :context], action[:, :context], is_first[:, :context])
    dreamt, state = start.z, start.state
    latents = []
    for t in range(context - 1, obs.shape[1] - 1):
        first = start.is_first if t == context - 1 else None
        d, state = model.step(dreamt, action[:, t], first, state)
        dreamt = model.sample(model.predict_latent(d))
        latents.append(dreamt)
    open_loop = torch.cat([z[:, :context], torch.stack(latents, dim=1)], dim=1)
    return to_uint8(model.decode(z)), to_uint8(model.decode(open_loop))


def to_uint8(frames: Tensor) -> Tensor:
    """Frames in [0, 1] as uint8."""
    return (frames.float().clamp(0, 1) * 255).round().to(torch.uint8)


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
