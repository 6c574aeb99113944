from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from drconv_mm.engine.model import build_model

CONFIGS = Path(__file__).parents[2] / "configs/classification"


def test_a_preprocessor_beside_the_model_is_the_models():
    """mmpretrain's place for it: a model without would see pixels from 0 to 255, blue first."""
    model = build_model(Config.fromfile(CONFIGS / "mobilenet-v2_caltech20-96x96.py")).eval()
    image = torch.arange(3 * 4 * 4, dtype=torch.uint8).view(3, 4, 4)
    seen = model.data_preprocessor(dict(inputs=[image]))["inputs"][0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    torch.testing.assert_close(seen, (image.flip(0) - mean) / std)


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
