from __future__ import annotations

import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from drconv_mm.engine.face_hooks import MarginWarmupHook, ShardedCheckpointHook
from drconv_mm.models.face.arcface_head import ArcFaceHead, keep_shards_local

from ..processes import run_in_processes

CLASSES, IMAGES = 7, 8


class Recognizer(BaseModel):
    """Double precision, so that runs may be compared to the tenth digit; no batch norm, which sees its batch only."""

    def __init__(self, head=True, **kwargs):
        super().__init__()
        self.backbone = nn.Linear(6, 5)
        self.head = ArcFaceHead(CLASSES, 5, scale=8.0, sub_centers=2, **kwargs) if head else None
        self.double()
        keep_shards_local(self)

    def forward(self, inputs, label, mode="tensor"):
        if mode == "predict":
            return inputs
        embeddings = self.backbone(inputs)
        return self.head.loss(embeddings, label) if self.head else dict(loss=embeddings.square().mean())


def images():
    inputs = torch.randn(IMAGES, 6, generator=torch.Generator().manual_seed(0)).double()
    return [dict(inputs=inputs[i], label=i % CLASSES) for i in range(IMAGES)]


def make_runner(
    folder,
    *,
    model=None,
    epochs=2,
    by_epoch=True,
    batch_size=4,
    optimizer="sgd",
    clip_grad=None,
    optim_wrapper=None,
    checkpoint=None,
    **kwargs,
):
    return Runner(
        model=model or dict(type=Recognizer),
        work_dir=str(folder),
        train_dataloader=dict(
            batch_size=batch_size,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=False),
            dataset=images(),
            collate_fn=dict(type="default_collate"),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs) if by_epoch else dict(by_epoch=False, max_iters=2 * epochs),
        optim_wrapper=optim_wrapper or dict(optimizer=OPTIMIZERS[optimizer], clip_grad=clip_grad),
        default_hooks=dict(checkpoint=dict(checkpoint or dict(type="CheckpointHook"), interval=1, by_epoch=by_epoch)),
        randomness=dict(seed=0),
        default_scope="mmengine",
        experiment_name=folder.name,
        log_level="WARNING",
        **kwargs,
    )


class Factors(Hook):
    """Keeps the factor of each iteration."""

    priority = "LOWEST"

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append(runner.model.head.margin_factor)


def test_margin_rises_by_epoch_and_after_resume(tmp_path):
    factors = Factors()
    hooks = [MarginWarmupHook(begin=1, end=5), factors]
    runner = make_runner(tmp_path / "first", epochs=7, custom_hooks=hooks)
    runner.train()
    assert factors.seen == pytest.approx([f for f in (0, 0, 0.25, 0.5, 0.75, 1, 1) for _ in range(2)])
    assert runner.message_hub.get_scalar("train/margin_factor").data[0] == pytest.approx(factors.seen)

    factors = Factors()
    resumed = make_runner(
        tmp_path / "second",
        epochs=6,
        custom_hooks=[dict(type=MarginWarmupHook, begin=1, end=5), factors],
        load_from=str(tmp_path / "first" / "epoch_3.pth"),
        resume=True,
    )
    resumed.train()
    assert factors.seen == pytest.approx([0.5, 0.5, 0.75, 0.75, 1, 1])


def test_margin_rises_by_iteration(tmp_path):
    factors = Factors()
    runner = make_runner(
        tmp_path, epochs=3, by_epoch=False, custom_hooks=[MarginWarmupHook(end=4, by_epoch=False), factors]
    )
    runner.train()
    assert factors.seen == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_warmup_that_could_not_work(tmp_path):
    with pytest.raises(ValueError, match="begin=3, end=3"):
        MarginWarmupHook(begin=3, end=3)
    with pytest.raises(ValueError, match="set by_epoch=False"):
        make_runner(tmp_path / "a", by_epoch=False, custom_hooks=[MarginWarmupHook()]).train()
    with pytest.raises(ValueError, match="no ArcFaceHead"):
        make_runner(tmp_path / "b", model=dict(type=Recognizer, head=False), custom_hooks=[MarginWarmupHook()]).train()


OPTIMIZERS = dict(
    sgd=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-3), adamw=dict(type="AdamW", lr=0.01, eps=1e-4)
)


class Rising(BaseMetric):
    """A score that is better every time."""

    calls = 0

    def process(self, data_batch, data_samples):
        self.results.append(len(data_samples))

    def compute_metrics(self, results):
        self.calls += 1
        return dict(acc=self.calls)


