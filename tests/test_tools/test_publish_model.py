"""tools/publish_model.py on checkpoints that mmengine wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

pytest.importorskip("mmpretrain")
import publish_model
from mmengine.model import BaseModel
from mmengine.runner import Runner

from drconv_mm.checkpoint import read_checkpoint, sha256
from drconv_mm.zoo import CARD, build_model

ROOT = Path(__file__).parents[2]

NAME = "shufflenet-v2-0.5x-drconv_caltech20-96x96"
CONFIG = ROOT / f"configs/classification/{NAME}.py"


@pytest.fixture
def publish(monkeypatch, capsys):
    """Runs the tool in this process: what it printed, and the message it ended with, None for success."""

    def run(*arguments: object) -> tuple[str, str | None]:
        monkeypatch.setattr(sys, "argv", ["publish_model.py", *map(str, arguments)])
        try:
            publish_model.main()
        except SystemExit as end:
            return capsys.readouterr().out, str(end.code)
        return capsys.readouterr().out, None

    return run


class Toy(BaseModel):
    """So small that the Runner around it is most of its checkpoint."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs, mode):
        return {"loss": self.layer(torch.stack(inputs)).square().mean()}


@pytest.fixture(scope="module")
def toy_checkpoint(tmp_path_factory):
    """Of a training with mmengine's Runner and EMAHook: logs, optimizer, schedulers, message hub, averages."""
    work_dir = tmp_path_factory.mktemp("toy")
    Runner(
        Toy(),
        str(work_dir),
        train_dataloader=dict(
            dataset=[{"inputs": torch.ones(4)}] * 4,
            batch_size=2,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=True),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.1)),
        param_scheduler=dict(type="LinearLR", start_factor=0.1),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=2)),
        custom_hooks=[dict(type="EMAHook", momentum=0.4)],
        default_scope="mmengine",
        experiment_name="toy",
    ).train()
    return work_dir / "epoch_2.pth"


@pytest.fixture(scope="module")
def classifier_checkpoint(tmp_path_factory):
    """A model's weights with statistics of their own, and a log as mmengine keeps it."""
    from mmengine.logging.history_buffer import HistoryBuffer

    model = build_model(CONFIG)
    model.train()
    model(torch.randn(4, 3, 96, 96), mode="tensor")
    path = tmp_path_factory.mktemp("classifier") / "epoch_20.pth"
    history = HistoryBuffer([1.5, 0.5], [1, 1])
    torch.save(
        {"state_dict": model.state_dict(), "message_hub": {"log_scalars": {"loss": history}}, "meta": {"epoch": 20}},
        path,
    )
    return path


def test_a_runners_checkpoint(toy_checkpoint, tmp_path):
    whole = torch.load(toy_checkpoint, weights_only=False)
    assert {"optimizer", "param_schedulers", "message_hub", "ema_state_dict"} < whole.keys()
    line = [sys.executable, ROOT / "tools/publish_model.py", toy_checkpoint, tmp_path / "toy.pth"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    assert path.name == f"toy-{sha256(path)[:8]}.pth" and sha256(path) in done.stdout
    published = torch.load(path, weights_only=True)
    assert published.keys() == {"meta", "state_dict"}
    assert published["meta"].items() >= {"epoch": 2, "iter": 4}.items() and "cfg" not in published["meta"]
    torch.testing.assert_close(published["state_dict"], dict(whole["state_dict"]), rtol=0, atol=0)
    # The averaged weights, which the hook puts into state_dict.
    assert not torch.equal(published["state_dict"]["layer.weight"], whole["ema_state_dict"]["module.layer.weight"])
    assert str(toy_checkpoint.parent).encode() not in path.read_bytes()


def test_entry_for_the_metafile(classifier_checkpoint, tmp_path, publish):
    metrics = {"accuracy/top1": 87.6, "accuracy/top5": 98.2, "data_time": 0.01, "time": 0.02}
    (tmp_path / "test.json").write_text(json.dumps(metrics))
    more = ["--fp16", "--config", CONFIG, "--shape", 64, 96, "--metrics", tmp_path / "test.json"]
    out, error = publish(classifier_checkpoint, tmp_path / "zoo" / NAME, *more)
    assert error is None
    (path,) = (tmp_path / "zoo").iterdir()
    printed, _, text = out.partition("Its entry in")
    assert "accuracy/top1: 87.6" in printed and f"{path.stat().st_size / 2**20:.2f} MB" in printed
    (entry,) = yaml.safe_load(text[text.index("- Name") :])
    model = build_model(CONFIG)
    assert entry["Name"] == NAME and entry["Config"] == f"configs/classification/{NAME}.py"
    assert entry["Weights"] == f"zoo/{path.name}" and entry["In Collection"] == "DRConv"
    assert entry["Results"][0]["Metrics"] == {"accuracy/top1": 87.6, "accuracy/top5": 98.2}
    facts = entry["Metadata"]
    assert set(CARD) <= facts.keys() and facts["SHA256"] == sha256(path) and facts["Input Size"] == "64x96"
    assert facts["Parameters"] == sum(p.numel() for p in model.parameters()) and 7e6 < facts["FLOPs"] < 2e7
    # What was published is that model's, in half the bytes.
    state = read_checkpoint(path)["state_dict"]
    model.load_state_dict(state)
    assert path.stat().st_size < 0.6 * classifier_checkpoint.stat().st_size
    assert publish(path, tmp_path / "zoo" / NAME, "--fp16")[1] is None
    assert list((tmp_path / "zoo").iterdir()) == [path]


def test_diverged_weights_are_not_published(tmp_path, publish):
    torch.save({"state_dict": {"weight": torch.tensor([1.0, float("nan")])}}, tmp_path / "net.pth")
    _, error = publish(tmp_path / "net.pth", tmp_path / "zoo" / "net")
    assert "weight holds NaN" in error and not (tmp_path / "zoo").exists()


class Trap:
    """What a hostile checkpoint would hold."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("what", ["hostile", "missing", "other model", "metrics", "taken"])
def test_errors_are_one_line(toy_checkpoint, tmp_path, publish, what):
    checkpoint, more, message = toy_checkpoint, [], ""
    out = tmp_path / "zoo"
    if what == "hostile":
        checkpoint = tmp_path / "hostile.pth"
        torch.save({"state_dict": {"weight": torch.ones(1)}, "trap": Trap(tmp_path / "sprung")}, checkpoint)
        message = "nothing of it was run"
    elif what == "missing":
        checkpoint, message = tmp_path / "none.pth", "is no file"
    elif what == "other model":
        more, message = ["--config", CONFIG], "don't fit config"
    elif what == "metrics":
        (tmp_path / "test.log").write_text("accuracy 87.6")
        more, message = ["--metrics", tmp_path / "test.log"], "expected the JSON that test.py writes"
    else:
        out.write_text("")
        message = "can't be written"
    _, error = publish(checkpoint, out / "net", *more)
    assert error.startswith("publish_model.py: error: ") and message in error and "\n" not in error
    assert not (tmp_path / "sprung").exists() and not out.is_dir()
