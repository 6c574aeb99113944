#!/usr/bin/env python
"""Export a trained model, standard or DRConv, to ONNX or to a PyTorch program, for use without this package.

What is exported is the network: from images as the config's data_preprocessor gives them (its settings are stored with
the file) to what the head gives before it is decoded, such as class scores, or score and box maps by level. The file is
run on random images beside the model, and written if both say the same. Needs torch 2.6 or newer.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from mmengine.config import Config, DictAction
from timing import interleaved

import drconv_mm
from drconv_mm.checkpoint import read_checkpoint
from drconv_mm.engine.model import STOCK_SHAPES, build_model, stock_shape
from drconv_mm.export import export_network, onnx_runner, to_onnx
from drconv_mm.files import draft_of
from drconv_mm.zoo import load_weights

# Of the outputs' mean magnitude. A rounded guide may give a pixel on a border to the other region, which means tell
# from a wrong program, and largest differences don't. On maps of few pixels that changes a mean as well, now and then:
# most draws of images have to agree. A wrong program differs in all.
TOLERANCE = 1e-3
DRAWS = 5
ROUNDS = 7


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="config of mmdet, mmseg, mmpretrain or a face network")
    parser.add_argument("checkpoint", type=Path, help="its checkpoint, a local file")
    parser.add_argument("out", type=Path, help="file to write: .onnx, or .pt2 for torch.export.load")
    shapes = ", ".join(f"{scope} {h} {w}" for scope, (h, w) in STOCK_SHAPES.items())
    parser.add_argument(
        "--shape", type=int, nargs=2, metavar=("H", "W"),
        help=f"image size, pixels (default by scope: {shapes}, or what a face network was built for)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, metavar="N", help="images at a time (default: 1)")
    parser.add_argument("--dynamic-batch", action="store_true", help="any number of images at a time")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="override settings of the config, as key=value"
    )
    args = parser.parse_args()
    if args.out.suffix not in (".onnx", ".pt2"):
        parser.error(f"out={str(args.out)!r} must end in .onnx or .pt2")
    if args.dynamic_batch and args.batch_size is not None:
        parser.error("--dynamic-batch takes any number of images: leave --batch-size out")
    if args.batch_size is None:
        args.batch_size = 2 if args.dynamic_batch else 1
    if min(args.batch_size, *(args.shape or (1,))) < 1:
        parser.error(f"--batch-size and --shape must be at least 1, got {args.batch_size} and {args.shape}")
    return args


def flat(outputs: object) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples and dicts, in order."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, dict) else outputs
    return [leaf for part in parts for leaf in flat(part)]


def outputs_of(call: Callable, draws: torch.Tensor) -> list[torch.Tensor]:
    """Each output for all draws, ``[draws, ...]``."""
    return [torch.stack(output) for output in zip(*(flat(call(draw)) for draw in draws), strict=True)]


def main() -> None:
    """Exports, compares and writes."""
    args = parse_args()
    warnings.filterwarnings("ignore", module="copyreg|torch.*")  # torch.export's, of its own code
    try:
        print(export(args))
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"export.py: error: {error}")


def export(args: argparse.Namespace) -> str:
    """Does it, and says what was written."""
    config = Config.fromfile(args.config)
    if args.cfg_options:
        config.merge_from_dict(args.cfg_options)
    checkpoint = read_checkpoint(args.checkpoint)
    scope = config.get("default_scope") or "mmdet"
    model = build_model(config, scope)
    load_weights(model, checkpoint, f"weights of {str(args.checkpoint)!r}", f"config {str(args.config)!r}")
    model.eval()
    shape = args.shape or stock_shape(model, scope)
    images = torch.randn(args.batch_size, 3, *shape)
    try:
        program = export_network(model, images, args.dynamic_batch)
    except Exception as error:  # tracing can fail in any way
        raise ValueError(
            f"{args.config}: PyTorch can't trace the model ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0][:300]}); networks whose operations depend on what they find, as "
            "those of two-stage detectors, can't be exported whole"
        ) from error
    about = dict(
        drconv_mm=drconv_mm.__version__,
        config=args.config.name,
        data_preprocessor=json.dumps(config.model.get("data_preprocessor") or {}, default=str),
    )
    # Another number than it was traced with.
    draws = torch.randn(DRAWS, 3 if args.dynamic_batch else len(images), 3, *shape)
    images = draws[0]
    with draft_of(args.out) as draft, torch.no_grad():
        if args.out.suffix == ".onnx":
            draft.write_bytes(to_onnx(program, about))
            run = onnx_runner(draft)
        else:
            torch.export.save(program, draft, extra_files={"about.json": json.dumps(about)})
            run = torch.export.load(draft).module()
        network = partial(model, mode="tensor")
        outputs = zip(outputs_of(network, draws), outputs_of(run, draws), strict=True)
        lines = [compare(number, *both) for number, both in enumerate(outputs)]
        calls = dict(model=partial(network, images), exported=partial(run, images))
        times = {name: median(found) for name, found in interleaved(calls, ROUNDS, "cpu").items()}
    count = "any number of images" if args.dynamic_batch else f"{len(images)} images"
    return "\n".join(
        [
            f"{args.out}: {args.out.stat().st_size / 2**20:.2f} MB, takes {count} of {shape[0]}x{shape[1]}",
            *lines,
            f"  time for {len(images)} on this CPU: {times['exported']:.1f} ms, the model in PyTorch "
            f"{times['model']:.1f} ms (medians of {ROUNDS}, {torch.get_num_threads()} threads)",
        ]
    )


def compare(number: int, expected: torch.Tensor, found: torch.Tensor) -> str:
    """A line on an output, ``[draws, ...]``.

    Raises:
        ValueError: They are not the same in most draws.
    """
    differences, size = (found - expected).abs(), float(expected.abs().mean())
    same = differences.flatten(1).mean(1) <= TOLERANCE * size  # NaN is not
    tries, agree = len(same), int(same.sum())
    if 2 * agree <= tries:
        raise ValueError(
            f"output {number} of what was exported differs from the model's in {tries - agree} of {tries} tries, by "
            f"{float(differences.mean()):.1e} on average, at a mean magnitude of {size:.1e}, so it was not kept; "
            "please report it with the config"
        )
    shape, most = "x".join(map(str, expected.shape[1:])), float(differences[same].max())
    line = f"  output {number}, {shape}: mean magnitude {size:.1e}, differs by {most:.1e} at most"
    if agree < tries:
        line += f" in {agree} of {tries} tries; in the others rounding may have changed a pixel's region"
    return line


if __name__ == "__main__":
    main()
