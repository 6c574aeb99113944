"""Reading, stripping and writing checkpoints, and what a hostile file can do: nothing."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.optim import OneCycleLR
from torch import nn

from drconv_mm import DRConv2d
from drconv_mm.checkpoint import (
    CheckpointError,
    read_checkpoint,
    refuse_nan,
    sha256,
    store_half,
    strip_checkpoint,
    write_checkpoint,
)


def network() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), DRConv2d(8, 16, 3, num_regions=2), nn.BatchNorm2d(16))
    model(torch.randn(4, 8, 9, 9))
    return model


@pytest.fixture
def trained():
    """What a training leaves behind: plain types and tensors here, mmengine's objects in the tests of the tool."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 8, 9, 9)).square().mean().backward()
    optimizer.step()
    meta = {
        "epoch": 3,
        "iter": 12,
        "seed": 7,
        "mmengine_version": "0.10.7",
        "cfg": "work_dir = '/home/someone'",
        "time": "now",
        "dataset_meta": {"classes": ("a", "b")},
    }
    return model.eval(), {"meta": meta, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}


def test_publishing_keeps_the_weights_and_a_little_meta(trained, tmp_path):
    model, checkpoint = trained
    torch.save(checkpoint, tmp_path / "epoch_3.pth")
    path = write_checkpoint(strip_checkpoint(read_checkpoint(tmp_path / "epoch_3.pth")), tmp_path / "zoo" / "net-0.5x")
    assert path.name == f"net-0.5x-{sha256(path)[:8]}.pth"
    published = torch.load(path, weights_only=True)
    assert published.keys() == {"meta", "state_dict"}
    assert published["meta"] == {
        "epoch": 3, "iter": 12, "seed": 7, "mmengine_version": "0.10.7", "dataset_meta": {"classes": ("a", "b")},
    }  # fmt: skip
    assert published["state_dict"].keys() == model.state_dict().keys()
    # BatchNorm's version, without which PyTorch takes a state dict for one of an old release.
    assert published["state_dict"]._metadata["1"] == {"version": 2}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(published["state_dict"][name], value, rtol=0, atol=0)


def test_only_plain_meta_is_kept():
    meta = {
        "dataset_meta": {"classes": ["a"], "palette": np.zeros(3), "map": {0: 255}},
        "seed": torch.ones(1),
        "iter": 5,
    }
    stripped = strip_checkpoint({"state_dict": {"weight": torch.ones(1)}, "meta": meta})
    assert stripped["meta"] == {"dataset_meta": {"classes": ["a"], "map": {0: 255}}, "iter": 5}
    assert strip_checkpoint({"state_dict": {"weight": torch.ones(1)}})["meta"] == {}


def test_averaged_weights_are_published():
    state = {"weight": torch.ones(2)}
    stripped = strip_checkpoint(
        {"state_dict": state, "ema_state_dict": {"module.weight": torch.zeros(2), "steps": torch.tensor(4)}}
    )
    assert stripped["state_dict"].keys() == {"weight"} and stripped["state_dict"]["weight"].tolist() == [1, 1]


def test_a_view_is_stored_without_the_rest_of_its_storage(tmp_path):
    stripped = strip_checkpoint(
        {"state_dict": {"weight": torch.randn(1000, 1000)[:2, :3], "last": torch.randn(4, 2).t()}}
    )
    path = write_checkpoint(stripped, tmp_path / "net")
    assert path.stat().st_size < 4000
    torch.testing.assert_close(torch.load(path, weights_only=True)["state_dict"], stripped["state_dict"])


def test_names_of_a_wrapped_model(tmp_path):
    torch.save({"module.weight": torch.ones(2, 2)}, tmp_path / "bare.pth")
    assert list(read_checkpoint(tmp_path / "bare.pth")["state_dict"]) == ["weight"]


def test_a_key_that_is_no_name_is_refused(tmp_path):
    torch.save({"state_dict": {0: torch.ones(2)}}, tmp_path / "indexed.pth")
    with pytest.raises(CheckpointError, match="has no state_dict of tensors by name"):
        read_checkpoint(tmp_path / "indexed.pth")


def test_diverged_weights_are_refused():
    with pytest.raises(CheckpointError, match="running_var holds NaN"):
        refuse_nan({"state_dict": {"weight": torch.ones(2), "running_var": torch.tensor([1.0, float("nan")])}})


