"""Test-time augmentation of a Retrofit model: test.py --tta of a standard checkpoint, as the standard model has it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from drconv_mm import DRConv2d
from drconv_mm.datasets.sample_classification import generate_sample_classification
from drconv_mm.datasets.sample_segmentation import generate_sample_segmentation

from .toolbox import command, run

pytestmark = pytest.mark.integration

CONFIGS = Path(__file__).parents[2] / "configs"
LOADER = "test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root={root!r}))\n"
SEGMENTATION_TTA = """
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
"""


def write(folder: Path, base: str, text: str, model_type: str, include: str) -> None:
    """``standard.py`` and ``retrofit.py``, and ``standard.pth`` for both: random weights that tell inputs apart."""
    (folder / "standard.py").write_text(f"_base_ = {str(CONFIGS / base)!r}\n{text}")
    drconv = dict(model_type=model_type, include=[include])
    (folder / "retrofit.py").write_text(
        f"_base_ = 'standard.py'\nmodel = dict(type='drconv_mm.Retrofit', drconv={drconv!r})\n"
    )
    config = Config.fromfile(folder / "retrofit.py")
    init_default_scope(config.default_scope)
    if "data_preprocessor" in config:
        config.model.data_preprocessor = config.data_preprocessor
    assert any(isinstance(module, DRConv2d) for module in MODELS.build(config.model).modules())
    config = Config.fromfile(folder / "standard.py")
    model = MODELS.build(config.model)
    model.init_weights()
    # As they are initialised, deep features fade and heads give about the same for all inputs.
    for name, parameter in model.named_parameters():
        if "head" in name and parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 96), mode="tensor")
    classes = config.get("metainfo", {}).get("classes", tuple("abcd"))
    meta = {"dataset_meta": {"classes": classes, "palette": [[40 * i, i, i] for i in range(len(classes))]}}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, folder / "standard.pth")


def evaluate(toolbox: str, folder: Path, kind: str, *arguments: str) -> dict[str, float]:
    """The figures that test.py logs."""
    work_dir = folder / f"{kind}{len(arguments)}"
    run(command(toolbox, "test.py", f"{kind}.py", "standard.pth", "--work-dir", work_dir, *arguments), folder)
    (file,) = work_dir.glob("*/*.json")
    figures = json.loads(file.read_text())
    return {name: value for name, value in figures.items() if "time" not in name}


def results(folder: Path, name: str) -> list[dict]:
    return pickle.loads((folder / name).read_bytes())


def test_mmdet(tmp_path, sample):
    root = f"{sample}/"
    text = LOADER.format(root=root) + f"test_evaluator = dict(ann_file={root + 'annotations/instances_val.json'!r})\n"
    text += "model = dict(test_cfg=dict(score_thr=0.0))\n"
    write(tmp_path, "detection/retinanet_r18_fpn_sample-160x120.py", text, "RetinaNet", "backbone.layer1")
    # Without tta_model and tta_pipeline in the config, mmdet has defaults: the image and its mirror image.
    figures = [evaluate("mmdet", tmp_path, kind, "--tta", "--out", f"{kind}.pkl") for kind in ("standard", "retrofit")]
    assert "coco/bbox_mAP" in figures[0] and figures[1] == pytest.approx(figures[0], abs=2e-3)
    for expected, found in zip(results(tmp_path, "standard.pkl"), results(tmp_path, "retrofit.pkl"), strict=True):
        scores = [image["pred_instances"]["scores"][:20] for image in (expected, found)]
        assert len(scores[0]) == 20 and scores[0].std() > 1e-3
        torch.testing.assert_close(scores[1], scores[0], rtol=1e-3, atol=1e-4)


def test_mmseg(tmp_path):
    root = generate_sample_segmentation(tmp_path / "data", num_train=1, num_val=2)
    text = LOADER.format(root=str(root)) + SEGMENTATION_TTA
    write(tmp_path, "segmentation/fcn_mobilenet-v2-d8_sample-160x120.py", text, "EncoderDecoder", "backbone.layer[1-4]")
    figures = [evaluate("mmseg", tmp_path, kind, "--tta", "--out", f"{kind}_png") for kind in ("standard", "retrofit")]
    assert figures[0]["mIoU"] > 0 and figures[1] == pytest.approx(figures[0], abs=0.2)
    for path in sorted((tmp_path / "standard_png").iterdir()):
        expected, found = (cv2.imread(str(p), -1) for p in (path, tmp_path / "retrofit_png" / path.name))
        assert len(np.unique(expected)) > 1 and (expected == found).mean() > 0.995


def test_mmpretrain(tmp_path):
    root = generate_sample_classification(tmp_path / "data", num_train=1, num_val=4)
    base = "classification/shufflenet-v2-0.5x_sample-64x64.py"
    write(tmp_path, base, LOADER.format(root=str(root)), "ImageClassifier", "backbone")
    arguments = [("standard", "--tta"), ("retrofit", "--tta"), ("standard",)]
    figures, scores = [], []
    for kind, *tta in arguments:
        out = f"{kind}{len(tta)}.pkl"
        figures.append(evaluate("mmpretrain", tmp_path, kind, *tta, "--out", out))
        scores.append(torch.stack([sample["pred_score"] for sample in results(tmp_path, out)]))
    assert figures[1] == pytest.approx(figures[0]) and "accuracy/top1" in figures[0]
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(scores[2], scores[0], rtol=1e-2), "the mirror image has no say"
