#!/usr/bin/env python
"""Does DRConv work in configs that this project did not write? Checks stock configs of the installed toolboxes.

For each config the model is built twice, as it stands and with the one key that makes it a DRConv model, and on small
images of random noise these must hold: at least one layer is dynamic; the standard model's state dict loads into the
DRConv one and both then give the same output, or the same features where a model selects among its answers (two-stage
detectors and DETRs), to 1e-3 of each tensor's largest number; once the dynamic part is no longer zero they differ;
three training steps give finite losses and change every parameter that requires a gradient (but for those that the
standard model leaves alone).

  check_configs.py                                     all that docs/compatibility.md shows, as far as not done yet
  check_configs.py --toolbox mmseg --filter unet       any installed config whose path has 'unet' in it
  check_configs.py --fresh --page docs/compatibility.md

Each config runs in a process of its own. Results are kept in a JSON file, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import deepcopy
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from train import TOOLBOXES, mim_folder

from drconv_mm.files import write_whole

RESULTS = Path(__file__).parents[1] / "docs/compatibility.json"
DRCONV = {"type": "drconv_mm.DRConv"}
BACKBONE = "model.backbone.conv_cfg"
TIMEOUT_S = 900
TOLERANCE = 1e-3


class Entry(NamedTuple):
    """A stock config and the key that takes the conv type.

    ``by_name`` says what Retrofit includes instead, ``cap`` is a ``max_filter_numel`` above the default.
    """

    toolbox: str
    path: str
    key: str = BACKBONE
    size: int = 128
    by_name: str = ""
    cap: int = 0


def _entries(toolbox: str, text: str) -> list[Entry]:
    """From lines ``path [key=...] [size=...] [by_name=...]``."""
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        path, *options = line.split()
        values = dict(option.split("=") for option in options)
        values.update({name: int(values[name]) for name in ("size", "cap") if name in values})
        found.append(Entry(toolbox, path + ".py", **values))
    return found


WORKS = [
    *_entries("mmdet", """
        retinanet/retinanet_r18_fpn_1x_coco
        retinanet/retinanet_r50_fpn_1x_coco
        retinanet/retinanet_r18_fpn_1x_coco key=model.neck.conv_cfg
        retinanet/retinanet_r18_fpn_1x_coco key=model.bbox_head.conv_cfg cap=8388608
        faster_rcnn/faster-rcnn_r50_fpn_1x_coco
        faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco
        dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco key=model.backbone.dcn cap=8388608
        mask_rcnn/mask-rcnn_r50_fpn_1x_coco
        cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco
        fcos/fcos_r50-caffe_fpn_gn-head_1x_coco
        atss/atss_r50_fpn_1x_coco
        gfl/gfl_r50_fpn_1x_coco
        paa/paa_r50_fpn_1x_coco
        foveabox/fovea_r50_fpn_4xb4-1x_coco
        fsaf/fsaf_r50_fpn_1x_coco
        vfnet/vfnet_r50_fpn_1x_coco
        tood/tood_r50_fpn_1x_coco
        ddod/ddod_r50_fpn_1x_coco size=512
        autoassign/autoassign_r50-caffe_fpn_1x_coco
        nas_fcos/nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco
        reppoints/reppoints-moment_r50_fpn_1x_coco
        yolof/yolof_r50-c5_8xb8-1x_coco
        centernet/centernet_r18_8xb16-crop512-140e_coco
        solo/decoupled-solo-light_r50_fpn_3x_coco
        solov2/solov2-light_r18_fpn_ms-3x_coco
        grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco
        detr/detr_r18_8xb2-500e_coco
        deformable_detr/deformable-detr_r50_16xb2-50e_coco
        hrnet/faster-rcnn_hrnetv2p-w18-1x_coco
        regnet/retinanet_regnetx-800MF_fpn_1x_coco
        yolo/yolov3_d53_8xb8-320-273e_coco
        yolo/yolov3_mobilenetv2_8xb24-320-300e_coco
        yolox/yolox_tiny_8xb8-300e_coco
        rtmdet/rtmdet_tiny_8xb32-300e_coco
        tridentnet/tridentnet_r50-caffe_1x_coco
        resnest/faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco
    """),
    *_entries("mmseg", """
        fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024
        fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024 key=model.decode_head.conv_cfg cap=8388608
        fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024
        pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024
        deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024
        deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024
        mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024
        mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb2-80k_cityscapes-512x1024
        mobilenet_v3/mobilenet-v3-d8-scratch-s_lraspp_4xb4-320k_cityscapes-512x1024 size=512
        unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024
        fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024
        cgnet/cgnet_fcn_4xb8-60k_cityscapes-512x1024
        hrnet/fcn_hr18_4xb2-40k_cityscapes-512x1024
        ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024
        upernet/upernet_r18_4xb2-40k_cityscapes-512x1024
        sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024
        danet/danet_r50-d8_4xb2-40k_cityscapes-512x1024
        ccnet/ccnet_r50-d8_4xb2-40k_cityscapes-512x1024
        gcnet/gcnet_r50-d8_4xb2-40k_cityscapes-512x1024
        nonlocal_net/nonlocal_r50-d8_4xb2-40k_cityscapes-512x1024
        dnlnet/dnl_r50-d8_4xb2-40k_cityscapes-512x1024
        ann/ann_r50-d8_4xb2-40k_cityscapes-512x1024
        encnet/encnet_r50-d8_4xb2-40k_cityscapes-512x1024
        emanet/emanet_r50-d8_4xb2-80k_cityscapes-512x1024
        isanet/isanet_r50-d8_4xb2-40k_cityscapes-512x1024
        icnet/icnet_r18-d8_4xb2-80k_cityscapes-832x832 key=model.backbone.backbone_cfg.conv_cfg
    """),
    *_entries("mmpretrain", """
        resnet/resnet18_8xb32_in1k
        resnet/resnet50_8xb32_in1k
        resnet/resnet18_8xb16_cifar10 size=32
        resnet/resnetv1d50_8xb32_in1k
        resnet/resnetv1c50_8xb32_in1k
        mobilenet_v2/mobilenet-v2_8xb32_in1k
        mobilenet_v3/mobilenet-v3-small_8xb128_in1k
        shufflenet_v1/shufflenet-v1-1x_16xb64_in1k
        shufflenet_v2/shufflenet-v2-1x_16xb64_in1k
        seresnet/seresnet50_8xb32_in1k
        resnext/resnext50-32x4d_8xb32_in1k
        regnet/regnetx-400mf_8xb128_in1k
        hrnet/hrnet-w18_4xb32_in1k
        res2net/res2net50-w14-s8_8xb32_in1k
        resnest/resnest50_32xb64_in1k
        vgg/vgg11bn_8xb32_in1k size=224 cap=1048576
        cspnet/cspdarknet50_8xb32_in1k
        cspnet/cspresnet50_8xb32_in1k
        repvgg/repvgg-A0_8xb32_in1k
        mobileone/mobileone-s0_8xb32_in1k
        mobilevit/mobilevit-xxsmall_8xb128_in1k size=256
        wrn/wide-resnet50_8xb32_in1k
    """),
]  # fmt: skip
# Where a key does not lead to the convolutions: the reason is what the toolbox says or the count, found when run.
BY_NAME = [
    *_entries("mmdet", """
        ssd/ssd300_coco size=300 by_name=backbone.features
        efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco by_name=neck
        pvt/retinanet_pvt-t_fpn_1x_coco by_name=neck
    """),
    *_entries("mmseg", """
        bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024 by_name=backbone
        bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024 by_name=backbone
        erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024 by_name=backbone
        pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes by_name=backbone
        ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024 by_name=backbone
        stdc/stdc1_4xb12-80k_cityscapes-512x1024 by_name=backbone
    """),
    *_entries("mmpretrain", """
        densenet/densenet121_4xb256_in1k by_name=backbone
        inception_v3/inception-v3_8xb32_in1k size=299 by_name=backbone
        efficientnet/efficientnet-b0_8xb32_in1k by_name=backbone
        convnext/convnext-tiny_32xb128_in1k by_name=backbone cap=1048576
    """),
]  # fmt: skip


# --- Finding configs -------------------------------------------------------------------------------------------------


def configs_folder(toolbox: str) -> Path:
    """Where the installed toolbox keeps its configs."""
    mim = mim_folder(toolbox)
    folder = mim / "configs" if mim else None
    if folder is None or not folder.is_dir():
        raise SystemExit(
            f"check_configs.py: --toolbox {toolbox}: no installed {toolbox} with its configs was found; "
            f"install it (see README.md) or choose another of {', '.join(TOOLBOXES)}"
        )
    return folder


def selection(toolbox: str | None, pattern: str | None) -> list[Entry]:
    """The entries above; with a pattern, every installed config that it matches."""
    boxes = [toolbox] if toolbox else TOOLBOXES
    known = [entry for entry in WORKS + BY_NAME if entry.toolbox in boxes]
    if pattern is None:
        return known
    found = []
    for box in boxes:
        folder = configs_folder(box)
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder).as_posix()
            if (pattern in name or fnmatch(name, pattern)) and not name.startswith("_base_") and "/_" not in name:
                listed = [entry for entry in known if (entry.toolbox, entry.path) == (box, name)]
                found += listed or [Entry(box, name)]
    if not found:
        raise SystemExit(
            f"check_configs.py: --filter {pattern!r} matches no config of {', '.join(boxes)}; "
            "it is a part of the path or a shell pattern, 'retinanet/*r18*' for instance"
        )
    return found


# --- One config ------------------------------------------------------------------------------------------------------


def check(entry: Entry) -> dict:
    """Runs the checks in this process; what is found out, with ``error`` where one does not hold."""
    import torch
    from mmengine.logging import MMLogger
    from mmengine.model import revert_sync_batchnorm
    from toolbox_models import build, training_samples

    from drconv_mm import DRConv2d

    MMLogger.get_instance("mmengine", log_level="ERROR")
    path = str(configs_folder(entry.toolbox) / entry.path)
    result: dict = dict(entry._asdict(), error=None)

    cap = {"apply_to": {"max_filter_numel": entry.cap}} if entry.cap else {}

    def made(dynamic: bool) -> torch.nn.Module:
        if not dynamic:
            changes = {entry.key: None} if entry.key.endswith(".dcn") else {}  # deformable otherwise
        elif entry.by_name:
            changes = {"model.drconv": {"include": [entry.by_name], **cap}}
        else:
            changes = {entry.key: {**DRCONV, **cap}}
        return revert_sync_batchnorm(build(path, {}, changes)[0])

    standard = made(False)
    result.update(types_of(standard))
    if entry.by_name:
        result["by_key"] = by_key(path)
    model = made(True)
    layers = [module for module in model.modules() if isinstance(module, DRConv2d)]
    result["dynamic"] = len(layers)
    result["convolutions"] = sum(isinstance(m, torch.nn.Conv2d) for m in standard.modules())
    if not layers:
        return dict(result, error=f"no layer is dynamic: {entry.key} reaches no convolution that it may replace")
    torch.manual_seed(0)
    images = torch.randn(2, 3, entry.size, entry.size)
    take_statistics(standard, images)
    loaded = model.load_state_dict(standard.state_dict(), strict=False)
    if loaded.missing_keys or loaded.unexpected_keys:
        return dict(result, error=f"the standard state dict does not fit: {loaded}")
    expected, found = outputs(standard.eval(), images), outputs(model.eval(), images)
    result["difference"] = difference(expected, found)
    if not result["difference"] < TOLERANCE:
        return dict(result, error=f"outputs differ by {result['difference']:.1e} of their size before training")
    with torch.no_grad():
        for layer in layers:
            part = dict(layer.generator.named_parameters())[layer.generator.linear_in]
            part.normal_(0, 0.2 * float(layer.static_weight.std()) + 1e-3)
    result["after"] = difference(expected, outputs(model, images))
    if not result["after"] > max(1e-5, 10 * result["difference"]):
        return dict(result, error=f"outputs differ by {result['after']:.1e} only once the dynamic part is not zero")
    samples = training_samples(entry.toolbox, standard, 2, (entry.size, entry.size))
    unchanged = train(model, images, samples)
    if unchanged:
        unchanged -= train(standard, images, samples)
    if unchanged:
        return dict(result, error=f"three steps leave {len(unchanged)} parameters unchanged: {sorted(unchanged)[:3]}")
    return result


def types_of(model) -> dict[str, str]:
    """The class names that the table shows."""
    from torch import nn

    backbone = getattr(model, "backbone", None)
    inner = getattr(backbone, "backbone", None)
    names = type(backbone).__name__ + (f" ({type(inner).__name__})" if inner is not None else "")
    owner = getattr(model, "roi_head", model)
    head = next((getattr(owner, part) for part in ("bbox_head", "decode_head", "head", "mask_head")
                 if getattr(owner, part, None) is not None), None)  # fmt: skip
    if isinstance(head, nn.ModuleList):  # a cascade's, all alike
        head = head[0]
    head = "" if head is None else type(head).__name__
    return dict(model=type(model).__name__, backbone=names, head=head)


def by_key(path: str) -> str:
    """What the one key does where it is of no use."""
    from toolbox_models import build

    from drconv_mm import DRConv2d

    try:
        model, _ = build(path, {}, {BACKBONE: DRCONV})
    except Exception as error:
        return f"rejected: {str(error).splitlines()[0][:120]}"
    count = sum(isinstance(module, DRConv2d) for module in model.modules())
    return f"{count} layers are dynamic"


def flat(value) -> Iterator:
    """All tensors in nested containers."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from flat(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from flat(item)


