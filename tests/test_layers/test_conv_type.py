from __future__ import annotations

import logging
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine import MODELS, Config
from torch import nn

import drconv_mm
from drconv_mm import DRConv, DRConv2d, convert
from drconv_mm.layers.build_report import report_pending


def kinds(**config):
    def dynamic(*args, **kwargs):
        return isinstance(DRConv(*args, **kwargs, **config), DRConv2d)

    return dynamic


def test_default_takes_dense_convolutions_under_the_cap():
    dynamic = kinds()
    assert dynamic(64, 64, 3) and dynamic(5, 8, 1)
    assert not dynamic(3, 64, 7), "the image itself"
    assert not dynamic(256, 256, 3), "over the cap"
    assert dynamic(64, 1024, 1) and not dynamic(64, 1025, 1), "2**19 and more"
    assert not dynamic(64, 64, 3, groups=64), "depthwise"
    assert not dynamic(64, 64, 3, groups=2), "grouped"


def test_apply_to_chooses_by_geometry():
    assert kinds(apply_to=dict(max_filter_numel=10**7))(256, 256, 3)
    assert kinds(apply_to=dict(depthwise=True))(64, 64, 3, groups=64)
    assert kinds(apply_to=dict(grouped=True))(64, 64, 3, groups=2)
    assert kinds(apply_to=dict(min_in_channels=1))(3, 8, 3)
    assert kinds(apply_to=dict(min_in_channels=1))(1, 8, 3), "one channel is no group"
    only = kinds(apply_to=dict(kernel_size=[1, (3, 3)]))
    assert only(8, 8, 1) and only(8, 8, 3) and not only(8, 8, (1, 3))
    pair = kinds(apply_to=dict(kernel_size=(1, 3)))
    assert pair(8, 8, (1, 3)) and not pair(8, 8, 1) and not pair(8, 8, 3)
    assert kinds(apply_to=dict(depthwise=True))(512, 512, 3, groups=512), "of few numbers"
    assert kinds(apply_to=dict(grouped=True))(256, 256, 3, groups=32)
    assert kinds(num_regions=2)(64, 128, 3) and not kinds(num_regions=16)(64, 128, 3), "the cap counts m"


def test_unknown_key_is_named():
    with pytest.raises(ValueError, match="apply_to has no key 'kernel_sizes'.*did you mean 'kernel_size'"):
        DRConv(8, 8, 3, apply_to=dict(kernel_sizes=3))


def test_fallback():
    assert type(DRConv(3, 8, 3)) is nn.Conv2d
    layer = DRConv(3, 8, 3, stride=2, bias=False, fallback=dict(type="ConvAWS"))
    assert type(layer).__name__ == "ConvAWS2d" and layer.stride == (2, 2) and layer.bias is None
    layer = DRConv(8, 8, 3, 2, 3, 4, 8, fallback=dict(type="Conv"))
    assert (layer.stride, layer.padding, layer.dilation, layer.groups) == ((2, 2), (3, 3), (4, 4), 8)


def test_no_toolbox_gives_a_layer_its_guide():
    with pytest.raises(ValueError, match="DRConv has no argument 'own_guide'"):
        DRConv(8, 8, 3, own_guide=False)


@pytest.mark.parametrize("conv_type", ["drconv_mm.DRConv", "DRConv", DRConv], ids=str)
def test_every_way_to_name_it(conv_type):
    assert isinstance(build_conv_layer(dict(type=conv_type, num_regions=3), 8, 8, 3, bias=False), DRConv2d)


def test_new_style_python_config(tmp_path):
    (tmp_path / "new.py").write_text("from drconv_mm import DRConv\nconv_cfg = dict(type=DRConv, num_regions=4)\n")
    config = Config.fromfile(tmp_path / "new.py", lazy_import=True)
    assert build_conv_layer(config.conv_cfg, 8, 8, 3).num_regions == 4


