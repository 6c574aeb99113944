#!/usr/bin/env python
"""What makes DRConv learn: three small networks, one recipe, one key changed at a time, several seeds.

  study_learning.py run DATA      trains what is not trained yet; each finished run is a JSON in the results folder
  study_learning.py time DATA     times a training step and inference of each arm, interleaved; nothing else may run
  study_learning.py report        writes the tables (Markdown) and the plots from the JSONs

DATA is a folder with train/<class>/*.jpg and val/<class>/*.jpg. A run that was stopped starts anew, a finished one is
never repeated, and one that failed or was killed does not stop the rest. A results folder is of one DATA.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from multiprocessing.pool import ThreadPool
from pathlib import Path
from statistics import mean, median, stdev, variance

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from scipy import stats
from timing import interleaved, machine, restart_with
from torch import Tensor, nn

import drconv_mm
from drconv_mm.datasets.image_folder import scan_image_folder
from drconv_mm.engine.complexity import Cost, count_by_part
from drconv_mm.engine.regions import region_entropy, region_shares
from drconv_mm.files import write_whole
from drconv_mm.info import cpu_name
from drconv_mm.layers import DRConv2d, observe_regions, register_generator
from drconv_mm.layers.conv_type import ApplyTo
from drconv_mm.layers.generators import MixtureGenerator
from drconv_mm.memory import KEEP_FREED_MEMORY
from drconv_mm.models.backbones.drconv_shufflenet_v2 import ShuffleBlock
from drconv_mm.suite.statistics import CONFIDENCE, paired_difference

RESULTS = Path(__file__).parents[1] / "docs/learning"
SIZE, STORED = 96, 112
BATCH, MOMENTUM, WEIGHT_DECAY, LABEL_SMOOTHING = 32, 0.9, 4e-5, 0.1


Change = Callable[[str, Tensor, int], Tensor]  # of a layer's region map: name, map, m


# --- Arms: what is compared ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        about: What it is, for the table.
        drconv: `DRConv2d`'s own arguments, or None for the standard network.
        widened: Whether the standard network has the multiply-adds of the DRConv one.
        start: Initialises the network in another way.
        random_regions: Whether the region maps are random and fixed.
        decayed: Whether the guides' and the generators' weights decay as the others do.
        networks: Those that it can be built in; None for all.
    """

    about: str
    drconv: dict | None = field(default_factory=dict)
    widened: bool = False
    start: Callable[[nn.Module], None] | None = None
    random_regions: bool = False
    decayed: bool = True
    networks: tuple[str, ...] | None = None

    @property
    def num_regions(self) -> int:
        """m; 0 of a standard network."""
        return 0 if self.drconv is None else self.drconv.get("num_regions", 8)

    def fits(self, network: str) -> bool:
        """Whether the network can have it."""
        return self.networks is None or network in self.networks


def _layers(model: nn.Module) -> list[DRConv2d]:
    return [module for module in model.modules() if isinstance(module, DRConv2d)]


def authors_start(model: nn.Module) -> None:
    """As the authors' code starts: routing of std 0.01, guide and kernels as ``nn.Conv2d``.

    Their routing has no bias; here it starts at 0 and learns.
    """
    for layer in _layers(model):
        nn.init.normal_(layer.generator.routing_weight, std=0.01)
        nn.init.zeros_(layer.generator.routing_bias)
        for kernel in layer.generator.kernels:
            nn.init.kaiming_uniform_(kernel, a=5**0.5)
    uncentred_guide(model)


def _guide_weights(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if name.endswith("guide_weight")]


def uncentred_guide(model: nn.Module) -> None:
    """Guides as ``nn.Conv2d``, whose kernels do not sum to zero."""
    for weight in _guide_weights(model):
        nn.init.kaiming_uniform_(weight, a=5**0.5)


def sharp_guide(model: nn.Module) -> None:
    """A quarter of the softmax's temperature: the gradient reaches less far beyond the likeliest region."""
    for weight in _guide_weights(model):
        weight.data.mul_(4)


def guide_norm(model: nn.Module) -> None:
    """Batch norm behind each block's guide: on average the regions' scores are equally high and spread."""
    for block in [module for module in model.modules() if isinstance(module, ShuffleBlock)]:
        block.guide = nn.Sequential(block.guide, nn.BatchNorm2d(len(block.guide.guide_weight), affine=False))


def apart_start(model: nn.Module) -> None:
    """Half of the filters' variance is the dynamic part's: the regions' filters differ from the start."""
    for layer in _layers(model):
        std = layer.static_weight.std().item() * 0.5**0.5
        layer.generator.reset_parameters(std / layer.generator.gain)
        nn.init.normal_(layer.static_weight, std=std)


def routing_start(std: float) -> Callable[[nn.Module], None]:
    """Other routing logits: with large ones the regions' mixtures differ from the start, and learn apart."""

    def start(model: nn.Module) -> None:
        for layer in _layers(model):
            nn.init.normal_(layer.generator.routing_bias, std=std)

    return start