def train_in_one(folder, **kwargs):
    make_runner(folder, **kwargs).train()


def train_in_two(folder, **kwargs):
    defaults = dict(
        model=dict(type=Recognizer, sharded=True),
        checkpoint=dict(type="drconv_mm.engine.face_hooks.ShardedCheckpointHook"),
        batch_size=2,  # a half of the other runs'
        launcher="pytorch",
        cfg=dict(model_wrapper_cfg=dict(device_ids=None)),  # mmengine's own choice is for GPUs
    )
    make_runner(folder, **dict(defaults, **kwargs)).train()


def test_without_shards_several_optimizers_are_left_alone():
    model = nn.Linear(2, 2)
    several = OptimWrapperDict(a=OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1)))
    runner, hook = SimpleNamespace(model=model, optim_wrapper=several), ShardedCheckpointHook()
    checkpoint, before = dict(optimizer=several.state_dict()), several.state_dict()
    hook.before_save_checkpoint(runner, checkpoint)
    hook.after_load_checkpoint(runner, checkpoint)
    assert checkpoint == dict(optimizer=before)


def test_a_checkpoint_goes_on_with_another_number_of_processes(tmp_path, monkeypatch):
    for optimizer in OPTIMIZERS:  # undisturbed, with mmengine's own hook
        train_in_one(tmp_path / f"{optimizer}_one", optimizer=optimizer)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # for the processes started here
    run_in_processes(_in_two_processes, tmp_path, tmp_path)
    for optimizer in OPTIMIZERS:
        train_in_one(
            tmp_path / f"{optimizer}_two_then_one",
            optimizer=optimizer,
            load_from=str(tmp_path / f"{optimizer}_two" / "epoch_1.pth"),
            resume=True,
        )
        weights, states = final_state(tmp_path / f"{optimizer}_one")
        assert weights["head.weight"].shape == (2 * CLASSES, 5)
        assert [state for state in states.values() for value in state.values() if value.shape == (2 * CLASSES, 5)]
        for run in ("two", "two_then_one", "one_then_two"):
            other = final_state(tmp_path / f"{optimizer}_{run}")
            torch.testing.assert_close(other, (weights, states), rtol=1e-9, atol=1e-11)
    best = torch.load(next((tmp_path / "best").glob("best_*epoch_2.pth")), weights_only=False)
    torch.testing.assert_close(best["state_dict"], final_state(tmp_path / "sgd_one")[0], rtol=1e-9, atol=1e-11)


def final_state(folder):
    checkpoint = torch.load(folder / "epoch_2.pth", weights_only=False)
    return checkpoint["state_dict"], checkpoint["optimizer"]["state"]


def _in_two_processes(rank, folder):
    os.environ["LOCAL_RANK"] = str(rank)
    for optimizer in OPTIMIZERS:
        train_in_two(folder / f"{optimizer}_two", optimizer=optimizer)
        train_in_two(
            folder / f"{optimizer}_one_then_two",
            optimizer=optimizer,
            load_from=str(folder / f"{optimizer}_one" / "epoch_1.pth"),
            resume=True,
        )
    train_in_two(
        folder / "best",
        val_dataloader=dict(
            batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False), dataset=images()
        ),
        val_cfg=dict(),
        val_evaluator=dict(type=Rising, collect_dir=str(folder / "collect")),
        checkpoint=dict(type="drconv_mm.engine.face_hooks.ShardedCheckpointHook", save_best="acc"),
    )
    # Only process 0 writes checkpoints, so only there it can fail; the other has come to the end.
    with pytest.raises(RuntimeError, match="ShardedCheckpointHook") if rank == 0 else nullcontext():
        train_in_two(folder / "plain_hook", checkpoint=dict(type="CheckpointHook"), epochs=1)
    with pytest.raises(ValueError, match=r"optim_wrapper\.clip_grad"):
        train_in_two(folder / "clipped", clip_grad=dict(max_norm=1.0))
    with pytest.raises(ValueError, match="EMAHook averages a copy of the model"):
        train_in_two(folder / "averaged", custom_hooks=[dict(type="EMAHook")])
    model = Recognizer(sharded=True)
    parts = {
        name: OptimWrapper(torch.optim.SGD(part.parameters(), lr=0.1))
        for name, part in (("backbone", model.backbone), ("head", model.head))
    }
    with pytest.raises(ValueError, match=r"optim_wrapper holds \['backbone', 'head'\]"):
        train_in_two(folder / "several", model=model, optim_wrapper=OptimWrapperDict(**parts))
