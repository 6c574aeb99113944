"""The pairs of configs/detection: what they say, and that they run under tools/train.py and tools/test.py."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from drconv_mm import DRConv2d
from drconv_mm.engine.complexity import count_by_part

from .test_mmdet import (
    ONE_STAGE,
    assert_dynamic_and_trained,
    checkpoint,
    coco_metrics,
    data_options,
    training_options,
)
from .toolbox import command, packaged, run

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs/detection"
# Those whose standard config is mmdet's own: the rest of its name, and its folder there.
STOCK = {
    "retinanet_r50": ("fpn_1x_coco", "retinanet"),
    "faster-rcnn_r50": ("fpn_1x_coco", "faster_rcnn"),
    "mask-rcnn_r50": ("fpn_1x_coco", "mask_rcnn"),
    "fcos_r50-caffe": ("fpn_gn-head_1x_coco", "fcos"),
}
PAIRS = {
    "retinanet_r50_fpn_1x_coco": "retinanet_r50-drconv_fpn_1x_coco",
    "retinanet_mobilenet-v2_fpn_1x_coco": "retinanet_mobilenet-v2-drconv_fpn_1x_coco",
    "retinanet_shufflenet-v2-0.5x_fpn_1x_coco": "retinanet_drconv-shufflenet-v2-0.5x_fpn_1x_coco",
    "faster-rcnn_r50_fpn_1x_coco": "faster-rcnn_r50-drconv_fpn_1x_coco",
    "faster-rcnn_mobilenet-v2_fpn_1x_coco": "faster-rcnn_mobilenet-v2-drconv_fpn_1x_coco",
    "mask-rcnn_r50_fpn_1x_coco": "mask-rcnn_r50-drconv_fpn_1x_coco",
    "fcos_r50-caffe_fpn_gn-head_1x_coco": "fcos_r50-drconv-caffe_fpn_gn-head_1x_coco",
    "retinanet_r18_fpn_bccd-160x120": "retinanet_r18-drconv_fpn_bccd-160x120",
    "retinanet_r18-0.5x_fpn_bccd-160x120": "retinanet_r18-0.5x-drconv_fpn_bccd-160x120",
    "retinanet_r18_fpn_sample-160x120": "retinanet_r18-drconv_fpn_sample-160x120",
    "retinanet_mobilenet-v2_fpn_bccd-160x120": "retinanet_mobilenet-v2-drconv_fpn_bccd-160x120",
}
COCO_PAIRS = {standard: dynamic for standard, dynamic in PAIRS.items() if standard.endswith("_coco")}


# The second stage is most of a detector's work on images this small.
FEW_PROPOSALS = {
    "model.train_cfg.rpn_proposal.max_per_img": 64,
    "model.train_cfg.rcnn.sampler.num": 64,
    "model.test_cfg.rpn.max_per_img": 64,
}


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f"{name}.py")


def build(config: Config, part: str | None = None) -> nn.Module:
    """The model, or its backbone alone, without looking for pretrained weights."""
    init_default_scope("mmdet")
    model = copy.deepcopy(config.model)
    model.backbone.init_cfg = None
    return MODELS.build(model[part] if part else model)


def dynamic_layers(model: nn.Module) -> dict[str, DRConv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, DRConv2d)}


def without_scopes(value):
    """Without the `_scope_` that mmengine adds to what comes by `mmdet::`."""
    if isinstance(value, dict):
        return {key: without_scopes(inner) for key, inner in value.items() if key != "_scope_"}
    return type(value)(map(without_scopes, value)) if isinstance(value, (list, tuple)) else value


def own(tool: str, *arguments: object, options: dict | None = None) -> list[str]:
    """A command line of this repository's tools/train.py or test.py."""
    line = command("mmdet", tool, *arguments, options=options)
    line[1] = str(ROOT / "tools" / tool)
    return line


