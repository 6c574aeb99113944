"""The main job: mmdet's own train.py and test.py, its own configs, real images, and one key."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from drconv_mm import DRConv2d
from drconv_mm.datasets.sample_detection import CLASSES

from ..conftest import SHARED
from .toolbox import KEY, command, environment, packaged, run

pytestmark = pytest.mark.integration

RETINANET = packaged("mmdet", "configs", "retinanet", "retinanet_r18_fpn_1x_coco.py")
FASTER_RCNN = packaged("mmdet", "configs", "faster_rcnn", "faster-rcnn_r50_fpn_1x_coco.py")
MASK_RCNN = packaged("mmdet", "configs", "mask_rcnn", "mask-rcnn_r50_fpn_1x_coco.py")
# After a few iterations no detection is sure of anything: the metrics need the unsure ones.
ONE_STAGE = {"model.test_cfg.score_thr": 0.0}
TWO_STAGE = {
    "model.backbone.depth": 18,
    "model.neck.in_channels": "[64,128,256,512]",
    "model.test_cfg.rcnn.score_thr": 0.0,
}


def data_options(name: str, sample: Path, num_train: int = 8, num_val: int = 4) -> dict:
    """Options that point a stock COCO config at a small data set: a real one where there is one."""
    if SHARED.is_dir() and name == "coco_mini":
        root, classes = SHARED / name, None
        files = {split: (f"annotations/instances_{split}2017.json", f"{split}2017/") for split in ("train", "val")}
    else:
        root, classes = (SHARED / name, ("RBC", "WBC", "Platelets")) if SHARED.is_dir() else (sample, CLASSES)
        files = {split: (f"annotations/instances_{split}.json", f"{split}/") for split in ("train", "val")}
    options = {}
    for loader, split in (("train", "train"), ("val", "val"), ("test", "val")):
        prefix = f"{loader}_dataloader"
        options[f"{prefix}.dataset.data_root"] = root
        options[f"{prefix}.dataset.ann_file"], options[f"{prefix}.dataset.data_prefix.img"] = files[split]
        options[f"{prefix}.dataset.indices"] = num_train if split == "train" else num_val
        options[f"{prefix}.num_workers"], options[f"{prefix}.persistent_workers"] = 0, False
        if classes:
            options[f"{prefix}.dataset.metainfo.classes"] = f"[{','.join(classes)}]"
        # The stock pipelines read images of 1333x800; these are for a machine without a GPU.
        step = 2 if loader == "train" else 1
        options[f"{prefix}.dataset.pipeline.{step}.scale"] = "(160,120)"
    for evaluator in ("val_evaluator", "test_evaluator"):
        options[f"{evaluator}.ann_file"] = root / files["val"][0]
    options["train_dataloader.batch_size"] = 2
    if classes:
        options["num_classes"] = len(classes)
    return options


def training_options(data: dict, *heads: str) -> dict:
    """A few iterations from scratch, with every backbone layer training."""
    data = dict(data)
    num_classes = data.pop("num_classes", None)
    if num_classes:
        data.update({f"{head}.num_classes": num_classes for head in heads})
    return {
        **data,
        "model.backbone.init_cfg": None,
        "model.backbone.frozen_stages": -1,
        "optim_wrapper.clip_grad.max_norm": 10,
        "optim_wrapper.optimizer.lr": 0.01,
        "param_scheduler.0.start_factor": 0.5,
        "train_cfg.max_epochs": 2,
        "train_cfg.val_interval": 2,
        "default_hooks.logger.interval": 1,
        "randomness.seed": 0,
    }


def checkpoint(work_dir: Path, epoch: int) -> dict:
    return torch.load(work_dir / f"epoch_{epoch}.pth", map_location="cpu", weights_only=False)


def assert_dynamic_and_trained(work_dir: Path) -> None:
    """DRConv layers are in the checkpoints, and every one of their parameters changed from one to the next."""
    first, second = (checkpoint(work_dir, epoch)["state_dict"] for epoch in (1, 2))
    layers = {key.rsplit(".", 1)[0] for key in first if key.endswith(".guide_weight")}
    assert len(layers) >= 4, sorted(first)[:40]
    for layer in layers:
        for key in (k for k in first if k.startswith(layer + ".")):
            assert not torch.equal(first[key], second[key]), f"{key} did not change"


def coco_metrics(output: str) -> dict[str, float]:
    (line,) = re.findall(r"Epoch\(test\).*coco/bbox_mAP: .*", output)
    return {name: float(value) for name, value in re.findall(r"coco/(\w+): (-?[\d.]+)", line)}


@pytest.mark.parametrize(
    "config, data, heads, extra",
    [
        (RETINANET, "bccd", ["model.bbox_head"], ONE_STAGE),
        (FASTER_RCNN, "coco_mini", ["model.roi_head.bbox_head"], TWO_STAGE),
        (MASK_RCNN, "coco_mini", ["model.roi_head.bbox_head", "model.roi_head.mask_head"], TWO_STAGE),
    ],
    ids=["retinanet", "faster_rcnn", "mask_rcnn"],
)
def test_one_key_trains_and_evaluates(tmp_path, sample, config, data, heads, extra):
    options = {**training_options(data_options(data, sample), *heads), **extra, None: KEY}
    output = run(command("mmdet", "train.py", config, "--work-dir", "work", options=options), tmp_path)
    assert re.search(r"drconv_mm: \d+ of \d+ convolutions are DRConv", output)
    assert_dynamic_and_trained(tmp_path / "work")

    output = run(command("mmdet", "test.py", f"work/{config.name}", "work/epoch_2.pth"), tmp_path)
    metrics = coco_metrics(output)
    assert 0 <= metrics["bbox_mAP"] <= 1
    if "mask" in config.name:
        assert "coco/segm_mAP" in output


@pytest.mark.parametrize(
    "backbone",
    [
        {"type": "drconv_mm.MobileNetV1", "widen_factor": 0.25, "conv_cfg.type": "drconv_mm.DRConv"},
        {"type": "drconv_mm.DRConvShuffleNetV2", "widen_factor": 0.5},
    ],
    ids=["mobilenet_v1", "drconv_shufflenet_v2"],
)
def test_own_backbones_in_a_detector(tmp_path, sample, backbone):
    levels = ("(2,3,4)", "[64,128,256]") if "Mobile" in backbone["type"] else ("(0,1,2)", "[48,96,192]")
    options = {"model.backbone._delete_": True}
    options.update({f"model.backbone.{key}": value for key, value in backbone.items()})
    options.update({"model.backbone.out_indices": levels[0], "model.neck.in_channels": levels[1]})
    options["model.neck.start_level"] = 0
    options.update({**training_options(data_options("bccd", sample), "model.bbox_head"), **ONE_STAGE})
    output = run(command("mmdet", "train.py", RETINANET, "--work-dir", "work", options=options), tmp_path)
    assert_dynamic_and_trained(tmp_path / "work")
    assert re.search(r"coco/bbox_mAP: ", output)


@pytest.fixture(scope="module")
def standard(tmp_path_factory, sample) -> Path:
    """Work directory of a standard detector."""
    folder = tmp_path_factory.mktemp("standard")
    options = training_options(data_options("bccd", sample), "model.bbox_head")
    run(command("mmdet", "train.py", RETINANET, "--work-dir", "work", options=options), folder)
    return folder / "work"


def detections(config: Path, weights: Path, image: Path, conv_type: str | None):
    from mmdet.apis import inference_detector, init_detector

    overrides = {"model.test_cfg.score_thr": 0.0, "model.test_cfg.max_per_img": 50}
    if conv_type:
        overrides["model.backbone.conv_cfg"] = dict(type=conv_type)
    model = init_detector(str(config), str(weights), device="cpu", cfg_options=overrides)
    found = inference_detector(model, str(image)).pred_instances
    return model, found.bboxes, found.scores, found.labels


def test_standard_checkpoint_gives_the_same_detections(standard):
    """Weights of a standard detector in the DRConv one: function-preserving, through init_detector and inference."""
    config, weights = standard / RETINANET.name, standard / "epoch_2.pth"
    options = json.loads(json.dumps(torch.load(weights, weights_only=False)["meta"]["dataset_meta"]["classes"]))
    root = SHARED / "bccd" if "RBC" in options else None
    image = next((root / "val").glob("*.jpg")) if root else next(iter(sorted(standard.parents[2].rglob("val/*.png"))))
    plain, boxes, scores, labels = detections(config, weights, image, None)
    dynamic, new_boxes, new_scores, new_labels = detections(config, weights, image, "drconv_mm.DRConv")
    assert any(isinstance(module, DRConv2d) for module in dynamic.modules())
    assert not any(isinstance(module, DRConv2d) for module in plain.modules())
    assert len(scores) == 50
    torch.testing.assert_close(new_scores, scores, rtol=1e-4, atol=1e-4)
    for box, label, score in zip(boxes, labels, scores, strict=True):
        # Detections of nearly the same score may change places.
        same = (new_labels == label) & ((new_scores - score).abs() < 1e-4)
        distance = (new_boxes[same] - box).abs().amax(1)
        assert distance.numel() and distance.min() <= 1e-4 * max(1.0, float(box.abs().max()))


def test_resume_of_a_stopped_run(tmp_path, sample):
    options = training_options(data_options("bccd", sample, num_train=16), "model.bbox_head")
    options.update({**ONE_STAGE, "train_cfg.max_epochs": 3, "train_cfg.val_interval": 3, None: KEY})
    line = command("mmdet", "train.py", RETINANET, "--work-dir", "work", options=options)
    with (tmp_path / "first.log").open("w") as log:
        process = subprocess.Popen(
            line, cwd=tmp_path, env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        deadline = time.monotonic() + 300
        while not (tmp_path / "work/last_checkpoint").exists():
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "first.log").read_text()[-3000:]
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "work/epoch_3.pth").exists()

    line.insert(line.index("--cfg-options"), "--resume")
    output = run(line, tmp_path)
    assert re.search(r"resumed epoch: [12]", output)
    assert checkpoint(tmp_path / "work", 3)["meta"]["epoch"] == 3
    assert re.search(r"coco/bbox_mAP: ", output)


def test_hooks_log_and_draw(tmp_path, sample):
    options = training_options(data_options("bccd", sample), "model.bbox_head")
    options.update({"train_cfg.max_epochs": 1, "train_cfg.val_interval": 1, None: KEY})
    (tmp_path / "hooked.py").write_text(
        f"_base_ = {str(RETINANET)!r}\n"
        "custom_hooks = [dict(type='drconv_mm.RegionStatsHook', interval=2), "
        "dict(type='drconv_mm.RegionVisHook', interval=2)]\n"
    )
    output = run(command("mmdet", "train.py", "hooked.py", "--work-dir", "work", options=options), tmp_path)
    assert re.search(r"backbone\.layer1\.0\.conv1: region entropy [\d.]+ log m, shares( [\d.]+){8}", output)
    (scalars,) = (tmp_path / "work").rglob("vis_data/scalars.json")
    rows = [json.loads(line) for line in scalars.read_text().splitlines()]
    values = [
        row["region/backbone.layer1.0.conv1/entropy"] for row in rows if "region/backbone.layer1.0.conv1/entropy" in row
    ]
    assert values and all(0 <= value <= 1 for value in values)
    pictures = sorted((tmp_path / "work").rglob("vis_image/regions_val_*.png"))
    assert len(pictures) == 2


def test_retrofit_by_module_name_from_a_flat_config(tmp_path, sample):
    options = training_options(data_options("bccd", sample), "model.bbox_head")
    options.update(
        {
            **ONE_STAGE,
            "model.type": "drconv_mm.Retrofit",
            "model.drconv.model_type": "RetinaNet",
            "model.drconv.include": "[backbone.layer1,neck.lateral_convs]",
        }
    )
    run(command("mmdet", "train.py", RETINANET, "--work-dir", "work", options=options), tmp_path)
    assert_dynamic_and_trained(tmp_path / "work")
    layers = {k.rsplit(".", 1)[0] for k in checkpoint(tmp_path / "work", 2)["state_dict"] if "guide_weight" in k}
    assert len([name for name in layers if name.startswith("neck.lateral_convs")]) == 2, "the third is over the cap"
    assert all(name.startswith(("backbone.layer1", "neck.lateral_convs")) for name in layers)