@register_generator("centred")
class CentredMixture(MixtureGenerator):
    """Mixing weights around zero, beside a static kernel, which what all base kernels share is left to."""

    def mixing(self, input: Tensor, static: Tensor | None) -> Tensor:
        """``2 gain (sigmoid - 1/2) / K``."""
        return super().mixing(input, static) - self.gain / self.num_kernels

    def reset_parameters(self, std: float) -> None:
        """E[sigmoid^2] = 0.385 and E[(sigmoid - 1/2)^2] = 0.135 at logits of std 3."""
        super().reset_parameters(std * (0.3852 / 0.1352) ** 0.5)


def gain_start(gain: float) -> Callable[[nn.Module], None]:
    """Another factor on the dynamic part beside the static kernel."""

    def start(model: nn.Module) -> None:
        for layer in _layers(model):
            layer.generator.kernels.data.mul_(layer.generator.gain / gain)
            layer.generator.gain = gain

    return start


ARMS = {
    "standard": Arm("standard convolution", None),
    "widened": Arm("standard, widened to DRConv's multiply-adds", None, widened=True),
    "drconv": Arm("DRConv, the defaults (mixture, m = 8)"),
    "m1": Arm("m = 1", {"num_regions": 1}),
    "m2": Arm("m = 2", {"num_regions": 2}),
    "m4": Arm("m = 4", {"num_regions": 4}),
    "frozen_guide": Arm("guide not trained (`guide_grad_scale=0`)", {"guide_grad_scale": 0.0}),
    "guide0.1": Arm("a tenth of the guide's gradient (`guide_grad_scale=0.1`)", {"guide_grad_scale": 0.1}),
    "guide10": Arm("the guide's gradient tenfold (`guide_grad_scale=10`)", {"guide_grad_scale": 10.0}),
    "random_regions": Arm("random fixed region maps", random_regions=True),
    "topk": Arm("`guide_grad='topk'`, k = 2", {"guide_grad": "topk", "guide_topk": 2}),
    "pooled": Arm("generator `pooled`", {"generator": "pooled"}),
    "no_static": Arm("`mixture` without static kernel", {"generator": {"type": "mixture", "static": False}}),
    "authors": Arm(
        "the authors' layer: their initialisation, no static kernel",
        {"generator": {"type": "mixture", "static": False}},
        start=authors_start,
    ),
    "apart": Arm("regions' filters differ from the start", start=apart_start),
    "routing1": Arm("routing logits of std 1 in place of 3", start=routing_start(1.0)),
    "alike": Arm("routing logits of std 0.3 in place of 3", start=routing_start(0.3)),
    "centred4": Arm("mixing weights around zero, gain 4", {"generator": "centred"}),
    "centred8": Arm("mixing weights around zero, gain 8", {"generator": "centred"}, start=gain_start(8.0)),
    "gain2": Arm("dynamic part at half the gain", start=gain_start(2.0)),
    "uncentred_guide": Arm("guide kernels that don't sum to zero", start=uncentred_guide),
    "sharp_guide": Arm("guide kernels four times as large", start=sharp_guide),
    "guide_norm": Arm("batch norm behind the guide", start=guide_norm, networks=("drconv_shufflenet_v2-0.5x",)),
    "no_decay": Arm("no weight decay on guide and generator", decayed=False),
}


def _drconv_shufflenet(arm: Arm, width: float) -> dict:
    arrangement = "none" if arm.drconv is None else "both"
    return dict(
        type="drconv_mm.DRConvShuffleNetV2", widen_factor=width, arrangement=arrangement, drconv=dict(arm.drconv or {})
    )


def _conv_cfg(arm: Arm) -> dict | None:
    """The key's value. The default leaves layers out by m times their size: here the same ones at every m."""
    if arm.drconv is None:
        return None
    limit = ApplyTo().max_filter_numel * arm.num_regions // 8
    return dict(arm.drconv, type="drconv_mm.DRConv", apply_to=dict(max_filter_numel=limit))


def _shufflenet_by_key(arm: Arm, width: float) -> dict:
    if arm.drconv is None:  # mmpretrain's own has four widths only
        return _drconv_shufflenet(arm, width)
    return dict(type="mmpretrain.ShuffleNetV2", widen_factor=width, conv_cfg=_conv_cfg(arm))


def _mobilenet_v1(arm: Arm, width: float) -> dict:
    return dict(type="drconv_mm.MobileNetV1", widen_factor=width, conv_cfg=_conv_cfg(arm))


NETWORKS: dict[str, tuple[Callable[[Arm, float], dict], float]] = {
    "drconv_shufflenet_v2-0.5x": (_drconv_shufflenet, 0.5),
    "shufflenet_v2-0.5x": (_shufflenet_by_key, 0.5),
    "mobilenet_v1-0.25x": (_mobilenet_v1, 0.25),
}