def take_statistics(model, images) -> None:
    """Norms that know their input: with fresh ones a deep network's signal may fade to nothing."""
    from torch.nn.modules.batchnorm import _BatchNorm

    model.eval()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    outputs(model, images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    model.eval()


def outputs(model, images) -> list:
    """What can be compared: the output, or the features where a model selects among its answers."""
    import torch

    with torch.no_grad():
        if any(hasattr(model, part) for part in ("roi_head", "encoder", "panoptic_head", "mask_head")):
            return list(flat(model.extract_feat(images)))
        if getattr(model, "bbox_head", None) is not None:
            return list(flat(model.bbox_head(model.extract_feat(images))))
        return list(flat(model(images, mode="tensor")))


def difference(expected: list, found: list) -> float:
    """The largest difference, in units of the largest number of each tensor."""
    return max(
        (float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) for a, b in zip(expected, found, strict=True)
         if a.numel() and a.is_floating_point()), default=float("nan"),
    )  # fmt: skip


def train(model, images, samples) -> set[str]:
    """Three steps; the names of parameters that they did not change."""
    import torch
    from mmengine.logging import MessageHub

    MessageHub.get_current_instance().update_info("epoch", 0)  # TOOD's loss asks for it
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.Adam(parameters.values(), 1e-4)  # changes each number that has a gradient, however small
    model.train()
    torch.manual_seed(1)
    for step in range(3):
        total, values = model.parse_losses(model(images, deepcopy(samples), mode="loss"))
        if not torch.isfinite(total):
            raise FloatingPointError(f"the loss of step {step + 1} is not finite: {values}")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return {name for name, p in parameters.items() if torch.equal(p, before[name])}


