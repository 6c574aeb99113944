#!/usr/bin/env python
"""Time region_conv2d as a ratio to a standard convolution of the same shapes, in one run.

The standard is torch.nn.functional.conv2d in its faster memory format. All candidates take turns, round by round, so
that a busy moment of the machine meets all of them; the tables give medians. Run it on an otherwise idle machine.

  benchmark_op.py                                        a few shapes, seconds
  benchmark_op.py --suite cpu --csv cpu.csv --plot cpu.png    every shape of docs/benchmarks.md
  benchmark_op.py --suite cpu --maps random dominant     other region maps
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timing import extra_memory, interleaved, machine, restart_with

from drconv_mm import region_conv2d
from drconv_mm.memory import KEEP_FREED_MEMORY
from drconv_mm.ops.backends import BACKENDS

# To see what a run takes, nothing of an earlier one may be left: glibc would raise this threshold by itself.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": str(1 << 16)}


class Shape(NamedTuple):
    """A layer: ``N x C->O @ size``, its kernel and stride."""

    batch: int
    channels: int
    outputs: int
    size: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From ``'2x64->64@160 k3 s2'``, or ``'16x144@56 k3 dw'``."""
        found = re.fullmatch(r"(\d+)x(\d+)(?:->(\d+))?@(\d+)(?: k(\d+))?(?: s(\d+))?( dw)?", text)
        if found is None:
            raise SystemExit(f"benchmark_op.py: shape {text!r} is not like '2x64->64@160 k3 s2' or '16x144@56 k3 dw'")
        n, c, o, size, kernel, stride, depthwise = found.groups()
        return cls(int(n), int(c), int(o or c), int(size), int(kernel or 1), int(stride or 1), bool(depthwise))

    @property
    def geometry(self) -> dict:
        """Arguments of a convolution."""
        return dict(stride=self.stride, padding=self.kernel // 2, groups=self.channels if self.depthwise else 1)

    @property
    def out_size(self) -> int:
        """Height and width of the output."""
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1


POINTWISE = """32x24->24@28 32x48->48@14 32x96->96@7 16x144->24@56 16x192->32@28 16x384->64@14 16x960->160@7
2x256->64@160 2x512->128@80 2x1024->256@40 8x64->128@28 1x256->256@32"""
DENSE = "2x64->64@160 2x128->128@80 2x256->256@40 4x32->64@56"
CPU = (
    POINTWISE.split()
    + [f"{shape} k3{stride}" for shape in DENSE.split() for stride in ("", " s2")]
    + [f"{shape} k3{stride} dw" for shape in ("16x144@56", "16x384@14") for stride in ("", " s2")]
)
SUITES = {
    "quick": ["2x512->128@80", "8x64->64@28 k3", "32x96->96@7", "16x144@56 k3 dw"],
    "cpu": CPU,
    "gpu": [f"{8 * int(shape.split('x')[0])}x{shape.split('x', 1)[1]}" for shape in CPU],
}
REGIONS = {"quick": [2, 8, 16], "cpu": [2, 4, 8, 16], "gpu": [2, 4, 8, 16]}
MAPS = ("coherent", "random", "dominant")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="quick", help="which layers to time (default: %(default)s)")
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE", help="these in place of a suite: '2x64->64@160 k3 s2'")
    parser.add_argument("--regions", nargs="+", type=int, metavar="M", help="numbers of regions (default: the suite's)")
    parser.add_argument("--maps", nargs="+", choices=MAPS, default=["coherent"], help="region maps: patches of equal "
                        "area, each pixel at random, or one region with 95%% (default: %(default)s)")  # fmt: skip
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, help="what to time (default: the fastest here)")
    parser.add_argument("--backward", nargs="?", choices=["full", "none"], const="full",
                        help="time forward + backward, with the guide's gradient or without")  # fmt: skip
    parser.add_argument("--nchw", action="store_true", help="contiguous inputs, against conv2d of the same")
    parser.add_argument("--memory", action="store_true", help="measure extra peak memory in place of time")
    parser.add_argument(
        "--rounds", type=int, help="timings of each candidate (default: 15 to 60, the fewer the longer they take)"
    )
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: as it finds best)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same, with machine and versions")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="a table of ratios, as docs/benchmarks.md has it")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the ratio by shape and m")
    return parser.parse_args()