def test_dcn_key_of_a_bottleneck_resnet():
    from mmdet.models.backbones import ResNet

    net = ResNet(
        50,
        base_channels=8,
        dcn=dict(type="drconv_mm.DRConv"),
        stage_with_dcn=(False, True, True, False),
    )
    dynamic = [name for name, module in net.named_modules() if isinstance(module, DRConv2d)]
    assert dynamic and all(name.endswith("conv2") and name.startswith(("layer2", "layer3")) for name in dynamic)


def test_conv_module_shows_what_mm_code_reads():
    module = ConvModule(8, 16, 3, stride=2, padding=1, conv_cfg=dict(type="drconv_mm.DRConv"), norm_cfg=dict(type="BN"))
    assert isinstance(module.conv, DRConv2d)
    for name in [
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "transposed",
        "output_padding",
    ]:
        assert hasattr(module.conv, name)
    assert (module.in_channels, module.stride, module.transposed) == (8, (2, 2), False)
    assert module(torch.randn(2, 8, 9, 9)).shape == (2, 16, 5, 5)


@pytest.fixture
def log(caplog, request):
    """What the log says, from a clean slate."""
    from mmengine.logging import MMLogger

    report_pending(nn.Identity(), ())
    caplog.clear()
    logger = MMLogger.get_instance(request.node.name)  # a new one is what mmengine calls the current one
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_log_says_once_what_became_dynamic(log):
    layers = nn.Sequential(DRConv(3, 8, 3), DRConv(8, 16, 3), DRConv(16, 16, 1), DRConv(16, 512, 9))
    layers(torch.randn(1, 3, 20, 20))
    layers(torch.randn(1, 3, 20, 20))
    # Another record may say that the kernels are compiled.
    (record,) = [record for record in log.records if "convolutions are DRConv" in record.getMessage()]
    text = record.getMessage()
    parameters = sum(p.numel() for p in [*layers[1].parameters(), *layers[2].parameters()])
    plain = 16 * 8 * 9 + 16 * 16 + 2 * 16
    assert f"{(parameters - plain) / 1e6:.2f}M more than plain" in text
    megabytes = 8 * (16 * 8 * 9 + 16 * 16) * 4 / 1e6
    assert "2 of 4 convolutions are DRConv (m=8, mixture)" in text
    assert f"{parameters / 1e6:.2f}M parameters" in text
    assert f"{megabytes:.2f} MB of generated filters an image" in text
    assert "min_in_channels=5" in text and "max_filter_numel=524288" in text


def test_convert_says_what_became_dynamic(log):
    convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3)), num_regions=4)
    (record,) = log.records
    assert "1 of 2 convolutions are DRConv (m=4, mixture)" in record.getMessage()
    assert "Plain: 1: in_channels under min_in_channels=5" in record.getMessage()


def test_a_trace_is_left_alone_and_the_next_forward_reports(log):
    traced, other = (nn.Sequential(DRConv(8, 8, 3)) for _ in range(2))
    torch.jit.trace(traced, torch.randn(1, 8, 9, 9), check_trace=False)
    assert not log.records
    other(torch.randn(1, 8, 9, 9))
    assert "2 of 2 convolutions are DRConv" in log.records[0].getMessage()


