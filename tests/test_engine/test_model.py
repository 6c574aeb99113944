from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from drconv_mm.engine.model import build_model

CONFIGS = Path(__file__).parents[2] / "configs/classification"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_8xb128_in1k.py")), ids=lambda path: path.stem)
def test_the_papers_recipe(path):
    """Section 4.1: batch 1024 of 224x224, 240,000 iterations, 0.5 falling linearly to 0, label smoothing 0.1."""
    config = Config.fromfile(path)
    assert config.train_dataloader.batch_size == 1024 // 8 and config.auto_scale_lr.base_batch_size == 1024
    assert (config.train_cfg.by_epoch, config.train_cfg.max_iters) == (False, 240_000)
    (schedule,) = config.param_scheduler
    assert (schedule.type, schedule.power, schedule.eta_min) == ("PolyLR", 1.0, 0.0)
    assert (schedule.by_epoch, schedule.begin, schedule.end) == (False, 0, 240_000)
    assert config.optim_wrapper.optimizer == dict(type="SGD", lr=0.5, momentum=0.9, weight_decay=4e-5)
    assert config.model.head.loss.label_smooth_val == 0.1 and config.model.head.num_classes == 1000
    (crop,) = (step for step in config.train_dataloader.dataset.pipeline if step.type == "RandomResizedCrop")
    assert crop.scale == 224
    train, val = config.train_dataloader, config.val_dataloader
    assert (train.dataset.data_prefix, train.sampler.shuffle) == ("train", True)
    assert (val.dataset.data_prefix, val.sampler.shuffle) == ("val", False)
    resized, cropped = val.dataset.pipeline[1:3]
    assert (resized.type, resized.scale, resized.edge) == ("ResizeEdge", 256, "short")
    assert (cropped.type, cropped.crop_size) == ("CenterCrop", 224)
    assert config.model.head.loss.mode == "original"  # q = (1 - eps) one-hot + eps / classes


@pytest.mark.parametrize("recipe", ["caltech20-96x96", "8xb128_in1k"])
@pytest.mark.parametrize("network", ["shufflenet-v2-0.5x", "mobilenet-v1", "resnet18", "drconv-shufflenet-v2-0.5x"])
def test_images_are_normalised_as_imagenets(network, recipe):
    """mmpretrain's place for the preprocessor is beside the model: without, it would see 0 to 255, blue first."""
    model = build_model(Config.fromfile(CONFIGS / f"{network}_{recipe}.py")).eval()
    image = torch.arange(3 * 4 * 4, dtype=torch.uint8).view(3, 4, 4)
    seen = model.data_preprocessor(dict(inputs=[image]))["inputs"][0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    torch.testing.assert_close(seen, (image.flip(0) - mean) / std)


def test_classes_to_pretrain_on_are_others_than_those_to_tune_on():
    configs = (Config.fromfile(CONFIGS / f"shufflenet-v2-0.5x_caltech20{half}-96x96.py") for half in "ab")
    classes = json.loads((CONFIGS.parents[1] / "docs/learning/data.json").read_text())["classes"]
    for config, half in zip(configs, (sorted(classes)[::2], sorted(classes)[1::2]), strict=True):
        for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
            assert list(loader.dataset.metainfo.classes) == half


@pytest.mark.parametrize("recipe", ["caltech20-96x96", "8xb128_in1k"])
@pytest.mark.parametrize("generator", ["mixture", "pooled"])
def test_recipes_decay_neither_norms_nor_biases(recipe, generator):
    """A generator's biases, which have other names, included."""
    config = Config.fromfile(CONFIGS / f"shufflenet-v2-0.5x-drconv_{recipe}.py")
    config.model.backbone.conv_cfg.generator = generator
    model = build_model(config)
    decay = {
        group["params"][0]: group["weight_decay"]
        for group in build_optim_wrapper(model, config.optim_wrapper).param_groups
    }
    for name, parameter in model.named_parameters():
        assert decay[parameter] == (4e-5 if parameter.dim() > 1 else 0), name
