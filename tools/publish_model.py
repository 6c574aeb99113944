#!/usr/bin/env python
"""Make a checkpoint fit to publish: weights and a little meta alone, read safely, the hash in its name.

  publish_model.py work_dirs/net/epoch_15.pth zoo/NAME
  publish_model.py work_dirs/net/epoch_15.pth zoo/NAME --fp16 --config configs/detection/NAME.py --shape 120 160
  publish_model.py ... --metrics work_dirs/net/20260101_000000/20260101_000000.json

Writes zoo/NAME-<first 8 digits of the sha256>.pth. With the config it also checks that the weights are that model's,
and prints the model's lines for the folder's metafile.yml; --metrics takes the JSON that test.py leaves.
The weights published are `state_dict`; after mmengine's EMAHook those are the averaged ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from drconv_mm.checkpoint import read_checkpoint, refuse_nan, sha256, strip_checkpoint, write_checkpoint
from drconv_mm.engine.complexity import count_by_part
from drconv_mm.zoo import CARD, Entry, build_model, load_weights, read_index

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 12  # MB (2**20 bytes) that a file in zoo/ may have


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="IN", help="a checkpoint that train.py wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="where it goes; the hash is added to the name")
    parser.add_argument("--fp16", action="store_true",
                        help="store weights of two or more dimensions in half the bytes, where they fit")  # fmt: skip
    parser.add_argument("--config", type=Path, help="the config that it was trained with")
    parser.add_argument("--shape", type=int, nargs=2, metavar=("H", "W"),
                        help="with --config: picture that multiply-adds are of, pixels")  # fmt: skip
    parser.add_argument("--metrics", type=Path, metavar="JSON", help="what test.py measured of the published file")
    return parser.parse_args()


def read_metrics(path: Path) -> dict[str, float]:
    """The numbers of the JSON that test.py writes; times are left out.

    Raises:
        ValueError: It is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"metrics {str(path)!r} can't be read ({error}); expected the JSON that test.py writes"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"metrics {str(path)!r} holds no mapping; expected the JSON that test.py writes")
    numbers = {key: value for key, value in content.items() if isinstance(value, (int, float))}
    return {key: value for key, value in numbers.items() if key not in ("time", "data_time", "step")}


def describe(
    model: nn.Module, config: Path, path: Path, shape: list[int] | None, metrics: dict[str, float]
) -> dict[str, Any]:
    """The model's entry in a metafile: what it has there now, and what is known of the published file."""
    name = config.stem
    known = read_index(ROOT / "model-index.yml").get(name, Entry(name, config.as_posix(), None))
    metadata = dict(known.metadata, Parameters=sum(p.numel() for p in model.parameters()), SHA256=sha256(path))
    if shape:
        metadata["FLOPs"] = count_by_part(model, tuple(shape))["total"].multiply_adds
        metadata["Input Size"] = f"{shape[0]}x{shape[1]}"
    results = known.results
    if metrics:
        results = [{**(results[0] if results else {"Task": "?", "Dataset": "?"}), "Metrics": metrics}, *results[1:]]
    return {
        "Name": name,
        "In Collection": "DRConv" if "drconv" in name else "Standard convolution",
        "Config": known.config,
        "Metadata": {key: metadata.get(key, "?") for key in dict.fromkeys([*CARD, *metadata])},
        "Results": results,
        "Weights": f"zoo/{path.name}",
    }


def main() -> None:
    """Publishes and prints."""
    args = parse_args()
    entry = None
    try:
        metrics = read_metrics(args.metrics) if args.metrics else {}
        whole = read_checkpoint(args.checkpoint)
        refuse_nan(whole)
        checkpoint = strip_checkpoint(whole, half=args.fp16)
        if args.config:
            model = build_model(args.config)
            load_weights(model, checkpoint, f"weights of {str(args.checkpoint)!r}", f"config {str(args.config)!r}")
        path = write_checkpoint(checkpoint, args.out)
        if args.config:
            entry = describe(model, args.config, path, args.shape, metrics)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"publish_model.py: error: {error}")
    size, before = (file.stat().st_size / 2**20 for file in (path, args.checkpoint))
    print(f"{path}: {size:.2f} MB, was {before:.2f} MB; sha256 {sha256(path)}")
    for name, value in metrics.items():
        print(f"  {name}: {value}")
    if size > LIMIT:
        print(f"  over {LIMIT} MB: too large for the repository's zoo/; publish it under a URL")
    if entry:
        print(f"\nIts entry in {args.config.parent / 'metafile.yml'}, with what is yours to say as '?':\n")
        print(yaml.safe_dump([entry], sort_keys=False, allow_unicode=True, width=1000))


if __name__ == "__main__":
    main()