class Classifier(nn.Module):
    """Backbone, global average pooling, linear layer: ``[N, 3, H, W] -> [N, classes]``.

    The backbones keep ConvModule's start (kaiming, fan_out), so that all networks start in the same way: mmpretrain's
    ``ShuffleNetV2.init_weights`` has another, which no other width has.
    """

    def __init__(self, backbone: dict, num_classes: int):
        super().__init__()
        self.backbone = MODELS.build(backbone)
        channels = self.backbone(torch.zeros(2, 3, SIZE, SIZE))[-1].shape[1]
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        return self.fc(self.backbone(images)[-1].mean((2, 3)))


def build(network: str, arm: Arm, num_classes: int) -> Classifier:
    """The arm's network.

    Raises:
        ValueError: It can't have that arm.
    """
    if not arm.fits(network):
        raise ValueError(f"arm {arm.about!r} is of {', '.join(arm.networks or ())} alone, not of {network}")
    make, width = NETWORKS[network]
    if arm.widened:
        width = matching_width(network, num_classes)
    model = Classifier(make(arm, width), num_classes)
    if arm.start is not None:
        arm.start(model)
    return model


def multiply_adds(model: nn.Module) -> int:
    """Of one image."""
    return count_by_part(model, (SIZE, SIZE))["total"].multiply_adds


@cache
def costs_of(network: str, arm_name: str, num_classes: int) -> dict[str, Cost]:
    """Of one image, by part."""
    return count_by_part(build(network, ARMS[arm_name], num_classes), (SIZE, SIZE))


@cache
def matching_width(network: str, num_classes: int) -> float:
    """The width at which the standard network has the multiply-adds of the DRConv one, by bisection."""
    make, low = NETWORKS[network]
    wanted, high = multiply_adds(Classifier(make(ARMS["drconv"], low), num_classes)), 4 * low
    for _ in range(10):
        middle = (low + high) / 2
        enough = multiply_adds(Classifier(make(ARMS["standard"], middle), num_classes)) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return high


# --- Data ------------------------------------------------------------------------------------------------------------


@cache
def load_split(root: Path, split: str) -> tuple[Tensor, Tensor, list[str]]:
    """Images ``[N, 3, 112, 112]`` (uint8, RGB; short side resized, middle cut out), labels ``[N]``, class names."""
    files, labels, classes = scan_image_folder(root / split)
    images = []
    for file in files:
        image = cv2.imread(str(file))
        if image is None:
            raise SystemExit(f"{file} is not an image that OpenCV can read; remove or mend it")
        scale = STORED / min(image.shape[:2])
        size = [max(STORED, round(side * scale)) for side in image.shape[:2]]
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
        top, left = ((side - STORED) // 2 for side in size)
        images.append(image[top : top + STORED, left : left + STORED, ::-1].transpose(2, 0, 1))
    return torch.from_numpy(np.stack(images)), torch.tensor(labels), classes


def normalized(images: Tensor) -> Tensor:
    """uint8 to about zero mean and unit variance."""
    return (images.float() - 118) / 58


def random_crops(count: int, generator: torch.Generator) -> Tensor:
    """Affine maps ``[count, 2, 3]`` to crops of 40 to 100% of the area, half of them mirrored."""
    scale = (0.4 + 0.6 * torch.rand(count, generator=generator)).sqrt()
    shift = (1 - scale).unsqueeze(1) * (2 * torch.rand(count, 2, generator=generator) - 1)
    mirror = 1 - 2 * torch.randint(2, (count,), generator=generator)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * mirror, scale, shift
    return theta


def drawn(images: int, iterations: int, seed: int) -> tuple[Tensor, Tensor]:
    """All batches: the numbers of their images ``[iterations, batch]``, and the crops ``[iterations, batch, 2, 3]``."""
    generator = torch.Generator().manual_seed(seed)
    order, batches, crops = torch.empty(0, dtype=torch.long), [], []
    for _ in range(iterations):
        if len(order) < BATCH:
            order = torch.randperm(images, generator=generator)
        batches.append(order[:BATCH])
        order = order[BATCH:]
        crops.append(random_crops(BATCH, generator))
    return torch.stack(batches), torch.stack(crops)


def augmented(images: Tensor, crops: Tensor) -> Tensor:
    """The crops, at 96x96."""
    grid = F.affine_grid(crops, [len(images), 3, SIZE, SIZE], align_corners=False)
    return F.grid_sample(normalized(images), grid, align_corners=False)


def cropped(images: Tensor) -> Tensor:
    """The middle, at 96x96."""
    edge = (STORED - SIZE) // 2
    return normalized(images[..., edge : edge + SIZE, edge : edge + SIZE])


# --- One run ---------------------------------------------------------------------------------------------------------


def random_regions(seed: int) -> Change:
    """A random map for each layer, the same at every call."""
    maps: dict[tuple, Tensor] = {}

    def change(name: str, regions: Tensor, num_regions: int) -> Tensor:
        size = regions.shape[1:]
        if (name, size) not in maps:  # a CUDA graph can't draw it anew
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))  # it takes 32 bits
            maps[name, size] = torch.randint(num_regions, (1, *size), generator=generator).to(regions.device)
        return maps[name, size].expand_as(regions)

    return change


