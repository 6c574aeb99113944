"""Figures and commands of the docs that other files know, too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

ROOT = Path(__file__).parents[1]


def test_cost_of_networks():
    pytest.importorskip("mmpretrain")

    rows = table("docs/models.md", "| config |")
    assert len(rows) >= 10
    for name, *cells in rows:
        assert cells == costs_of(name, None), name


def test_cost_of_arrangements():
    pytest.importorskip("mmpretrain")

    rows = table("docs/models.md", "| `arrangement` |")
    assert len(rows) >= 7
    for arrangement, guide, *cells in rows:
        options = {
            "model.backbone.arrangement": arrangement.split("`")[1],
            "model.backbone.share_guide": guide != "one a conv",
            "model.backbone.drconv.generator": "pooled" if "pooled" in arrangement else "mixture",
        }
        assert cells == costs_of("drconv-shufflenet-v2-0.5x", options), (arrangement, guide)


def table(page: str, head: str) -> list[list[str]]:
    """The cells of the table that begins so, without its head."""
    text = (ROOT / page).read_text()
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def costs_of(name: str, options: dict | None) -> list[str]:
    """Multiply-adds by part and parameters, as the tables have them."""
    from count_flops import count_config

    costs, _ = count_config(str(ROOT / f"configs/classification/{name}_8xb128_in1k.py"), (224, 224), options)
    parts = ("convolution", "guide", "generator", "linear", "total")
    found = [f"{costs[part].multiply_adds / 1e6:.2f} M" for part in parts]
    found.append(f"{costs['total'].parameters / 1e6:.2f} M")
    return ["" if cell == "0.00 M" else cell for cell in found]


def test_figures_of_pretrained_starts():
    """By seed, mean and spread, of the committed records."""
    from study_pretrained import KINDS, TASKS

    rows, kinds = table("docs/pretrained.md", "| task |"), list(KINDS)
    factors = {(kind.split("-")[0], factor): kind for kind, (_, factor) in KINDS.items()}
    assert len(rows) == len(TASKS) * len(kinds)
    for number, (_, tuned_as, rate, by_seed, mean_and_spread, _) in enumerate(rows):
        task, spec = list(TASKS.items())[number // len(kinds)]
        kind = factors["DRConv" if tuned_as == "DRConv" else "Conv2d", round(float(rate) / spec["learning_rate"])]
        paths = sorted((ROOT / "docs/pretrained").glob(f"{task}-{kind.lower()}-seed*.json"))
        values = [json.loads(path.read_text())["metric"] for path in paths]
        digits = 3 if task == "detection" else 1
        assert by_seed == ", ".join(f"{value:.{digits}f}" for value in values), (task, kind)
        assert mean_and_spread == f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}", (task, kind)


def test_commands_of_pretrained_starts():
    from study_pretrained import KEY, TASKS

    text = (ROOT / "docs/pretrained.md").read_text().replace("\\\n", "")
    commands = [line for line in text.splitlines() if line.startswith("python tools/train.py")]
    assert len(commands) == 2 * len(TASKS)
    for task, source, tuned in zip(TASKS.values(), commands[::2], commands[1::2], strict=True):
        assert f"configs/{task['source']} " in source and f"configs/{task['target']} " in tuned
        assert all(option in source.split() for option in task["pretraining"])
        wanted = [*task["tuning"], f"optim_wrapper.optimizer.lr={task['learning_rate']}", KEY]
        assert all(option in tuned.split() for option in wanted)
        (folder,) = re.findall(r"--work-dir (\S+)", source)
        assert any(option.startswith(f"load_from={folder}/epoch_") for option in tuned.split())
