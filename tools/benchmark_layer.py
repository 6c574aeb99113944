#!/usr/bin/env python
"""Time a training step of whole DRConv layers, guide and generator included, as a ratio to conv2d of the same shapes.

The mixture's layer is timed in both its orders: with filters made for each image, and by mixing the base kernels'
outputs, of which `DRConv2d` takes the one in the column "chosen". All take turns, round by round; the table gives
medians. Run it on an otherwise idle machine.

  benchmark_layer.py                                      layers on small maps, a minute
  benchmark_layer.py --shapes '32x192->192@7' --regions 2 8
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from benchmark_op import Shape
from timing import interleaved, machine, restart_with
from torch import nn

from drconv_mm.layers import DRConv2d
from drconv_mm.layers.mix_outputs import mixing_outputs_pays
from drconv_mm.memory import KEEP_FREED_MEMORY

POINTWISE = """32x192->192@3 32x960->160@3 32x128->512@4 32x96->96@6 2x192->192@7 8x192->192@7 32x192->192@7
32x256->128@8 32x48->48@12 32x96->96@14"""
SHAPES = [*POINTWISE.split(), "32x96->96@6 k3", "32x64->64@12 k3"]


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE", help="such as '2x64->64@160 k3 s2'")
    parser.add_argument("--regions", nargs="+", type=int, default=[8], metavar="M", help="default: 8")
    parser.add_argument("--rounds", type=int, default=25, help="timings of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: as it finds best)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    return parser.parse_args()


def training_step(module: nn.Module, shape: Shape, device: str) -> Callable[[], None]:
    """Forward and backward, to the input and all parameters."""
    module.to(device)
    input = torch.randn(*shape[:2], shape.size, shape.size, device=device).requires_grad_()
    upstream = torch.randn_like(module(input).detach())

    def run() -> None:
        torch.autograd.grad(module(input), [input, *module.parameters()], upstream)

    return run


def candidates(shape: Shape, num_regions: int, device: str) -> dict[str, Callable[[], None]]:
    """A training step of the standard convolution, of the mixture in both orders, and of `pooled`."""

    def layer(generator: str, mixes_outputs: bool) -> DRConv2d:
        made = DRConv2d(
            shape.channels, shape.outputs, shape.kernel, bias=False, num_regions=num_regions, generator=generator,
            **shape.geometry,
        )  # fmt: skip
        made._mixes_outputs = lambda *args: mixes_outputs
        return made

    modules = {
        "conv2d": nn.Conv2d(shape.channels, shape.outputs, shape.kernel, bias=False, **shape.geometry),
        "filters": layer("mixture", False),
        "outputs": layer("mixture", True),
        "pooled": layer("pooled", False),
    }
    return {name: training_step(module, shape, device) for name, module in modules.items()}


def main() -> None:
    """Times and prints a table."""
    args = parse_args()
    if args.device == "cpu":
        restart_with(KEEP_FREED_MEMORY)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(
        ", ".join(f"{key} {value}" for key, value in machine(args.device).items()) + "; forward+backward, fp32, NCHW\n"
    )
    print("| shape | m | conv2d, ms | mixture: filters | mixture: outputs | chosen | pooled |")
    print("|---|---|---|---|---|---|---|")
    for text in args.shapes or SHAPES:
        shape = Shape.parse(text)
        if shape.depthwise:
            raise SystemExit(f"benchmark_layer.py: shape {text!r} is depthwise, which has the one order; leave dw out")
        for m in args.regions:
            times = interleaved(candidates(shape, m, args.device), args.rounds, args.device)
            median = {name: statistics.median(found) for name, found in times.items()}
            ratios = {name: f"{value / median['conv2d']:.1f}" for name, value in median.items()}
            chosen = "outputs" if mixing_outputs_pays(m, 8, shape.out_size**2) else "filters"
            print(
                f"| {text} | {m} | {median['conv2d']:.3g} | {ratios['filters']} | {ratios['outputs']} | {chosen} "
                f"| {ratios['pooled']} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
