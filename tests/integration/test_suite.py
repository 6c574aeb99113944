"""tools/suite.py on a tiny task: killed at several moments and resumed, against one that was left alone."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drconv_mm.suite.results import RunResult

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "tests/test_suite/tiny_suite.py"
# Of time and place, not of the training.
PASSING = {
    *("seconds_per_iteration", "peak_memory_bytes", "started", "finished", "seconds"),
    *("command", "suite_command", "git_commit"),
}


def suite(
    folder: Path, *arguments: str, kill_at: str = "", kill_after: float | None = None, config: Path = SUITE
) -> subprocess.CompletedProcess:
    """Calls the suite in a process group of its own, which may be killed at a moment, or after some seconds."""
    command = [
        sys.executable,
        ROOT / "tools/suite.py",
        config,
        "--work-dir",
        folder,
        "--data-root",
        folder.parent / "data",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KILL_AT": kill_at}
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True, cwd=folder.parent,
    )  # fmt: skip
    try:
        output = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, *output)


def record(folder: Path) -> RunResult:
    return RunResult.read(folder / "runs/shapes/DRConv/0/result.json")


def lasting(result: RunResult) -> dict:
    return {name: value for name, value in vars(result).items() if name not in PASSING}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("suite") / "undisturbed"
    done = suite(folder, "--conv", "DRConv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "top-1 accuracy" in done.stdout and "report:" in done.stdout
    return folder


@pytest.fixture(scope="module")
def resumed(undisturbed) -> Path:
    """A run is finished; the next is killed at a moment of its training drawn at random, in its last validation, and
    in the test."""
    folder = undisturbed.with_name("resumed")
    assert suite(folder, "--conv", "Conv2d").returncode == 0
    finished = folder / "runs/shapes/Conv2d/0/result.json"
    before = finished.read_bytes()
    moment = random.SystemRandom().choice(["train:1", "train:3", "save:4", "train:5", "save:6"])  # of 8 iterations
    print(f"killed at {moment}")  # pytest shows it where a test fails
    for kill_at in (moment, "val:8", "test:0"):
        done = suite(folder, "--resume", kill_at=kill_at)
        assert done.returncode == -signal.SIGKILL, (kill_at, done.stdout + done.stderr)
        assert not (folder / "runs/shapes/DRConv/0/result.json").exists()
        assert finished.read_bytes() == before
    done = suite(folder, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert finished.read_bytes() == before and "2 runs, 1 finished, 1 to do" in done.stdout
    assert "training" not in done.stdout and "test" in done.stdout
    return folder


def test_record(undisturbed):
    result = record(undisturbed)
    assert (result.suite, result.task, result.conv, result.seed) == ("tiny_suite", "shapes", "DRConv", 0)
    assert result.iterations == 8 and result.batch_size == 8
    assert [step for step, _ in result.curves["loss"]] == list(range(1, 9))
    assert [step for step, _ in result.curves["metric"]] == [4, 8] and result.curves["metric"][-1][1] == result.value
    assert result.metrics["accuracy/top1"] == result.value and 0 <= result.value <= 100
    assert 0 < result.seconds_per_iteration < result.seconds and result.peak_memory_bytes > 100e6
    assert result.regions and all(sum(layer["shares"]) == pytest.approx(1) for layer in result.regions.values())
    assert {"torch", "cpu", "threads", "drconv_mm"} <= result.environment.keys()
    assert "model.backbone.conv_cfg.type=drconv_mm.DRConv" in result.command


def test_what_a_run_leaves(undisturbed):
    folder = undisturbed / "runs/shapes/DRConv/0"
    for name in ("config.py", "train.log", "test.log", "checkpoint.pth", "pictures/pictures.json"):
        assert (folder / name).is_file(), name
    assert not list((folder / "training").glob("*.pth"))
    assert torch.load(folder / "checkpoint.pth", weights_only=True)["meta"]["iter"] == 8
    for name in ("report.html", "report.md", "results.csv"):
        assert (undisturbed / "report" / name).is_file(), name
    assert (undisturbed / "report/results.csv").read_text().count("\n") == 2


def test_killed_and_resumed_gives_the_same(undisturbed, resumed):
    assert lasting(record(resumed)) == lasting(record(undisturbed))
    first, second = (
        torch.load(f / "runs/shapes/DRConv/0/checkpoint.pth")["state_dict"] for f in (undisturbed, resumed)
    )
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_killed_at_any_time_gives_the_same(undisturbed):
    """At moments drawn at random over the whole call: while it imports, trains, tests, inspects, writes or reports."""
    folder, took = undisturbed.with_name("killed"), record(undisturbed).seconds + 10
    moments = [random.SystemRandom().uniform(1, took) for _ in range(3)]
    print(f"killed after {moments} seconds")  # pytest shows it where a test fails
    for moment in moments:
        done = suite(folder, "--conv", "DRConv", "--resume", kill_after=moment)
        assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
    done = suite(folder, "--conv", "DRConv", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert lasting(record(folder)) == lasting(record(undisturbed))
    first, second = (csv_of(folder) for folder in (undisturbed, folder))
    assert first == second


def csv_of(folder: Path) -> list[dict[str, str]]:
    """The report's runs with DRConv, but for what time and place decide."""
    with (folder / "report/results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["conv"] == "DRConv"]
    return [{name: value for name, value in row.items() if name not in PASSING} for row in rows]


def test_jobs_give_the_same(undisturbed):
    folder = undisturbed.with_name("jobs")
    done = suite(folder, "--launcher", "submitit", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"shapes, \w+, seed 0: job \d+; its log is .*/train\.log", done.stdout)) == 2
    assert (folder / "report/results.csv").read_text().count("\n") == 3
    assert lasting(record(folder)) == lasting(record(undisturbed))


