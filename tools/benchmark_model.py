#!/usr/bin/env python
"""Time whole networks: a config as it is against the same config with DRConv, in one run.

Inference is the model's forward in tensor mode (no post-processing), a training step is loss and backward on drawn
pictures and labels. Standard and DRConv take turns, the table gives medians. Run it on an otherwise idle machine.

  benchmark_model.py configs/classification/shufflenet-v2-0.5x_8xb128_in1k.py --batch 1 16
  benchmark_model.py .../mmdet/.mim/configs/retinanet/retinanet_r18_fpn_1x_coco.py --shape 240 320 --batch 2
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import DictAction
from timing import extra_memory, interleaved, machine, restart_with
from toolbox_models import SHAPES, build, training_samples
from torch import nn

from drconv_mm.engine.complexity import count_by_part, image_samples
from drconv_mm.memory import KEEP_FREED_MEMORY

KEY = "model.backbone.conv_cfg.type=drconv_mm.DRConv"


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="configs of mmdet, mmseg or mmpretrain")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="images at a time (default: 1)")
    shapes = ", ".join(f"{scope} {h} {w}" for scope, (h, w) in SHAPES.items())
    parser.add_argument("--shape", type=int, nargs=2, metavar=("H", "W"), help=f"default: {shapes}")
    key, value = KEY.split("=")
    parser.add_argument(
        "--drconv", nargs="+", action=DictAction, default={key: value}, metavar="KEY=VALUE",
        help=f"what makes the config's model a DRConv one (default: {KEY})",
    )  # fmt: skip
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={}, help="overrides for both models")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: as it finds best)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="time DRConv under torch.compile as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--measure-memory", metavar="KIND", help=argparse.SUPPRESS)
    return parser.parse_args()


def training_step(model: nn.Module, images: torch.Tensor, samples: list) -> Callable[[], None]:
    """Loss and backward."""
    samples = [sample.to(images.device) for sample in samples]

    def run() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        losses = model(images, samples, mode="loss")
        model.parse_losses(losses)[0].backward()

    return run


def inference(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """The forward in tensor mode."""
    samples = image_samples(model, len(images), images.shape[2:])

    def run() -> None:
        model.eval()
        with torch.no_grad():
            model(images, samples, mode="tensor")

    return run


def medians(runs: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Median milliseconds of each."""
    return {name: statistics.median(found) for name, found in interleaved(runs, rounds, device).items()}


def peak_memory(kind: str) -> float:
    """MB that the training step takes at its peak, in a process of its own: Linux alone."""
    command = [sys.executable, *sys.argv, "--measure-memory", kind]
    environment = {key: value for key, value in os.environ.items() if key not in KEEP_FREED_MEMORY}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = re.search(r"peak memory ([\d.]+)", done.stdout)
    return float(found.group(1)) if found else float("nan")


def measure_memory(args: argparse.Namespace) -> None:
    """Prints the peak of one training step of the first config, beyond what the process has before it."""
    options = {**args.cfg_options, **(args.drconv if args.measure_memory == "DRConv" else {})}
    model, scope = build(args.configs[0], options)
    shape = tuple(args.shape or SHAPES[scope])
    step = training_step(
        model, torch.randn(args.batch[0], 3, *shape), training_samples(scope, model, args.batch[0], shape)
    )
    print(f"peak memory {extra_memory(step):.1f}")


def main() -> None:
    """Times and prints a Markdown table."""
    args = parse_args()
    if args.device == "cpu" and not args.measure_memory:
        restart_with(KEEP_FREED_MEMORY)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.measure_memory:
        measure_memory(args)
        return
    about = machine(args.device)
    print(", ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    print("| config | input | | multiply-adds | parameters | inference, ms | images/s | x | training step, ms | x |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for path in args.configs:
        for batch in args.batch:
            kinds = {"Conv2d": {}, "DRConv": args.drconv}
            models = {kind: build(path, {**args.cfg_options, **more}) for kind, more in kinds.items()}
            scope = models["Conv2d"][1]
            shape = tuple(args.shape or SHAPES[scope])
            models = {kind: model.to(args.device) for kind, (model, _) in models.items()}
            costs = {kind: count_by_part(model, shape)["total"] for kind, model in models.items()}
            if args.compile:
                models["DRConv, compiled"] = torch.compile(models["DRConv"])
                costs["DRConv, compiled"] = costs["DRConv"]
            images = torch.randn(batch, 3, *shape, device=args.device)
            samples = training_samples(scope, models["Conv2d"], batch, shape)
            infer = medians({k: inference(m, images) for k, m in models.items()}, args.rounds, args.device)
            trained = {k: m for k, m in models.items() if "compiled" not in k}
            train = medians(
                {k: training_step(m, images, samples) for k, m in trained.items()}, args.rounds, args.device
            )
            for kind in models:
                step = train.get(kind)
                row = dict(config=Path(path).stem, batch=batch, shape=shape, kind=kind, **costs[kind]._asdict())
                rows.append(dict(row, inference_ms=infer[kind], training_ms=step))
                cells = [
                    row["config"], f"{batch}x3x{shape[0]}x{shape[1]}", kind, f"{row['multiply_adds'] / 1e6:.1f} M",
                    f"{row['parameters'] / 1e6:.2f} M", f"{infer[kind]:.1f}", f"{1e3 * batch / infer[kind]:.1f}",
                    f"{infer[kind] / infer['Conv2d']:.2f}",
                    *(["", ""] if step is None else [f"{step:.1f}", f"{step / train['Conv2d']:.2f}"]),
                ]  # fmt: skip
                print(f"| {' | '.join(cells)} |", flush=True)
    if len(args.configs) == len(args.batch) == 1 and args.device == "cpu":
        memory = {kind: peak_memory(kind) for kind in ("Conv2d", "DRConv")}
        print("\npeak memory of a training step, MB: " + ", ".join(f"{k} {v:.0f}" for k, v in memory.items()))
        rows.append(dict(peak_memory_mb=memory))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(dict(machine=about, rows=rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
