"""The learning study's command, on a small generated set and few iterations."""

from __future__ import annotations

import itertools
import json

import pytest
import study_learning
import torch

from drconv_mm import DRConv2d
from drconv_mm.datasets.sample_classification import generate_sample_classification

from .test_tools import run

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

    again = run(TOOL, "run", data, *arguments, *arms, "widened").stdout
    assert "4 runs, 3 of them finished before" in again and "[1/1]" in again
    widened = json.loads((results / "runs" / NETWORK / "widened-lr0.05-seed0.json").read_text())
    assert widened["multiply_adds"] == pytest.approx(dynamic["multiply_adds"], rel=0.05)

    run(TOOL, "time", data, *arguments, "--arms", "standard", "drconv", "--rounds", 1)
    page = results.with_suffix(".md")
    page.write_text("before\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nafter\n")
    printed = run(TOOL, "report", *arguments).stdout
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert all("| the authors' initialisation | 0.05 | 1 |" in tables for tables in (text, printed))
    assert (results / "learning.png").stat().st_size > 10_000
    run(TOOL, "report", *arguments)
    assert page.read_text() == text


@pytest.mark.parametrize("network", study_learning.NETWORKS)
def test_the_same_layers_are_dynamic_at_every_m(network):
    dynamic = [
        [n for n, m in study_learning.build(network, study_learning.ARMS[arm], 20).named_modules()
         if isinstance(m, DRConv2d)]
        for arm in ("m1", "m2", "drconv")
    ]  # fmt: skip
    assert dynamic[0] == dynamic[1] == dynamic[2] and len(dynamic[0]) > 10


@pytest.mark.parametrize("arm", study_learning.ARMS)
def test_every_arm_trains(arm):
    torch.manual_seed(0)
    model = study_learning.build("drconv_shufflenet_v2-0.5x", study_learning.ARMS[arm], 20)
    model(torch.randn(2, 3, 96, 96)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


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
