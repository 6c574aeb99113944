"""Stock configs with the one key: ten of those in docs/compatibility.md, by the tool that makes the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

TOOL = Path(__file__).parents[2] / "tools/check_configs.py"
CONFIGS = [
    "mmdet/retinanet/retinanet_r18_fpn_1x_coco.py",  # backbone, neck and head: three of the ten
    "mmdet/centernet/centernet_r18_8xb16-crop512-140e_coco.py",
    "mmdet/yolox/yolox_tiny_8xb8-300e_coco.py",
    "mmseg/mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024.py",
    "mmseg/cgnet/cgnet_fcn_4xb8-60k_cityscapes-512x1024.py",
    "mmseg/bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py",  # by name
    "mmpretrain/resnet/resnet18_8xb16_cifar10.py",
    "mmpretrain/shufflenet_v2/shufflenet-v2-1x_16xb64_in1k.py",
]


def check(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("config", CONFIGS)
def test_stock_config_passes(config, tmp_path):
    toolbox, _, path = config.partition("/")
    results = tmp_path / "results.json"
    done = check("--toolbox", toolbox, "--filter", path, "--results", str(results))
    found = json.loads(results.read_text())
    assert done.returncode == 0, done.stdout
    assert len(found) == (3 if "retinanet" in path else 1)
    assert all(result["dynamic"] > 0 and result["error"] is None for result in found.values())


def test_a_config_without_dynamic_layers_fails_and_is_tried_again(tmp_path):
    results = tmp_path / "results.json"
    arguments = ["--toolbox", "mmseg", "--filter", "erfnet", "--results", str(results)]
    results.write_text("{}")
    done = check(*arguments)
    assert done.returncode == 0 and "dynamic" in done.stdout  # by name, as the list has it
    (name,) = json.loads(results.read_text())
    results.write_text(json.dumps({name: dict(json.loads(results.read_text())[name], error="broken")}))
    assert "0 of them passed before" in check(*arguments).stdout
    assert "1 of them passed before" in check(*arguments).stdout


def test_filter_that_matches_nothing(tmp_path):
    done = check("--toolbox", "mmdet", "--filter", "no_such_config", "--results", str(tmp_path / "r.json"))
    assert done.returncode == 1 and "matches no config of mmdet" in done.stderr
