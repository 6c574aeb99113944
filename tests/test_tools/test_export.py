"""tools/export.py: files that other programs run, and errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmpretrain")
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
CLASSIFIER = "resnet18-0.25x-drconv_sample-64x64"


def files(task: str, name: str) -> tuple[Path, Path]:
    """A config, and its weights in the zoo."""
    (weights,) = (ROOT / "zoo").glob(f"{name}-????????.pth")
    return ROOT / f"configs/{task}/{name}.py", weights


def export(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "tools/export.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_onnx_runs_without_the_package(tmp_path):
    config, weights = files("classification", CLASSIFIER)
    out = tmp_path / "new" / "model.onnx"
    done = export(config, weights, out, "--shape", 64, 64, "--dynamic-batch")
    assert done.returncode == 0, done.stderr
    assert "any number of images of 64x64" in done.stdout and "output 0, 3x4:" in done.stdout
    assert "ms, the model in PyTorch" in done.stdout
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]

    from drconv_mm.zoo import get_model

    model, images = get_model(CLASSIFIER), torch.randn(5, 3, 64, 64)
    session = onnxruntime.InferenceSession(out)
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(images, mode="tensor"), atol=1e-4, rtol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    mean = model.data_preprocessor.mean.flatten().tolist()
    assert json.loads(about["data_preprocessor"])["mean"] == pytest.approx(mean)
    assert str(ROOT).encode() not in out.read_bytes()


@pytest.mark.parametrize(
    "task, name, outputs",
    [
        ("detection", "retinanet_r18-0.5x-drconv_fpn_bccd-160x120", ["1x27x15x20", "1x36x15x20"]),
        ("segmentation", "fcn_mobilenet-v2-d8-drconv_sample-160x120", ["1x5x15x20"]),
        ("face", "mobilefacenet-drconv_sample-64x64", ["1x128"]),
    ],
)
def test_networks_of_every_task(task, name, outputs, tmp_path):
    shape = () if task == "face" else ("--shape", 120, 160)  # a face network knows what it was built for
    done = export(*files(task, name), tmp_path / "model.onnx", *shape)
    assert done.returncode == 0, done.stderr
    assert all(f", {output}: " in done.stdout for output in outputs), done.stdout


def test_a_program_of_pytorch(tmp_path):
    out = tmp_path / "model.pt2"
    options = ("--batch-size", 2, "--cfg-options", "data_preprocessor.mean=[1,2,3]")
    done = export(*files("classification", CLASSIFIER), out, "--shape", 64, 64, *options)
    assert done.returncode == 0, done.stderr
    load = (
        "import sys, torch\n"
        "about = {'about.json': ''}\n"
        "program = torch.export.load(sys.argv[1], extra_files=about)\n"
        "print(program.module()(torch.zeros(2, 3, 64, 64)).shape, '[1, 2, 3]' in about['about.json'])\n"
        "print('drconv_mm' in sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", load, out], capture_output=True, text=True)
    assert loaded.stdout.split("\n")[:2] == ["torch.Size([2, 4]) True", "False"], loaded.stderr


def test_errors_are_one_line(tmp_path):
    config, weights = files("classification", CLASSIFIER)
    other, _ = files("classification", CLASSIFIER.replace("-drconv", ""))
    for arguments, said in (
        ((config, weights, "model.h5"), "must end in .onnx or .pt2"),
        ((config, weights, "model.onnx", "--dynamic-batch", "--batch-size", 2), "leave --batch-size out"),
        ((config, weights, "model.onnx", "--shape", 0, 64), "must be at least 1"),
        ((config, weights, "model.onnx", "--batch-size", 0), "must be at least 1"),
        ((config, tmp_path / "none.pth", tmp_path / "model.onnx"), "is no file"),
        ((tmp_path / "none.py", weights, tmp_path / "model.onnx"), "none.py"),
        ((other, weights, tmp_path / "model.onnx"), "don't fit config"),
    ):
        done = export(*arguments)
        assert done.returncode and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_traced_or_differs_is_not_written(tmp_path, monkeypatch):
    import export as tool

    import drconv_mm.export.stock as stock

    config, weights = files("classification", CLASSIFIER)
    out = tmp_path / "model.pt2"
    monkeypatch.setattr(sys, "argv", ["export.py", str(config), str(weights), str(out), "--shape", "64", "64"])

    def refuse(*_):
        raise RuntimeError("depends on data\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(tool, "export_network", refuse)
        with pytest.raises(SystemExit, match=r"can't trace the model \(RuntimeError: depends on data\)"):
            tool.main()
    monkeypatch.setattr(stock, "region_map", lambda guide: torch.zeros_like(guide[:, 0], dtype=torch.long))
    with pytest.raises(SystemExit, match="output 0 of what was exported differs"):
        tool.main()
    assert not any(tmp_path.iterdir())


def test_most_tries_have_to_agree():
    import export as tool

    def compare(*changes: float) -> str:
        expected = torch.ones(5, 2, 4)
        return tool.compare(1, expected, expected + torch.tensor(changes).view(5, 1, 1))

    assert compare(0, 0, 1e-4, 0, 0).endswith("output 1, 2x4: mean magnitude 1.0e+00, differs by 1.0e-04 at most")
    assert "at most in 3 of 5 tries; in the others rounding" in compare(0.1, 0, 0, 0, 0.1)
    for changes in ((0.1, 0, 0.1, 0, 0.1), (float("nan"),) * 5):
        with pytest.raises(ValueError, match=r"differs from the model's in [35] of 5 tries"):
            compare(*changes)
