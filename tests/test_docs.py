"""Figures and commands of the docs that other files know, too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_cost_of_networks():
    pytest.importorskip("mmpretrain")
    from count_flops import count_config

    text = (ROOT / "docs/models.md").read_text()
    table = text[text.index("| config |") : text.index("The `-drconv` configs")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    assert len(rows) >= 10
    for name, *cells in rows:
        costs, _ = count_config(str(ROOT / f"configs/classification/{name}_8xb128_in1k.py"), (224, 224), None)
        parts = ("convolution", "guide", "generator", "linear", "total")
        found = [f"{costs[part].multiply_adds / 1e6:.2f} M" for part in parts]
        found.append(f"{costs['total'].parameters / 1e6:.2f} M")
        assert cells == ["" if cell == "0.00 M" else cell for cell in found], name


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