class TestPairs:
    def test_all_configs_are_in_a_pair(self):
        paired = {*PAIRS, *PAIRS.values()}
        assert {path.stem for path in CONFIGS.glob("*.py")} == paired

    @pytest.mark.parametrize("standard, dynamic", PAIRS.items())
    def test_differs_in_one_key(self, standard, dynamic):
        before, after = load(standard), load(dynamic)
        key, old, new = "conv_cfg", None, dict(type="drconv_mm.DRConv")
        if "shufflenet" in standard:
            key, old, new = "arrangement", "none", "both"
        assert before.model.backbone.get(key) == old
        assert after.model.backbone[key] == new
        if old is None:
            del after.model.backbone[key]
        else:
            after.model.backbone[key] = old
        assert before.to_dict() == after.to_dict()

    @pytest.mark.parametrize("standard, dynamic", PAIRS.items())
    def test_builds_with_dynamic_layers_in_one_alone(self, standard, dynamic):
        assert not dynamic_layers(build(load(standard)))
        names = list(dynamic_layers(build(load(dynamic))))
        assert names and all(name.startswith("backbone.") for name in names)
        # README.md says how many, in the line of the pair.
        (line,) = [line for line in (CONFIGS / "README.md").read_text().splitlines() if f"({dynamic}.py)" in line]
        assert f"({standard}.py)" in line and f"| {len(names)} |" in line

    @pytest.mark.parametrize("network, stock", STOCK.items())
    def test_is_mmdet_s_own_where_it_says_so(self, network, stock):
        suffix, folder = stock
        name = f"{network}_{suffix}"
        config = Config.fromfile(packaged("mmdet", "configs", folder, f"{name}.py"))
        assert without_scopes(load(name).to_dict()) == config.to_dict()

    @pytest.mark.parametrize("standard", COCO_PAIRS)
    def test_the_comment_names_the_recipe(self, standard):
        config, text = load(standard), (CONFIGS / f"{standard}.py").read_text()
        gpus, images, rate, epochs = re.search(r"# (\d+) GPUs x (\d+) images, lr ([\d.]+), (\d+) epochs", text).groups()
        assert config.train_dataloader.batch_size == int(images)
        assert config.auto_scale_lr.base_batch_size == int(gpus) * int(images)
        assert config.optim_wrapper.optimizer.lr == float(rate)
        assert config.train_cfg.max_epochs == int(epochs)
        assert config.data_root == "data/coco/"

    @pytest.mark.parametrize("name", [n for n in PAIRS.values() if "_r50" not in n])
    def test_every_parameter_of_the_backbone_trains(self, name):
        """One without a gradient stops distributed training at its second iteration."""
        backbone = build(load(name), "backbone")
        backbone.train()
        sum(output.mean() for output in backbone(torch.randn(2, 3, 64, 64))).backward()
        assert not [key for key, parameter in backbone.named_parameters() if parameter.grad is None]

    @pytest.mark.parametrize("stages, expected", [(1, 10), (0, 0)])
    def test_dynamic_layers_of_frozen_stages_do_not_learn(self, stages, expected):
        """README.md says so, and what to set."""
        config = load("retinanet_r50-drconv_fpn_1x_coco")
        assert config.model.backbone.frozen_stages == 1
        config.model.backbone.frozen_stages = stages
        backbone = build(config, "backbone")
        backbone.train()
        frozen = [
            name
            for name, layer in dynamic_layers(backbone).items()
            if not any(parameter.requires_grad for parameter in layer.parameters())
        ]
        assert len(frozen) == expected and all(name.startswith("layer1.") for name in frozen)

    def test_a_standard_imagenet_checkpoint_starts_both(self, tmp_path):
        """README.md's options: a classifier's checkpoint gives both backbones of a pair the same outputs."""
        standard = "retinanet_shufflenet-v2-0.5x_fpn_1x_coco"
        source = build(load(standard), "backbone")
        source.init_weights()
        state = {f"backbone.{key}": value for key, value in source.state_dict().items()}
        torch.save({"state_dict": {**state, "head.fc.bias": torch.zeros(3)}}, tmp_path / "imagenet.pth")
        image = torch.randn(1, 3, 64, 64)
        for name in (standard, PAIRS[standard]):
            config = load(name)
            config.merge_from_dict(
                {
                    "model.backbone.init_cfg.type": "Pretrained",
                    "model.backbone.init_cfg.checkpoint": str(tmp_path / "imagenet.pth"),
                    "model.backbone.init_cfg.prefix": "backbone.",
                }
            )
            backbone = MODELS.build(config.model.backbone)
            backbone.init_weights()
            for output, expected in zip(backbone.eval()(image), source.eval()(image), strict=True):
                torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