def harmless_by_hand(value: np.ndarray) -> bool:
    """store_half's rule, element by element in float64."""
    largest = max(abs(float(x)) for x in value.flat)
    with np.errstate(over="ignore"):
        return all(abs(float(np.float16(x)) - float(x)) <= largest / 2048 for x in value.flat)


@pytest.mark.parametrize("scale", [1e-9, 3e-8, 1e-6, 3e-5, 1e-4, 1.0, 3e4, 7e4, 1e9])
def test_half_where_it_is_harmless(scale):
    value = scale * (torch.rand(5, 7) - 0.5)
    value[0, 0] = scale
    stored = store_half(value)
    assert (stored.dtype == torch.float16) == harmless_by_hand(value.numpy())
    if stored.dtype == torch.float16:
        torch.testing.assert_close(stored.float(), value, rtol=0, atol=scale / 2048)
    else:
        assert stored is value


def test_the_rule_for_half_has_both_outcomes():
    found = [store_half(torch.full((2, 2), x)).dtype for x in (1.0, 65504.0, 65519.0, 65536.0, 1e-8)]
    assert found == 3 * [torch.float16] + 2 * [torch.float32]


@pytest.mark.parametrize(
    "value",
    [torch.tensor([1e-7, 3e5]), torch.ones(2, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.bfloat16),
     torch.ones(2, 2, dtype=torch.int64), torch.ones(0, 3), torch.tensor(0.1)],
)  # fmt: skip
def test_what_half_leaves_alone(value):
    assert store_half(value) is value


def test_half_weights_load_as_float32_and_compute_the_same(trained, tmp_path):
    model, checkpoint = trained
    checkpoint["state_dict"]["1.running_var"][0] = 3e5  # beyond fp16: would be inf, and the channel dead
    whole = write_checkpoint(strip_checkpoint(checkpoint), tmp_path / "whole")
    half = write_checkpoint(strip_checkpoint(checkpoint, half=True), tmp_path / "half")
    assert half.stat().st_size < 0.75 * whole.stat().st_size
    again = network().eval()
    again.load_state_dict(read_checkpoint(half)["state_dict"])
    assert all(p.dtype == torch.float32 for p in again.parameters())
    torch.testing.assert_close(again[1].running_var, checkpoint["state_dict"]["1.running_var"], rtol=0, atol=0)
    for name, value in again.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(
                value, checkpoint["state_dict"][name], rtol=0, atol=value.abs().max().item() / 2048
            )
    images = torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(again(images), model(images), rtol=0.02, atol=0.02)


def test_same_content_same_bytes(trained, tmp_path):
    _, checkpoint = trained
    torch.save(checkpoint, tmp_path / "a.pth")
    first = write_checkpoint(strip_checkpoint(read_checkpoint(tmp_path / "a.pth"), half=True), tmp_path / "first.pth")
    code = (
        "import sys; from pathlib import Path; from drconv_mm.checkpoint import *; "
        "print(write_checkpoint(strip_checkpoint(read_checkpoint(Path(sys.argv[1])), half=True), Path(sys.argv[2])))"
    )
    line = [sys.executable, "-c", code, tmp_path / "a.pth", tmp_path / "other"]
    other = subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(other).read_bytes() == first.read_bytes()
    # What is published can be published again, and is the same.
    twice = write_checkpoint(strip_checkpoint(read_checkpoint(first), half=True), tmp_path / "first")
    assert twice == first and sorted(p.suffix for p in tmp_path.iterdir()) == [".pth"] * 3


def test_nothing_is_overwritten(trained, tmp_path):
    stripped = strip_checkpoint(trained[1])
    path = write_checkpoint(stripped, tmp_path / "net")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="holds something else"):
        write_checkpoint(stripped, tmp_path / "net")
    assert path.read_bytes() == whole[:100] and list(tmp_path.iterdir()) == [path]
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="holds something else"):
        write_checkpoint(stripped, tmp_path / "net")


def test_out_is_no_folder(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="can't be written"):
        write_checkpoint(strip_checkpoint(trained[1]), tmp_path / "file" / "net")


