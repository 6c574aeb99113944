#!/usr/bin/env python
"""Time region_conv2d as a ratio to a standard convolution of the same shapes, in one run.

The standard is torch.nn.functional.conv2d in its faster memory format. All candidates take turns, round by round, so
that a busy moment of the machine meets all of them; the table gives medians and, as spread, the middle half of the
rounds. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from drconv_mm import __version__, region_conv2d
from drconv_mm.ops.backends import BACKENDS

# name: (N, C, O, kernel, H, W). The first is the yardstick of the acceptance figures in the README.
SHAPES = {
    "pointwise": (2, 512, 128, 1, 80, 80),
    "resnet18-layer1": (8, 64, 64, 3, 30, 40),
    "shufflenet-stage3": (8, 116, 116, 1, 14, 14),
}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["pointwise"], help="which layers to time")
    parser.add_argument("--regions", nargs="+", type=int, default=[2, 8, 16], metavar="M", help="numbers of regions")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=["sorted", "dense"], help="what to time")
    parser.add_argument("--backward", action="store_true", help="time forward + backward in place of forward")
    parser.add_argument("--rounds", type=int, default=40, help="timings of each candidate (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: as it finds best)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--csv", metavar="FILE", help="write the figures there as well")
    return parser.parse_args()


def step(function: Callable, tensors: list[torch.Tensor], backward: bool) -> Callable[[], None]:
    """One run of ``function``, with all gradients where ``backward``."""
    tensors = [tensor.detach().requires_grad_(backward) for tensor in tensors]
    upstream = torch.randn_like(function(*tensors).detach())

    def run() -> None:
        output = function(*tensors)
        if backward:
            torch.autograd.grad(output, tensors, upstream)

    return run


def interleaved(candidates: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each candidate, one timing a round."""
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for index in range(-5, rounds):  # the first rounds warm up
        for name, run in candidates.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if index >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    """Times and prints."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(
        f"drconv_mm {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads, device {args.device}, fp32, channels_last, "
        f"{'forward+backward' if args.backward else 'forward'}, {args.rounds} rounds"
    )
    rows = []
    for shape in args.shapes:
        n, c, o, k, h, w = SHAPES[shape]
        torch.manual_seed(0)
        geometry = dict(padding=k // 2)
        input = torch.randn(n, c, h, w, device=args.device).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(o, c, k, k, device=args.device)

        def conv(x, w, geometry=geometry):
            return F.conv2d(x, w, **geometry)

        candidates = {
            "conv2d contiguous": step(conv, [input.contiguous(), weight], args.backward),
            "conv2d channels_last": step(
                conv, [input, weight.contiguous(memory_format=torch.channels_last)], args.backward
            ),
        }
        for m in args.regions:
            tensors = [input, torch.randn(n, m, o, c, k, k, device=args.device)]
            tensors.append(torch.randn(n, m, h, w, device=args.device).contiguous(memory_format=torch.channels_last))
            for name in args.backends:

                def drconv(x, filters, guide, name=name, geometry=geometry):
                    return region_conv2d(x, filters, guide, backend=name, **geometry)

                candidates[f"{name} m={m}"] = step(drconv, tensors, args.backward)
        times = interleaved(candidates, args.rounds, args.device)
        medians = {name: statistics.median(values) for name, values in times.items()}
        standard = min(value for name, value in medians.items() if name.startswith("conv2d"))
        print(f"\n{shape}: {k}x{k}, {n}x{c}->{o} @ {h}x{w}")
        print(f"{'':24}{'ms':>9}{'middle half':>18}{'x conv2d':>10}")
        for name, values in times.items():
            low, _, high = statistics.quantiles(values, n=4)
            ratio = medians[name] / standard
            print(f"{name:24}{medians[name]:9.2f}{f'{low:.2f} to {high:.2f}':>18}{ratio:10.2f}")
            rows.append([shape, name, f"{medians[name]:.4f}", f"{low:.4f}", f"{high:.4f}", f"{ratio:.3f}"])
        for name in args.backends:
            if len(args.regions) > 1:
                first, last = (f"{name} m={m}" for m in (min(args.regions), max(args.regions)))
                print(f"{last} / {first.split()[-1]}: {medians[last] / medians[first]:.2f}")
    if args.csv:
        with Path(args.csv).open("w", newline="") as file:
            csv.writer(file).writerows([["shape", "name", "median_ms", "q1_ms", "q3_ms", "ratio"], *rows])


if __name__ == "__main__":
    sys.exit(main())
