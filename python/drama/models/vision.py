"""Convolutional encoder and decoder for square frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drama.config import VisionConfig


class Fold(nn.Linear):
    """Channels-last `[N, C, s * H, s * W]` to `[N, outputs, H, W]`: one linear map of each patch of s x s pixels.

    A convolution whose kernel is as wide as its stride does the same; as one matrix product it is much faster on a CPU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(stride * stride * inputs, outputs, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        s, (n, channels, height, width) = self.stride, x.shape
        rows = x.movedim(1, -1).reshape(n, height // s, s, width // s, s * channels)
        patches = rows.transpose(2, 3).reshape(n, height // s, width // s, self.in_features)
        return super().forward(patches).movedim(-1, 1)


class Unfold(nn.Linear):
    """Channels-last `[N, C, H, W]` to `[N, outputs, s * H, s * W]`: one linear map to each patch; mirrors `Fold`."""

    def __init__(self, inputs: int, outputs: int, stride: int, bias: bool) -> None:
        super().__init__(inputs, stride * stride * outputs, bias=bias)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        s, (n, _, height, width) = self.stride, x.shape
        patches = super().forward(x.movedim(1, -1)).reshape(n, height, width, s, -1)
        return patches.transpose(2, 3).reshape(n, s * height, s * width, -1).movedim(-1, 1)


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
                layers.append(nn.Conv2d(inputs, outputs, config.kernel, stride, config.kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.SiLU()]
            inputs = outputs
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.shape = (inputs, *grid(config, size))
        self.features = inputs * self.shape[1] * self.shape[2]

    def forward(self, frames: Tensor) -> Tensor:
        lead = frames.shape[:-3]
        x = to_unit(frames).reshape(-1, *frames.shape[-3:]).movedim(-1, 1)  # a view: NHWC storage is channels-last
        return self.layers(x).reshape(*lead, self.features)


class Decoder(nn.Module):
    """Latents `[..., inputs]` to frames `[..., size, size, C]` in [0, 1]: the encoder mirrored."""

    def __init__(self, config: VisionConfig, size: int, channels: int, inputs: int) -> None:
        super().__init__()
        width = config.channels[-1]
        self.shape = (width, *grid(config, size))
        self.stem = nn.Linear(inputs, width * self.shape[1] * self.shape[2], bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(width), nn.SiLU()]
        targets = (*reversed(config.channels[:-1]), channels)
        for i, (outputs, stride) in enumerate(zip(targets, reversed(config.strides), strict=True)):
            last = i == len(targets) - 1
            if stride > 2:
                layers.append(Unfold(width, outputs, stride, bias=last))
            else:
                padding, output_padding = config.kernel // 2, stride - 1
                layers.append(
                    nn.ConvTranspose2d(width, outputs, config.kernel, stride, padding, output_padding, bias=last)
                )
            if not last:
                layers += [nn.BatchNorm2d(outputs), nn.SiLU()]
            width = outputs
        self.sigmoid = config.output == "sigmoid"
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor) -> Tensor:
        lead = latent.shape[:-1]
        x = self.stem(latent).reshape(-1, *self.shape).contiguous(memory_format=torch.channels_last)
        x = self.layers(x).movedim(1, -1)
        x = torch.sigmoid(x) if self.sigmoid else x
        return x.reshape(*lead, *x.shape[1:])

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
    return frames.float() / 255


def grid(config: VisionConfig, size: int) -> tuple[int, int]:
    """Height and width of the encoder's output for frames of `size`."""
    for stride in config.strides:
        size //= stride
    return size, size
