from __future__ import annotations

import logging

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from drconv_mm import DRConv2d, RegionStatsHook, RegionVisHook


class Model(BaseModel):
    def __init__(self, dynamic: bool = True):
        super().__init__()
        self.conv = DRConv2d(4, 4, 3) if dynamic else nn.Conv2d(4, 4, 3)

    def forward(self, inputs, mode="tensor"):
        return {"loss": self.conv(torch.stack(inputs)).square().mean()}


def train(tmp_path, model, epochs=1):
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=False),
            dataset=[dict(inputs=torch.randn(4, 8, 8)) for _ in range(4)],
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=1e-3)),
        custom_hooks=[dict(type="drconv_mm.RegionStatsHook", interval=1)],
        default_scope="mmengine",
        experiment_name=tmp_path.name,
        log_level="INFO",
    )
    handler = Records()
    runner.logger.addHandler(handler)
    runner.train()
    return runner, handler.records


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


def test_logs_shares_and_entropy(tmp_path):
    runner, records = train(tmp_path, Model())
    history = runner.message_hub.log_scalars
    assert 0 < history["train/region/conv/entropy"].current() <= 1
    shares = [history[f"train/region/conv/share_{j}"].current() for j in range(8)]
    assert sum(shares) == pytest.approx(1)
    assert any("conv: region entropy" in record.getMessage() for record in records)
    assert not any(record.levelno >= logging.WARNING and "One region" in record.getMessage() for record in records)


def test_warns_of_a_layer_that_uses_one_region(tmp_path):
    model = Model()
    nn.init.zeros_(model.conv.guide_weight)
    model.conv.guide_weight.requires_grad_(False)
    model.conv.init_weights = lambda: None  # the runner would make it random again
    _, records = train(tmp_path, model)
    (warning,) = [record for record in records if "One region got every pixel" in record.getMessage()]
    assert warning.levelno == logging.WARNING and "a smaller guide_grad_scale" in warning.getMessage()


def test_says_so_where_there_is_nothing_to_log(tmp_path):
    _, records = train(tmp_path, Model(dynamic=False))
    assert any("the model has no DRConv layer" in record.getMessage() for record in records)


def test_bad_intervals():
    with pytest.raises(ValueError, match="interval must be at least 1 iteration, got 0"):
        RegionStatsHook(interval=0)
    with pytest.raises(ValueError, match="interval must be at least 1 batch, got 0"):
        RegionVisHook(interval=0)
