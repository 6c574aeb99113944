"""The learning study's command, on a small generated set and few iterations."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import study_arms
import study_learning
import study_report
import torch
import torch.nn.functional as F

from drconv_mm import DRConv2d
from drconv_mm.datasets.sample_classification import generate_sample_classification

from .test_tools import ROOT, run

TOOL = "tools/study_learning.py"
NETWORK = "mobilenet_v1-0.25x"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    data = generate_sample_classification(folder / "data", 10, 5)
    arguments = ["--networks", NETWORK, "--seeds", 1, "--iterations", 3, "--jobs", 2]
    arguments += ["--learning-rates", 0.05, "--results", folder / "found"]
    return data, arguments, folder / "found"


def test_runs_once_and_reports(study):
    data, arguments, results = study
    arms = ["--arms", "standard", "random_regions", "authors"]
    first = run(TOOL, "run", data, *arguments, *arms).stdout
    assert "3 runs, 0 of them finished before" in first and "[3/3]" in first
    runs = {path.name: json.loads(path.read_text()) for path in (results / "runs" / NETWORK).iterdir()}
    assert sorted(runs) == [
        "authors-lr0.05-seed0.json",
        "random_regions-lr0.05-seed0.json",
        "standard-lr0.05-seed0.json",
    ]
    standard, dynamic = runs["standard-lr0.05-seed0.json"], runs["authors-lr0.05-seed0.json"]
    assert standard["multiply_adds"] < dynamic["multiply_adds"] and not standard["entropy"]
    assert standard["val_loss"] == standard["val_loss_shuffled"] != dynamic["val_loss"]
    assert len(dynamic["entropy"]) == 13 and all(0 <= value <= 1 for value in dynamic["entropy"].values())
    # Positions of a random map are nearly evenly shared in the first, large layers.
    assert runs["random_regions-lr0.05-seed0.json"]["entropy"]["backbone.layers.0.0.1.conv"] > 0.95

    again = run(TOOL, "run", data, *arguments, *arms, "widened", "guide_norm").stdout  # which it can't have
    assert "4 runs, 3 of them finished before" in again and "[1/1]" in again
    widened = json.loads((results / "runs" / NETWORK / "widened-lr0.05-seed0.json").read_text())
    assert widened["multiply_adds"] == pytest.approx(dynamic["multiply_adds"], rel=0.05)

    run(TOOL, "time", data, *arguments, "--arms", "standard", "drconv", "--rounds", 1)
    page = results.with_suffix(".md")
    page.write_text("before\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nafter\n")
    printed = run(TOOL, "report", *arguments).stdout
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert all("| `random_regions`: random fixed region maps | 0.05 | 1 |" in tables for tables in (text, printed))
    for picture in ("learning.png", "entropy.png"):  # of one seed there are no differences
        assert (results / picture).stat().st_size > 10_000
    run(TOOL, "report", *arguments)
    assert page.read_text() == text


def test_a_run_that_fails_stops_no_other(study, tmp_path):
    data, arguments, _ = study
    (tmp_path / "runs").mkdir()
    # Which the two ShuffleNetV2 share.
    (tmp_path / "runs/drconv_shufflenet_v2-0.5x").write_text("a file where the folder would be")
    networks = ["--networks", "shufflenet_v2-0.5x", NETWORK, "--arms", "standard"]
    done = run(TOOL, "run", data, *arguments[:-1], tmp_path, *networks, check=False)
    assert done.returncode == 1 and "error: 1 runs failed, as said above; the others are finished" in done.stderr
    assert "drconv_shufflenet_v2-0.5x standard 0.05 0 failed:" in done.stdout and "FileExistsError" in done.stdout
    assert (tmp_path / "runs" / NETWORK / "standard-lr0.05-seed0.json").exists()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc, to find the process")
def test_a_run_whose_process_is_killed_stops_no_other(study, tmp_path):
    data, arguments, _ = study
    more = ["--iterations", 60, "--jobs", 1, "--results", tmp_path, "--arms", "drconv", "standard"]
    command = [sys.executable, TOOL, "run", data, *arguments, *more]
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "drconv at 0.05 seed 0: 15 of 60" in line:
                break
        children = [int(pid) for path in Path(f"/proc/{process.pid}/task").glob("*/children")
                    for pid in path.read_text().split()]  # fmt: skip
        (child,) = (pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(child, signal.SIGKILL)
        rest = process.stdout.read()
    assert (
        "drconv 0.05 0 failed: its process could not start, crashed or was killed" in rest
        and "[2/2]" in rest
        and process.returncode == 1
    )
    assert [path.name for path in (tmp_path / "runs" / NETWORK).iterdir()] == ["standard-lr0.05-seed0.json"]


def test_a_results_folder_is_of_one_data_set(study, tmp_path):
    data, results = study[0], tmp_path / "found"
    shutil.copytree(data, tmp_path / "data")
    next((tmp_path / "data/train").rglob("*.[jp]*")).unlink()
    study_learning.check_data(Namespace(data=data, results=results))
    before = (results / "data.json").read_bytes()
    study_learning.check_data(Namespace(data=data, results=results))
    message = (
        r"are of 4 classes with 40 \+ 20 images, and .* has 4 classes with 39 \+ 20 images\. Give another --results"
    )
    with pytest.raises(SystemExit, match=message):
        study_learning.check_data(Namespace(data=tmp_path / "data", results=results))
    for split in ("train", "val"):
        min((tmp_path / "data" / split).iterdir()).rename(tmp_path / "data" / split / "zebra")
    study_learning.load_split.cache_clear()
    with pytest.raises(SystemExit, match=r"; only one of them has \w+, zebra\. Give another --results"):
        study_learning.check_data(Namespace(data=tmp_path / "data", results=results))
    assert (results / "data.json").read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said_before_training(study, tmp_path):
    data, arguments, _ = study
    done = run(TOOL, "run", data, *arguments[:-1], tmp_path, "--device", "cuda", check=False)
    assert done.returncode == 1 and "--device cuda: PyTorch finds no GPU here" in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_as_a_cpu_does(study, tmp_path):
    data, arguments, _ = study
    losses = []
    for device in ("cpu", "cuda"):
        more = ["--iterations", 20, "--arms", "drconv", "random_regions", "--device", device]
        run(TOOL, "run", data, *arguments[:-1], tmp_path / device, *more)
        found = sorted((tmp_path / device / "runs" / NETWORK).iterdir())
        losses.append([json.loads(path.read_text())["train_loss"] for path in found])
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_times_of_other_arms_stay(study):
    data, arguments, results = study
    path = results / "times.json"
    path.unlink(missing_ok=True)
    run(TOOL, "time", data, *arguments, "--arms", "m4", "guide_norm", "--rounds", 1)
    run(TOOL, "time", data, *arguments, "--arms", "m2", "random_regions", "--rounds", 1)
    document = json.loads(path.read_text())
    # And none of the arm that this network can't have.
    assert document["seconds"][NETWORK].keys() == {"m4", "m2", "random_regions"}
    document["machine"]["cpu"] = "another"
    path.write_text(json.dumps(document))
    run(TOOL, "time", data, *arguments, "--arms", "m1", "--rounds", 1)
    assert json.loads(path.read_text())["seconds"][NETWORK].keys() == {"m1"}


def test_other_classes_in_val_are_said_before_training(study, tmp_path):
    data, arguments, _ = study
    shutil.copytree(data, tmp_path / "data")
    (folder,) = list((tmp_path / "data/val").iterdir())[:1]
    folder.rename(folder.with_name("zebra"))
    done = run(TOOL, "run", tmp_path / "data", *arguments[:-1], tmp_path / "found", check=False)
    assert done.returncode == 1 and f"only one of them has {folder.name}, zebra" in done.stderr
    assert not (tmp_path / "found").exists()


def top1_of(arm: str, *values: float) -> dict:
    return {(arm, 0.1): [dict(seed=seed, top1=value) for seed, value in enumerate(values)]}


def compared(found: dict, ours: str = "drconv") -> dict[tuple[str, str], list[str]]:
    """By arm and networks: the other cells."""
    others = [arm for arm in study_arms.ARMS if arm != ours]
    lines = study_report.difference_table(ours, study_report.differences(found, ours, others))[2:-1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert all(row[1] == "0.1" for row in rows)
    return {(row[0], row[2]): row[3:] for row in rows}


def test_differences_are_paired_by_seed_and_network():
    found = {
        "a": top1_of("drconv", 70, 72, 74) | top1_of("standard", 60, 61, 65) | top1_of("m1", 70, 71, 72),
        "b": top1_of("drconv", 50, 50, 53) | top1_of("standard", 44, 46, 48) | top1_of("m2", 50, 51),
    }
    rows = compared(found)
    assert rows.keys() == {
        ("standard convolution", "a"), ("standard convolution", "b"), ("standard convolution", "all 2"),
        ("m = 1", "a"), ("m = 2", "b"),
    }  # fmt: skip
    # 10, 11 and 9; 6, 4 and 5; and these six together.
    assert rows["standard convolution", "a"][:3] == ["3", "+10.0", "7.5 to 12.5"]
    assert rows["standard convolution", "all 2"][:2] == ["6", "+7.5"]
    assert rows["standard convolution", "a"][-1] == "supported" == rows["standard convolution", "all 2"][-1]
    assert rows["m = 1", "a"][-1] == "not supported" == rows["m = 2", "b"][-1]
    assert compared(found, "m1") == {
        ("standard convolution", "a"): ["3", "+9.0", "4.7 to 13.3", "3 and 3", "+9.0", "5.5 to 12.5", "supported"],
        ("DRConv, the defaults (mixture, m = 8)", "a"): [
            "3", "-1.0", "-3.5 to 1.5", "3 and 3", "-1.0", "-4.5 to 2.5", "not supported"
        ],
    }  # fmt: skip


def test_differences_are_drawn_with_their_intervals():
    found = {
        "a": top1_of("drconv", 70, 72, 74) | top1_of("standard", 60, 61, 65) | top1_of("m1", 70, 71, 72),
        "b": top1_of("drconv", 50, 50, 53) | top1_of("standard", 44, 46, 48),
    }
    drawn = study_report.differences(found, "drconv", ["standard", "m1"])
    columns = {axes.get_title(): axes for axes in study_report.differences_figure(drawn).axes}
    assert list(columns) == ["networks together", "a", "b"]
    for name, networks in (("networks together", ("a", "b")), ("a", ("a",)), ("b", ("b",))):
        lines = [tuple(map(float, line.get_xdata())) for line in columns[name].lines]
        expected = [one for one in drawn if one.networks == networks]
        assert len(expected) == (2 if name == "a" else 1)
        for one in expected:
            assert (one.pairs.low, one.pairs.high) in lines and (one.mean - one.half, one.mean + one.half) in lines
    alone = study_report.differences({"a": found["a"]}, "drconv", ["standard"])
    assert [axes.get_title() for axes in study_report.differences_figure(alone).axes] == ["a"]
    (far,) = study_report.differences({"a": found["a"] | top1_of("standard", 20, 30, 40)}, "drconv", ["standard"])
    edges = study_report.differences_figure([far]).axes[0].get_xlim()
    assert edges == (-63, 63)  # 1.5 times the 42 points between them


def test_the_scatter_of_all_settings_tells_of_all_seeds():
    found = {
        "a": top1_of("drconv", 70, 72, 74) | top1_of("standard", 60, 61, 65) | top1_of("m1", 70, 71, 72),
        "b": top1_of("drconv", 50, 50, 53) | top1_of("standard", 44, 46, 48) | top1_of("m2", 50, 51),
    }
    # Variances 4, 7, 1; 3 and 4 of settings with three seeds: 3.8, of 10 degrees of freedom; t = 2.228.
    scatter, freedom = study_report.common_scatter(found)
    assert (scatter, freedom) == (pytest.approx(3.8**0.5), 10)
    half = 2.228 * (3.8 * 2 / 3) ** 0.5
    cells = ["3 and 3", "+10.0", f"{10 - half:.1f} to {10 + half:.1f}"]
    assert compared(found)["standard convolution", "a"][3:6] == cells
    # 51 in the mean, less 50.5.
    half = 2.228 * (3.8 * (1 / 3 + 1 / 2)) ** 0.5
    assert compared(found)["m = 2", "b"][3:6] == ["3 and 2", "+0.5", f"{0.5 - half:.1f} to {0.5 + half:.1f}"]

    # One standard network for both: its three runs count twice each, and scatter once.
    names = ("drconv_shufflenet_v2-0.5x", "shufflenet_v2-0.5x")
    shared = dict(zip(names, found.values(), strict=True))
    shared[names[1]] |= {("standard", 0.1): shared[names[0]]["standard", 0.1]}
    scatter, freedom = study_report.common_scatter(shared)
    assert (scatter**2, freedom) == (pytest.approx((4 + 7 + 1 + 3) / 4), 8)
    half = 2.306 * scatter * (6 * (1 / 6) ** 2 + 3 * (2 / 6) ** 2) ** 0.5
    row = compared(shared)["standard convolution", "all 2"]
    low, high = (float(end) for end in row[5].split(" to "))
    assert high - low == pytest.approx(2 * half, abs=0.11)
    # 10, 11, 9 and -10, -11, -12: three pairs, for there are three standard trainings, of six with DRConv.
    assert row[:2] == ["3", "-0.5"] and row[3] == "6 and 3"

    # 5.0, 5.1 and 5.2 are alike by luck, where seeds scatter by 10; 1, 5 and 12 are not.
    apart = {"a": top1_of("drconv", 60, 61) | {("m1", 0.1): [dict(seed=7, top1=50)]}}
    assert compared(apart) == {}  # no seed in common
    lucky = {"a": top1_of("drconv", 60, 70, 80) | top1_of("m1", 55.0, 64.9, 74.8)}
    assert compared(lucky)["m = 1", "a"][-1] == "by the pairs alone"
    steady = {"a": top1_of("drconv", 60, 61, 62) | top1_of("m1", 59, 56, 50) | top1_of("m2", 60, 60, 61)}
    assert compared(steady)["m = 1", "a"][-1] == "by the common scatter alone"


@pytest.mark.parametrize("network", study_arms.NETWORKS)
def test_use_of_regions_is_measured(network):
    """A network whose regions' filters differ gives other answers with other maps."""
    torch.manual_seed(0)
    images, labels = torch.randint(256, (8, 3, 112, 112), dtype=torch.uint8), torch.arange(8) % 5
    model = study_arms.build(network, study_arms.ARMS["apart"], 5)
    for module in model.modules():  # statistics of these images, so that outputs are of a size that differences show at
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    model.train()(study_learning.cropped(images))
    model.fc.weight.data.mul_(100)  # the figures are rounded
    with_maps, zero, shuffled = (
        study_learning.evaluate(model, images, labels, change)[1]
        for change in (None, study_learning.region_zero, study_learning.shuffled)
    )
    assert len({with_maps, zero, shuffled}) == 3
    regions = torch.randint(8, (3, 6, 7))
    moved = study_learning.shuffled("layer", regions, 8)
    assert not torch.equal(moved, regions) and moved.shape == regions.shape
    assert torch.equal(moved.flatten(1).sort(1).values, regions.flatten(1).sort(1).values)
    assert torch.equal(study_learning.region_zero("layer", regions, 8), torch.zeros_like(regions))