def region_zero(name: str, regions: Tensor, num_regions: int) -> Tensor:
    """Region 0 everywhere."""
    return torch.zeros_like(regions)


def shuffled(name: str, regions: Tensor, num_regions: int) -> Tensor:
    """Each image's map with its pixels in random places: the shares stay, the places mean nothing.

    Maps of one size are shuffled alike.
    """
    flat = regions.flatten(1)
    generator = torch.Generator().manual_seed(flat.shape[1])
    order = torch.rand(flat.shape, generator=generator).argsort(1)
    return flat.gather(1, order.to(flat.device)).view_as(regions)


def evaluation_batches(images: Tensor) -> list[Tensor]:
    """Of the size that is fast: on a GPU, all in one."""
    return [cropped(batch) for batch in images.split(len(images) if images.is_cuda else BATCH)]


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, change: Change | None) -> tuple[float, float]:
    """Top-1 in percent and mean cross-entropy, the region maps changed."""
    model.eval()
    with observe_regions(model, change) if change else nullcontext():
        logits = torch.cat([model(batch) for batch in evaluation_batches(images)])
    right = float((logits.argmax(1) == labels).float().mean())
    return round(100 * right, 2), round(float(F.cross_entropy(logits, labels)), 4)


@torch.no_grad()
def entropies(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Of each layer's use of its regions over all images, in units of log m."""
    counts: dict[str, Tensor] = {}

    def count(name: str, regions: Tensor, num_regions: int) -> None:
        counts[name] = counts.get(name, 0) + torch.bincount(regions.flatten(), minlength=num_regions)

    model.eval()
    with observe_regions(model, count):
        for batch in evaluation_batches(images):
            model(batch)
    return {name: round(region_entropy(region_shares(c)), 4) for name, c in counts.items()}


def load(data: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[str]]:
    """Images and labels to train on, those to validate on, and the classes' names."""
    (*train, classes), (*val, others) = (load_split(data, split) for split in ("train", "val"))
    if classes != others:  # labels are places in the list of names
        raise SystemExit(
            f"study_learning.py: {data} must have the same classes in train/ and val/; only one of them has "
            f"{', '.join(sorted({*classes} ^ {*others}))}"
        )
    return train, val, classes


def optimizer_of(model: nn.Module, arm: Arm, learning_rate: Tensor) -> torch.optim.SGD:
    """SGD at a rate that lies on the model's device, and may change there."""
    rest = [p for p in model.parameters() if p.dim() <= 1]  # norms and biases
    if not arm.decayed:
        rest += [p for layer in _layers(model) for p in layer.generator.parameters() if p.dim() > 1]
        rest += _guide_weights(model)
    undecayed = {id(p) for p in rest}
    decayed = [p for p in model.parameters() if id(p) not in undecayed]
    groups = [dict(params=decayed, weight_decay=WEIGHT_DECAY), dict(params=rest)]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=MOMENTUM, fused=learning_rate.is_cuda)


def captured(step: Callable[[], None], model: nn.Module, optimizer: torch.optim.SGD) -> Callable[[], None]:
    """``step`` as a CUDA graph: these networks are small, and a GPU would wait for the calls of each kernel.

    It is run a few times before; what that changed is undone.
    """
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        step()
    graph = torch.cuda.CUDAGraph()
    # Other threads replay theirs meanwhile.
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        step()
    model.load_state_dict(before)
    for state in optimizer.state.values():
        state["momentum_buffer"].zero_()
    return graph.replay


# One thread at a time builds (which draws from PyTorch's own generator), captures and evaluates.
_alone = threading.Lock()


