"""The controls of configs/suite/mini.py have DRConv's multiply-adds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from mmengine.config import Config

from drconv_mm.engine.model import build_model
from drconv_mm.suite.config import load_suite
from drconv_mm.suite.errors import SuiteError
from drconv_mm.suite.inspection import count_cost
from drconv_mm.suite.matching import TOLERANCE, match_width, match_widths
from drconv_mm.suite.plan import make_plan

MINI = load_suite(Path(__file__).parents[2] / "configs/suite/mini.py")


@pytest.mark.parametrize(
    "name", ["face", *(pytest.param(name, marks=pytest.mark.slow) for name in MINI.tasks if name != "face")]
)
def test_control_of_mini(name, tmp_path):
    task = MINI.tasks[name]
    found = match_width(task, MINI.convs["DRConv"])
    costs = []
    for conv, widths in (("DRConv", {}), ("Conv2d-widened", {f"{name}/Conv2d-widened": found})):
        runs = make_plan(MINI, tmp_path, tmp_path, widths=widths)
        run = next(run for run in runs if (run.task.name, run.conv) == (name, conv))
        config = Config.fromfile(task.config)
        config.merge_from_dict(run.options)
        costs.append(count_cost(build_model(config), task.input_shape)[0])
    assert costs == [found["target"], found["multiply_adds"]]
    assert abs(costs[1] / costs[0] - 1) <= TOLERANCE
    assert found["options"][task.widen["key"]] > task.options.get(task.widen["key"], 1)


@pytest.mark.slow
def test_control_of_full():
    suite = load_suite(Path(__file__).parents[2] / "configs/suite/full.py")
    found = match_width(suite.tasks["face"], suite.convs["DRConv"])
    assert abs(found["multiply_adds"] / found["target"] - 1) <= TOLERANCE


def test_found_once_and_kept(suite, tmp_path):
    convs = {**suite.convs, "Wide": dict(widened_to="DRConv")}
    key = "shapes/Wide"
    known = {key: dict(options={"model.backbone.widen_factor": 1.5}, multiply_adds=1, target=1)}
    (tmp_path / "widths.json").write_text(json.dumps(known))
    assert match_widths(replace(suite, convs=convs), convs, tmp_path) == known


def test_no_width_comes_close(suite, monkeypatch):
    """A network that gets no dearer the wider it is, beside 200 with DRConv: 3 % are 6."""
    task = replace(suite.tasks["shapes"], widen={**suite.tasks["shapes"].widen, "follow": {}})
    monkeypatch.setattr("drconv_mm.suite.matching.build_model", lambda config: config)
    monkeypatch.setattr(
        "drconv_mm.suite.matching.count_cost",
        lambda config, shape: (200 if "conv_cfg" in config.model.backbone else standard, 0),
    )
    standard = 194
    assert match_width(task, suite.convs["DRConv"])["multiply_adds"] == 194
    standard = 193
    with pytest.raises(SuiteError, match="gives 200 multiply-adds within 3%; the nearest has 193"):
        match_width(task, suite.convs["DRConv"])


def test_widths_that_do_not_fit(suite):
    # ShuffleNetV2 knows four widths.
    with pytest.raises(SuiteError, match=r"the network can't be built with model.backbone.widen_factor=2.25"):
        match_width(suite.tasks["shapes"], suite.convs["DRConv"])