@pytest.mark.skipif(os.name != "posix", reason="limits a process's files")
def test_a_full_disk_leaves_nothing_behind(tmp_path):
    code = (
        "import resource, sys, torch; from pathlib import Path; from drconv_mm.checkpoint import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try: write_checkpoint({'state_dict': {'weight': torch.ones(5000)}}, Path(sys.argv[1]))\n"
        "except CheckpointError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code, tmp_path / "net"], capture_output=True, text=True)
    assert "can't be written (File too large); nothing was left behind" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


class Trap:
    """What a hostile checkpoint would hold: a call as soon as it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __call__(self):
        """Where it stands for the function that another trap calls."""

    def __reduce__(self):
        return self.call


TRAPS = {
    "touch": lambda path: Trap(Path.touch, Trap(Path, str(path))),
    "os.mkdir": lambda path: Trap(os.mkdir, str(path)),
    "exec": lambda path: Trap(exec, f"open({str(path)!r}, 'w')"),
    # Of names that are read as stand-ins alone.
    "getattr": lambda path: Trap(Trap(getattr, np.ndarray, "tofile"), np.ones(1), str(path)),
}


@pytest.mark.parametrize("trap", [*TRAPS])
@pytest.mark.parametrize("form", ["zip", "old"])
def test_reading_runs_no_code(tmp_path, trap, form):
    sprung, path = tmp_path / "sprung", tmp_path / "hostile.pth"
    content = {"state_dict": {"weight": torch.ones(2)}, "trap": TRAPS[trap](sprung)}
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match="hostile.pth"):
        read_checkpoint(path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists()  # so it is a trap


def test_one_cycle_schedules_are_read(tmp_path):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    schedule = OneCycleLR(optimizer, eta_max=0.1, total_steps=5).state_dict()
    torch.save({"state_dict": {"weight": torch.ones(2)}, "param_schedulers": [schedule]}, tmp_path / "one.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "one.pth", weights_only=True)
    assert torch.equal(read_checkpoint(tmp_path / "one.pth")["state_dict"]["weight"], torch.ones(2))


def test_parts_of_logs_are_stand_ins(tmp_path):
    logs = {"history": np.ones(3), "last": np.float64(2), "method": Trap(getattr, np.ndarray, "tofile")}
    torch.save({"state_dict": {"weight": torch.ones(2)}, "message_hub": logs}, tmp_path / "net.pth")
    content = read_checkpoint(tmp_path / "net.pth")
    assert not any(isinstance(v, (np.ndarray, np.generic)) or callable(v) for v in content["message_hub"].values())
    assert strip_checkpoint(content).keys() == {"meta", "state_dict"}


def test_the_names_of_a_trap_are_in_the_message(tmp_path):
    torch.save({"state_dict": {"weight": torch.ones(2)}, "trap": Trap(os.getcwd)}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match=r"hostile.pth' names posix.getcwd.*nothing of it was run"):
        read_checkpoint(tmp_path / "hostile.pth")


@pytest.mark.parametrize("content", ["missing", "empty", "text", "cut", "torchscript", "folder"])
def test_what_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "net.pth"
    if content == "folder":
        path.mkdir()
    elif content == "torchscript":
        torch.jit.script(nn.ReLU()).save(path)
    elif content != "missing":
        torch.save({"state_dict": {"weight": torch.ones(2000)}}, path)
        data = {"empty": b"", "text": b"not found", "cut": path.read_bytes()[:5000]}
        path.write_bytes(data[content])
    with pytest.raises(CheckpointError, match="net.pth' (can't be read|is no file).*expected"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [{}, {"state_dict": {}}, {"state_dict": {"weight": 1}}, [torch.ones(1)], torch.ones(1)]
)
def test_what_has_no_weights(tmp_path, content):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="no state_dict of tensors"):
        read_checkpoint(tmp_path / "net.pth")


def test_damaged_bytes_are_an_error_or_harmless(tmp_path):
    torch.save({"state_dict": {"weight": torch.ones(20)}, "meta": {"iter": 1}}, tmp_path / "net.pth")
    whole = (tmp_path / "net.pth").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (tmp_path / "net.pth").write_bytes(data)
        try:
            content = read_checkpoint(tmp_path / "net.pth")
        except CheckpointError:
            continue
        assert all(isinstance(value, torch.Tensor) for value in content["state_dict"].values())