def test_the_page_has_what_the_records_say(tmp_path):
    """The tables and intervals of docs/learning.md, again from its JSONs."""
    page = ROOT / "docs/learning.md"
    shutil.copytree(page.with_suffix(""), tmp_path / "learning")
    copy = tmp_path / "learning.md"
    copy.write_text(page.read_text())
    run(TOOL, "report", "--results", tmp_path / "learning")
    assert copy.read_text() == page.read_text()


@pytest.mark.parametrize("network", study_arms.NETWORKS)
def test_the_same_layers_are_dynamic_at_every_m(network):
    dynamic = [
        [n for n, m in study_arms.build(network, study_arms.ARMS[arm], 20).named_modules()
         if isinstance(m, DRConv2d)]
        for arm in ("m1", "m2", "drconv")
    ]  # fmt: skip
    assert dynamic[0] == dynamic[1] == dynamic[2] and len(dynamic[0]) > 10


@pytest.mark.parametrize("arm", study_arms.ARMS)
def test_every_arm_trains(arm):
    torch.manual_seed(0)
    model = study_arms.build("drconv_shufflenet_v2-0.5x", study_arms.ARMS[arm], 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images, before = torch.randn(2, 3, 96, 96), {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):  # the guide has no gradient while all regions' filters are equal
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.tensor([3, 7])).backward()
        optimizer.step()
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert all(p.isfinite().all() for p in model.parameters())
    # With one region there is nothing to choose, and a guide that is not trained does not move.
    assert all(name.endswith("guide_weight") for name in still) and bool(still) == (arm in ("m1", "frozen_guide"))