def train_one(
    network: str, arm_name: str, learning_rate: float, seed: int, iterations: int, data: Path, out: Path, device: str
) -> dict:
    """Trains and evaluates one run, and writes its JSON at the end."""
    started = time.thread_time()
    arm, on_gpu = ARMS[arm_name], device == "cuda"
    with ExitStack() as stack:
        if on_gpu:
            stack.enter_context(torch.cuda.stream(torch.cuda.Stream(device)))
        train, val, classes = load(data)
        batches = drawn(len(train[0]), iterations, seed)
        with _alone:
            (images, labels), (val_images, val_labels), (numbers, crops) = (
                [tensor.to(device) for tensor in pair] for pair in (train, val, batches)
            )
            costs = costs_of(network, arm_name, len(classes))  # which builds networks: before the seed
            torch.manual_seed(seed)
            model = build(network, arm, len(classes)).to(device).train()
            schedule = [min(1, (i + 1) / 50) * (1 - i / iterations) for i in range(iterations)]
            rates = learning_rate * torch.tensor(schedule, device=device)
            batch, crop, rate, loss = (t.clone() for t in (numbers[0], crops[0], rates[0], rates[0]))
            losses = torch.zeros(iterations, device=device)
            optimizer = optimizer_of(model, arm, rate)

            def step() -> None:
                optimizer.zero_grad()
                logits = model(augmented(images[batch], crop))
                found = F.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
                found.backward()
                optimizer.step()
                loss.copy_(found.detach())

            # What else is put in a map's place comes after this.
            if arm.random_regions:
                stack.enter_context(observe_regions(model, random_regions(seed)))
            advance = captured(step, model, optimizer) if on_gpu else step
            done = [torch.cuda.Event(blocking=True) for _ in range(2)] if on_gpu else []
        for i in range(iterations):
            batch.copy_(numbers[i])
            crop.copy_(crops[i])
            rate.copy_(rates[i])
            advance()
            losses[i] = loss
            if on_gpu:  # a queue that is full would block other threads
                done[i % 2].record()
                done[(i + 1) % 2].synchronize()
            elif (i + 1) % max(1, iterations // 4) == 0:
                print(f"{network} {arm_name} at {learning_rate} seed {seed}: {i + 1} of {iterations} iterations, "
                      f"loss {float(losses[max(0, i - 49) : i + 1].mean()):.3f}", flush=True)  # fmt: skip
        result = dict(network=network, arm=arm_name, learning_rate=learning_rate, seed=seed, iterations=iterations)
        with _alone:
            for suffix, change in (("", None), ("_region_zero", region_zero), ("_shuffled", shuffled)):
                result["top1" + suffix], result["val_loss" + suffix] = evaluate(model, val_images, val_labels, change)
            entropy, train_loss = entropies(model, val_images), round(float(losses[-50:].mean()), 4)
    result.update(
        train_loss=train_loss,
        multiply_adds=costs["total"].multiply_adds, parameters=costs["total"].parameters,
        entropy=entropy,
        device=torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        torch=torch.__version__, drconv_mm=drconv_mm.__version__,
    )  # fmt: skip
    if not on_gpu:  # of the processor: the clock of a run that was stopped, or had company, says nothing
        result.update(minutes=round((time.thread_time() - started) / 60, 2), threads=torch.get_num_threads())
    write_whole(out, json.dumps(result, indent=1) + "\n")
    return result


# --- The commands ----------------------------------------------------------------------------------------------------


def trained_as(network: str, arm: str) -> str:
    """Whose runs they are: the standard networks of the two ShuffleNetV2 are one."""
    return "drconv_shufflenet_v2-0.5x" if (network, arm) == ("shufflenet_v2-0.5x", "standard") else network


def path_of(results: Path, network: str, arm: str, learning_rate: float, seed: int) -> Path:
    """Where a run's JSON lies."""
    return results / "runs" / network / f"{arm}-lr{learning_rate}-seed{seed}.json"


def _worker(job: tuple) -> dict | str:
    """The result, or what went wrong."""
    MMLogger.get_instance("mmengine", log_level="WARNING")  # init_weights tells of every parameter
    torch.set_num_threads(1)
    try:
        return train_one(*job)
    except (Exception, SystemExit):
        return f"{' '.join(map(str, job[:4]))} failed:\n{traceback.format_exc()}"


def _in_a_process(job: tuple) -> dict | str:
    """The same in a process of its own, which may be killed, or not even start."""
    try:
        with ProcessPoolExecutor(1, torch.multiprocessing.get_context("spawn")) as process:
            return process.submit(_worker, job).result()
    except (BrokenProcessPool, OSError, KeyboardInterrupt) as error:
        return (
            f"{' '.join(map(str, job[:4]))} failed: its process could not start, crashed or was killed (is there "
            f"memory for --jobs at once?): {error}"
        )


def check_data(args: argparse.Namespace) -> None:
    """Refuses to mix trainings on data sets with other classes or counts in one results folder."""
    train, val, classes = load(args.data)  # where a wrong layout shows, before anything starts
    found, path = dict(classes=classes, train=len(train[1]), val=len(val[1])), args.results / "data.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(found, indent=1) + "\n")
    elif (before := json.loads(path.read_text())) != found:
        was, now = (f"{len(d['classes'])} classes with {d['train']} + {d['val']} images" for d in (before, found))
        others = ", ".join(sorted({*before["classes"]} ^ {*classes}))
        sys.exit(f"study_learning.py: error: the runs in {args.results} are of {was}, and {args.data} has {now}"
                 + (f"; only one of them has {others}" if others else "") + ". Give another --results")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Trains what is missing, the first seed of every arm first."""
    names = dict.fromkeys(
        (trained_as(network, arm), arm, rate, seed)
        for seed in range(args.seeds)
        for rate in args.learning_rates
        for arm in args.arms
        for network in args.networks
        if ARMS[arm].fits(network)
    )
    jobs = [(*name, args.iterations, args.data, path_of(args.results, *name)) for name in names]
    for *_, path in jobs:
        found = json.loads(path.read_text())["iterations"] if path.exists() else args.iterations
        if found != args.iterations:
            sys.exit(f"study_learning.py: error: {path} is of {found} iterations, not of --iterations "
                     f"{args.iterations}; give another --results")  # fmt: skip
    missing = [(*job, args.device) for job in jobs if not job[-1].exists()]
    print(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them finished before", flush=True)
    if args.device == "cuda":  # whose contexts take turns, and streams of one context do not
        if not torch.cuda.is_available():
            sys.exit("study_learning.py: error: --device cuda: PyTorch finds no GPU here; leave the option out, or "
                     "install a PyTorch with CUDA on a machine with one")  # fmt: skip
        # As a CPU has it: rounding a product's factors to 10 bits is another arithmetic.
        torch.backends.cudnn.allow_tf32 = False
    check_data(args)
    os.environ.update({**KEEP_FREED_MEMORY, **os.environ})
    started = time.perf_counter()
    failed = []
    with ThreadPool(args.jobs) as pool:
        worker = _worker if args.device == "cuda" else _in_a_process
        for done, result in enumerate(pool.imap_unordered(worker, missing), 1):
            left = (time.perf_counter() - started) / done * (len(missing) - done) / 60
            if isinstance(result, str):
                failed.append(result)
                print(result, flush=True)
                continue
            print(
                f"[{done}/{len(missing)}] {result['network']} {result['arm']} at {result['learning_rate']} "
                f"seed {result['seed']}: "
                f"top-1 {result['top1']:.1f}, region 0 {result['top1_region_zero']:.1f}, "
                f"shuffled {result['top1_shuffled']:.1f}, loss {result['train_loss']:.3f}; {left:.0f} min left",
                flush=True,
            )
    if failed:
        sys.exit(f"study_learning.py: error: {len(failed)} runs failed, as said above; the others are finished")


def time_arms(args: argparse.Namespace) -> None:
    """Times a training step and inference of each arm, one round after another, and writes ``times.json``.

    What the file has of other networks and arms stays, if it is of this machine.
    """
    restart_with(KEEP_FREED_MEMORY)  # as training has it
    (images, labels), _, classes = load(args.data)
    images, labels = cropped(images[:BATCH]), labels[:BATCH]
    MMLogger.get_instance("mmengine", log_level="WARNING")
    path, about = args.results / "times.json", dict(machine("cpu"), batch=BATCH)
    before = json.loads(path.read_text()) if path.exists() else dict(machine={}, seconds={})
    date = about.pop("date")  # of each figure
    times: dict[str, dict[str, dict]] = before["seconds"] if before["machine"] == about else {}
    with ExitStack() as maps:
        for network in args.networks:
            runs: dict[tuple[str, str], Callable[[], None]] = {}
            arms = [arm for arm in args.arms if ARMS[arm].fits(network)]
            for arm in arms:
                model = build(network, ARMS[arm], len(classes))
                if ARMS[arm].random_regions:
                    maps.enter_context(observe_regions(model, random_regions(0)))

                def step(model: nn.Module = model) -> None:
                    F.cross_entropy(model.train()(images), labels).backward()

                def inference(model: nn.Module = model) -> None:
                    with torch.no_grad():
                        model.eval()(images)

                runs[arm, "step"], runs[arm, "inference"] = step, inference
            found = interleaved(runs, args.rounds, "cpu")
            for arm in arms:
                seconds = {what: round(median(found[arm, what]) / 1e3, 4) for what in ("step", "inference")}
                times.setdefault(network, {})[arm] = dict(seconds, date=date)
            print(network, {arm: times[network][arm] for arm in arms}, flush=True)
            write_whole(path, json.dumps(dict(machine=about, seconds=times), indent=1) + "\n")


# --- The report ------------------------------------------------------------------------------------------------------


def mean_and_spread(values: list[float], digits: int = 1) -> str:
    """``mean +- standard deviation``, the latter from two values on."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


Found = dict[tuple[str, float], list[dict]]  # of a network: an arm and a learning rate, and its runs

VERDICTS = {  # of the pairs' own interval and that of the common scatter: whether zero is outside
    (True, True): "supported",
    (True, False): "by the pairs alone",
    (False, True): "by the common scatter alone",
    (False, False): "not supported",
}


def table(network: str, found: Found, seconds: dict[str, dict]) -> list[str]:
    """A network's lines of Markdown."""
    heads = [
        "arm", "rate", "seeds", "top-1", "all region 0", "maps shuffled", "val loss", "train loss",
        "layers over 0.3 log m (entropy: min, median)", "multiply-adds", "parameters",
        *(["step, s"] if seconds else []),
    ]  # fmt: skip
    lines = [f"### {network}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (arm, rate), runs in found.items():
        first = runs[0]
        top1 = [mean_and_spread([run[key] for run in runs]) for key in ("top1", "top1_region_zero", "top1_shuffled")]
        entropy = [max(0.0, value) for run in runs for value in run["entropy"].values()]  # -0.0 in older ones
        used = ""
        if ARMS[arm].num_regions < 2:
            top1[1:] = ["", ""]  # nothing to change
        else:
            used = f"{sum(e > 0.3 for e in entropy)} of {len(entropy)} ({min(entropy):.2f}, {median(entropy):.2f})"
        step = seconds.get(arm, {}).get("step")
        cells = [
            ARMS[arm].about, str(rate), str(len(runs)), *top1, mean_and_spread([run["val_loss"] for run in runs], 2),
            f"{mean(run['train_loss'] for run in runs):.2f}", used,
            f"{first['multiply_adds'] / 1e6:.1f} M", f"{first['parameters'] / 1e6:.2f} M",
            *([f"{step:.2f}" if step else ""] if seconds else []),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def common_scatter(found: dict[str, Found]) -> tuple[float, int]:
    """Standard deviation of top-1 over the seeds, one for all settings with three, and its degrees of freedom."""
    settings = [
        [run["top1"] for run in runs]
        for network, arms in found.items()
        for (arm, _), runs in arms.items()
        if len(runs) > 2 and trained_as(network, arm) == network
    ]
    freedom = sum(len(values) - 1 for values in settings)
    return (sum((len(values) - 1) * variance(values) for values in settings) / max(1, freedom)) ** 0.5, freedom


def comparisons(found: dict[str, Found], ours: str, others: list[str]) -> list[str]:
    """One arm less each of some others, of all networks that have both.

    Twice, each with its interval: paired by seed and network (pairs that share a training are one, with their mean),
    with the scatter of the pairs' own differences; and of all seeds, every network counting alike, with the scatter
    that all settings have in common.
    """
    less = f"{'DRConv' if ours == 'drconv' else ARMS[ours].about} less this"
    heads = [
        "arm", "rate", "networks", "pairs", f"{less}, in the pairs", "95 % interval",
        "seeds", "of all seeds", "95 % interval", "",
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    rates = sorted({rate for arms in found.values() for _, rate in arms})
    scatter, freedom = common_scatter(found)
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) if freedom else math.inf

    def top1(network: str, arm: str, rate: float) -> dict[int, float]:
        return {run["seed"]: run["top1"] for run in found[network][arm, rate]}

    for other, rate in ((arm, rate) for arm in others for rate in rates):
        having = [network for network in found if {(other, rate), (ours, rate)} <= found[network].keys()]
        for networks in [[network] for network in having] + ([having] if len(having) > 1 else []):
            values = {arm: {n: top1(n, arm, rate) for n in networks} for arm in (ours, other)}
            both: dict[tuple[str, int], list[tuple[float, float]]] = {}
            for network in networks:
                first, second = values[ours][network], values[other][network]
                for seed in first.keys() & second.keys():
                    both.setdefault((trained_as(network, other), seed), []).append((first[seed], second[seed]))
            if len(both) < 2:
                continue
            pairs = paired_difference(
                *({pair: mean(found[place] for found in of) for pair, of in both.items()} for place in (1, 0))
            )
            weights: Counter = Counter()  # of each training, which may stand for two networks
            difference = 0.0
            for network, (sign, arm) in product(networks, ((1, ours), (-1, other))):
                for seed, value in values[arm][network].items():
                    weight = sign / len(values[arm][network]) / len(networks)
                    difference += weight * value
                    weights[trained_as(network, arm), arm, seed] += weight
            half = t * scatter * sum(weight**2 for weight in weights.values()) ** 0.5 if freedom else math.inf
            cells = [
                ARMS[other].about, str(rate), networks[0] if len(networks) == 1 else f"all {len(networks)}",
                str(pairs.n), f"{pairs.mean:+.1f}", f"{pairs.low:.1f} to {pairs.high:.1f}",
                " and ".join(str(sum(of == arm for _, of, _ in weights)) for arm in (ours, other)),
                f"{difference:+.1f}",
                f"{difference - half:.1f} to {difference + half:.1f}",
                VERDICTS[pairs.supported, abs(difference) > half],
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


RATE_COLORS = {0.05: "tab:green", 0.1: "tab:blue", 0.2: "tab:orange"}


def plot_top1(found: dict[str, Found], path: Path) -> None:
    """Top-1 of each run, by arm."""
    most = max(4, *map(len, found.values()))
    figure = Figure(figsize=(5.2 * len(found), 0.24 * most + 1), layout="constrained")
    columns = figure.subplots(1, len(found), squeeze=False)[0]
    for (network, arms), axes in zip(found.items(), columns, strict=True):
        for row, runs in enumerate(arms.values()):
            values = [run["top1"] for run in runs]
            axes.plot(values, [row] * len(values), "o", color="tab:blue", alpha=0.6)
            axes.plot(mean(values), row, "|", color="black", markersize=16)
        axes.set_yticks(range(len(arms)), [f"{arm} at {rate}" for arm, rate in arms])
        axes.set_ylim(most - 0.5, -0.5)  # from the top, as in the tables
        axes.set(title=network, xlabel="top-1, % (points: seeds, bar: mean)")
        axes.grid(axis="x", alpha=0.4)
    figure.savefig(path, dpi=90)


def plot_entropy(found: dict[str, Found], path: Path) -> None:
    """Region entropy by layer: of each arm the mean of its seeds, of the default each seed."""
    used = {n: {key: runs for key, runs in arms.items() if ARMS[key[0]].num_regions > 1} for n, arms in found.items()}
    used = {network: arms for network, arms in used.items() if arms}
    if not used:
        return
    most = max(4, *map(len, used.values()))
    height = 0.24 * most + 1
    figure = Figure(figsize=(5.2 * len(used), height + 4), layout="constrained")
    rows = figure.subplots(2, len(used), height_ratios=(height, 4), squeeze=False)
    for (network, arms), upper, lower in zip(used.items(), *rows, strict=True):
        means = [np.mean([list(run["entropy"].values()) for run in runs], axis=0) for runs in arms.values()]
        image = upper.imshow(means, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        upper.set_yticks(range(len(arms)), [f"{arm} at {rate}" for arm, rate in arms])
        upper.set_ylim(most - 0.5, -0.5)
        upper.set(title=network, xlabel="DRConv layer, from input to output")
        for rate, runs in ((rate, runs) for (arm, rate), runs in arms.items() if arm == "drconv"):
            color = RATE_COLORS.get(rate, "tab:gray")
            lower.plot([], ".-", color=color, label=f"at {rate}, {len(runs)} seeds")
            for run in runs:
                lower.plot(list(run["entropy"].values()), ".-", color=color, alpha=0.7)
        lower.axhline(0.3, color="gray", linestyle="--")
        lower.set(xlabel="DRConv layer, from input to output", ylabel="region entropy / log m, drconv", ylim=(0, 1.02))
        if lower.get_legend_handles_labels()[0]:
            lower.legend(loc="upper center", bbox_to_anchor=(0.5, 1.13), ncols=3, frameon=False, fontsize="small")
    figure.colorbar(image, ax=rows[0, -1], label="region entropy / log m, mean of the seeds")
    figure.savefig(path, dpi=90)


def report(args: argparse.Namespace) -> None:
    """Writes the tables between the page's markers, and the plot."""
    found: dict[str, Found] = {}
    for network in NETWORKS:
        for arm in ARMS:
            paths = (args.results / "runs" / trained_as(network, arm)).glob(f"{arm}-lr*.json")
            runs = [json.loads(path.read_text()) for path in paths]
            for result in sorted(runs, key=lambda result: (result["learning_rate"], result["seed"])):
                found.setdefault(network, {}).setdefault((arm, result["learning_rate"]), []).append(result)
    for network, arms in list(found.items()):  # of another's runs, those at rates that it has been trained at
        rates = {rate for arm, rate in arms if trained_as(network, arm) == network}
        found[network] = {(arm, rate): runs for (arm, rate), runs in arms.items() if rate in rates}
        if not found[network]:
            del found[network]
    if not found:
        raise SystemExit(
            f"study_learning.py: no runs in {args.results / 'runs'}; make them with: study_learning.py run DATA"
        )
    timed = args.results / "times.json"
    seconds = json.loads(timed.read_text())["seconds"] if timed.exists() else {}
    lines = [line for network, arms in found.items() for line in table(network, arms, seconds.get(network, {}))]
    for title, ours, others in (
        ("Differences", "drconv", [arm for arm in ARMS if arm != "drconv"]),
        ("Differences of m = 1, one filter for the whole image", "m1", ["standard", "widened"]),
    ):
        lines += [f"### {title}", "", *comparisons(found, ours, others)]
    page, begin, end = args.results.with_suffix(".md"), "<!-- tables: begin -->", "<!-- tables: end -->"
    if page.exists() and begin in (text := page.read_text()):
        before, after = text.split(begin)[0], text.split(end)[1]
        page.write_text("\n".join([f"{before}{begin}", "", *lines, f"{end}{after}"]))
    print("\n".join(lines))
    plot_top1(found, args.results / "learning.png")
    plot_entropy(found, args.results / "entropy.png")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "time", "report"])
    parser.add_argument("data", type=Path, nargs="?", default=Path("data/caltech20"), help="default: %(default)s")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument(
        "--learning-rates", nargs="+", type=float, default=[0.05, 0.1], metavar="RATE",
        help="at its highest (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each arm (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=2400, help="of batch 32 (default: %(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="runs at once, one thread each (default: cores)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of `run` (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="of `time` (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSONs (default: docs/learning)")
    return parser.parse_args()


def main() -> None:
    """Does what is asked."""
    args = parse_args()
    try:
        {"run": run, "time": time_arms, "report": report}[args.command](args)
    except FileNotFoundError as error:  # a wrong layout, which the message explains
        raise SystemExit(f"study_learning.py: {error}") from None


if __name__ == "__main__":
    main()
