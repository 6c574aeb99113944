#!/usr/bin/env python
"""Count the multiply-adds and parameters of configs' models by part: convolution, guide, generator, linear layers.

Multiply-adds are those of papers, of convolutions and linear layers; norms, pooling and resizing are left out. A
two-stage detector is counted with as many proposals as its untrained RPN gives, up to the config's limit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.config import Config, DictAction

import drconv_mm  # noqa: F401  (registers the conv type for configs that name it DRConv)
from drconv_mm.engine.complexity import PARTS, Cost, count_by_part
from drconv_mm.engine.model import STOCK_SHAPES, build_model, stock_shape


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="config of mmdet, mmseg, mmpretrain or a face network"
    )
    shapes = ", ".join(f"{scope} {h} {w}" for scope, (h, w) in STOCK_SHAPES.items())
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help=f"image size, pixels (default by scope: {shapes}, or what a face network was built for)",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="override settings of the configs, as key=value"
    )
    return parser.parse_args()


def count_config(path: str, shape: tuple[int, int] | None, options: dict | None) -> tuple[dict[str, Cost], tuple]:
    """The costs by part of a config's model, and the size of the image they are of."""
    config = Config.fromfile(path)
    if options:
        config.merge_from_dict(options)
    scope = config.get("default_scope") or "mmdet"
    model = build_model(config, scope)
    shape = tuple(shape or stock_shape(model, scope))
    return count_by_part(model, shape), shape


def main() -> None:
    """Counts and prints a Markdown table."""
    args = parse_args()
    for path in args.configs:
        if not Path(path).is_file():
            sys.exit(f"count_flops.py: error: config {path!r} is no file; expected the path of a config")
    print("| config | input | " + " | ".join((*PARTS, "total")) + " | parameters |")
    print("|---" * (len(PARTS) + 4) + "|")
    for path in args.configs:
        costs, shape = count_config(path, args.shape, args.cfg_options)
        cells = [f"{costs[part].multiply_adds / 1e6:.2f} M" for part in (*PARTS, "total")]
        parts = (part for part in (*PARTS, "other") if costs[part].parameters)
        parameters = ", ".join(f"{part} {costs[part].parameters / 1e6:.2f} M" for part in parts)
        total = f"{costs['total'].parameters / 1e6:.2f} M ({parameters})"
        print(f"| {Path(path).stem} | {shape[0]}x{shape[1]} | " + " | ".join(cells) + f" | {total} |", flush=True)


if __name__ == "__main__":
    main()