@pytest.mark.parametrize("arm", [name for name, arm in study_arms.ARMS.items() if arm.start is not None])
def test_another_start_is_another(arm):
    def start(changed: bool) -> dict:
        torch.manual_seed(0)
        spec = study_arms.ARMS[arm]
        model = study_arms.build("drconv_shufflenet_v2-0.5x", spec if changed else replace(spec, start=None), 20)
        return {name: value.detach() for name, value in model.eval().named_parameters()} | {
            "output": model(torch.ones(1, 3, 96, 96)).detach(),
            "gains": torch.tensor([layer.generator.gain for layer in study_arms.dynamic_layers(model)]),
        }

    with_it, without = start(True), start(False)
    assert with_it.keys() != without.keys() or any(not torch.equal(v, without[name]) for name, v in with_it.items())


def test_evaluation_is_of_the_trained_network_as_it_stands():
    model = study_arms.build(NETWORK, study_arms.ARMS["standard"], 5).train()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.tensor([0, 0, 9.0, 0, 0]))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images, labels = torch.randint(256, (8, 3, 112, 112), dtype=torch.uint8), torch.tensor([2, 2, 2, 0, 1, 3, 4, 0])
    top1, loss = study_learning.evaluate(model, images, labels, None)
    assert top1 == 37.5 and loss == pytest.approx(9 * 5 / 8, abs=2e-3)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("arm", ["drconv", "no_decay"])
