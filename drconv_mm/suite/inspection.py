"""What a trained model costs and how it uses its regions.

``python -m drconv_mm.suite.inspection FOLDER --checkpoint FILE --shape H W`` runs beside a run's test.py, in a
process of its own, whose failure is the run's alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import Tensor, nn

from ..checkpoint import read_checkpoint, strip_checkpoint
from ..engine.complexity import count_by_part
from ..engine.model import build_model
from ..engine.regions import region_shares
from ..files import draft_of, write_whole
from ..info import TOOLBOXES, cpu_name, toolbox_versions
from ..layers.drconv import observe_regions
from ..version import __version__
from .pictures import collate_of, draw_run
from .results import INSPECTION_FILE

_SAMPLE = 16


def count_cost(model: nn.Module, shape: tuple[int, int]) -> tuple[int, int]:
    """(multiply-adds of one image of ``shape`` (H, W), parameters), as papers count them."""
    cost = count_by_part(model, shape)["total"]
    return cost.multiply_adds, cost.parameters


def sample_regions(model: nn.Module, config: Config, count: int = _SAMPLE) -> dict[str, dict[str, Any]]:
    """Shares of the regions of each layer over images spread evenly over the validation set.

    Returns:
        ``{layer: {'num_regions': m, 'shares': [m numbers]}}``, empty where no layer has regions.
    """
    counts: dict[str, Tensor] = {}

    def observe(name: str, regions: Tensor, num_regions: int) -> None:
        counts[name] = counts.get(name, 0) + torch.bincount(regions.flatten().cpu(), minlength=num_regions)

    loader = config.val_dataloader
    dataset, collate = DATASETS.build(loader.dataset), collate_of(loader)
    model.eval()
    with torch.no_grad(), observe_regions(model, observe):
        for index in np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int)):
            model.test_step(collate([dataset[int(index)]]))
    shares = {name: region_shares(total).tolist() for name, total in counts.items()}
    return {name: {"num_regions": len(values), "shares": values} for name, values in shares.items()}


def environment() -> dict[str, str]:
    """Versions and machine."""
    found = {"drconv_mm": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("numpy", "torchvision"):
        found[package] = version(package)
    # The two families share import names: the distributions' names tell them apart.
    for family, toolboxes in toolbox_versions().items():
        found |= {TOOLBOXES[name][family == "openmmlab"]: number for name, number in toolboxes.items()}
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    found["cpu"] = cpu_name()
    found["cpu cores"] = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    found["threads"] = str(torch.get_num_threads())
    if torch.cuda.is_available():
        found["gpu"] = f"{torch.cuda.get_device_name()} x {torch.cuda.device_count()}"
    return found


def inspect_run(folder: Path, source: Path, shape: tuple[int, int]) -> None:
    """Writes ``checkpoint.pth``, ``pictures/`` and ``inspection.json`` of a run from its ``config.py``.

    Args:
        folder: The run's.
        source: Checkpoint of the end of the training.
        shape: (H, W) that multiply-adds are counted at.
    """
    config = Config.fromfile(folder / "config.py")
    checkpoint = strip_checkpoint(read_checkpoint(source))
    weights = folder / "checkpoint.pth"
    with draft_of(weights) as draft:
        torch.save(checkpoint, draft)
    model = build_model(config)
    multiply_adds, parameters = count_cost(model, shape)
    model.load_state_dict(checkpoint["state_dict"])
    document = {
        "iterations": checkpoint["meta"]["iter"],
        "multiply_adds": multiply_adds,
        "parameters": parameters,
        "regions": sample_regions(model, config),
        "environment": environment(),
    }
    draw_run(config, weights, folder / "pictures")
    write_whole(folder / INSPECTION_FILE, json.dumps(document))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--shape", type=int, nargs=2, required=True)
    args = parser.parse_args()
    inspect_run(args.folder, args.checkpoint, tuple(args.shape))


if __name__ == "__main__":
    main()
