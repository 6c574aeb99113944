from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from drconv_mm import DRConv2d
from drconv_mm.engine.complexity import count_multiply_adds


def test_counts_convolution_guide_and_generator():
    layer = DRConv2d(8, 16, 3, padding=1, bias=False)
    total, parameters = count_multiply_adds(layer, (20, 10), channels=8)
    positions, convolution = 20 * 10, 16 * 8 * 9
    guide, mixing, routing = 8 * 8 * 9, 8 * 8 * convolution, 64 * 8
    assert total == positions * (convolution + guide) + mixing + routing
    assert parameters == sum(p.numel() for p in layer.parameters())


def test_agrees_with_torchs_counter():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), DRConv2d(8, 16, 3, groups=2), nn.Conv2d(16, 4, 1)).eval()
    total, _ = count_multiply_adds(model, (12, 9))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 12, 9))
    assert counter.get_total_flops() == 2 * total