def test_what_decays(arm):
    model = study_arms.build(NETWORK, study_arms.ARMS[arm], 20)
    groups = study_learning.optimizer_of(model, study_arms.ARMS[arm], torch.tensor(0.1)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = arm == "no_decay" and ("generator." in name or name.endswith("guide_weight"))
        assert decay[id(parameter)] == (0 if parameter.dim() < 2 or spared else 4e-5), name


def test_the_learning_rate_rises_fifty_iterations_and_falls_linearly(study, tmp_path, monkeypatch):
    rates, optimizer_of = [], study_learning.optimizer_of

    def watched(*arguments):
        optimizer = optimizer_of(*arguments)
        optimizer.register_step_pre_hook(lambda *_: rates.append(float(optimizer.param_groups[0]["lr"])))
        return optimizer

    monkeypatch.setattr(study_learning, "optimizer_of", watched)
    study_learning.train_one(NETWORK, "standard", 0.1, 0, 60, study[0], tmp_path / "run.json", "cpu")
    assert rates == pytest.approx([0.1 * min(1, (i + 1) / 50) * (1 - i / 60) for i in range(60)])


def test_mixing_weights_around_zero():
    layer, input = DRConv2d(16, 16, 1, generator="centred"), torch.randn(2, 16, 4, 4)
    generator = layer.generator
    mixing = generator.mixing(input, layer.static_weight)
    assert mixing.abs().max() <= generator.gain / generator.num_kernels and mixing.mean().abs() < 0.15


def test_half_the_gain_is_the_same_start():
    layer, input = DRConv2d(16, 16, 1), torch.randn(2, 16, 4, 4)
    before, kernels = layer.generate_filters(input), layer.generator.kernels.detach().clone()
    assert layer.generator.gain == 4
    study_arms.gain_start(2.0)(layer)
    assert layer.generator.gain == 2
    torch.testing.assert_close(layer.generate_filters(input), before)
    torch.testing.assert_close(layer.generator.kernels.detach(), 2 * kernels)


def test_starts_are_those_that_the_table_names():
    layer = DRConv2d(64, 64, 1)
    guide = layer.guide_weight.detach().clone()
    study_arms.sharp_guide(layer)
    torch.testing.assert_close(layer.guide_weight.detach(), 4 * guide)
    for arm, std in (("routing1", 1.0), ("alike", 0.3)):
        study_arms.ARMS[arm].start(layer)
        assert layer.generator.routing_bias.std().item() == pytest.approx(std, rel=0.4)


def test_a_norm_behind_the_guide_is_of_one_network():
    with pytest.raises(
        ValueError, match=r"behind the guide' is of drconv_shufflenet_v2-0.5x alone, not of mobilenet_v1"
    ):
        study_arms.build(NETWORK, study_arms.ARMS["guide_norm"], 20)


def test_random_maps_differ_between_layers_and_seeds():
    regions = torch.zeros(2, 12, 12, dtype=torch.long)
    names = [f"backbone.layers.1.{block}.branch2.{place}.conv" for block in (0, 1) for place in (0, 2)]
    maps = [study_learning.random_regions(seed)(name, regions, 8) for seed in (0, 1) for name in names]
    assert all(torch.equal(found[0], found[1]) for found in maps)
    assert all(0.05 < (a == b).float().mean() < 0.25 for a, b in itertools.combinations(maps, 2))
    assert torch.equal(maps[0], study_learning.random_regions(0)(names[0], regions, 8))


def test_a_wrong_layout_is_said_before_training(study, tmp_path):
    arguments = study[1]
    done = run(TOOL, "run", tmp_path, *arguments[:-1], tmp_path / "found", check=False)
    assert done.returncode == 1 and f"looked for {tmp_path}/train/<class>/<image>" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(TOOL, "report", *arguments[:-1], tmp_path / "found", check=False)
    assert done.returncode == 1 and "make them with: study_learning.py run DATA" in done.stderr
