"""The command lines, as a user runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from timing import interleaved

from drconv_mm.datasets.sample_detection import generate_sample_detection

from ..integration.toolbox import packaged

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/detection/retinanet_r18_fpn_sample-160x120.py"
MODULES = ("study_arms.py", "study_report.py", "timing.py", "toolbox_models.py")  # which tools import
KEY = "model.backbone.conv_cfg.type=drconv_mm.DRConv"


def run(*arguments, cwd=ROOT, check=True):
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.parametrize(
    "tool", sorted({path.name for path in (ROOT / "tools").glob("*.py")} - {"check_env.py", *MODULES})
)
def test_help_explains(tool):
    assert "usage:" in run(f"tools/{tool}", "--help").stdout


def test_set_up_explains_itself():
    done = subprocess.run(
        ["bash", "tools/setup_env.sh", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "DRCONV_MM_CACHE" in done.stdout
    done = subprocess.run(["bash", "tools/setup_env.sh", "--fast"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "takes no argument, got '--fast'" in done.stderr


def test_set_up_without_python_names_the_remedy(tmp_path):
    done = subprocess.run(
        ["bash", "tools/setup_env.sh"],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "VENV": str(tmp_path / "venv"),
            "PYTHON": "/nowhere/python",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no Python 3.11 was found at PYTHON=/nowhere/python" in done.stderr and "apt-get install" in done.stderr


def test_a_folder_of_the_packages_name_does_not_hide_it(tmp_path):
    """As a clone is for who works in the folder above."""
    (tmp_path / "drconv_mm").mkdir()
    subprocess.run([sys.executable, "-c", "from drconv_mm import convert"], cwd=tmp_path, check=True)


def test_info():
    text = run("-m", "drconv_mm.info").stdout
    assert re.search(r"^drconv_mm \d", text) and f"torch {torch.__version__}" in text
    assert re.search(r"family \[(onedl|openmmlab)\]: mmengine", text)
    for backend in ("cpu", "sorted", "dense", "reference"):
        assert re.search(rf"{backend} +can run", text)


def test_info_bears_a_broken_mmcv():
    """OpenCV without its system libraries."""
    code = "import sys; sys.modules['cv2'] = None\nfrom drconv_mm.info import describe; print(describe())"
    text = run("-c", code).stdout
    assert "mmcv can't be imported: " in text and re.search("sorted +can run", text)


def test_count_flops():
    plain, dynamic = (
        run("tools/count_flops.py", CONFIG, "--shape", 96, 128, *extra).stdout.splitlines()
        for extra in ([], ["--cfg-options", KEY])
    )
    assert plain[0] == "| config | input | convolution | guide | generator | linear | total | parameters |"
    numbers = [[float(n) for n in re.findall(r"([\d.]+) M", lines[-1])] for lines in (plain, dynamic)]
    (convolution, guide, generator, _, total, *_), (same, new_guide, new_generator, _, new_total, *_) = numbers
    assert convolution == same == total and guide == generator == 0
    assert 0 < new_total - (same + new_guide + new_generator) + 0.1 < 0.2 and new_total < 1.2 * total
    for line, parts in ((plain[-1], 2), (dynamic[-1], 4)):  # of parameters
        total, *found = (float(n) for n in re.findall(r"([\d.]+) M", line.split("|")[-2]))
        assert len(found) == parts and sum(found) == pytest.approx(total, abs=0.03)
    assert "guide 0." in dynamic[-1] and "generator " in dynamic[-1] and "generator " not in plain[-1].split("|")[-2]


def test_count_flops_of_segmentors():
    """The key adds guide and generator, and leaves the convolutions as they are."""
    stem = "configs/segmentation/fcn_mobilenet-v2-d8{}_sample-160x120.py"
    configs = [stem.format(kind) for kind in ("", "-drconv")]
    lines = run("tools/count_flops.py", *configs, "--shape", 120, 160).stdout.splitlines()[-2:]
    plain, dynamic = ([float(number) for number in re.findall(r"\| ([\d.]+) M", line)] for line in lines)
    assert plain[:5] == [349.46, 0, 0, 0, 349.46]  # as the records of the sample suite have it
    assert dynamic[0] == plain[0] and dynamic[4] == pytest.approx(sum(dynamic[:4]), abs=0.02) and min(dynamic[1:3]) > 5


def test_benchmark_prints_ratios_and_writes_them(tmp_path):
    shapes = ["--shapes", "2x8->8@14", "2x8->16@9 k3 s2", "1x8@9 k3 dw"]
    files = ["--csv", tmp_path / "b.csv", "--json", tmp_path / "b.json", "--plot", tmp_path / "b.png"]
    text = run("tools/benchmark_op.py", *shapes, "--regions", 2, 4, "--rounds", 3, *files).stdout
    assert "threads" in text and len(re.findall(r"drconv m=[24] .* x conv2d", text)) == 6
    assert (tmp_path / "b.csv").read_text().startswith("shape,name,unit,median")
    content = json.loads((tmp_path / "b.json").read_text())
    assert content["machine"]["torch"] == torch.__version__ and len(content["rows"]) == 12
    assert (tmp_path / "b.png").stat().st_size > 10_000
    for row in content["rows"]:  # to the faster of conv2d's memory formats
        same = [other for other in content["rows"] if other["shape"] == row["shape"]]
        fast = min(other["median"] for other in same if other["name"].startswith("conv2d"))
        assert row["ratio"] == pytest.approx(row["median"] / fast, rel=0.03, abs=2e-3)
    more = ["--backends", "sorted", "dense", "--maps", "random", "dominant", "--backward", "none", "--rounds", 3]
    text = run("tools/benchmark_op.py", *shapes[:2], "--regions", 3, *more).stdout
    assert len(re.findall(r"(?:sorted|dense) (?:random|dominant) m=3", text)) == 4
    text = run("tools/benchmark_op.py", "--shapes", "2x64->64@160", "--regions", 8, "--memory").stdout
    taken = {name: float(mb) for name, mb in re.findall(r"  (\S.*?) +([\d.]+) MB", text)}
    output = 2 * 64 * 160 * 160 * 4 / 2**20
    # Linux counts a thread's pages in batches: up to 0.5 MB are not in the peak yet.
    assert output - 0.5 <= taken["drconv m=8"] <= output + 8 and taken["conv2d"] >= output - 0.5
    done = run("tools/benchmark_op.py", "--shapes", "64x64", check=False)
    assert done.returncode == 1 and "shape '64x64' is not like" in done.stderr


def test_times_are_milliseconds_of_rounds_that_are_warm():
    calls = []
    times = interleaved({"nap": lambda: (calls.append(0), time.sleep(0.02))}, 3, "cpu")["nap"]
    assert len(times) == 3 < len(calls) and min(times) >= 20


def test_memory_is_of_the_threads_asked_for(monkeypatch):
    import benchmark_model

    asked = []
    monkeypatch.setattr(benchmark_model, "measure_memory", lambda args: asked.append("measured"))
    monkeypatch.setattr(benchmark_model.torch, "set_num_threads", asked.append)
    monkeypatch.setattr("sys.argv", ["benchmark_model.py", str(CONFIG), "--threads", "1", "--measure-memory", "DRConv"])
    benchmark_model.main()
    assert asked == [1, "measured"]


def test_benchmark_of_layers_prints_both_orders():
    shapes = ["--shapes", "2x8->8@4 k3", "2x8->16@9", "--regions", 2, 8, "--rounds", 2]
    text = run("tools/benchmark_layer.py", *shapes).stdout
    found = re.findall(r"\| (\S+ ?\S*) \| (\d) \| [\d.]+ \| [\d.]+ \| [\d.]+ \| (\w+) \| [\d.]+ \|", text)
    assert [(m, chosen) for _, m, chosen in found] == [
        ("2", "outputs"), ("8", "outputs"), ("2", "filters"), ("8", "filters")
    ]  # fmt: skip
    done = run("tools/benchmark_layer.py", "--shapes", "16x8@9 k3 dw", check=False)
    assert done.returncode == 1 and "shape '16x8@9 k3 dw' is depthwise" in done.stderr


def test_visualize_regions(tmp_path):
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    generate_sample_detection(tmp_path / "set", 1, 2)
    config = Config.fromfile(CONFIG)
    config.model.backbone.conv_cfg = dict(type="drconv_mm.DRConv")
    init_default_scope("mmdet")
    torch.save({"state_dict": MODELS.build(config.model).state_dict()}, tmp_path / "w.pth")
    base = ["tools/visualize_regions.py", CONFIG, tmp_path / "w.pth"]
    options = ["--out-dir", tmp_path / "out", "--cfg-options", KEY]
    run(*base, tmp_path / "set/val", *options)
    assert len(list((tmp_path / "out").glob("*.png"))) == 2

    for arguments, message in (
        ([*base, tmp_path / "set/val"], "the model has no DRConv layer"),
        ([*base, tmp_path / "nowhere", *options], "there is no such image or folder"),
        ([*base, tmp_path / "set/val", "--layers", "neck", *options], "no such DRConv layer; there are backbone"),
    ):
        done = run(*arguments, check=False)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "toolbox, config",
    [
        ("mmpretrain", "shufflenet_v2/shufflenet-v2-1x_16xb64_in1k.py"),
        ("mmdet", "retinanet/retinanet_r18_fpn_1x_coco.py"),
        ("mmseg", "mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024.py"),
    ],
)
def test_benchmark_model_times_any_toolbox(tmp_path, toolbox, config):
    path = packaged(toolbox, "configs", config)
    more = ["--shape", 64, 96, "--batch", 2, "--rounds", 1, "--json", tmp_path / "b.json"]
    text = run("tools/benchmark_model.py", path, *more).stdout
    assert len(re.findall(r"^\| \S+ \| 2x3x64x96 \| (?:Conv2d|DRConv) \|", text, re.M)) == 2
    peaks = [float(mb) for mb in re.findall(r"(?:Conv2d|DRConv) (\d+)", text.splitlines()[-1])]
    assert len(peaks) == 2 and min(peaks) > 1
    standard, dynamic = json.loads((tmp_path / "b.json").read_text())["rows"][:2]
    assert standard["multiply_adds"] < dynamic["multiply_adds"]
    assert all(row[key] > 0 for row in (standard, dynamic) for key in ("training_ms", "inference_ms"))


def test_count_flops_of_a_face_network_takes_its_own_size():
    out = run("tools/count_flops.py", "configs/face/mobilefacenet_sample-64x64.py").stdout
    assert "| mobilefacenet_sample-64x64 | 64x64 |" in out


def test_the_study_of_pretrained_starts(tmp_path, shared_data, monkeypatch, capsys):
    """On real images, with one epoch of two batches."""
    import study_pretrained

    short = ["train_cfg.max_epochs=1", "param_scheduler.1.end=1", "train_dataloader.dataset.indices=64"]
    task = study_pretrained.TASKS["classification"]
    monkeypatch.setitem(study_pretrained.TASKS, "classification", {**task, "pretraining": short, "tuning": short})
    monkeypatch.setattr(study_pretrained, "KINDS", dict(list(study_pretrained.KINDS.items())[1:3]))
    arguments = ["--tasks", "classification", "--seeds", "1", "--work-dir", tmp_path / "work"]
    command = ["study_pretrained.py", shared_data, *arguments, "--results", tmp_path / "found"]
    monkeypatch.setattr("sys.argv", [str(part) for part in command])
    study_pretrained.main()
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "found").iterdir()}
    assert found.keys() == {f"classification-{kind}-seed0" for kind in ("source", "conv2d-2x", "drconv")}
    assert all(0 <= run["metric"] <= 100 for run in found.values())
    logs = {
        kind: (tmp_path / f"work/classification/{kind}-seed0/train.log").read_text() for kind in ("conv2d-2x", "drconv")
    }
    assert all("Load checkpoint from" in log and "source-seed0/epoch_1.pth" in log for log in logs.values())
    assert "convolutions are DRConv" in logs["drconv"] and "convolutions are DRConv" not in logs["conv2d-2x"]
    assert "lr = 0.1" in logs["conv2d-2x"] or "lr=0.1" in logs["conv2d-2x"]

    monkeypatch.setattr(study_pretrained, "train", lambda *_: pytest.fail("it trains what is finished"))
    capsys.readouterr()
    study_pretrained.main()
    out = capsys.readouterr().out
    assert f"| classification | DRConv | {found['classification-drconv-seed0']['metric']:.3g} |" in out
    assert out.count("(finished before: ") == 2
    with pytest.raises(SystemExit, match="whose work dir was not there, has -1: finished runs can't be compared"):
        study_pretrained.keep_source(tmp_path / "found", dict(task="classification", seed=0, metric=-1))


def test_a_stopped_fine_tuning_goes_on_from_its_own_checkpoint(tmp_path, monkeypatch):
    import study_pretrained

    commands = []

    def ran(command, stdout, **_):
        commands.append(command)
        stdout.write("accuracy/top1: 10.0\naccuracy/top1: 20.0\n")
        stdout.flush()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(study_pretrained.subprocess, "run", ran)
    for _ in range(2):
        assert study_pretrained.train("classification", "c.py", tmp_path, ["load_from=a.pth", "x=1"]) == 20.0
        (tmp_path / "last_checkpoint").write_text("epoch_3.pth")
    fresh, resumed = commands
    assert "load_from=a.pth" in fresh and "--resume" not in fresh
    assert "load_from=a.pth" not in resumed and {"--resume", "x=1"} <= set(resumed)


def test_the_study_of_pretrained_starts_says_which_data_is_missing(tmp_path):
    done = run("tools/study_pretrained.py", tmp_path, "--work-dir", tmp_path / "work", check=False)
    assert done.returncode == 1 and not (tmp_path / "work").exists()
    assert f"{tmp_path}/caltech20 is missing: looked for the data set caltech20" in done.stderr
