"""Pictures of what the world model sees and imagines: frames as they are, numbers as curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw
from torch import Tensor

from drama.interface import Image, Interface, Vector
from drama.models.observation import Parts

CURVES = 8
"""Numbers that are drawn; of more, the first."""
PLOT_WIDTH, PLOT_HEIGHT, MARGIN = 256, 40, 4
COLOURS = ((235, 235, 235), (90, 160, 255), (255, 110, 90))
"""Of the real curve, the reconstruction and the dream."""


def dream_video(
    interface: Interface, real: Parts, reconstruction: Parts, dream: Parts, context: int, scale: int = 3
) -> NDArray[np.uint8]:
    """Real steps, their reconstruction and the dream as a video `[T, H, W, 3]`.

    All are by part, `[B, T, ...]`. Images are three rows in that order, sequences side by side, pixels `scale` times as
    large; numbers are curves over the steps of the first sequence: white, blue and red in that order. A bar below is
    green during the context and red while the model dreams.
    """
    pieces = []
    for name, part in interface.observation.items():
        shown = [parts[name].detach().cpu().numpy() for parts in (real, reconstruction, dream)]
        pieces.append(_frames(shown, scale) if isinstance(part, Image) else _curves(part, [x[0] for x in shown]))
    width = max(piece.shape[2] for piece in pieces)
    pieces = [np.pad(piece, ((0, 0), (0, 0), (0, width - piece.shape[2]), (0, 0))) for piece in pieces]
    bar = np.zeros((len(pieces[0]), 2 * scale, width, 3), np.uint8)
    bar[:context, ..., 1] = 200
    bar[context:, ..., 0] = 200
    return np.concatenate([*pieces, bar], axis=1)


def dream_strip(video: NDArray[np.uint8], columns: int = 8) -> NDArray[np.uint8]:
    """`columns` moments of a dream video, evenly spaced, side by side in one picture `[H, W, 3]`."""
    moments = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
    return np.concatenate([video[t] for t in moments], axis=1)


def picture(interface: Interface, parts: dict[str, Tensor]) -> NDArray[np.uint8]:
    """One observation by part, `[...]`, as a picture `[H, W, 3]`: images side by side, numbers as bars below."""
    images, bars = [], []
    for name, part in interface.observation.items():
        x = parts[name].detach().cpu().numpy()
        if isinstance(part, Image):
            images.append(_coloured(x))
        else:
            bars.append(_bars(part, x))
    height = max((image.shape[0] for image in images), default=0)
    rows = (
        [np.concatenate([np.pad(i, ((0, height - i.shape[0]), (0, 0), (0, 0))) for i in images], 1)] if images else []
    )
    width = max(row.shape[1] for row in [*rows, *bars])
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in [*rows, *bars]])


def _coloured(x: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[..., 1 to 4]` as `[..., 3]`: gray in three channels, two with an empty third, four without the last."""
    channels = x.shape[-1]
    if channels == 1:
        return np.repeat(x, 3, axis=-1)
    return x[..., :3] if channels > 2 else np.concatenate([x, np.zeros_like(x[..., :1])], axis=-1)


def _frames(shown: Sequence[NDArray[np.uint8]], scale: int) -> NDArray[np.uint8]:
    rows = []
    for frames in shown:
        x = np.pad(_coloured(frames), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        rows.append(np.concatenate(list(x), axis=2))
    return np.concatenate(rows, axis=1).repeat(scale, axis=1).repeat(scale, axis=2)


def _curves(part: Vector, shown: Sequence[NDArray[np.float32]]) -> NDArray[np.uint8]:
    """A video of curves that grow, `[T, H, W, 3]`, one field for each number, from values `[T, N]`."""
    steps, count = len(shown[0]), min(len(part.labels), CURVES)
    low = np.min([x.min(0) for x in shown], axis=0)[:count]
    span = np.maximum(np.max([x.max(0) for x in shown], axis=0)[:count] - low, 1e-6)
    across = np.linspace(MARGIN, PLOT_WIDTH - MARGIN, steps)
    frames = []
    for now in range(steps):
        canvas = Pillow.new("RGB", (PLOT_WIDTH, PLOT_HEIGHT * count))
        draw = ImageDraw.Draw(canvas)
        for i, label in enumerate(part.labels[:count]):
            draw.text((MARGIN, PLOT_HEIGHT * i), label, fill=(120, 120, 120))
            for values, colour in zip(shown, COLOURS, strict=True):
                share = (values[: now + 1, i] - low[i]) / span[i]
                down = PLOT_HEIGHT * (i + 1) - MARGIN - share * (PLOT_HEIGHT - 2 * MARGIN)
                points = [(float(x), float(y)) for x, y in zip(across, down, strict=False)]
                draw.line([*points, points[-1]], fill=colour)
        frames.append(np.asarray(canvas))
    return np.stack(frames)


def _bars(part: Vector, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A bar for each of the first numbers, from the middle, as long as its arc tangent."""
    count = min(len(part.labels), CURVES)
    canvas = Pillow.new("RGB", (PLOT_WIDTH, PLOT_HEIGHT // 2 * count))
    draw = ImageDraw.Draw(canvas)
    middle = PLOT_WIDTH / 2
    for i, (label, value) in enumerate(zip(part.labels[:count], values.tolist(), strict=False)):
        top = PLOT_HEIGHT // 2 * i
        end = middle + float(np.arctan(value)) / np.pi * (PLOT_WIDTH - 2 * MARGIN)
        draw.rectangle((min(middle, end), top + 12, max(middle, end), top + 18), fill=COLOURS[2])
        draw.text((MARGIN, top), f"{label} {value:+.2f}", fill=(200, 200, 200))
    return np.asarray(canvas)
