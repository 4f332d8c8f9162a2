"""Convolutional encoder and decoder for square frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drama.config import VisionConfig


class Fold(nn.Linear):
    """Channels-last `[N, C, s * H, s * W]` to `[N, outputs, H, W]`: one linear map of each patch of s x s pixels.

    A convolution whose kernel is as wide as its stride does the same; as one matrix product it is much faster on a CPU.
    Bytes become numbers in [0, 1] once they lie in patches: to move them before is four times less to move.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(stride * stride * inputs, outputs, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        patches = to_patches(x, self.stride)
        return super().forward(patches if x.is_floating_point() else to_unit(patches)).movedim(-1, 1)


class Unfold(nn.Linear):
    """Channels-last `[N, C, H, W]` to `[N, outputs, s * H, s * W]`: one linear map to each patch; mirrors `Fold`."""

    def __init__(self, inputs: int, outputs: int, stride: int, bias: bool) -> None:
        super().__init__(inputs, stride * stride * outputs, bias=bias)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return from_patches(self.patches(x), self.stride)

    def patches(self, x: Tensor) -> Tensor:
        """The patches one by one, `[N, H, W, s * s * outputs]`."""
        return super().forward(x.movedim(1, -1))


class Conv(nn.Conv2d):
    """A convolution padded by half its odd kernel; few channels on CUDA go `by_blocks`."""

    def forward(self, x: Tensor) -> Tensor:
        if not wants_blocks(x, self.stride[0], self.weight):
            return super().forward(x)
        return by_blocks(x, self.weight, self.bias)


class ConvTranspose(nn.ConvTranspose2d):
    """A transposed convolution padded by half its odd kernel; few channels on CUDA go `by_blocks`."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None or not wants_blocks(x, self.stride[0], self.weight):
            return super().forward(x, output_size)
        return by_blocks(x, self.weight.flip(2, 3).transpose(0, 1), self.bias)


FEW = 16
"""Channels of which cuDNN's tensor-core convolutions of stride 1 cannot make use."""


def wants_blocks(x: Tensor, stride: int, weight: Tensor) -> bool:
    """Whether a convolution of `x[N, C, H, W]` is faster `by_blocks`."""
    return x.is_cuda and stride == 1 and min(weight.shape[:2]) <= FEW and not (x.shape[2] % 2 or x.shape[3] % 2)


def by_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of channels-last `x[N, C, H, W]` of stride 1, padded to the same even H and W.

    Blocks of 2 x 2 pixels become channels, so that there are enough of them for a GPU's matrix units; the weight on
    blocks has zeros where a block reaches further than the kernel.
    """
    if torch.is_autocast_enabled(x.device.type):  # now, as all that follows copies x
        x = x.to(torch.get_autocast_dtype(x.device.type))
    weight, x = (F.pad(t, (0, 0, 0, 0, 0, -x.shape[1] % 4)) for t in (weight, x))
    outputs, inputs, kernel, _ = weight.shape
    reach = (kernel // 2 + 1) // 2  # blocks to each side
    before, size = 2 * reach - kernel // 2, 2 * (2 * reach + 1)
    shifted = [
        F.pad(weight, (before + j, size - kernel - before - j, before + i, size - kernel - before - i))
        for i in range(2)
        for j in range(2)
    ]
    taps = torch.stack(shifted).reshape(4 * outputs, inputs, size // 2, 2, size // 2, 2)
    blocks = taps.permute(0, 3, 5, 1, 2, 4).reshape(4 * outputs, 4 * inputs, size // 2, size // 2)
    y = F.conv2d(
        to_patches(x, 2).movedim(-1, 1),
        blocks.contiguous(memory_format=torch.channels_last),
        None if bias is None else bias.repeat(4),
        padding=reach,
    )
    return from_patches(y.movedim(1, -1), 2)


def to_patches(x: Tensor, side: int) -> Tensor:
    """Channels-last `[N, C, side * H, side * W]` to `[N, H, W, side * side * C]`."""
    n, channels, height, width = x.shape
    rows = x.movedim(1, -1).reshape(n, height // side, side, width // side, side * channels)
    return rows.transpose(2, 3).reshape(n, height // side, width // side, -1)


def from_patches(patches: Tensor, side: int) -> Tensor:
    """The inverse of `to_patches`."""
    n, height, width, _ = patches.shape
    rows = patches.reshape(n, height, width, side, -1).transpose(2, 3)
    return rows.reshape(n, side * height, side * width, -1).movedim(-1, 1)


class Encoder(nn.Module):
    """Frames `[..., size, size, C]` uint8 to features `[..., features]`: convolution, batch norm, SiLU per layer."""

    def __init__(self, config: VisionConfig, size: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for outputs, stride in zip(config.channels, config.strides, strict=True):
            if stride > 2:
                layers.append(Fold(inputs, outputs, stride))
            else:
                layers.append(Conv(inputs, outputs, config.kernel, stride, config.kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.SiLU()]
            inputs = outputs
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.shape = (inputs, *grid(config, size))
        self.features = inputs * self.shape[1] * self.shape[2]

    def forward(self, frames: Tensor) -> Tensor:
        lead = frames.shape[:-3]
        x = frames.reshape(-1, *frames.shape[-3:]).movedim(-1, 1)  # a view: NHWC storage is channels-last
        x = x if isinstance(self.layers[0], Fold) else to_unit(x)
        return self.layers(x).reshape(*lead, self.features)


def logits(inputs: int, outputs: int, gain: float) -> list[nn.Module]:
    """A linear layer, and batch norm that begins with `gain` if there is one."""
    layers: list[nn.Module] = [nn.Linear(inputs, outputs)]
    if gain:
        norm = nn.BatchNorm1d(outputs)
        nn.init.constant_(norm.weight, gain)
        layers.append(norm)
    return layers


class CellPosterior(nn.Sequential):
    """Features `[N, C * H * W]` of an encoder of `shape` (C, H, W) to logits `[N, outputs]`: each cell's from its own.

    All cells share their weights. With a `gain`, batch norm begins with it, and is over all cells: one in which nothing
    ever happens is no reason to magnify its noise.
    """

    def __init__(self, shape: tuple[int, int, int], outputs: int, gain: float) -> None:
        channels, height, width = shape
        self.cells = height * width
        super().__init__(*logits(channels, outputs // self.cells, gain))

    def forward(self, features: Tensor) -> Tensor:
        x = features.unflatten(-1, (-1, self.cells)).transpose(-1, -2).flatten(0, 1)
        for layer in self:
            x = layer(x)
        return x.reshape(features.shape[0], -1)  # not `len`, which a trace takes for a constant


class CellStem(nn.Linear):
    """Latents `[..., cells * n]` to `[..., cells, width]`: each cell's from its own, and what is always there."""

    def __init__(self, inputs: int, width: int, cells: int) -> None:
        super().__init__(inputs // cells, width, bias=False)
        self.cells = cells
        self.place = nn.Parameter(torch.randn(cells, width) * 0.1)

    def forward(self, latent: Tensor) -> Tensor:
        return super().forward(latent.unflatten(-1, (self.cells, -1))) + self.place


class Decoder(nn.Module):
    """Latents `[..., inputs]` to frames `[..., size, size, C]` in [0, 1]: the encoder mirrored."""

    def __init__(self, config: VisionConfig, size: int, channels: int, inputs: int, local: bool = False) -> None:
        super().__init__()
        width = config.channels[-1]
        self.shape = (width, *grid(config, size))
        cells = self.shape[1] * self.shape[2]
        self.stem = CellStem(inputs, width, cells) if local else nn.Linear(inputs, width * cells, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(width), nn.SiLU()]
        targets = (*reversed(config.channels[:-1]), channels)
        for i, (outputs, stride) in enumerate(zip(targets, reversed(config.strides), strict=True)):
            last = i == len(targets) - 1
            if stride > 2:
                layers.append(Unfold(width, outputs, stride, bias=last))
            else:
                padding, output_padding = config.kernel // 2, stride - 1
                layers.append(ConvTranspose(width, outputs, config.kernel, stride, padding, output_padding, bias=last))
            if not last:
                layers += [nn.BatchNorm2d(outputs), nn.SiLU()]
            width = outputs
        self.sigmoid = config.output == "sigmoid"
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    @property
    def side(self) -> int:
        """Height and width of the patches that the last layer gives; 1 where it gives pixels."""
        last = self.layers[-1]
        return last.stride if isinstance(last, Unfold) else 1

    def forward(self, latent: Tensor) -> Tensor:
        patches = self.patches(latent)
        frames = from_patches(patches.flatten(0, -4), self.side).movedim(1, -1)
        return frames.reshape(*patches.shape[:-3], *frames.shape[1:])

    def patches(self, latent: Tensor) -> Tensor:
        """The frames as `to_patches` of `side` makes them: `[..., H, W, side * side * C]`."""
        lead = latent.shape[:-1]
        x = self.stem(latent)
        if isinstance(self.stem, CellStem):  # cell by cell, which is channels-last
            x = x.reshape(-1, *self.shape[1:], self.shape[0]).movedim(-1, 1)
        else:
            x = x.reshape(-1, *self.shape).contiguous(memory_format=torch.channels_last)
        *layers, last = self.layers
        for layer in layers:
            x = layer(x)
        x = last.patches(x) if isinstance(last, Unfold) else last(x).movedim(1, -1)
        x = torch.sigmoid(x) if self.sigmoid else x
        return x.reshape(*lead, *x.shape[1:])

    def as_patches(self, frames: Tensor) -> Tensor:
        """Frames `[..., H, W, C]` as `patches` has them."""
        if self.side == 1:
            return frames
        patches = to_patches(frames.reshape(-1, *frames.shape[-3:]).movedim(-1, 1), self.side)
        return patches.reshape(*frames.shape[:-3], *patches.shape[1:])

    @torch.no_grad()
    def set_mean_pixel(self, frames: Tensor) -> None:
        """Start the output bias at the mean of the uint8 `frames[..., C]`, so that training starts from it."""
        mean = to_unit(frames).flatten(0, -2).mean(0).clamp(1e-3, 1 - 1e-3)
        bias = self.layers[-1].bias
        assert isinstance(bias, Tensor)
        value = torch.logit(mean) if self.sigmoid else mean
        bias.copy_(value.repeat(len(bias) // len(value)))  # for every pixel of a patch


def to_unit(frames: Tensor) -> Tensor:
    """uint8 frames as float32 in [0, 1]."""
    return torch.div(frames, 255)  # in one pass


def grid(config: VisionConfig, size: int) -> tuple[int, int]:
    """Height and width of the encoder's output for frames of `size`."""
    for stride in config.strides:
        size //= stride
    return size, size
