from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from drconv_mm import DRConv2d, DRConvShuffleNetV2
from drconv_mm.engine.complexity import PARTS, count_by_part
from drconv_mm.engine.model import build_model


def test_counts_convolution_guide_and_generator():
    layer = DRConv2d(8, 16, 3, padding=1)
    costs = count_by_part(layer, (20, 10), channels=8)
    positions, kernel = 20 * 10, 16 * 8 * 9
    assert costs["convolution"] == (positions * kernel, kernel + 16)
    assert costs["guide"] == (positions * 8 * 8 * 9, 8 * 8 * 9)
    mixing, routing = 8 * 8 * kernel, 64 * 8
    assert costs["generator"] == (mixing + routing, 8 * kernel + routing + 64)
    assert costs["linear"] == costs["other"] == (0, 0)
    assert costs["total"].multiply_adds == sum(costs[part].multiply_adds for part in PARTS)
    assert costs["total"].parameters == sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize(("conv_type", "points"), [("DCN", 2), ("DCNv2", 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_counts_deformable_convolutions(conv_type, points, groups):
    pytest.importorskip("mmcv.ops")
    from mmcv.cnn import build_conv_layer

    layer = build_conv_layer(dict(type=conv_type), 8, 16, 3, padding=1, groups=groups)
    offsets = 8 * points * 9 * 9  # a dense 3x3 convolution, to a point's numbers for each of nine points
    costs = count_by_part(layer, (20, 10), channels=8)
    assert costs["total"].multiply_adds == 200 * (16 * 8 // groups * 9 + offsets)
    assert costs["convolution"] == costs["total"]


class Attends(nn.Conv2d):
    def forward(self, image):
        pixels = super().forward(image).flatten(2).transpose(1, 2)[:, None]
        return F.scaled_dot_product_attention(pixels, pixels[..., :7, :], pixels[..., :7, :2])


def test_counts_attention():
    assert count_by_part(Attends(3, 8, 1), (4, 5))["linear"].multiply_adds == 20 * 7 * (8 + 2)


def test_an_attentions_own_weights_are_of_its_linear_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, image):
            pixels = image.flatten(2).transpose(1, 2)
            return self.attention(pixels, pixels, pixels, need_weights=False)[0]

    linear = count_by_part(Net().train(), (4, 5), channels=8)["linear"]
    assert linear.parameters == 4 * (8 * 8 + 8)


def test_tells_what_it_cannot_count():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input):
            return input * 2

    class Net(nn.Conv2d):
        def forward(self, input):
            return Doubled.apply(super().forward(input))

    with pytest.warns(UserWarning, match="multiply-adds of Doubled are not known"):
        assert count_by_part(Net(3, 2, 1), (4, 4))["total"].multiply_adds == 16 * 6


@pytest.mark.parametrize("generator", ["mixture", "pooled"])
def test_agrees_with_torchs_counter(generator):
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), DRConv2d(8, 16, 3, groups=2, generator=generator)
    model = nn.Sequential(*layers, nn.Conv2d(16, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7)).eval()
    costs = count_by_part(model, (12, 9))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 12, 9))
    assert counter.get_total_flops() == 2 * costs["total"].multiply_adds
    assert costs["linear"] == (4 * 7, 4 * 7 + 7)
    assert costs["other"].parameters == 16


@pytest.mark.parametrize("kind", ["mask-rcnn/mask-rcnn_r50_fpn_1x_coco", "detr/detr_r50_8xb2-150e_coco"])
def test_detectors_that_read_an_images_size(kind):
    mmdet = pytest.importorskip("mmdet")
    folder, name = kind.split("/")
    config = Config.fromfile(Path(mmdet.__path__[0], ".mim/configs", folder.replace("-", "_"), f"{name}.py"))
    config.model.backbone.update(depth=18, init_cfg=None)
    (config.model.neck if "neck" in config.model else config.model.bbox_head)["in_channels"] = (
        [64, 128, 256, 512] if "mask" in kind else [512]
    )
    costs = count_by_part(build_model(config), (96, 128))
    # Both kinds have linear layers behind what a plain forward of an image reaches.
    assert costs["linear"].multiply_adds > 10**7 and costs["convolution"].multiply_adds > 10**8


def test_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)).train()
    model[1].eval()
    count_by_part(model, (8, 8))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert not model._forward_pre_hooks
    model.append(nn.Conv2d(5, 4, 3))
    with pytest.raises(RuntimeError):
        count_by_part(model, (8, 8))
    assert [module.training for module in model.modules()] == [True, True, False, True, True]


class Classifier(nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        self.backbone, self.fc = DRConvShuffleNetV2(0.5, **arguments), nn.Linear(1024, 1000)

    def forward(self, image):
        return self.fc(self.backbone(image)[0].mean((2, 3)))


@pytest.mark.parametrize(
    "arrangement, share_guide, total, guide, generator",
    [
        ("none", True, 40.5, 0, 0),
        ("both", True, 50.1, 2.2, 7.5),
        ("both", False, 51.5, 3.5, 7.5),
        ("first", True, 46.4, 2.2, 3.7),
        ("last", True, 46.4, 2.2, 3.7),
        ("last", False, 45.6, 1.35, 3.7),
    ],
)
def test_shufflenet_as_counted_by_hand(arrangement, share_guide, total, guide, generator):
    costs = count_by_part(Classifier(arrangement=arrangement, share_guide=share_guide), (224, 224))
    for part, millions in (("total", total), ("guide", guide), ("generator", generator)):
        assert costs[part].multiply_adds / 1e6 == pytest.approx(millions, abs=0.06), part
    # Whatever is dynamic, the convolutions themselves cost what they did.
    assert costs["convolution"] == count_by_part(Classifier(arrangement="none"), (224, 224))["convolution"]
