"""Retrofit under the toolboxes' own inference: a standard checkpoint gives the standard model's answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toolbox_models import build

from drconv_mm import DRConv2d

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

CONFIGS = {
    "mmdet": ("detection/retinanet_r18_fpn_bccd-160x120.py", "RetinaNet", ["backbone.layer1"]),
    "mmseg": ("segmentation/fast_scnn_camvid-240x180.py", "EncoderDecoder", ["backbone"]),
    "mmpretrain": ("classification/shufflenet-v2-0.5x_caltech20-96x96.py", "ImageClassifier", ["backbone.layers.0"]),
}


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)


def configs(toolbox: str, folder: Path) -> tuple[Path, Path, Path]:
    """The standard config, its Retrofit one, and a checkpoint of the standard model."""
    base, model_type, include = CONFIGS[toolbox]
    standard = ROOT / "configs" / base
    retrofit = folder / "retrofit.py"
    retrofit.write_text(
        f"_base_ = {str(standard)!r}\nmodel = dict(type='drconv_mm.Retrofit', "
        f"drconv=dict(model_type={model_type!r}, include={include!r}))\n"
    )
    torch.manual_seed(0)
    model, _ = build(str(standard), {})
    checkpoint = folder / "standard.pth"
    classes = {"mmdet": ("RBC", "WBC", "Platelets"), "mmseg": tuple("abcdefghijk"), "mmpretrain": tuple("abcdefghij")}
    meta = {"dataset_meta": {"classes": classes[toolbox], "palette": [[9 * i, i, i] for i in range(11)]}}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, checkpoint)
    return standard, retrofit, checkpoint


def test_mmdet(tmp_path, image):
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    standard, retrofit, checkpoint = configs("mmdet", tmp_path)
    answers = []
    for config in (standard, retrofit):
        model = init_detector(str(config), str(checkpoint), device="cpu", cfg_options={"model.test_cfg.score_thr": 0.0})
        answers.append(inference_detector(model, image).pred_instances)
    assert any(isinstance(module, DRConv2d) for module in model.modules())
    torch.testing.assert_close(answers[1].scores, answers[0].scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answers[1].bboxes, answers[0].bboxes, rtol=1e-3, atol=1e-2)
    inferencer = DetInferencer(str(retrofit), str(checkpoint), device="cpu", show_progress=False)
    assert any(isinstance(module, DRConv2d) for module in inferencer.model.modules())
    assert set(inferencer(image)["predictions"][0]) >= {"bboxes", "scores", "labels"}


def test_mmseg(tmp_path, image):
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    standard, retrofit, checkpoint = configs("mmseg", tmp_path)
    answers = []
    for config in (standard, retrofit):
        model = init_model(str(config), str(checkpoint), device="cpu")
        answers.append(inference_model(model, image).seg_logits.data)
    assert any(isinstance(module, DRConv2d) for module in model.modules())
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-3, atol=1e-4)
    inferencer = MMSegInferencer(str(retrofit), str(checkpoint), device="cpu")
    assert any(isinstance(module, DRConv2d) for module in inferencer.model.modules())
    assert inferencer(image)["predictions"].shape == image.shape[:2]


def test_mmpretrain(tmp_path, image):
    from mmpretrain import ImageClassificationInferencer

    standard, retrofit, checkpoint = configs("mmpretrain", tmp_path)
    answers = []
    for config in (standard, retrofit):
        inferencer = ImageClassificationInferencer(str(config), pretrained=str(checkpoint), device="cpu")
        answers.append(inferencer(image, show=False)[0])
    assert any(isinstance(module, DRConv2d) for module in inferencer.model.modules())
    np.testing.assert_allclose(answers[1]["pred_scores"], answers[0]["pred_scores"], rtol=1e-4, atol=1e-6)
