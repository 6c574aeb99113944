"""Both detectors learn, from the same config, in minutes."""

from __future__ import annotations

import json
import re
from math import log
from pathlib import Path

import pytest
import torch

from drconv_mm.layers import observe_regions

from .toolbox import KEY, command, run

CONFIG = Path(__file__).parents[2] / "configs/detection/retinanet_r18_fpn_bccd-160x120.py"


def region_entropies(config: Path, weights: Path, images: list[Path]) -> dict[str, float]:
    """Entropy (in nats) of each layer's use of its regions over several images."""
    from mmdet.apis import inference_detector, init_detector

    counts: dict[str, torch.Tensor] = {}

    def count(name, regions, num_regions):
        counts[name] = counts.get(name, 0) + torch.bincount(regions.flatten(), minlength=num_regions)

    model = init_detector(str(config), str(weights), device="cpu")
    with observe_regions(model, count):
        for image in images:
            inference_detector(model, str(image))
    shares = {name: (c / c.sum()).clamp_min(1e-12) for name, c in counts.items()}
    return {name: float(-(s * s.log()).sum()) for name, s in shares.items()}


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("kind", ["conv2d", "drconv"])
def test_retinanet_learns_blood_cells(tmp_path, shared_data, kind):
    root = shared_data / "bccd"
    options = {f"{loader}_dataloader.dataset.data_root": f"{root}/" for loader in ("train", "val", "test")}
    options.update(
        {f"{evaluator}_evaluator.ann_file": root / "annotations/instances_val.json" for evaluator in ("val", "test")}
    )
    if kind == "drconv":
        options[None] = KEY
    output = run(command("mmdet", "train.py", CONFIG, "--work-dir", "work", options=options), tmp_path, timeout=900)
    (ap50,) = re.findall(r"Epoch\(val\).*coco/bbox_mAP_50: ([\d.]+)", output)
    print(f"\n{kind}: AP50 {ap50}")
    assert float(ap50) > 0.5
    if kind == "drconv":
        images = sorted((root / "val").glob("*.jpg"))[:20]
        entropies = region_entropies(tmp_path / "work" / CONFIG.name, tmp_path / "work/epoch_15.pth", images)
        print(json.dumps({name: round(value / log(8), 2) for name, value in entropies.items()}))
        used = [value > 0.3 * log(8) for value in entropies.values()]
        assert sum(used) >= len(used) / 2, entropies
