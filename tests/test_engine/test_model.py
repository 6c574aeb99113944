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
