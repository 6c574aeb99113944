"""tools/convert.py: a standard checkpoint becomes a DRConv one that computes the same, and errors are one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmpretrain")
from toolbox_models import build

ROOT = Path(__file__).parents[2]

CONFIG = ROOT / "configs/classification/shufflenet-v2-0.5x_caltech20-96x96.py"


def convert(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "tools/convert.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    """A model with statistics of its own, and its checkpoint as mmengine writes it."""
    from mmengine.logging.history_buffer import HistoryBuffer

    model, _ = build(str(CONFIG), {})
    model.train()
    model(torch.randn(4, 3, 96, 96), mode="tensor")
    history = HistoryBuffer()
    history.update(1.5)
    path = tmp_path_factory.mktemp("checkpoint") / "standard.pth"
    meta = {"dataset_meta": {"classes": ("cat", "dog")}, "cfg": "of whoever trained it"}
    torch.save(
        {"state_dict": model.state_dict(), "meta": meta, "message_hub": {"log_scalars": {"loss": history}}}, path
    )
    return model.eval(), path


def test_converted_model_computes_the_same(standard, tmp_path):
    model, checkpoint = standard
    done = convert(CONFIG, checkpoint, "--out", tmp_path, "--include", "backbone.layers.0", "--drconv", "num_regions=4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| backbone.layers.0.") == 9 and "| all |" in done.stdout
    name = CONFIG.stem + "-drconv"
    converted, _ = build(str(tmp_path / f"{name}.py"), {})
    checkpoint = torch.load(tmp_path / f"{name}.pth", weights_only=True)
    assert checkpoint["meta"] == {"dataset_meta": {"classes": ("cat", "dog")}}
    converted.load_state_dict(checkpoint["state_dict"])
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(converted.eval()(images, mode="tensor"), model(images, mode="tensor"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.pth", f"{name}.py"]


class Trap:
    """What a hostile checkpoint would hold."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_checkpoint_runs_no_code(standard, tmp_path):
    model, _ = standard
    torch.save({"state_dict": model.state_dict(), "trap": Trap(tmp_path / "sprung")}, tmp_path / "hostile.pth")
    done = convert(CONFIG, tmp_path / "hostile.pth", "--out", tmp_path / "out", "--include", "backbone.layers.0")
    assert done.returncode == 1 and "pathlib" in done.stderr and "refused" in done.stderr
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["missing", "cut", "lacks one", "other model", "no such name", "no config"])
def test_errors_are_one_line(standard, tmp_path, what):
    _, checkpoint = standard
    config, more, message = CONFIG, [], ""
    if what == "missing":
        checkpoint, message = tmp_path / "none.pth", "is no file"
    elif what == "cut":
        content = checkpoint.read_bytes()
        checkpoint = tmp_path / "cut.pth"
        checkpoint.write_bytes(content[: len(content) // 2])
        message = "expected a whole file"
    elif what == "lacks one":
        content = torch.load(checkpoint, weights_only=False)
        del content["state_dict"]["backbone.conv1.bn.weight"]
        checkpoint = tmp_path / "lacks.pth"
        torch.save(content, checkpoint)
        message = "lacks 1 of the model's entries, backbone.conv1.bn.weight"
    elif what == "other model":
        config, message = ROOT / "configs/classification/shufflenet-v2-1.0x_caltech20-96x96.py", "of another model"
    elif what == "no such name":
        more, message = ["--include", "backbone.layres.0"], "near misses"
    else:
        config, message = tmp_path / "none.py", "is no file"
    done = convert(config, checkpoint, "--out", tmp_path / "out", *more)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
