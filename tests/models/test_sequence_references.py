"""Our mixers against Hugging Face's, with the same weights, in values and gradients on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from drama.models.sequence.mamba import Mamba
from drama.models.sequence.mamba2 import Mamba2

transformers = pytest.importorskip("transformers")


def compare(ours: nn.Module, reference: nn.Module, length: int) -> None:
    reference.load_state_dict(ours.state_dict())
    ours.load_state_dict(reference.state_dict())  # the names fit both ways
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, length, 32, generator=generator)
    weight = torch.randn(2, length, 32, generator=generator)
    left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = ours(left)[0]
    expected: Any = reference(right)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-3)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(left.grad, right.grad, atol=1e-3, rtol=1e-3)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("length", [1, 7, 16, 33])
@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_equals_hugging_face(length: int, groups: int) -> None:
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(0)
    config = transformers.Mamba2Config(
        hidden_size=32, expand=2, num_heads=4, head_dim=16, state_size=8, n_groups=groups, chunk_size=8,
        conv_kernel=4, use_bias=False, time_step_limit=(0.0, float("inf")),
    )  # fmt: skip
    ours = Mamba2(32, d_state=8, d_conv=4, expand=2, headdim=16, ngroups=groups, chunk_size=16)
    compare(ours, Mamba2Mixer(config, layer_idx=0), length)


@pytest.mark.parametrize("length", [1, 7, 33])
def test_mamba_equals_hugging_face(length: int) -> None:
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    config = transformers.MambaConfig(
        hidden_size=32, expand=2, state_size=8, conv_kernel=4, time_step_rank=2, use_bias=False, use_mambapy=False
    )
    compare(Mamba(32, d_state=8, d_conv=4, expand=2), MambaMixer(config, layer_idx=0), length)