class TestCocoConfigs:
    """A few iterations on COCO's layout, then evaluation by class and the files that the test server takes."""

    @pytest.fixture(
        scope="class",
        params=[
            ("faster-rcnn_mobilenet-v2-drconv_fpn_1x_coco", "model.roi_head.bbox_head", "model.test_cfg.rcnn"),
            ("retinanet_drconv-shufflenet-v2-0.5x_fpn_1x_coco", "model.bbox_head", "model.test_cfg"),
        ],
        ids=["faster_rcnn_mobilenet_v2", "retinanet_drconv_shufflenet_v2"],
    )
    def trained(self, request, tmp_path_factory, sample) -> tuple[Path, str, str]:
        name, head, test_cfg = request.param
        folder = tmp_path_factory.mktemp("coco")
        options = training_options(data_options("coco_mini", sample, num_train=4, num_val=2), head)
        options.update(
            {
                # From scratch, batch norm has no statistics to keep.
                "model.backbone.norm_eval": False,
                "val_evaluator.classwise": True,
                f"{test_cfg}.score_thr": 0.0,
            }
        )
        if "faster" in name:
            options.update(FEW_PROPOSALS)
        output = run(own("train.py", CONFIGS / f"{name}.py", "--work-dir", "work", options=options), folder)
        return folder, name, output

    def test_trains_and_evaluates_by_class_and_writes_result_files(self, trained):
        folder, name, output = trained
        assert_dynamic_and_trained(folder / "work")
        config = Config.fromfile(folder / f"work/{name}.py")
        truth = json.loads(Path(config.test_evaluator.ann_file).read_text())
        annotated = {annotation["category_id"] for annotation in truth["annotations"]}
        for category in truth["categories"]:
            if category["id"] in annotated:
                assert re.search(rf"\| {re.escape(category['name'])} +\| [\d.]+ ", output), category

        options = {"test_evaluator.format_only": True, "test_evaluator.outfile_prefix": "results/net"}
        (folder / "results").mkdir()
        arguments = ("test.py", f"work/{name}.py", "work/epoch_2.pth", "--work-dir", "tested")
        tested = run(own(*arguments, options=options), folder)
        assert "coco/bbox_mAP: " not in tested
        results = folder / "results/net.bbox.json"
        check_boxes(json.loads(results.read_text()), truth)
        (precision,) = re.findall(r"Epoch\(val\).*coco/bbox_mAP: (-?[\d.]+)", output)
        assert mean_precision(results, Path(config.test_evaluator.ann_file)) == pytest.approx(
            float(precision), abs=6e-4
        )


