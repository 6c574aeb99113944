#!/usr/bin/env python
"""Count the multiply-adds and parameters of a config's model, DRConv layers included."""

from __future__ import annotations

import argparse

from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, init_default_scope

import drconv_mm  # noqa: F401  (registers the conv type for configs that name it DRConv)
from drconv_mm.engine.complexity import count_multiply_adds


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config of the model (mmdet, mmseg or mmpretrain)")
    parser.add_argument("--shape", type=int, nargs=2, default=[800, 1333], metavar=("H", "W"), help="image size")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="override settings of the config, as key=value"
    )
    return parser.parse_args()


def main() -> None:
    """Counts and prints."""
    args = parse_args()
    config = Config.fromfile(args.config)
    if args.cfg_options:
        config.merge_from_dict(args.cfg_options)
    init_default_scope(config.get("default_scope", "mmdet"))
    multiply_adds, parameters = count_multiply_adds(MODELS.build(config.model), tuple(args.shape))
    print(
        f"input {args.shape[0]}x{args.shape[1]}: {multiply_adds / 1e9:.3f} G multiply-adds, "
        f"{parameters / 1e6:.3f} M parameters"
    )


if __name__ == "__main__":
    main()