def test_failed_run_does_not_stop_the_rest(undisturbed, tmp_path):
    config = tmp_path / "tiny_suite.py"
    text = SUITE.read_text().replace('"tiny_classifier.py"', repr(str(SUITE.with_name("tiny_classifier.py"))))
    # A layer of 64 channels can be built, the network can't.
    config.write_text(f"{text}\nconvs = dict(Broken=dict(type='DCN', deform_groups=64), **convs)\n")
    before, rest = record(undisturbed), undisturbed / "runs/shapes/Conv2d/0/result.json"
    assert not rest.exists()
    done = suite(undisturbed, "--conv", "Broken", "Conv2d", "DRConv", "--resume", config=config)
    assert done.returncode == 1 and "FAILED shapes, Broken, seed 0: train ended with exit code 1" in done.stdout
    assert "input channels must divide deformable group size" in done.stdout
    assert "1 of 2 runs failed; --resume tries them again" in done.stdout and RunResult.read(rest).conv == "Conv2d"
    document = json.loads((undisturbed / "runs/shapes/Broken/0/failed.json").read_text())
    assert document["step"] == "train" and any("deformable group" in line for line in document["last_lines"])
    assert record(undisturbed) == before and (undisturbed / "report/report.html").is_file()


FEW = {
    "detection": dict(epochs=2, data=dict(arguments=dict(num_train=8, num_val=4))),
    "segmentation": dict(iterations=4, data=dict(arguments=dict(num_train=8, num_val=4))),
    "face": dict(epochs=1, data=dict(arguments=dict(num_images=2, num_strangers=6, num_pairs=40))),
    "classification": dict(epochs=1, data=dict(arguments=dict(num_train=4, num_val=2))),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The suite of `make demo`, with few images: all four toolboxes, to a report with pictures."""
    folder = tmp_path_factory.mktemp("demo")
    config = folder / "sample.py"
    hooks = {"options": {"default_hooks.killer.type": "tests.test_suite.killer.KillHook"}}
    tasks = {name: {**task, **hooks} for name, task in FEW.items()}
    config.write_text(f"_base_ = '{ROOT}/configs/suite/sample.py'\ntasks = {tasks!r}\n")
    done = suite(folder / "work", "--conv", "DRConv", config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_task_of_the_demo(demo):
    results = {path.parts[-4]: RunResult.read(path) for path in (demo / "work/runs").glob("*/*/*/result.json")}
    assert results.keys() == FEW.keys()
    for name, result in results.items():
        assert result.regions and result.multiply_adds > 1e6 and result.curves["loss"], name
        pictures = json.loads((demo / f"work/runs/{name}/DRConv/0/pictures/pictures.json").read_text())
        assert pictures, name
    page = (demo / "work/report/report.html").read_text()
    assert "4 of 4" in page and page.count("<img ") >= len(FEW)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_every_toolbox_goes_on_where_it_was(demo, task):
    """Their train.py take a checkpoint each in a way of its own; mmpretrain's is the one of the tests above."""
    arguments = ["--conv", "DRConv", "--task", task, "--resume"]
    killed = suite(demo / "killed", *arguments, config=demo / "sample.py", kill_at="train:2")
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    done = suite(demo / "killed", *arguments, config=demo / "sample.py")
    assert done.returncode == 0 and f"goes on from {'epoch' if task == 'detection' else 'iter'}_1.pth" in done.stdout
    first, second = (demo / name / f"runs/{task}/DRConv/0" for name in ("work", "killed"))
    assert lasting(RunResult.read(second / "result.json")) == lasting(RunResult.read(first / "result.json"))
    weights = [torch.load(folder / "checkpoint.pth")["state_dict"] for folder in (first, second)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
