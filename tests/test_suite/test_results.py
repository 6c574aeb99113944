from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import pytest

from drconv_mm.suite.results import CSV_COLUMNS, ResultError, RunResult, read_results, write_csv


@pytest.fixture
def result() -> RunResult:
    return RunResult(
        suite="mini",
        task="detection",
        conv="DRConv",
        seed=2,
        task_title="Détection",
        metric={"name": "coco/bbox_mAP", "label": "AP", "unit": "", "higher_is_better": True},
        value=0.1 + 0.2,
        metrics={"coco/bbox_mAP": 0.1 + 0.2, "coco/bbox_mAP_50": 1.0},
        baselines={"raw pixels": 61.94},
        multiply_adds=123456789,
        parameters=4321,
        seconds_per_iteration=0.1234567890123,
        peak_memory_bytes=10**9,
        iterations=320,
        batch_size=8,
        curves={"loss": [[10, 1.5], [20, math.inf]], "metric": []},
        regions={"backbone.conv": {"num_regions": 2, "shares": [0.25, 0.75]}},
        environment={"torch": "2.12.1"},
        git_commit=None,
        command=["python", "train.py"],
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:01:00+00:00",
        seconds=60.0,
        suite_command="python tools/suite.py configs/suite/mini.py",
    )


def test_there_and_back(result, tmp_path):
    path = tmp_path / "a/b/result.json"
    result.write(path)
    assert RunResult.read(path) == result
    assert json.loads(path.read_text())["schema"] == "drconv_mm.suite.result/1"
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_nan_is_a_result(result):
    assert math.isnan(RunResult.from_json(replace(result, value=math.nan).to_json()).value)


@pytest.mark.parametrize("schema", ["drconv_mm.suite.result/2", None, 1])
def test_other_schema(result, tmp_path, schema):
    path = tmp_path / "detection/DRConv/2/result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**json.loads(result.to_json()), "schema": schema}))
    with pytest.raises(ResultError) as caught:
        read_results(tmp_path)
    message = str(caught.value)
    assert str(path) in message and repr(schema) in message and "'drconv_mm.suite.result/1'" in message


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"task": "x"}'])
def test_not_a_record(text):
    with pytest.raises(ResultError, match=r"^here: "):
        RunResult.from_json(text, "here")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", True),
        ("seed", "0"),
        ("value", None),
        ("metric", {"name": "AP"}),
        ("metrics", {"AP": "high"}),
        ("curves", {"loss": []}),
        ("curves", {"loss": [[1]], "metric": []}),
        ("regions", {"layer": {"num_regions": 3, "shares": [1.0]}}),
        ("environment", {"torch": 2}),
        ("git_commit", 7),
        ("command", "python"),
        ("multiply_adds", 1.5),
        ("seconds", math.nan),
    ],
)
def test_wrong_field_is_named(result, field, value):
    document = {**json.loads(result.to_json()), field: value}
    with pytest.raises(ResultError, match=f"field '{field}' must be"):
        RunResult.from_json(json.dumps(document))


def test_missing_and_unknown_field(result):
    document = json.loads(result.to_json())
    del document["parameters"]
    with pytest.raises(ResultError, match="'parameters' is missing"):
        RunResult.from_json(json.dumps(document))
    with pytest.raises(ResultError, match="'colour' is unknown"):
        RunResult.from_json(json.dumps({**json.loads(result.to_json()), "colour": 1}))


def test_csv_has_full_precision(result, tmp_path):
    write_csv(tmp_path / "results.csv", [result, replace(result, seed=3)])
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS and [row["seed"] for row in rows] == ["2", "3"]
    assert rows[0]["metric"] == "coco/bbox_mAP" and float(rows[0]["value"]) == result.value
    assert float(rows[0]["seconds_per_iteration"]) == result.seconds_per_iteration
    assert (rows[0]["git_commit"], rows[0]["device"]) == ("", "")
    assert replace(result, environment={"cpu": "a", "gpu": "b x 1"}).device == "b x 1"