# --- All of them -----------------------------------------------------------------------------------------------------


def name_of(entry: Entry) -> str:
    """Tells the entries apart."""
    return f"{entry.toolbox}/{entry.path}:{'by_name ' + entry.by_name if entry.by_name else entry.key}"


def run_apart(entry: Entry, threads: int) -> dict:
    """`check` in a process of its own."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    command = [sys.executable, __file__, "--one", json.dumps(entry)]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"toolbox"')]
        if lines:
            result = json.loads(lines[-1])
        else:
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            result = dict(entry._asdict(), error=said[:300])
    except subprocess.TimeoutExpired:
        result = dict(entry._asdict(), error=f"not done after {TIMEOUT_S} s")
    return dict(result, seconds=round(time.perf_counter() - started, 1))


def page(results: list[dict], about: str) -> str:
    """docs/compatibility.md."""
    passed = [r for r in results if not r["error"]]
    keyed = [r for r in passed if not r["by_name"]]
    counts = ", ".join(
        f"{len({r[what] for r in keyed})} {text}"
        for what, text in (("backbone", "backbone classes"), ("model", "model types"), ("head", "head types"))
    )
    lines = [
        "# Compatibility", "",
        "Stock configs of the installed toolboxes with the one key, made by `python tools/check_configs.py --page "
        "docs/compatibility.md`.", about, "",
        f"**{len(keyed)} of {sum(not r['by_name'] for r in results)} checks pass**, of "
        f"{len({(r['toolbox'], r['path']) for r in results if not r['by_name']})} configs with {counts}. "
        "A pass means: at least one layer is dynamic; the standard model's state dict loads and the output is the "
        f"same to {TOLERANCE:g} of each tensor's largest number (of two-stage detectors and DETRs, which select among "
        "their answers, the features are compared); it differs once the dynamic part is not zero; three training steps "
        "give finite losses and change every parameter that requires a gradient, but for those that the standard model "
        "leaves alone. Inputs are random noise, two images of 128x128 in most cases: this says that DRConv works "
        "there, not how well it does.", "",
    ]  # fmt: skip
    for toolbox in TOOLBOXES:
        here = [r for r in results if r["toolbox"] == toolbox and not r["by_name"]]
        if not here:
            continue
        lines += [f"## {toolbox}", "", "| config | key | model | backbone | dynamic layers of convolutions | result |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for r in here:
            layers = f"{r.get('dynamic', '')} of {r.get('convolutions', '')}"
            cap = f", `max_filter_numel={r['cap']}`" if r.get("cap") else ""
            lines.append(
                f"| {r['path'][:-3]} | `{r['key'].removeprefix('model.')}`{cap} | {r.get('model', '')} "
                f"| {r.get('backbone', '')} | {layers} | {'pass' if not r['error'] else r['error']} |"
            )
        lines.append("")
    lines += [
        "## What no key reaches, and the way round", "",
        "These take no `conv_cfg`, hand it on to nothing, or have convolutions of their own that compute something "
        "else. `type='drconv_mm.Retrofit'` with `drconv=dict(model_type=..., include=[...])` chooses layers by name "
        "instead; the checks are the same. Swin and other transformers have one convolution, of the image itself; "
        "DetectoRS's own kind of convolution stays as it is. The key does reach EfficientNet, in the place of a "
        "convolution that pads by the size of its input: the function is not preserved there.", "",
        "| config | `model.backbone.conv_cfg` | include | dynamic layers of convolutions | result |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for r in (r for r in results if r["by_name"]):
        lines.append(
            f"| {r['toolbox']}: {r['path'][:-3]} | {r.get('by_key', '')} | `{r['by_name']}` "
            f"| {r.get('dynamic', '')} of {r.get('convolutions', '')} | {'pass' if not r['error'] else r['error']} |"
        )
    return "\n".join(lines) + "\n"


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toolbox", choices=TOOLBOXES, help="configs of this one alone")
    parser.add_argument(
        "--filter", metavar="PATTERN", help="any installed config with this in its path, or matching it"
    )
    parser.add_argument("--jobs", type=int, default=1, help="configs at a time (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="check again what was checked before")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept (default: %(default)s)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Checks, and tells how many did not pass."""
    args = parse_args()
    if args.one:
        print(json.dumps(check(Entry(*json.loads(args.one)))))
        return 0
    entries = selection(args.toolbox, args.filter)
    kept = json.loads(args.results.read_text()) if args.results.exists() else {}
    missing = [entry for entry in entries if args.fresh or name_of(entry) not in kept or kept[name_of(entry)]["error"]]
    print(f"{len(entries)} configs, {len(entries) - len(missing)} of them passed before", flush=True)
    threads, started = max(1, (os.cpu_count() or 1) // args.jobs), time.perf_counter()
    with ThreadPoolExecutor(args.jobs) as pool:
        running = {pool.submit(run_apart, entry, threads): entry for entry in missing}
        for done, future in enumerate(as_completed(running), 1):
            entry, result = running[future], future.result()
            kept[name_of(entry)] = result
            write_whole(args.results, json.dumps(kept, indent=1) + "\n")
            left = (time.perf_counter() - started) / done * (len(missing) - done) / 60
            said = f"{result['dynamic']} dynamic" if not result["error"] else f"FAILED: {result['error']}"
            print(f"[{done}/{len(missing)}] {name_of(entry)}: {said} ({result['seconds']:.0f} s; {left:.0f} min left)",
                  flush=True)  # fmt: skip
    shown = [kept[name_of(entry)] for entry in WORKS + BY_NAME if name_of(entry) in kept]
    if args.page:
        write_whole(args.page, page(shown, versions()))
    failed = [entry for entry in entries if kept[name_of(entry)]["error"]]
    print(f"{len(entries) - len(failed)} of {len(entries)} pass")
    return 1 if failed else 0


def versions() -> str:
    """What the result depends on."""
    import datetime
    from importlib import metadata

    import torch

    import drconv_mm
    from drconv_mm.suite.run import git_commit

    names = [(box, metadata.packages_distributions().get(box, [box])[0]) for box in ("mmcv", *TOOLBOXES)]
    found = [f"{name} {metadata.version(name)}" for box, name in names if importlib.util.find_spec(box)]
    commit = (git_commit() or "unknown")[:7]
    return (f"Date {datetime.date.today().isoformat()}, drconv_mm {drconv_mm.__version__} (commit {commit}), "
            f"torch {torch.__version__}, {', '.join(found)}.")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
