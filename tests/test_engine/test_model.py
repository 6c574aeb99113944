from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config

from drconv_mm.engine.model import build_model

CONFIG = Path(__file__).parents[2] / "configs/classification/mobilenet-v2_caltech20-96x96.py"


def test_a_preprocessor_beside_the_model_is_the_models():
    """mmpretrain's place for it: a model without would see pixels from 0 to 255, blue first."""
    model = build_model(Config.fromfile(CONFIG)).eval()
    image = torch.arange(3 * 4 * 4, dtype=torch.uint8).view(3, 4, 4)
    seen = model.data_preprocessor(dict(inputs=[image]))["inputs"][0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    torch.testing.assert_close(seen, (image.flip(0) - mean) / std)