def test_warning_where_nothing_became_dynamic(log):
    layers = nn.Sequential(DRConv(3, 8, 3), DRConv(8, 8, 3, groups=8))
    layers(torch.randn(1, 3, 9, 9))
    (record,) = [record for record in log.records if "drconv_mm" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert "none of 2 convolutions became DRConv" in record.getMessage()
    assert "depthwise=False" in record.getMessage() and "apply_to" in record.getMessage()


def test_a_users_own_drconv_does_not_break_the_import():
    code = """
import warnings, torch
from mmengine import MODELS
@MODELS.register_module()
class DRConv(torch.nn.Conv2d):
    pass
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import drconv_mm
assert any("drconv_mm.DRConv" in str(w.message) for w in caught), caught
assert MODELS.get('DRConv') is DRConv
from mmcv.cnn import build_conv_layer
assert type(build_conv_layer(dict(type='drconv_mm.DRConv'), 8, 8, 3)) is drconv_mm.DRConv2d
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_users_class_of_any_name_does_not_break_the_import():
    code = """
import warnings
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
@HOOKS.register_module()
class CheckClassesHook(Hook):
    pass
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import drconv_mm
assert any("drconv_mm.CheckClassesHook" in str(w.message) for w in caught), caught
assert HOOKS.get('CheckClassesHook') is CheckClassesHook
assert type(HOOKS.build(dict(type='drconv_mm.CheckClassesHook'))) is drconv_mm.CheckClassesHook
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("channels", [3, 8])  # plain and dynamic
def test_unknown_options_are_refused_whatever_a_layer_becomes(channels):
    with pytest.raises(ValueError, match="DRConv has no argument 'num_region'.* did you mean 'num_regions'"):
        DRConv(channels, 8, 3, num_region=4)
    for fallback in ("Conv2d", dict(padding_mode="reflect")):
        with pytest.raises(ValueError, match="fallback must be a conv type's config"):
            DRConv(channels, 8, 3, fallback=fallback)


@pytest.mark.parametrize("channels", [3, 8])
def test_device_and_dtype_reach_every_layer(channels):
    layer = DRConv(channels, 8, 3, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}


def test_padding_mode_reaches_a_fallback_of_any_type():
    layer = DRConv(3, 8, 3, padding=1, padding_mode="reflect", fallback=dict(type="Conv"))
    assert layer.padding_mode == "reflect"


def test_a_copy_reports_once_and_leaves_the_others_alone(log):
    layers = nn.Sequential(DRConv(8, 8, 1))
    copied = deepcopy(layers)
    for model in (layers, copied, copied):
        model(torch.randn(1, 8, 4, 4))
    other = nn.Sequential(DRConv(8, 8, 1))
    copied(torch.randn(1, 8, 4, 4))
    assert len(log.records) == 1
    other(torch.randn(1, 8, 4, 4))
    assert len(log.records) == 2 and not copied[0]._forward_pre_hooks


def test_compiles_before_the_first_report(log):
    layers = nn.Sequential(DRConv(8, 8, 1))
    torch.compile(layers, fullgraph=True, backend="eager")(torch.randn(1, 8, 4, 4))
    layers(torch.randn(1, 8, 4, 4))
    assert "1 of 1 convolutions are DRConv" in log.records[-1].getMessage()


def test_registered_in_mmengine():
    assert MODELS.get("DRConv") is drconv_mm.DRConv


def test_import_needs_torch_and_numpy_alone():
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cv2', 'matplotlib'}:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Block())
import torch, drconv_mm
assert drconv_mm.DRConv(8, 8, 3)(torch.randn(1, 8, 5, 5)).shape == (1, 8, 3, 3)
model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3))
assert list(drconv_mm.convert(model)) == ['0']
try:
    drconv_mm.RegionStatsHook
except ImportError as error:
    assert "drconv_mm.RegionStatsHook can't be imported here: No module named 'mmengine'" in str(error)
else:
    raise AssertionError('no reason given')
assert not hasattr(drconv_mm, 'Nothing')
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_frozen_layers_are_warned_of_unless_all_are(log):
    layers = nn.Sequential(DRConv(8, 8, 1), DRConv(8, 8, 1))
    layers[0].requires_grad_(False)
    layers(torch.randn(1, 8, 4, 4))
    warning = log.records[-1]
    assert warning.levelname == "WARNING" and "1 of the 2 DRConv layers are frozen" in warning.getMessage()
    log.clear()
    frozen = nn.Sequential(DRConv(8, 8, 1), DRConv(8, 8, 1)).requires_grad_(False)
    frozen(torch.randn(1, 8, 4, 4))
    assert [record.levelname for record in log.records] == ["INFO"]
