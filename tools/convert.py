#!/usr/bin/env python
"""Make a DRConv config and checkpoint from a standard one: the new model computes what the old one did, and can learn.

  convert.py CONFIG CHECKPOINT --out work_dirs/converted
  convert.py CONFIG CHECKPOINT --out DIR --include backbone.layer1 backbone.layer2 --drconv num_regions=4

Writes DIR/<config>-drconv.py (type='drconv_mm.Retrofit', the model's keys as they were) and DIR/<config>-drconv.pth
for the toolbox's own train.py (`--cfg-options load_from=...`) and test.py, and prints what each layer costs before and
after.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from benchmark_model import SHAPES, build, retrofit
from mmengine.config import Config, DictAction
from torch import nn

from drconv_mm import DRConv2d
from drconv_mm.engine.complexity import count_by_part


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a config of mmdet, mmseg or mmpretrain")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of its standard model")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where config and checkpoint go")
    parser.add_argument("--include", nargs="+", default=["backbone"], metavar="PATTERN",
                        help="module names that become DRConv, shell patterns (default: backbone)")  # fmt: skip
    parser.add_argument("--exclude", nargs="+", default=[], metavar="PATTERN", help="module names that stay")
    parser.add_argument("--drconv", nargs="+", action=DictAction, default={}, metavar="KEY=VALUE",
                        help="arguments of DRConv2d and apply_to: num_regions=4 apply_to.kernel_size=3")  # fmt: skip
    parser.add_argument("--shape", type=int, nargs=2, metavar=("H", "W"), help="picture that multiply-adds are of")
    return parser.parse_args()


def fail(message: str) -> None:
    """One line, and no traceback."""
    sys.exit(f"convert.py: error: {message}")


class _Inert:
    """Stands for whatever a checkpoint holds beside tensors: takes everything, and does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    __setstate__ = __call__ = append = extend = __setitem__ = __init__


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; of no other name in the file anything is imported or called."""

    def find_class(self, module: str, name: str) -> object:
        storage = module in ("torch", "torch.storage") and name.endswith("Storage")
        rebuild = module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter")
        if storage or rebuild or (module, name) in (("collections", "OrderedDict"), ("torch", "Size")):
            return super().find_class(module, name)
        return _Inert


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's weights; read so that the file can't run code."""
    if not path.is_file():
        fail(f"checkpoint {str(path)!r} is no file; expected a .pth that the toolbox's train.py wrote")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        if not zipfile.is_zipfile(path):  # an old format, or none
            anew = "torch.save(torch.load(old, weights_only=False), new)"
            fail(f"checkpoint {str(path)!r} is no checkpoint in PyTorch's format, or not whole; get it again. One from "
                 f"before torch 1.6, where it is trusted: {anew}")  # fmt: skip
        try:
            # mmengine keeps histories of logged numbers beside the weights, by functions that would have to be called.
            reader = types.ModuleType("reader")
            reader.Unpickler = _TensorUnpickler
            content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
        except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, AttributeError) as problem:
            fail(f"checkpoint {str(path)!r} can't be read ({str(problem).splitlines()[0]}); is it whole?")
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        fail(f"checkpoint {str(path)!r} has no state_dict of tensors; expected one of the toolbox's checkpoints")
    return {name.removeprefix("module."): value for name, value in state.items()}


def main() -> None:
    """Converts and prints."""
    args = parse_args()
    if not args.config.is_file():
        fail(f"config {str(args.config)!r} is no file; expected the path of a config")
    state = read_state_dict(args.checkpoint)
    config = Config.fromfile(args.config)
    drconv = dict(args.drconv, include=args.include)
    if args.exclude:
        drconv["exclude"] = args.exclude
    standard, scope = build(str(args.config), {})
    wrong = [name for name, value in standard.state_dict().items() if state.get(name, value).shape != value.shape]
    missing = [name for name in standard.state_dict() if name not in state]
    if wrong:
        fail(f"checkpoint {str(args.checkpoint)!r} is of another model than {str(args.config)!r}: {wrong[0]} is "
             f"{tuple(state[wrong[0]].shape)} there and {tuple(standard.state_dict()[wrong[0]].shape)} here, and "
             f"{len(wrong) - 1} more differ; give the config that it was trained with")  # fmt: skip
    if len(missing) > len(standard.state_dict()) // 2:
        fail(f"checkpoint {str(args.checkpoint)!r} lacks {len(missing)} of the model's entries, {missing[0]} for one; "
             "give the config that it was trained with")  # fmt: skip
    try:
        model, _ = build(str(args.config), {}, {"model.drconv": drconv})
    except ValueError as error:
        fail(str(error))
    model.load_state_dict(state, strict=False)

    name = args.config.stem + "-drconv"
    retrofit(config, drconv)
    args.out.mkdir(parents=True, exist_ok=True)
    unfinished = args.out / f"{name}.pth.part"
    torch.save({"state_dict": model.state_dict(), "meta": {"converted_from": str(args.checkpoint)}}, unfinished)
    config.dump(args.out / f"{name}.py")
    unfinished.replace(args.out / f"{name}.pth")
    print_table(standard, model, tuple(args.shape or SHAPES[scope]))
    print(f"\nwrote {args.out / name}.py and .pth")


def print_table(standard: nn.Module, model: nn.Module, shape: tuple[int, int]) -> None:
    """Parameters, multiply-adds and generated bytes of each layer, before and after."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, DRConv2d)}
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            sizes.setdefault(name, tuple(args[0].shape[2:]))

        return hook

    hooks = [standard.get_submodule(name).register_forward_pre_hook(note(name)) for name in layers]
    device = next(standard.parameters()).device
    with torch.no_grad():
        standard.eval()(torch.zeros(1, 3, *shape, device=device), mode="tensor")
    for hook in hooks:
        hook.remove()
    print(f"| layer | input | parameters | multiply-adds at {shape[0]}x{shape[1]} | filters an image |")
    print("|---|---|---|---|---|")
    totals = [0.0] * 5
    for name, layer in layers.items():
        height, width = sizes.get(name, (0, 0))
        costs = [
            count_by_part(module, (height, width), module.in_channels)["total"] if height else None
            for module in (standard.get_submodule(name), layer)
        ]
        filters = 4 * layer.filter_numel / 2**20
        parameters = [sum(p.numel() for p in m.parameters()) for m in (standard.get_submodule(name), layer)]
        work = [cost.multiply_adds / 1e6 if cost else float("nan") for cost in costs]
        totals = [a + b for a, b in zip(totals, [*parameters, *work, filters], strict=True)]
        print(_row(name, f"{layer.in_channels}x{height}x{width}", *parameters, *work, filters))
    print(_row("all", "", *totals))


def _row(name: str, size: str, before: float, after: float, work: float, work_after: float, filters: float) -> str:
    return (f"| {name} | {size} | {before / 1e3:.1f} K to {after / 1e3:.1f} K | {work:.2f} M to {work_after:.2f} M "
            f"| {filters:.2f} MB |")  # fmt: skip


if __name__ == "__main__":
    main()