def region_maps(shape: Shape, num_regions: int, kind: str) -> torch.Tensor:
    """``[N, Ho, Wo]``, int64: patches of equal area, or noise, or 95% of one region."""
    size = (shape.batch, shape.out_size, shape.out_size)
    if kind == "random":
        return torch.randint(num_regions, size)
    if kind == "dominant":
        return torch.where(torch.rand(size) < 0.95, 0, torch.randint(num_regions, size))
    # Level sets of a smooth random field, cut at its quantiles.
    field = F.interpolate(torch.randn(shape.batch, 1, 4, 4), size[1:], mode="bicubic").flatten(1)
    order = field.argsort(1).argsort(1)
    return (order * num_regions // order.shape[1]).view(size)


def problem(shape: Shape, num_regions: int, kind: str, device: str, nchw: bool) -> list[torch.Tensor]:
    """Input, filters (outputs side by side, as `DRConv2d` generates them) and guide."""
    n, c, o, size, k = shape[:5]
    memory_format = torch.contiguous_format if nchw else torch.channels_last
    input = torch.randn(n, c, size, size, device=device).contiguous(memory_format=memory_format)
    per_group = 1 if shape.depthwise else c
    filters = torch.randn(n, num_regions, k, k, per_group, o, device=device).permute(0, 1, 5, 4, 2, 3)
    maps = region_maps(shape, num_regions, kind).to(device)
    guide = torch.randn(n, num_regions, *maps.shape[1:], device=device).clamp(-2, 2)
    guide.scatter_(1, maps.unsqueeze(1), 3.0)
    return [input, filters, guide.contiguous(memory_format=memory_format)]


def step(function: Callable, tensors: list[torch.Tensor], backward: bool) -> Callable[[], None]:
    """One run of ``function``, with all gradients where ``backward``."""
    tensors = [tensor.detach().requires_grad_(backward) for tensor in tensors]
    upstream = torch.randn_like(function(*tensors).detach())

    def run() -> None:
        output = function(*tensors)
        if backward:
            torch.autograd.grad(output, tensors, upstream)

    return run


def candidates_of(shape: Shape, args: argparse.Namespace, regions: list[int]) -> dict[str, Callable[[], Callable]]:
    """What is timed: a name, and what prepares one run of it."""

    def conv(channels_last: bool) -> Callable[[], None]:
        torch.manual_seed(0)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        input = torch.randn(*shape[:2], shape.size, shape.size, device=args.device)
        weight = torch.randn(
            shape.outputs, 1 if shape.depthwise else shape.channels, shape.kernel, shape.kernel, device=args.device
        )
        tensors = [tensor.contiguous(memory_format=memory_format) for tensor in (input, weight)]
        return step(lambda x, w: F.conv2d(x, w, **shape.geometry), tensors, args.backward is not None)

    def drconv(backend: str | None, num_regions: int, kind: str) -> Callable[[], None]:
        torch.manual_seed(0)
        tensors = problem(shape, num_regions, kind, args.device, args.nchw)
        more = dict(backend=backend, guide_grad=args.backward or "full")
        return step(lambda *t: region_conv2d(*t, **shape.geometry, **more), tensors, args.backward is not None)

    found: dict[str, Callable] = {"conv2d": lambda: conv(False)}
    if not args.nchw:
        found["conv2d channels_last"] = lambda: conv(True)
    for backend in args.backends or [None]:
        for kind in args.maps:
            for m in regions:
                name = " ".join(filter(None, [backend or "drconv", kind if len(args.maps) > 1 else "", f"m={m}"]))
                found[name] = lambda backend=backend, m=m, kind=kind: drconv(backend, m, kind)
    return found


def memory_in_fork(prepare: Callable[[], Callable[[], None]]) -> float:
    """MB that a run takes at its peak beyond its tensors, in a process forked for it.

    The caller must not have started PyTorch's threads.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run = prepare()  # runs once, which loads what is loaded once
            os.write(send, str(extra_memory(run)).encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return float(text) if text else float("nan")


def markdown(rows: list[dict], about: dict, what: str) -> str:
    """A line for each shape: conv2d's figure in its faster memory format, and each candidate's as a multiple of it."""
    names = list(dict.fromkeys(row["name"] for row in rows if not row["name"].startswith("conv2d")))
    command = " ".join(["python tools/benchmark_op.py", *shown_arguments()])
    machine = ", ".join(f"{key} {value}" for key, value in about.items())
    lines = [f"`{command}`", "", f"{machine}; {what}", "",
             f"| shape | conv2d, {rows[0]['unit']} | {' | '.join(name.replace('drconv ', '') for name in names)} |",
             "|---|" + "---|" * (1 + len(names))]  # fmt: skip
    for shape in dict.fromkeys(row["shape"] for row in rows):
        here = {row["name"]: row for row in rows if row["shape"] == shape}
        standard = min(row["median"] for name, row in here.items() if name.startswith("conv2d"))
        ratios = " | ".join(f"{here[name]['ratio']:.2f}" for name in names)
        lines.append(f"| {shape} | {standard:.3g} | {ratios} |")
    return "\n".join(lines) + "\n"


def shown_arguments() -> list[str]:
    """The command line without the files that it writes."""
    kept, skip = [], False
    for argument in sys.argv[1:]:
        writes = argument in ("--csv", "--json", "--markdown", "--plot")
        if not (writes or skip):
            kept.append(argument)
        skip = writes
    return kept


def plot(rows: list[dict], title: str, path: Path) -> None:
    """The ratio of each shape, a point for each m."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    drawn = [row for row in rows if not row["name"].startswith("conv2d")]
    shapes, names = list(dict.fromkeys(r["shape"] for r in drawn)), list(dict.fromkeys(r["name"] for r in drawn))
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.28 * len(shapes)))
    for index, name in enumerate(names):
        points = [(r["ratio"], shapes.index(r["shape"])) for r in drawn if r["name"] == name]
        axes.plot(*zip(*points, strict=True), "o", label=name, color=plt.cm.viridis(0.9 * index / len(names)))
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_yticks(range(len(shapes)), shapes)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in range(-3, 9)]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("time / time of conv2d (logarithmic)")
    axes.set_title(title, fontsize=9)
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Times and prints."""
    args = parse_args()
    if args.device == "cpu":
        restart_with(GIVES_BACK if args.memory else KEEP_FREED_MEMORY)
    if args.threads:
        torch.set_num_threads(args.threads)
    about = machine(args.device)
    what = f"forward+backward (guide_grad={args.backward})" if args.backward else "forward"
    what = f"{'extra peak memory' if args.memory else 'time'}, {what}, fp32, {'NCHW' if args.nchw else 'channels_last'}"
    print(", ".join(f"{key} {value}" for key, value in about.items()) + f"\n{what}")
    rows: list[dict] = []
    for text in args.shapes or SUITES[args.suite]:
        shape = Shape.parse(text)
        regions = args.regions or REGIONS[args.suite]
        candidates = candidates_of(shape, args, regions)
        print(f"\n{text}, {shape.out_size**2} pixels", flush=True)
        if args.memory:
            values = {name: [memory_in_fork(prepare)] for name, prepare in candidates.items()}
        else:
            values = interleaved({name: prepare() for name, prepare in candidates.items()}, args.rounds, args.device)
        medians = {name: statistics.median(found) for name, found in values.items()}
        standard = min(value for name, value in medians.items() if name.startswith("conv2d"))
        unit = "MB" if args.memory else "ms"
        for name, found in values.items():
            low, _, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
            ratio = medians[name] / standard if standard else float("nan")
            print(f"  {name:24}{medians[name]:9.3f} {unit} ({low:.3f} to {high:.3f}) {ratio:6.2f} x conv2d")
            rows.append(
                dict(shape=text, name=name, unit=unit, median=round(medians[name], 4), q1=round(low, 4),
                     q3=round(high, 4), ratio=round(ratio, 3))
            )  # fmt: skip
    for path in filter(None, (args.csv, args.json, args.markdown, args.plot)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if args.json:
        args.json.write_text(json.dumps(dict(machine=about, what=what, rows=rows), indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(markdown(rows, about, what))
    if args.plot:
        plot(rows, f"{what}; {about['cpu']}, {about['threads']} threads, torch {about['torch']}", args.plot)


if __name__ == "__main__":
    sys.exit(main())
