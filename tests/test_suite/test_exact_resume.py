"""Trainings with random augmentation and dropout, stopped and resumed, against ones that never stopped."""

from __future__ import annotations

import random
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn

from drconv_mm.engine.exact_resume import ExactResumeHook

from ..processes import run_in_processes


class Noise(BaseDataset):
    """Numbers that each load moves at random, by all three generators."""

    def load_data_list(self):
        return [dict(value=float(index)) for index in range(12)]

    def prepare_data(self, idx):
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        return dict(inputs=torch.full((4,), self.get_data_info(idx)["value"] / 12 + noise))


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, inputs, mode="tensor"):
        output = self.layers(torch.stack(inputs) if isinstance(inputs, (list, tuple)) else inputs)
        return dict(loss=output.square().mean()) if mode == "loss" else [output + torch.rand(())]


class Nothing(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(count=len(results))


@pytest.fixture(autouse=True)
def registered():
    entries = ((DATASETS, Noise), (MODELS, Net), (METRICS, Nothing))
    for registry, cls in entries:
        registry.register_module(module=cls)
    yield
    for registry, cls in entries:
        registry.module_dict.pop(cls.__name__)


LOOPS = {
    "epochs": dict(by_epoch=True, max_epochs=4, val_interval=1),
    "iterations": dict(by_epoch=False, max_iters=10, val_interval=3),
}


def config(folder: Path, loop: str, exact: bool = True, workers: int = 0) -> Config:
    by_epoch = loop == "epochs"
    loader = dict(
        batch_size=3, num_workers=0, dataset=dict(type="Noise"), sampler=dict(type="DefaultSampler", shuffle=False)
    )
    training = dict(
        loader,
        num_workers=workers,
        sampler=dict(type="DefaultSampler" if by_epoch else "InfiniteSampler", shuffle=True),
    )
    hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=by_epoch, interval=1))
    if exact:
        hooks["exact_resume"] = dict(type=ExactResumeHook)
    return Config(
        dict(
            default_scope="mmengine",
            model=dict(type="Net"),
            work_dir=str(folder),
            train_dataloader=training,
            val_dataloader=loader,
            val_evaluator=dict(type="Nothing"),
            train_cfg=deepcopy(LOOPS[loop]),
            val_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.1)),
            default_hooks=hooks,
            randomness=dict(seed=3),
            experiment_name=f"{folder.name}-{loop}",
            log_level="ERROR",
        )
    )


def weights(folder: Path, last: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / last, weights_only=False)["state_dict"]


def train(cfg: Config, resume: Path | None = None) -> None:
    cfg.experiment_name += "" if resume is None else "-resumed"
    cfg.update(resume=resume is not None, load_from=None if resume is None else str(resume))
    Runner.from_cfg(cfg).train()


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("loop", "last", "stops"),
    [
        ("epochs", "epoch_4.pth", ["epoch_1.pth", "epoch_3.pth"]),
        ("iterations", "iter_10.pth", ["iter_1.pth", "iter_3.pth", "iter_8.pth"]),
    ],
)
def test_resumed_is_undisturbed(tmp_path, loop, last, stops):
    train(config(tmp_path / "whole", loop))
    expected = weights(tmp_path / "whole", last)
    for stop in stops:
        folder = tmp_path / stop
        train(config(folder, loop), tmp_path / "whole" / stop)
        assert same(expected, weights(folder, last)), stop


def test_without_the_hook_it_is_not(tmp_path):
    train(config(tmp_path / "whole", "epochs", exact=False))
    train(config(tmp_path / "resumed", "epochs", exact=False), tmp_path / "whole/epoch_1.pth")
    assert not same(weights(tmp_path / "whole", "epoch_4.pth"), weights(tmp_path / "resumed", "epoch_4.pth"))


def test_seeds_and_iterations_differ(tmp_path):
    train(config(tmp_path / "a", "iterations"))
    other = config(tmp_path / "b", "iterations")
    other.randomness.seed = 4
    train(other)
    assert not same(weights(tmp_path / "a", "iter_10.pth"), weights(tmp_path / "b", "iter_10.pth"))


def test_processes_differ(tmp_path):
    run_in_processes(_draws_its_own_numbers, tmp_path, tmp_path)


def _draws_its_own_numbers(rank: int, folder: Path) -> None:
    runner = Runner(model=Net(), work_dir=str(folder), randomness=dict(seed=3), log_level="ERROR")
    ExactResumeHook().before_train_epoch(runner)
    own = torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])
    first, second = torch.empty_like(own), torch.empty_like(own)
    dist.all_gather([first, second], own)
    assert (first != second).all()


def test_the_middle_of_an_epoch_is_refused(tmp_path):
    whole = config(tmp_path / "whole", "epochs")
    whole.default_hooks.checkpoint = dict(type="CheckpointHook", by_epoch=False, interval=2)
    train(whole)
    with pytest.raises(
        ValueError, match="iteration 6, expected a multiple of the epoch's 4: .* from the end of an epoch"
    ):
        train(config(tmp_path / "resumed", "epochs"), tmp_path / "whole/iter_6.pth")
    train(config(tmp_path / "whole_epoch", "epochs"), tmp_path / "whole/iter_8.pth")


def test_workers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"num_workers=1, expected 0"):
        train(config(tmp_path, "epochs", workers=1))
