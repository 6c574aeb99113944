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
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, nullcontext
from functools import cache
from multiprocessing.pool import ThreadPool
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from study_arms import ARMS, NETWORKS, SIZE, Arm, build, costs_of, dynamic_layers, guide_weights, trained_as
from study_report import report
from timing import interleaved, machine, restart_with
from torch import Tensor, nn

import drconv_mm
from drconv_mm.datasets.image_folder import scan_image_folder
from drconv_mm.engine.regions import region_entropy, region_shares
from drconv_mm.files import write_whole
from drconv_mm.info import cpu_name
from drconv_mm.layers import observe_regions
from drconv_mm.memory import KEEP_FREED_MEMORY

RESULTS = Path(__file__).parents[1] / "docs/learning"
STORED = 112  # of an image in memory, whose crops are trained on
BATCH, MOMENTUM, WEIGHT_DECAY, LABEL_SMOOTHING = 32, 0.9, 4e-5, 0.1


Change = Callable[[str, Tensor, int], Tensor]  # of a layer's region map: name, map, m


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
        rest += [p for layer in dynamic_layers(model) for p in layer.generator.parameters() if p.dim() > 1]
        rest += guide_weights(model)
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
        {"run": run, "time": time_arms, "report": lambda args: report(args.results)}[args.command](args)
    except FileNotFoundError as error:  # a wrong layout, which the message explains
        raise SystemExit(f"study_learning.py: {error}") from None


if __name__ == "__main__":
    main()
