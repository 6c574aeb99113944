from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from drconv_mm import DRConv2d, Retrofit
from drconv_mm.engine.complexity import count_by_part
from drconv_mm.models.face import IResNet, LinearEmbedding, MobileFaceNet

DRCONV = dict(type="drconv_mm.DRConv")
# (class, arguments of a small one, height and width of its images)
SMALL = {
    MobileFaceNet: (dict(input_size=(48, 32), widen_factor=0.25), (48, 32)),
    IResNet: (dict(depth=18), (16, 32)),
}
TOTAL_STAGES = {MobileFaceNet: 7, IResNet: 4}


def build(backbone, **more):
    arguments, size = SMALL[backbone]
    return backbone(**arguments, **more), size


def dynamic_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, DRConv2d)]


def randomise_norms(model):
    """Statistics as after training, so that a norm that is left out shows."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(0, 0.1)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5)
    return model


def table_1(state, image, expansions, strides):
    """MobileFaceNet from a state dict, without modules."""

    def layer(name, x, stride=1, padding=0, groups=1, active=True):
        x = F.conv2d(x, state[f"{name}.conv.weight"], None, stride, padding, 1, groups)
        norm = [state[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *norm)
        return torch.where(x > 0, x, x * state[f"{name}.activate.weight"].view(-1, 1, 1)) if active else x

    x = layer("conv1.0", image, stride=2, padding=1)
    x = layer("conv1.1", x, padding=1, groups=x.shape[1])
    for stage, (expansion, (first, blocks)) in enumerate(zip(expansions, strides, strict=True)):
        for block in range(blocks):
            name, stride = f"layers.{stage}.{block}", 1 if block else first
            y = layer(f"{name}.expand", x)
            assert y.shape[1] == expansion * x.shape[1]
            y = layer(f"{name}.depthwise", y, stride, 1, y.shape[1])
            y = layer(f"{name}.project", y, active=False)
            x = x + y if stride == 1 and x.shape == y.shape else y
    x = layer("layers.5", x)
    assert x.shape[2:] == state["layers.6.conv.weight"].shape[2:]
    return layer("layers.6", x, groups=x.shape[1], active=False)


@pytest.mark.parametrize("size", [(112, 112), (112, 96)])
def test_mobilefacenet_is_table_1(size):
    model = randomise_norms(MobileFaceNet(size)).eval()
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        (got,) = model(image)
        strides = ((2, 5), (2, 1), (1, 6), (2, 1), (1, 2))
        want = table_1(model.state_dict(), image, (2, 4, 2, 4, 2), strides)
    assert got.shape == (2, 512, 1, 1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "width, channels", [(1.0, (64, 128, 128, 128, 128, 512, 512)), (0.5, (32, 64, 64, 64, 64, 256, 256))]
)
def test_mobilefacenets_stages(width, channels):
    outputs = MobileFaceNet((112, 96), width, out_indices=range(7)).eval()(torch.randn(1, 3, 112, 96))
    sizes = [(28, 24), (14, 12), (14, 12), (7, 6), (7, 6), (7, 6), (1, 1)]
    assert [tuple(o.shape[1:]) for o in outputs] == [(c, *s) for c, s in zip(channels, sizes, strict=True)]


def test_iresnets_stages_and_order_of_out_indices():
    image = torch.randn(1, 3, 48, 32)
    model = randomise_norms(IResNet(18, out_indices=(0, 1, 2, 3))).eval()
    outputs = model(image)
    assert [tuple(o.shape[1:]) for o in outputs] == [(64, 24, 16), (128, 12, 8), (256, 6, 4), (512, 3, 2)]
    chosen = IResNet(18, out_indices=(3, 1)).eval()
    chosen.load_state_dict(model.state_dict())
    for got, want in zip(chosen(image), (outputs[1], outputs[3]), strict=True):
        torch.testing.assert_close(got, want)


def test_arguments_reach_every_layer():
    (outputs,) = IResNet(18, out_indices=(1,)).eval()(torch.randn(1, 3, 32, 32))
    assert outputs.shape == (1, 128, 8, 8)
    norm = dict(type="GN", num_groups=4)
    for model in (IResNet(18, norm_cfg=norm), build(MobileFaceNet, norm_cfg=norm)[0]):
        assert not any(isinstance(module, _BatchNorm) for module in model.modules())
    relu, _ = build(MobileFaceNet, act_cfg=dict(type="ReLU"))
    assert not any(isinstance(module, nn.PReLU) for module in relu.modules())


def test_cost_of_mobilefacenet_is_the_papers():
    network = nn.Sequential(MobileFaceNet((112, 112)), LinearEmbedding(512, 128))
    total = count_by_part(network, (112, 112))["total"]
    assert round(total.multiply_adds / 1e6) == 221
    assert round(total.parameters / 1e6, 2) == 1.0
    network = nn.Sequential(MobileFaceNet((112, 96)), LinearEmbedding(512, 128))
    assert round(count_by_part(network, (112, 96))["total"].multiply_adds / 1e6) == 189


@pytest.mark.parametrize("backbone", SMALL)
def test_dynamic_layers_start_with_the_variance_of_the_standard_ones(backbone):
    """Behind a norm the variance sets the learning rate: the key is to change one thing."""
    (standard, _), (dynamic, _) = build(backbone), build(backbone, conv_cfg=DRCONV)
    for model in (standard, dynamic):
        model.init_weights()
    compared = dynamic_names(dynamic)
    assert compared
    for name in compared:
        weight, other = standard.get_submodule(name).weight, dynamic.get_submodule(name).static_weight
        assert other.shape == weight.shape
        assert float((other.std() / weight.std()).detach()) == pytest.approx(1, abs=0.15), name


def test_depthwise_kernels_start_at_the_scale_of_the_others():
    """PyTorch's fan_out of a depthwise kernel is C times too large."""
    model = MobileFaceNet(48)
    model.init_weights()
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    norms = [float(m.weight.detach().flatten(1).norm(dim=1).mean()) for m in depthwise]
    assert len(norms) == 17 and min(norms) > 1 and max(norms) < 2


