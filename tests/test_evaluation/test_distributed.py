"""A real mmengine test run in two processes gives what one process gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

from drconv_mm.evaluation import FaceIdentification, FaceTemplateVerification, FaceVerification

NUM_IMAGES = 29  # odd: two processes repeat one image


class Faces(Dataset):
    """Random pictures of nine people, for all three protocols: each image is a template of its own."""

    def __init__(self):
        rng = np.random.default_rng(0)
        people = np.arange(NUM_IMAGES) % 9
        pictures = rng.normal(size=(9, 3, 6, 4))[people] + rng.normal(size=(NUM_IMAGES, 3, 6, 4))
        self.images = (30 * pictures + 128).clip(0, 255).astype(np.uint8)
        first, second = np.triu_indices(NUM_IMAGES, 1)
        roles = np.array(["probe", "gallery", "distractor"])[np.arange(NUM_IMAGES) * 3 // NUM_IMAGES]
        self.metainfo = dict(
            pairs=dict(first=first, second=second, same=people[first] == people[second], folds=None),
            templates=np.arange(NUM_IMAGES),
            media=np.zeros(NUM_IMAGES, dtype=np.int64),
            roles=roles,
            identities=np.where(roles == "distractor", -1, people),
        )

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.from_numpy(self.images[index]), index=index)


class FirstRows(BaseModel):
    """The upper half of the picture as its embedding."""

    def forward(self, inputs: torch.Tensor, index: torch.Tensor, mode: str) -> list[dict]:
        assert mode == "predict"
        embeddings = normalize(inputs[:, :, :3].flatten(1).float() - 128)
        return [dict(embedding=embedding, index=i) for embedding, i in zip(embeddings, index, strict=True)]


def build_metrics(folder: Path, **arguments) -> list[BaseMetric]:
    return [
        FaceVerification(**arguments, collect_dir=str(folder / "collect")),
        FaceTemplateVerification(prefix="template", collect_dir=str(folder / "collect")),
        FaceIdentification(prefix="identification", collect_device="gpu"),  # by gathering, in place of files
    ]


def run(folder: Path) -> dict[str, float]:
    """Tests the model through mmengine's Runner."""
    faces = Faces()
    runner = Runner(
        FirstRows(),
        work_dir=str(folder),
        test_dataloader=DataLoader(faces, batch_size=4, sampler=DefaultSampler(faces, shuffle=False)),
        test_cfg=dict(),
        test_evaluator=build_metrics(folder, roc_file="roc.png"),
        default_scope="mmengine",
        experiment_name=folder.name,
    )
    return runner.test()


def run_in_order(folder: Path, order: list[int]) -> dict[str, float]:
    """Tests the model on this process's images, in an order and number no sampler would give it."""
    faces, model, evaluator = Faces(), FirstRows(), Evaluator(build_metrics(folder))
    evaluator.dataset_meta = faces.metainfo
    for batch in DataLoader(faces, batch_size=4, sampler=order):
        evaluator.process(model.test_step(batch), batch)
    return evaluator.evaluate(len(faces))


def work(rank: int, folder: Path) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    try:
        halves = [*range(12, -1, -1), 0, 5], [*range(28, 12, -1), 20]
        found = run(folder / "sampler"), run_in_order(folder / "uneven", halves[rank])
        (folder / f"{rank}.json").write_text(json.dumps(found))
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path):
    expected = run(tmp_path / "alone")
    for key in ("face/accuracy", "face/pixels/accuracy", "template/auc", "identification/megaface/rank1"):
        assert 0 < expected[key] < 100
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    for rank in range(2):
        for found in json.loads((tmp_path / f"{rank}.json").read_text()):
            assert found == pytest.approx(expected, abs=1e-5)
    for name in ("alone", "sampler"):  # a folder a run, with its log, written by one process
        assert [file.parent.parent for file in (tmp_path / name).rglob("roc.png")] == [tmp_path / name]
