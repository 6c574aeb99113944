#!/usr/bin/env python
"""Train a standard and a DRConv detector from one config with mmdet's own train.py, evaluate both, and draw them.

The data are generated scenes. What a run finished is kept: run it again, and it goes on or says that it is done.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import drconv_mm
from drconv_mm.datasets.drawing import CLASSES, PALETTE
from drconv_mm.datasets.sample_detection import generate_sample_detection
from drconv_mm.engine.complexity import count_by_part
from drconv_mm.engine.regions import RegionRecorder, color_regions, region_entropy, region_shares, save_picture

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/detection/retinanet_r18_fpn_sample-160x120.py"
TOOLS = Path(find_spec("mmdet").origin).parent / ".mim/tools"
# The one key that makes the difference.
KINDS = {"standard": [], "drconv": ["model.backbone.conv_cfg.type=drconv_mm.DRConv"]}
NAMES = {"standard": "Conv2d", "drconv": "DRConv (m=8)"}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", default="work_dirs/demo", help="where everything goes (default: %(default)s)")
    parser.add_argument("--data-root", default="data/sample_detection", help="generated set (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each training (default: %(default)s)")
    return parser.parse_args()


class Demo:
    """One demo in one folder."""

    def __init__(self, work_dir: Path, data_root: Path, epochs: int):
        self.work_dir = work_dir
        self.data_root = data_root
        self.epochs = epochs

    def options(self, kind: str) -> list[str]:
        """Overrides of the config for one of the two detectors."""
        annotations = self.data_root / "annotations/instances_val.json"
        return [
            *(f"{loader}_dataloader.dataset.data_root={self.data_root}/" for loader in ("train", "val", "test")),
            *(f"{evaluator}_evaluator.ann_file={annotations}" for evaluator in ("val", "test")),
            *(f"train_cfg.{key}={self.epochs}" for key in ("max_epochs", "val_interval")),
            f"param_scheduler.1.end={self.epochs}",
            *KINDS[kind],
        ]

    def run_tool(self, kind: str, tool: str, *arguments: object) -> None:
        """Runs mmdet's train.py or test.py with a line of progress an epoch; all it prints goes to a log."""
        log = self.work_dir / kind / f"{Path(tool).stem}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, TOOLS / tool, CONFIG, *arguments, "--cfg-options", *self.options(kind)]
        with log.open("a") as file:
            process = subprocess.Popen(
                list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for line in process.stdout:
                file.write(line)
                if "drconv_mm: " in line:
                    print("   ", line.split("INFO - ")[-1].strip(), flush=True)
                found = re.search(r"Epoch\(train\) +\[(\d+)\]\[(\d+)/\2\].* eta: (\S+).* loss: (\S+)", line)
                if found:
                    epoch, _, eta, loss = found.groups()
                    print(f"    {NAMES[kind]}: epoch {epoch}/{self.epochs}, loss {loss}, {eta} left", flush=True)
        if process.wait():
            sys.exit(f"mmdet's {tool} stopped with {process.returncode}; the end of {log}:\n{log.read_text()[-3000:]}")

    def checkpoint(self, kind: str) -> Path:
        """Where the trained weights are."""
        return self.work_dir / kind / f"epoch_{self.epochs}.pth"

    def train(self, kind: str) -> None:
        """Trains, from the last checkpoint if there is one."""
        if self.checkpoint(kind).exists():
            print(f"{NAMES[kind]}: trained already", flush=True)
            return
        resume = ["--resume"] if (self.work_dir / kind / "last_checkpoint").exists() else []
        print(f"{NAMES[kind]}: training {'goes on' if resume else 'begins'}", flush=True)
        self.run_tool(kind, "train.py", "--work-dir", self.work_dir / kind, *resume)

    def evaluate(self, kind: str) -> dict:
        """Metrics of mmdet's test.py, cost and speed."""
        result = self.work_dir / kind / "result.json"
        if result.exists() and result.stat().st_mtime >= self.checkpoint(kind).stat().st_mtime:
            return json.loads(result.read_text())
        print(f"{NAMES[kind]}: evaluation", flush=True)
        folder = self.work_dir / kind / "test"
        self.run_tool(kind, "test.py", self.checkpoint(kind), "--work-dir", folder)
        metrics = json.loads(max(folder.glob("*/*.json"), key=lambda path: path.stat().st_mtime).read_text())
        multiply_adds, parameters = count_by_part(self.model(kind, trained=False), (120, 160))["total"]
        figures = {
            "AP": metrics["coco/bbox_mAP"],
            "AP50": metrics["coco/bbox_mAP_50"],
            "multiply_adds": multiply_adds,
            "parameters": parameters,
            "seconds_per_iteration": statistics.median(self.iteration_times(kind)),
            "images_per_second": 1 / metrics["time"],
        }
        draft = result.with_suffix(".part")
        draft.write_text(json.dumps(figures, indent=2))
        draft.rename(result)
        return figures

    def iteration_times(self, kind: str) -> list[float]:
        """Seconds of a training iteration, as logged."""
        lines = (line for path in (self.work_dir / kind).glob("*/vis_data/scalars.json") for line in path.open())
        return [row["time"] for row in map(json.loads, lines) if "loss" in row]

    def model(self, kind: str, trained: bool = True) -> torch.nn.Module:
        """One of the detectors."""
        config = Config.fromfile(CONFIG)
        config.merge_from_dict(dict(option.split("=", 1) for option in KINDS[kind]))
        init_default_scope("mmdet")
        model = MODELS.build(config.model).eval()
        if trained:
            model.load_state_dict(torch.load(self.checkpoint(kind), weights_only=False)["state_dict"])
        return model

    def draw(self, count: int = 4) -> Path:
        """One picture: ground truth, both detectors, and the regions of a DRConv layer."""
        document = json.loads((self.data_root / "annotations/instances_val.json").read_text())
        images = [image for image in document["images"] if crowded(document, image["id"])][:count]
        models = {kind: self.model(kind) for kind in KINDS}
        rows, maps = [], []
        for image in images:
            picture = cv2.imread(str(self.data_root / "val" / image["file_name"]))[..., ::-1]
            truth = [
                (a["bbox"], a["category_id"] - 1, None if not a["iscrowd"] else "crowd")
                for a in document["annotations"]
                if a["image_id"] == image["id"]
            ]
            tiles = [boxes_on(picture, truth)]
            for kind, model in models.items():
                with RegionRecorder(model) as recorder:
                    tiles.append(boxes_on(picture, detect(model, picture)))
                if kind == "drconv":
                    maps.append(recorder.regions)
            tiles.append(cv2.resize(np.ascontiguousarray(picture), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))
            rows.append(tiles)
        layer = most_divided(maps)
        for tiles, regions in zip(rows, maps, strict=True):
            whole = cv2.resize(regions[layer][0], (160, 128), interpolation=cv2.INTER_NEAREST)[:120]  # padded to 128
            tiles[-1] = (0.55 * color_regions(whole, tiles[-1].shape[:2]) + 0.45 * tiles[-1]).astype(np.uint8)
        rows = [np.hstack(tiles) for tiles in rows]
        titles = ("ground truth", "Conv2d", "DRConv", f"regions of {layer}")
        header = np.full((22, rows[0].shape[1], 3), 255, np.uint8)
        for index, title in enumerate(titles):
            place = (index * header.shape[1] // 4 + 6, 15)
            cv2.putText(header, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        path = self.work_dir / "demo.png"
        save_picture(path, np.vstack([header, *rows]))
        return path


def most_divided(maps: list[dict]) -> str:
    """Of the layers with the finest map, the one that spreads its pixels most evenly over its regions."""
    finest = max(regions.size for regions, _ in maps[0].values())

    def entropy(layer: str) -> float:
        counts = sum(np.bincount(m[layer][0].ravel(), minlength=m[layer][1]) for m in maps)
        return region_entropy(region_shares(torch.from_numpy(counts)))

    return max((name for name, (regions, _) in maps[0].items() if regions.size == finest), key=entropy)


def crowded(document: dict, image_id: int) -> bool:
    """Whether an image has enough to look at."""
    return sum(a["image_id"] == image_id and not a["iscrowd"] for a in document["annotations"]) >= 4


def detect(model: torch.nn.Module, picture: np.ndarray) -> list[tuple]:
    """Detections with a score of 0.4 or more, as (box x y w h, class, score)."""
    from mmdet.structures import DetDataSample

    sample = DetDataSample(metainfo=dict(img_shape=picture.shape[:2], ori_shape=picture.shape[:2], scale_factor=(1, 1)))
    image = torch.from_numpy(picture[..., ::-1].transpose(2, 0, 1).copy())
    with torch.no_grad():
        found = model.test_step(dict(inputs=[image], data_samples=[sample]))[0].pred_instances
    found = found[found.scores >= 0.4]
    corners = found.bboxes.numpy()
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    return [(b, int(c), f"{s:.2f}") for b, c, s in zip(boxes, found.labels, found.scores, strict=True)]


def boxes_on(picture: np.ndarray, objects: list[tuple]) -> np.ndarray:
    """The picture at twice its size with boxes, a colour a class."""
    large = cv2.resize(np.ascontiguousarray(picture), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    for (x, y, w, h), label, text in objects:
        left, top, right, bottom = (round(2 * float(v)) for v in (x, y, x + w, y + h))
        cv2.rectangle(large, (left, top), (right, bottom), PALETTE[label], 2)
        name = CLASSES[label].removeprefix("stripes_") + (f" {text}" if text else "")
        (wide, tall), _ = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.38, 1)
        left, top = min(left, large.shape[1] - wide - 2), max(top, tall + 4)
        cv2.rectangle(large, (left, top - tall - 4), (left + wide + 2, top), PALETTE[label], -1)
        cv2.putText(large, name, (left + 1, top - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (255, 255, 255), 1, cv2.LINE_AA)
    return large


def table(results: dict[str, dict]) -> str:
    """The figures, as Markdown."""
    lines = [
        "| convolution | AP | AP50 | multiply-adds | parameters | s/iter (batch 8) | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, figures in results.items():
        lines.append(
            f"| {NAMES[kind]} | {figures['AP']:.3f} | {figures['AP50']:.3f} | {figures['multiply_adds'] / 1e9:.3f} G "
            f"| {figures['parameters'] / 1e6:.2f} M | {figures['seconds_per_iteration']:.2f} "
            f"| {figures['images_per_second']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs what is left to do."""
    args = parse_args()
    start = time.perf_counter()
    try:
        data_root = generate_sample_detection(args.data_root)
    except (OSError, ValueError) as error:
        sys.exit(f"--data-root: {error}")
    print(f"generated scenes: {data_root}", flush=True)
    demo = Demo(Path(args.work_dir), data_root, args.epochs)
    results = {}
    for kind in KINDS:
        demo.train(kind)
        results[kind] = demo.evaluate(kind)
    picture = demo.draw()
    text = table(results)
    (demo.work_dir / "table.md").write_text(text + "\n")
    print(
        f"\n{text}\n\n"
        f"one training each (seed 0), {torch.get_num_threads()} CPU threads, torch {torch.__version__}, "
        f"drconv_mm {drconv_mm.__version__}; images of 160x120\n"
        f"pictures:  {picture}\n"
        f"table:     {demo.work_dir / 'table.md'}\n"
        f"done in {time.perf_counter() - start:.0f} s; `make clean` removes it to begin anew"
    )


if __name__ == "__main__":
    main()