@pytest.mark.parametrize("toolbox", ["mmengine", "mmpretrain"])
@pytest.mark.parametrize("backbone", SMALL)
def test_registries_build_them(toolbox, backbone):
    init_default_scope(toolbox)
    registry = importlib.import_module(f"{toolbox}.registry").MODELS
    for name in (f"{backbone.__module__}.{backbone.__name__}", backbone.__name__):
        assert isinstance(registry.build(dict(type=name, **SMALL[backbone][0])), backbone)


@pytest.mark.parametrize("backbone", SMALL)
def test_frozen_stages_and_norm_eval(backbone):
    model, _ = build(backbone, frozen_stages=2, norm_eval=True)
    model.train()
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    if backbone is IResNet:
        assert frozen == {"conv1", "bn1", "prelu", "layer1", "layer2"} and learns == {"layer3", "layer4", "bn2"}
    else:
        assert frozen == {"conv1", "layers"} and learns == {"layers"}
    for index, stage in enumerate(model.layers):
        assert all(p.requires_grad == (index >= 2) for p in stage.parameters())
        assert stage.training == (index >= 2)
    assert not any(m.training for m in model.modules() if isinstance(m, _BatchNorm))
    stem, _ = build(backbone, frozen_stages=0)
    stem.train()
    assert not stem.conv1.training and stem.layers[0].training
    whole, _ = build(backbone, frozen_stages=TOTAL_STAGES[backbone])
    assert not any(p.requires_grad for p in whole.train().parameters())
    assert not any(m.training for m in whole.modules() if isinstance(m, _BatchNorm))
    free, _ = build(backbone)
    assert all(p.requires_grad for p in free.train().parameters())


