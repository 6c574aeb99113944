"""Every code block of docs/enable.md does what the page says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from toolbox_models import build

from drconv_mm import DRConv2d

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs/enable.md").read_text(), re.DOTALL)
CONFIGS = [text for language, text in BLOCKS if language == "python" and text.startswith("_base_")]
SCRIPTS = [text for language, text in BLOCKS if language == "python" and not text.startswith("_base_")]
COMMANDS = [text for language, text in BLOCKS if language == "bash"]


def test_each_block_is_of_a_kind_that_is_run():
    assert len(CONFIGS) + len(SCRIPTS) + len(COMMANDS) == len(BLOCKS) and min(map(len, (CONFIGS, SCRIPTS, COMMANDS)))


@pytest.mark.parametrize("text", CONFIGS)
def test_config_has_dynamic_layers_and_its_own_settings(text, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(text.replace('"configs/', f'"{ROOT}/configs/'))
    model, scope = build(str(path), {})
    layers = {name: module for name, module in model.named_modules() if isinstance(module, DRConv2d)}
    assert layers
    for part in ("neck", "bbox_head"):
        if f"dict({part}=" in text.replace("\n    ", ""):
            assert all(name.startswith(part) for name in layers)
    if "num_regions=4" in text:
        assert {layer.num_regions for layer in layers.values()} == {4}
    if "kernel_size=3" in text:
        assert {layer.kernel_size for layer in layers.values()} == {(3, 3)}
    if "stage_with_dcn" in text:
        assert {name.split(".")[1] for name in layers} == {"layer2"}
    if "Retrofit" in text:
        assert {name.split(".")[1] for name in layers} == {"layer2", "lateral_convs"}
    if "custom_keys" in text:
        config = Config.fromfile(path)
        init_default_scope(scope)
        groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
        names = {id(p): name for name, p in model.named_parameters()}
        rates = {names[id(g["params"][0])]: (g["lr"], g["weight_decay"]) for g in groups}
        base = config.optim_wrapper.optimizer.lr
        guide, kernels = (next(v for n, v in rates.items() if part in n) for part in ("guide_weight", "kernels"))
        guide_rate = config.optim_wrapper.paramwise_cfg.custom_keys.guide_weight.lr_mult
        assert guide_rate != 1 and guide[0] == pytest.approx(base * guide_rate) and kernels == (base, 0.0)


@pytest.mark.parametrize("text", SCRIPTS)
def test_script_runs(text, capsys, tmp_path, monkeypatch):
    names = {}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    exec(compile(text, "enable.md", "exec"), names)
    if "start.pth" in text:
        twin = Config.fromfile("configs/classification/shufflenet-v2-0.5x-drconv_sample-64x64.py")
        model = names["build_model"](twin)
        missing = model.load_state_dict(torch.load("start.pth")["state_dict"], strict=False)
        assert not missing.unexpected_keys
        image = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(image), names["model"].eval()(image), rtol=1e-4, atol=1e-4)
    elif "print" in text:
        printed = [line for line in capsys.readouterr().out.splitlines() if " - mmengine - INFO - " not in line]
        assert printed == ["['layer1.0.conv1', 'layer1.1.conv1']"]
    else:
        (found,) = names["inferencer"](np.zeros((64, 64, 3), np.uint8))
        assert found["pred_scores"].shape == (4,)


# By tool: the lines that it must print.
PRINTED = {
    "convert.py": [
        r"^\| layer \| input \| parameters \| multiply-adds at 224x224 \| filters an image \|$",
        r"^\| backbone\.layers\.0\.\S+ \| \d+x28x28 \| [\d.]+ K to [\d.]+ K \| [\d.]+ M to [\d.]+ M \| [\d.]+ MB \|$",
        r"^\| all \|  \| [\d.]+ K to [\d.]+ K \| [\d.]+ M to [\d.]+ M \| [\d.]+ MB \|$",
        r"^wrote \S+/out/shufflenet-v2-0.5x_caltech20-96x96-drconv.py and .pth$",
    ],
    "count_flops.py": [
        r"^\| config \| input \| convolution \| guide \| generator \| linear \| total \| parameters \|$",
        r"^\| shufflenet-v2-0.5x-drconv_8xb128_in1k \| 224x224 (\| [\d.]+ M ){5}\| [\d.]+ M \(convolution .*\) \|$",
    ],
}


@pytest.mark.parametrize("text", COMMANDS)
def test_command_runs(text, tmp_path):
    config = "configs/classification/shufflenet-v2-0.5x_caltech20-96x96.py"
    if "CHECKPOINT" in text:
        model, _ = build(str(ROOT / config), {})
        torch.save({"state_dict": model.state_dict()}, tmp_path / "standard.pth")
        text = text.replace("CONFIG", config).replace("CHECKPOINT", str(tmp_path / "standard.pth"))
        text = text.replace("work_dirs/converted", str(tmp_path / "out"))
    command = [sys.executable, *shlex.split(text)[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    patterns = PRINTED[Path(command[1]).name]
    assert [pattern for pattern in patterns if not re.search(pattern, done.stdout, re.MULTILINE)] == []
