#!/usr/bin/env python
"""Draw how the DRConv layers of a trained model divide images: the image, then each layer's region map over it."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import Compose, pseudo_collate
from torch import nn

import drconv_mm  # noqa: F401  (registers the conv type for configs that name it DRConv)
from drconv_mm.checkpoint import CheckpointError, read_checkpoint
from drconv_mm.engine.model import build_model
from drconv_mm.engine.regions import RegionRecorder, save_picture
from drconv_mm.layers import DRConv2d

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config of the model (mmdet, mmseg or mmpretrain)")
    parser.add_argument("checkpoint", help="its checkpoint, a local file")
    parser.add_argument("images", nargs="+", help="images, or folders of them")
    parser.add_argument("--out-dir", default="work_dirs/regions", help="folder for the pictures (default: %(default)s)")
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="layers to draw (default: up to 11 of all)")
    parser.add_argument("--max-images", type=int, default=20, help="images to draw at most (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="device (default: %(default)s)")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="override settings of the config, as key=value"
    )
    return parser.parse_args()


def find_images(paths: list[str]) -> list[Path]:
    """The images named, and those in the folders named, in order."""
    found = []
    for path in map(Path, paths):
        if not path.exists():
            sys.exit(f"{path}: there is no such image or folder")
        found += [path] if path.is_file() else sorted(entry for entry in path.iterdir() if _is_image(entry))
    if not found:
        sys.exit(f"{', '.join(paths)}: no image with a suffix of {', '.join(sorted(SUFFIXES))}")
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def load_weights(model: nn.Module, path: str) -> None:
    """Loads all weights of the model, and nothing else, from a checkpoint that can run no code."""
    try:
        model.load_state_dict(read_checkpoint(Path(path))["state_dict"])
    except CheckpointError as error:
        sys.exit(str(error))
    except RuntimeError as error:  # names each key
        sys.exit(
            f"{path}: the checkpoint is of another model than the config, expected the same layers; give the config "
            f"and the --cfg-options that it was trained with. {error}"
        )


def test_pipeline(config: Config) -> Compose:
    """The config's own test pipeline, without the steps that read annotations."""
    steps = [step for step in config.test_dataloader.dataset.pipeline if "Annotations" not in str(step["type"])]
    from mmengine.registry import TRANSFORMS

    return Compose([TRANSFORMS.build(step) for step in steps])


def main() -> None:
    """Draws."""
    args = parse_args()
    images = find_images(args.images)[: args.max_images]
    config = Config.fromfile(args.config)
    if args.cfg_options:
        config.merge_from_dict(args.cfg_options)
    model = build_model(config, "mmdet")
    layers = [name for name, module in model.named_modules() if isinstance(module, DRConv2d)]
    if not layers:
        sys.exit(
            f"{args.config}: the model has no DRConv layer. If it was trained with a key on the command line, give "
            "that here too: --cfg-options model.backbone.conv_cfg.type=drconv_mm.DRConv"
        )
    unknown = sorted(set(args.layers or []) - set(layers))
    if unknown:
        sys.exit(f"--layers {' '.join(unknown)}: no such DRConv layer; there are {', '.join(layers)}")
    load_weights(model, args.checkpoint)
    model.to(args.device).eval()
    pipeline = test_pipeline(config)
    stems = Counter(path.stem for path in images)
    for number, path in enumerate(images, 1):
        data = pseudo_collate([pipeline(dict(img_path=str(path), img_id=0))])
        with RegionRecorder(model, args.layers) as recorder, torch.no_grad():
            model.test_step(data)
        if not recorder.regions:
            print(f"[{number}/{len(images)}] {path}: nothing to draw: {recorder.why_empty()}")
            continue
        name = path.stem if stems[path.stem] == 1 else f"{number}_{path.stem}"  # of different folders
        out = Path(args.out_dir) / f"{name}.png"
        save_picture(out, recorder.picture(data["inputs"][0]))
        print(f"[{number}/{len(images)}] {out}")


if __name__ == "__main__":
    main()
