from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset

import drconv_mm


class Numbers(Dataset):
    """Those of a file."""

    def __init__(self, ann_file):
        self.numbers = [torch.tensor(float(number)) for number in Path(ann_file).read_text().split()]

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return dict(inputs=self.numbers[index])


class Model(BaseModel):
    """Gives its input back while it evaluates."""

    def forward(self, inputs, mode="tensor"):
        assert mode == "predict" and torch.is_autocast_enabled("cpu")
        return [torch.tensor(float("nan")) if self.training else number for number in inputs]


class Sum(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [number.item() for number in data_samples]

    def compute_metrics(self, results):
        return dict(sum=sum(results), count=len(results))


class Metrics(Hook):
    """Keeps what hooks are given after an epoch."""

    def __init__(self):
        self.seen = []

    def after_val_epoch(self, runner, metrics=None):
        self.seen.append(metrics)

    after_test_epoch = after_val_epoch


@pytest.mark.parametrize("phase", ["val", "test"])
def test_evaluates_each_file_under_its_name(tmp_path, phase):
    (tmp_path / "lfw.txt").write_text("1 2 3")
    (tmp_path / "agedb.txt").write_text("10 20 30 40 50")
    hook = Metrics()
    loader = dict(
        batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False), dataset=dict(type=Numbers)
    )
    loop = dict(
        type=f"drconv_mm.Verification{phase.title()}Loop",
        ann_files=[tmp_path / "lfw.txt", tmp_path / "agedb.txt"],
        fp16=True,
    )
    runner = Runner(
        model=Model(),
        work_dir=str(tmp_path / "work"),
        custom_hooks=[hook],
        default_scope="mmengine",
        experiment_name=tmp_path.name,
        log_level="WARNING",
        **{f"{phase}_dataloader": loader, f"{phase}_evaluator": dict(type=Sum), f"{phase}_cfg": loop},
    )
    metrics = getattr(runner, phase)()
    assert metrics == {"lfw/sum": 6, "lfw/count": 3, "agedb/sum": 150, "agedb/count": 5}
    assert hook.seen == [metrics]


def test_needs_configs():
    with pytest.raises(TypeError, match="VerificationValLoop: dataloader and evaluator must be dicts"):
        drconv_mm.VerificationValLoop(None, object(), {}, ["lfw.bin"])


@pytest.mark.parametrize("files", [[], ["a/lfw.bin", "b/lfw.bin"]])
def test_needs_files_of_different_names(files):
    with pytest.raises(ValueError, match="ann_files must be one or more files of different names, got"):
        drconv_mm.VerificationTestLoop(None, {}, {}, files)
