"""The convolutional encoder and decoder."""

from __future__ import annotations

import math
from typing import Literal
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from drama.config import VisionConfig
from drama.models.vision import Decoder, Encoder, Fold, Unfold, to_unit

SMALL = VisionConfig(channels=(4, 6, 8), strides=(2, 2, 2))


def frames(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def shapes(module: nn.Module, kind: type[nn.Module]) -> list[tuple[int, ...]]:
    return [tuple(m.weight.shape) for m in module.modules() if isinstance(m, kind) and isinstance(m.weight, Tensor)]


def test_pixels_are_divided_by_255() -> None:
    unit = to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
    torch.testing.assert_close(unit, torch.tensor([0.0, 0.2, 1.0]))


def test_encoder_reads_rows_columns_and_channels_in_order() -> None:
    """One 1x1 convolution of weight 1: the features are SiLU of the pixels, row by row."""
    encoder = Encoder(VisionConfig(channels=(1,), strides=(1,), kernel=1), 2, 1).eval()
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.fill_(1)
    obs = torch.tensor([[0, 51], [102, 255]], dtype=torch.uint8).reshape(1, 2, 2, 1)
    x = torch.tensor([[0.0, 0.2, 0.4, 1.0]])
    torch.testing.assert_close(encoder(obs), x / (1 + torch.exp(-x)), atol=1e-5, rtol=1e-4)


def test_decoder_writes_rows_columns_in_order() -> None:
    """One 1x1 convolution of weight 1 after an identity stem: the pixels are SiLU of the latent, row by row."""
    decoder = Decoder(VisionConfig(channels=(1,), strides=(1,), kernel=1, output="linear"), 2, 1, 4).eval()
    with torch.no_grad():
        decoder.stem.weight.copy_(torch.eye(4))
        for module in decoder.modules():
            if isinstance(module, nn.ConvTranspose2d):
                module.weight.fill_(1)
    decoder.set_mean_pixel(torch.zeros(1, 2, 2, 1, dtype=torch.uint8))
    z = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    expected = (z / (1 + torch.exp(-z))).reshape(1, 2, 2, 1)
    torch.testing.assert_close(decoder(z), expected, atol=2e-3, rtol=1e-3)


def test_the_papers_encoder() -> None:
    encoder = Encoder(VisionConfig(), 64, 3)
    assert encoder.features == 1024
    assert encoder.shape == (64, 4, 4)
    assert shapes(encoder, nn.Conv2d) == [
        (16, 3, 5, 5),
        (32, 16, 5, 5),
        (48, 32, 5, 5),
        (64, 48, 5, 5),
        (64, 64, 5, 5),
    ]
    strides = [m.stride for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert strides == [(1, 1), (2, 2), (2, 2), (2, 2), (2, 2)]
    assert shapes(encoder, nn.BatchNorm2d) == [(16,), (32,), (48,), (64,), (64,)]


def test_the_papers_decoder() -> None:
    decoder = Decoder(VisionConfig(), 64, 3, 1024)
    assert tuple(decoder.stem.weight.shape) == (1024, 1024)
    assert shapes(decoder, nn.ConvTranspose2d) == [
        (64, 64, 5, 5),
        (64, 48, 5, 5),
        (48, 32, 5, 5),
        (32, 16, 5, 5),
        (16, 3, 5, 5),
    ]
    strides = [m.stride for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert strides == [(2, 2), (2, 2), (2, 2), (2, 2), (1, 1)]
    assert shapes(decoder, nn.BatchNorm2d) == [(64,), (64,), (48,), (32,), (16,)]


def test_a_large_stride_is_a_convolution_over_patches() -> None:
    """The same numbers as torch's convolutions whose kernel is as wide as the stride."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    fold = Fold(3, 5, 4)
    kernel = fold.weight.reshape(5, 4, 4, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(fold(x), nn.functional.conv2d(x, kernel, stride=4), atol=1e-5, rtol=1e-4)

    y = torch.randn(2, 5, 2, 2)
    unfold = Unfold(5, 3, 4, bias=True)
    transposed = unfold.weight.reshape(4, 4, 3, 5).permute(3, 2, 0, 1)
    with torch.no_grad():
        unfold.bias.copy_(torch.tensor([1.0, 2.0, 3.0]).repeat(16))
    expected = nn.functional.conv_transpose2d(y, transposed, torch.tensor([1.0, 2.0, 3.0]), stride=4)
    torch.testing.assert_close(unfold(y), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_convolutions_by_blocks_are_the_same(kernel: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoder and decoder with blocks, as on CUDA, and without: values and gradients."""
    torch.manual_seed(0)
    config = VisionConfig(channels=(5, 4, 6), strides=(1, 2, 1), kernel=kernel, output="linear")
    encoder, decoder = Encoder(config, 8, channels).double(), Decoder(config, 8, channels, 7).double()
    monkeypatch.setattr("drama.models.vision.to_unit", lambda x: x.double() / 255)
    obs, z = frames(3, 8, 8, channels), torch.randn(3, 7, dtype=torch.float64)

    def run() -> list[Tensor]:
        outputs = encoder(obs), decoder(z)
        loss = sum((y.square().sum() for y in outputs), torch.zeros(()))
        return [*outputs, *torch.autograd.grad(loss, [*encoder.parameters(), *decoder.parameters()])]

    expected = run()
    wanted = Mock(side_effect=lambda _, stride, __: stride == 1)
    monkeypatch.setattr("drama.models.vision.wants_blocks", wanted)
    torch.testing.assert_close(run(), expected)
    assert wanted.call_count == 6


@pytest.mark.parametrize(
    ("config", "size", "channels", "features"),
    [
        (VisionConfig(), 64, 3, 1024),
        (SMALL, 32, 1, 128),
        (VisionConfig(channels=(4, 5), strides=(2, 1)), 6, 2, 45),
        (VisionConfig(channels=(4, 5, 6), strides=(4, 1, 3)), 24, 3, 24),
    ],
    ids=["64x64x3", "32x32x1", "6x6x2", "patches"],
)
def test_decoder_mirrors_the_encoder(config: VisionConfig, size: int, channels: int, features: int) -> None:
    """The axes before the frame are kept; the decoder comes back to the frame's shape, within [0, 1]."""
    torch.manual_seed(0)
    encoder = Encoder(config, size, channels)
    encoded = encoder(frames(2, 3, size, size, channels))
    assert encoded.shape == (2, 3, features)
    decoded = Decoder(config, size, channels, features)(encoded)
    assert decoded.shape == (2, 3, size, size, channels)
    assert decoded.min() >= 0
    assert decoded.max() <= 1


def test_leading_axes_are_a_batch() -> None:
    torch.manual_seed(0)
    encoder, decoder = Encoder(SMALL, 16, 3).eval(), Decoder(SMALL, 16, 3, 7).eval()
    obs, z = frames(2, 3, 16, 16, 3), torch.randn(2, 3, 7)
    torch.testing.assert_close(encoder(obs)[1, 2], encoder(obs[1, 2:])[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoder(z)[1, 2], decoder(z[1, 2:])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strides", [(2, 2), (4, 2)])
@pytest.mark.parametrize("output", ["linear", "sigmoid"])
def test_decoder_starts_from_the_mean_pixel(output: Literal["linear", "sigmoid"], strides: tuple[int, int]) -> None:
    """Without a signal from the latent, each channel is at its own mean: 51, 102 and 204 of 255."""
    torch.manual_seed(0)
    decoder = Decoder(VisionConfig(channels=(4, 6), strides=strides, output=output), 8, 3, 5).eval()
    dark, light = torch.tensor([41, 102, 194]), torch.tensor([61, 102, 214])
    pixels = torch.stack([dark, light]).to(torch.uint8).reshape(2, 1, 1, 3).expand(2, 8, 8, 3)
    before = decoder(torch.zeros(1, 5))
    decoder.set_mean_pixel(pixels)
    after = decoder(torch.zeros(1, 5))
    expected = torch.tensor([0.2, 0.4, 0.8]).expand(1, 8, 8, 3)
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)
    assert (before - expected).abs().max() > 0.2


@pytest.mark.parametrize("pixel", [0, 255])
def test_the_mean_of_blank_frames_is_a_finite_bias(pixel: int) -> None:
    decoder = Decoder(VisionConfig(channels=(4,), strides=(2,)), 4, 1, 5).eval()
    decoder.set_mean_pixel(torch.full((2, 4, 4, 1), pixel, dtype=torch.uint8))
    out = decoder(torch.zeros(1, 5))
    torch.testing.assert_close(out, torch.full_like(out, pixel / 255), atol=2e-3, rtol=0)
    bias = [m.bias for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)][-1]
    assert isinstance(bias, Tensor)
    assert bias.abs().item() == pytest.approx(math.log(999), rel=1e-4)


def test_only_the_sigmoid_bounds_the_output() -> None:
    torch.manual_seed(0)
    z = torch.randn(4, 5) * 100
    linear = Decoder(VisionConfig(channels=(4,), strides=(2,), output="linear"), 8, 1, 5).eval()(z)
    sigmoid = Decoder(VisionConfig(channels=(4,), strides=(2,), output="sigmoid"), 8, 1, 5).eval()(z)
    assert linear.min() < 0
    assert linear.max() > 1
    assert sigmoid.min() >= 0
    assert sigmoid.max() <= 1