def test_which_convolutions_are_dynamic():
    model = MobileFaceNet(conv_cfg=DRCONV)
    bottlenecks = [
        f"layers.{s}.{b}.{c}.conv"
        for s, n in enumerate((5, 1, 6, 1, 2))
        for b in range(n)
        for c in ("expand", "project")
    ]
    assert dynamic_names(model) == [*bottlenecks, "layers.5.conv"] and len(bottlenecks) == 30
    assert dynamic_names(MobileFaceNet(conv_cfg=dict(DRCONV, apply_to=dict(kernel_size=1)))) == dynamic_names(model)
    face = "drconv_mm.models.face"
    by_name = Retrofit(
        drconv=dict(model_type=f"{face}.FaceRecognizer", include="backbone.layers.[0-4].*"),
        backbone=dict(type=f"{face}.MobileFaceNet"),
        neck=dict(type=f"{face}.LinearEmbedding", in_channels=512, embedding_size=128),
    )
    assert dynamic_names(by_name) == [f"backbone.{name}" for name in bottlenecks]
    shortcuts = [f"layer{stage}.0.downsample.0" for stage in (1, 2, 3)]
    first = [f"layer1.{block}.conv{number}" for block in (0, 1) for number in (1, 2)]
    assert sorted(dynamic_names(IResNet(18, conv_cfg=DRCONV))) == sorted(shortcuts + first)


def test_every_convolution_is_built_by_the_conv_type():
    built = []

    @MODELS.register_module(name="CountedConv", force=True)
    class CountedConv(nn.Conv2d):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            built.append(self)

    try:
        for backbone in SMALL:
            built.clear()
            model, _ = build(backbone, conv_cfg=dict(type="CountedConv"))
            assert {id(m) for m in model.modules() if isinstance(m, nn.Conv2d)} == {id(m) for m in built}
    finally:
        MODELS.module_dict.pop("CountedConv")


@pytest.mark.parametrize("backbone", SMALL)
def test_a_standard_checkpoint_computes_the_same_with_drconv(backbone, tmp_path):
    model, size = build(backbone)
    randomise_norms(model).eval()
    torch.save(model.state_dict(), tmp_path / "standard.pth")
    pretrained = dict(type="Pretrained", checkpoint=str(tmp_path / "standard.pth"))
    dynamic, _ = build(backbone, conv_cfg=DRCONV, init_cfg=pretrained)
    dynamic.init_weights()
    assert len(dynamic_names(dynamic)) > 5
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(dynamic.eval()(image), model(image), rtol=1e-4, atol=1e-5)
    strict, _ = build(backbone, conv_cfg=DRCONV)
    strict.load_state_dict(torch.load(tmp_path / "standard.pth", weights_only=True), strict=True)


@pytest.mark.parametrize("conv_cfg", [None, DRCONV])
@pytest.mark.parametrize("backbone", SMALL)
def test_every_parameter_learns(backbone, conv_cfg):
    model, size = build(backbone, conv_cfg=conv_cfg)
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):  # the guide has no gradient while all regions' filters are equal
        optimizer.zero_grad()
        (output,) = model.train()(torch.randn(4, 3, *size))
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).mean().backward()
        optimizer.step()
    for name, p in model.named_parameters():
        assert p.isfinite().all() and not torch.equal(p, before[name]), name


@pytest.mark.parametrize("backbone", SMALL)
def test_a_network_compiles_as_one_graph(backbone):
    model, size = build(backbone)
    model.eval()
    image = torch.randn(2, 3, *size)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), model(image))


@pytest.mark.parametrize(
    "run, message",
    [
        (lambda: MobileFaceNet(100), "input_size must be multiples of 16 pixels, got 100"),
        (lambda: MobileFaceNet((112, 90)), r"input_size must be multiples of 16 pixels, got \(112, 90\)"),
        (lambda: MobileFaceNet(8), "input_size must be an integer of at least 16, or a pair of them, got 8"),
        (
            lambda: MobileFaceNet((112, 96))(torch.zeros(1, 3, 96, 112)),
            r"images are \(96, 112\) \(height, width\) and the network was built for \(112, 96\)",
        ),
        (lambda: MobileFaceNet(widen_factor=0.005), "widen_factor=0.005 leaves a layer without channels"),
        (lambda: MobileFaceNet(out_indices=(7,)), r"out_indices=\(7,\) must be stages 0 to 6, got 7"),
        (lambda: MobileFaceNet(frozen_stages=8), r"frozen_stages must be -1 \(none\) to 7, got 8"),
        (lambda: IResNet(101), r"depth=101 is not known; choose one of \[18, 34, 50, 100\]"),
        (lambda: IResNet(18, out_indices=(4,)), r"out_indices=\(4,\) must be stages 0 to 3, got 4"),
    ],
)
def test_errors(run, message):
    with pytest.raises(ValueError, match=message):
        run()
