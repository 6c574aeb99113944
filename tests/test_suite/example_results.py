"""Results that no run gave: fictional numbers, to try the report with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np

from drconv_mm.suite.results import RESULT_FILE, RunResult

TASKS = {
    "cells": ("Blood cells, detection", {"name": "coco/bbox_mAP", "label": "AP", "unit": ""}, 0.41, {}),
    "streets": ("Street scenes, segmentation", {"name": "mIoU", "label": "mIoU", "unit": "%"}, 52.0, {}),
    "faces": (
        "Faces, verification",
        {"name": "face/accuracy", "label": "accuracy", "unit": "%"},
        70.0,
        {"raw pixels": 61.94},
    ),
    "objects": ("Twenty objects, classification", {"name": "accuracy/top1", "label": "top-1", "unit": "%"}, 61.0, {}),
}
# Relative gain, factor of multiply-adds, factor of time, factor of parameters.
CONVS = {
    "Conv2d": (0.0, 1.0, 1.0, 1.0),
    "DRConv mixture": (0.06, 1.04, 1.6, 1.13),
    "DRConv pooled": (0.03, 1.06, 1.7, 2.1),
    "wider Conv2d": (0.02, 1.05, 1.05, 1.08),
}
ENVIRONMENT = {
    "python": "3.11.2",
    "torch": "2.12.1",
    "mmdet": "3.5.1",
    "cpu": "a fictional CPU",
    "threads": "2",
    "os": "Linux",
    "drconv_mm": "0.0.0",
}
COMMAND = "python tools/suite.py configs/suite/example.py --seeds 3"


def example_result(task: str = "cells", conv: str = "Conv2d", seed: int = 0, **changes: object) -> RunResult:
    """One run; the same arguments give the same numbers."""
    title, metric, level, baselines = TASKS.get(task, (task, *TASKS["cells"][1:]))
    gain, cost, time, size = CONVS.get(conv, (0.01, 1.0, 1.0, 1.0))
    rng = np.random.default_rng([*task.encode(), *conv.encode(), seed])
    # What a seed does to all convs alike, and what it does to this one.
    shared = np.random.default_rng([*task.encode(), seed]).normal(0, 0.03)
    value = level * (1 + gain + shared + rng.normal(0, 0.012))
    steps = np.arange(10, 401, 10)
    loss = 0.4 + 2.2 * np.exp(-steps / 120) * (1 - gain) + rng.normal(0, 0.04, len(steps))
    checks = np.arange(100, 401, 100)
    rise = value * (1 - np.exp(-checks / 90)) / (1 - math.exp(-400 / 90))
    regions = {}
    if conv.startswith("DRConv"):
        for stage in range(1, 5):
            for block in range(2):
                shares = rng.dirichlet(np.full(8, 0.4 + stage))
                regions[f"backbone.layer{stage}.{block}.conv1"] = {"num_regions": 8, "shares": shares.tolist()}
    result = {
        "suite": "example",
        "task": task,
        "conv": conv,
        "seed": seed,
        "task_title": title,
        "metric": {**metric, "higher_is_better": True},
        "value": float(value),
        "metrics": {metric["name"]: float(value)},
        "baselines": baselines,
        "multiply_adds": int(813_000_000 * cost),
        "parameters": int(11_830_000 * size),
        "seconds_per_iteration": float(0.2 * time * rng.normal(1, 0.02)),
        "peak_memory_bytes": int(1.1e9 * (1 + 0.3 * (time - 1)) * rng.normal(1, 0.01)),
        "iterations": 400,
        "batch_size": 8,
        "curves": {
            "loss": [[int(step), float(v)] for step, v in zip(steps, loss, strict=True)],
            "metric": [[int(step), float(v)] for step, v in zip(checks, rise, strict=True)],
        },
        "regions": regions,
        "environment": ENVIRONMENT,
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "command": ["python", "tools/train.py", "config.py"],
        "started": "2000-01-01T00:00:00+00:00",
        "finished": "2000-01-01T00:03:20+00:00",
        "seconds": 200.0,
        "suite_command": COMMAND,
    }
    return RunResult(**{**result, **changes})


def example_results(tasks: tuple[str, ...] = tuple(TASKS), convs: tuple[str, ...] = tuple(CONVS), seeds: int = 3):
    """A whole suite."""
    return [example_result(task, conv, seed) for task in tasks for conv in convs for seed in range(seeds)]


def write_run(work_dir: Path, result: RunResult, pictures: int = 0) -> Path:
    """A run's folder, with pictures of nothing."""
    folder = work_dir / "runs" / result.task / result.conv / str(result.seed)
    result.write(folder / RESULT_FILE)
    entries = []
    for index in range(pictures):
        rng = np.random.default_rng([*result.task.encode(), index])
        for kind, size in (("predictions", (150, 400)), ("regions", (300, 400))):
            blocks = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            picture = cv2.resize(blocks, size[::-1], interpolation=cv2.INTER_CUBIC)
            name = f"{kind}_{index}.png"
            (folder / "pictures").mkdir(exist_ok=True)
            (folder / "pictures" / name).write_bytes(cv2.imencode(".png", picture)[1].tobytes())
            entries.append({"file": name, "caption": f"image {index}: nothing to see", "kind": kind})
    if entries:
        (folder / "pictures" / "pictures.json").write_text(json.dumps(entries))
    return folder