def check_boxes(results: list[dict], truth: dict, images: int = 2) -> None:
    """Result files name real images and categories, and boxes in the original images' pixels."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    assert len({result["image_id"] for result in results}) == images
    assert {result["category_id"] for result in results} <= {category["id"] for category in truth["categories"]}
    largest = 0.0
    for result in results:
        (width, height), (x, y, w, h) = sizes[result["image_id"]], result["bbox"]
        assert 0 <= result["score"] <= 1
        assert min(x, y, w, h) >= 0 and x + w <= width + 1 and y + h <= height + 1
        largest = max(largest, (x + w) / width)
    # Not those of the images of 160x120 that the network saw.
    assert largest > 0.9


def mean_precision(results: Path, truth: Path) -> float:
    """AP by pycocotools itself."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = COCO(str(truth))
    evaluation = COCOeval(annotations, annotations.loadRes(str(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def test_mask_results_by_class_and_as_files(tmp_path, sample):
    name = "mask-rcnn_r50-drconv_fpn_1x_coco"
    options = data_options("coco_mini", sample, num_val=2)
    options = {key: value for key, value in options.items() if key.startswith("test_")}
    options.update({"model.test_cfg.rcnn.score_thr": 0.0, "model.test_cfg.rcnn.max_per_img": 10})
    options["model.test_cfg.rpn.max_per_img"] = FEW_PROPOSALS["model.test_cfg.rpn.max_per_img"]
    config = load(name)
    if "test_dataloader.dataset.metainfo.classes" in options:
        number = 4
        config.model.roi_head.bbox_head.num_classes = config.model.roi_head.mask_head.num_classes = number
        options.update({f"model.roi_head.{head}.num_classes": number for head in ("bbox_head", "mask_head")})
    torch.save({"state_dict": build(config).state_dict()}, tmp_path / "random.pth")
    options.update({"test_evaluator.classwise": True, "test_evaluator.outfile_prefix": "results/net"})
    (tmp_path / "results").mkdir()
    output = run(own("test.py", CONFIGS / f"{name}.py", "random.pth", "--work-dir", "work", options=options), tmp_path)
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= set(re.findall(r"coco/(?:bbox|segm)_mAP", output))
    assert output.count("| category") == 2, "a table of boxes and one of masks"

    truth = json.loads(Path(options["test_evaluator.ann_file"]).read_text())
    sizes = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
    boxes, masks = (json.loads((tmp_path / f"results/net.{kind}.json").read_text()) for kind in ("bbox", "segm"))
    assert len(boxes) == len(masks) == 20
    assert all(mask["segmentation"]["size"] == sizes[mask["image_id"]] for mask in masks)


@pytest.mark.parametrize("name", [n for pair in PAIRS.items() if pair[0].endswith("160x120") for n in pair])
def test_small_configs_train_two_iterations_and_evaluate(tmp_path, sample, name):
    data = data_options("bccd", sample, num_train=16)
    options = {
        **training_options(data, "model.bbox_head"),
        **ONE_STAGE,
        # The sample has fewer images: two iterations of what there is.
        "train_dataloader.batch_size": 8 if "RBC" in data["train_dataloader.dataset.metainfo.classes"] else 6,
        "optim_wrapper.optimizer.lr": 0.001,
        "train_cfg.max_epochs": 1,
        "train_cfg.val_interval": 1,
    }
    output = run(own("train.py", CONFIGS / f"{name}.py", "--work-dir", "work", options=options), tmp_path)
    losses = re.findall(r"Epoch\(train\) +\[1\]\[(\d)/2\].* loss: ([\d.]+)", output)
    assert [step for step, _ in losses] == ["1", "2"] and all(float(loss) > 0 for _, loss in losses)
    assert bool([k for k in checkpoint(tmp_path / "work", 1)["state_dict"] if "guide_weight" in k]) == (
        "drconv" in name
    )
    (while_training,) = re.findall(r"Epoch\(val\).*coco/bbox_mAP: ([\d.]+)", output)
    if "drconv" in name:
        output = run(own("test.py", f"work/{name}.py", "work/epoch_1.pth"), tmp_path)
        assert coco_metrics(output)["bbox_mAP"] == float(while_training)


def test_get_flops_counts_all_but_the_operator_and_says_so(tmp_path, sample):
    """mmdet's counter knows no operator but torch's own; tools/count_flops.py counts it."""
    name = "retinanet_mobilenet-v2-drconv_fpn_bccd-160x120"
    options = {k: v for k, v in data_options("bccd", sample).items() if k.startswith("val_dataloader")}
    line = command("mmdet", "analysis_tools/get_flops.py", CONFIGS / f"{name}.py", "--num-images", 1, options=options)
    output = run(line, tmp_path)
    model = build(load(name)).eval()
    shape = tuple(int(n) for n in re.search(r"Input shape: \((\d+), (\d+)\)", output).groups())
    layers, operator = dynamic_layers(model), []
    assert f"Unsupported operator drconv_mm::region_conv2d encountered {len(layers)} time(s)" in output

    def count(layer: DRConv2d, _: tuple, result: torch.Tensor) -> None:
        height, width = layer.kernel_size
        operator.append(result.numel() * layer.in_channels // layer.groups * height * width)

    hooks = [layer.register_forward_hook(count) for layer in layers.values()]
    with torch.no_grad():
        model(torch.zeros(1, 3, *shape))
    for hook in hooks:
        hook.remove()
    costs = count_by_part(model, shape)
    full = costs["total"].multiply_adds + costs["other"].multiply_adds
    found = float(re.search(r"Flops: ([\d.]+)G", output).group(1)) * 1e9
    assert len(operator) == len(layers) and sum(operator) > 0.1 * full
    assert found == pytest.approx(full - sum(operator), abs=1e6)
    assert float(re.search(r"Params: ([\d.]+)M", output).group(1)) == pytest.approx(
        costs["total"].parameters / 1e6, abs=1e-3
    )


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_r50-drconv_fpn_1x_coco",
        "retinanet_mobilenet-v2-drconv_fpn_1x_coco",
        "retinanet_drconv-shufflenet-v2-0.5x_fpn_1x_coco",
    ],
)
def test_fusing_batch_norm_leaves_the_outputs(name):
    from mmcv.cnn import fuse_conv_bn

    backbone = build(load(name), "backbone")
    backbone.init_weights()
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    for module in norms:
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, std=0.1)
        module.running_mean.normal_(std=0.1)
        module.running_var.uniform_(0.5, 1.5)
    backbone.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(image)
        fused = fuse_conv_bn(copy.deepcopy(backbone))
        outputs = fused(image)
    left = sum(isinstance(module, _BatchNorm) for module in fused.modules())
    assert left == len(dynamic_layers(backbone)) < len(norms), "the plain convolutions' norms are gone, no others"
    for output, plain in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="mmdet's benchmark.py puts the model on a GPU")
def test_benchmark_with_fused_batch_norm(tmp_path, sample):
    name = "retinanet_mobilenet-v2-drconv_fpn_bccd-160x120"
    options = {k: v for k, v in data_options("bccd", sample).items() if k.startswith("test_dataloader")}
    torch.save({"state_dict": build(load(name)).state_dict()}, tmp_path / "w.pth")
    line = command(
        "mmdet", "analysis_tools/benchmark.py", CONFIGS / f"{name}.py", "--checkpoint", "w.pth", "--task", "inference",
        "--fuse-conv-bn", "--max-iter", 4, "--num-warmup", 1, options=options,
    )  # fmt: skip
    assert re.search(r"Overall fps: [\d.]+ img/s", run(line, tmp_path))
