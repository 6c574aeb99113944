"""The parts of tools/visualize_regions.py that need no process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import visualize_regions as tool
from torch import nn


class Code:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(tmp_path):
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "meta": Code(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(SystemExit, match="weights don't need, so it was refused"):
        tool.load_weights(nn.Linear(2, 2), str(tmp_path / "w.pth"))
    assert not (tmp_path / "ran").exists()


def test_weights_fit_or_a_message_says_which_do_not(tmp_path):
    expected, found = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in expected.state_dict().items()}}, tmp_path / "w"
    )
    tool.load_weights(found, str(tmp_path / "w"))
    assert torch.equal(found.weight, expected.weight)
    with pytest.raises(
        SystemExit, match=r"w: the checkpoint is of another model .*--cfg-options(?s:.*)Missing key.*0.bias"
    ):
        tool.load_weights(nn.Sequential(nn.Linear(2, 2)), str(tmp_path / "w"))


def test_hidden_files_and_folders_are_no_images(tmp_path):
    for name in ("a.jpg", "._a.jpg", ".b.part.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "c.jpg").mkdir()
    assert tool.find_images([str(tmp_path)]) == [tmp_path / "a.jpg"]
