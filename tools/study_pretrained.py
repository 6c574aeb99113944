#!/usr/bin/env python
"""Does DRConv gain from a standard network's weights? Fine-tunes both from one checkpoint, several seeds.

The commands are the toolboxes' own, those of docs/pretrained.md:

  classification  ShuffleNetV2 0.5x, trained on ten classes of caltech20, fine-tuned on the other ten
  detection       RetinaNet-R18, trained on bccd, trained on there

each as the standard network and with the key, at the command's learning rate and at twice that (-2x).

Each finished run is a JSON in the results folder and never repeated; a stopped one goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev

from drconv_mm.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
KEY = "model.backbone.conv_cfg.type=drconv_mm.DRConv"
# A key or none, and a factor on the rate: a dynamic layer learns faster than its rate says (docs/learning.md).
KINDS = {"Conv2d": ([], 1), "Conv2d-2x": ([], 2), "DRConv": ([KEY], 1), "DRConv-2x": ([KEY], 2)}
TASKS = {
    "classification": dict(
        toolbox="mmpretrain",
        source="classification/shufflenet-v2-0.5x_caltech20a-96x96.py",
        target="classification/shufflenet-v2-0.5x_caltech20b-96x96.py",
        data="caltech20",
        metric=r"accuracy/top1: ([\d.]+)",
        pretraining=["train_cfg.max_epochs=40", "train_cfg.val_interval=40", "param_scheduler.1.end=40"],
        tuning=["train_cfg.max_epochs=10", "train_cfg.val_interval=10", "param_scheduler.1.end=10"],
        learning_rate=0.05,
    ),
    "detection": dict(
        toolbox="mmdet",
        source="detection/retinanet_r18_fpn_bccd-160x120.py",
        target="detection/retinanet_r18_fpn_bccd-160x120.py",
        data="bccd",
        metric=r"coco/bbox_mAP: ([\d.]+)",
        pretraining=["train_cfg.max_epochs=10", "train_cfg.val_interval=10", "param_scheduler.1.end=10"],
        tuning=["train_cfg.max_epochs=5", "train_cfg.val_interval=5", "param_scheduler.1.end=5"],
        learning_rate=0.0005,
    ),
}  # fmt: skip


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("data"), help="folder with caltech20/ and bccd/")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/pretrained"), help="default: %(default)s")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "docs/pretrained",
        help="default: docs/pretrained, which holds the published runs; give another folder to repeat them",
    )  # fmt: skip
    return parser.parse_args()


def data_options(task: str, data: Path) -> list[str]:
    """Where the images are."""
    root = (data / TASKS[task]["data"]).resolve()
    if not root.is_dir():
        raise SystemExit(f"{root} is missing: looked for the data set {root.name} of the task {task!r} in {data}")
    options = [f"{loader}_dataloader.dataset.data_root={root}/" for loader in ("train", "val", "test")]
    if task == "detection":
        options += [f"{e}_evaluator.ann_file={root}/annotations/instances_val.json" for e in ("val", "test")]
    return options


def train(task: str, config: str, work_dir: Path, options: list[str]) -> float:
    """Runs the toolbox's train.py, goes on where a run was stopped, and returns the metric of the last validation."""
    tool = Path(find_spec(TASKS[task]["toolbox"]).origin).parent / ".mim/tools/train.py"
    log = work_dir / "train.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(tool), str(ROOT / "configs" / config), "--work-dir", str(work_dir)]
    if (work_dir / "last_checkpoint").exists():
        command.append("--resume")
        # Each would take the place of the other: which one depends on the toolbox.
        options = [option for option in options if not option.startswith("load_from=")]
    with log.open("a") as file:
        done = subprocess.run([*command, "--cfg-options", *options], stdout=file, stderr=subprocess.STDOUT)
    found = re.findall(TASKS[task]["metric"], log.read_text())
    if done.returncode or not found:
        raise SystemExit(f"{' '.join(command)} failed; see {log}")
    return float(found[-1])


def keep_source(results: Path, source: dict) -> None:
    """Writes what a network to start from reached; runs of one seed must not come from two of them."""
    path = results / f"{source['task']}-source-seed{source['seed']}.json"
    if path.exists() and (before := json.loads(path.read_text())["metric"]) != source["metric"]:
        raise SystemExit(
            f"study_pretrained.py: {path} is of a source with {before}, and the one trained anew, whose work dir was "
            f"not there, has {source['metric']}: finished runs can't be compared with new ones; give another --results"
        )
    write_whole(path, json.dumps(source) + "\n")


def newest_checkpoint(work_dir: Path) -> Path:
    """The checkpoint that mmengine names as the last."""
    return Path((work_dir / "last_checkpoint").read_text().strip())


def main() -> None:
    """Trains what is missing and prints the table."""
    args = parse_args()
    runs: dict[tuple[str, str], list[dict]] = {}
    for task in args.tasks:
        spec, where = TASKS[task], data_options(task, args.data)
        for seed in range(args.seeds):
            pretrained = args.work_dir / task / f"source-seed{seed}"
            for kind, (key, factor) in KINDS.items():
                path = args.results / f"{task}-{kind.lower()}-seed{seed}.json"
                finished = path.exists()
                if not finished:
                    seeded = [*where, f"randomness.seed={seed}"]
                    if not (pretrained / "done").exists():
                        print(f"{task}, seed {seed}: the standard network to start from", flush=True)
                        metric = train(task, spec["source"], pretrained, [*seeded, *spec["pretraining"]])
                        keep_source(args.results, dict(task=task, kind="source", seed=seed, metric=metric))
                        (pretrained / "done").touch()
                    started, options = time.perf_counter(), [*seeded, *spec["tuning"], *key]
                    options.append(f"optim_wrapper.optimizer.lr={factor * spec['learning_rate']}")
                    options.append(f"load_from={newest_checkpoint(pretrained)}")
                    metric = train(task, spec["target"], args.work_dir / task / f"{kind.lower()}-seed{seed}", options)
                    minutes = round((time.perf_counter() - started) / 60, 2)
                    result = dict(task=task, kind=kind, seed=seed, metric=metric, minutes=minutes)
                    write_whole(path, json.dumps(result) + "\n")
                runs.setdefault((task, kind), []).append(json.loads(path.read_text()))
                before = f" (finished before: {path})" if finished else ""
                print(f"{task}, seed {seed}, {kind}: {runs[task, kind][-1]['metric']}{before}", flush=True)
    print("\n| task | fine-tuned as | metric | of seeds | minutes each |\n|---|---|---|---|---|")
    for (task, kind), found in runs.items():
        values = [run["metric"] for run in found]
        spread = f" ± {stdev(values):.3g}" if len(values) > 1 else ""
        each = ", ".join(f"{value:g}" for value in values)
        print(
            f"| {task} | {kind} | {mean(values):.3g}{spread} | {each} | {mean(run['minutes'] for run in found):.1f} |"
        )


if __name__ == "__main__":
    main()
