from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from drconv_mm.models.face.arcface_head import ArcFaceHead, keep_shards_local
from drconv_mm.models.face.class_centers import sample_classes, shard_classes

from ..processes import run_in_processes

EXACT = dict(rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("num_classes", "world_size"), [(7, 1), (7, 2), (8, 3), (5, 5), (1001, 8)])
def test_shards_are_all_classes_in_order(num_classes, world_size):
    shards = [shard_classes(num_classes, rank, world_size) for rank in range(world_size)]
    assert [c for shard in shards for c in shard] == list(range(num_classes))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(
    ("positives", "rate", "count"),
    [([4, 2, 4], 0.3, 6), ([4, 2, 4], 0.05, 2), (list(range(20)), 0.1, 20), ([], 0.01, 1), ([], 1.0, 20)],
)
def test_sampled_classes(positives, rate, count):
    sampled = sample_classes(torch.tensor(positives, dtype=torch.int64), 20, rate).tolist()
    assert len(sampled) == count and set(positives) <= set(sampled) <= set(range(20))
    assert sampled == sorted(set(sampled))


def test_negatives_are_sampled_evenly():
    positives = torch.tensor([0])
    counts = sum(torch.bincount(sample_classes(positives, 10, 0.4), minlength=10) for _ in range(3000))
    assert counts[0] == 3000
    # Each of the 9 others is one of 3: mean 1000, standard deviation 26.
    assert counts[1:].sub(1000).abs().max() < 150


def test_two_processes_equal_one(tmp_path):
    run_in_processes(_two_processes, tmp_path)


def test_fewer_classes_than_processes(tmp_path):
    run_in_processes(_cannot_be_sharded, tmp_path, world_size=3)


def _cannot_be_sharded(rank):
    with pytest.raises(ValueError, match="cannot be sharded over 3"):
        ArcFaceHead(2, 5, sharded=True)


def _two_processes(rank):
    for sub_centers in (1, 2):
        _equals_the_plain_head(rank, sub_centers)
    _trains_as_one_process_does(rank)
    _samples_in_each_shard(rank)
    _keeps_a_whole_state(rank)
    _tells_errors_to_all(rank)


def _heads(**kwargs):
    """The sharded head, and the plain one with the same centres."""
    kwargs = dict(dict(num_classes=7, in_channels=5, scale=8.0), **kwargs)
    torch.manual_seed(3)
    plain = ArcFaceHead(**kwargs).double()
    torch.manual_seed(3)
    return ArcFaceHead(**kwargs, sharded=True).double(), plain


def _batch(n=6, num_classes=7):
    generator = torch.Generator().manual_seed(5)
    embeddings = torch.randn(n, 5, generator=generator).double()
    return embeddings, torch.randint(num_classes, (n,), generator=generator)


def _equals_the_plain_head(rank, sub_centers):
    with patch("drconv_mm.models.face.arcface_head._ROWS_DRAWN_AT_ONCE", 2):  # over the border of the shards, too
        sharded, plain = _heads(margins=(1.1, 0.3, 0.1), sub_centers=sub_centers)
    assert sharded.sharded and len(sharded.classes) == (3, 4)[rank]
    torch.testing.assert_close(sharded.weight, sharded.own_rows(plain.weight), rtol=0, atol=0)

    whole, label = _batch()
    whole.requires_grad_()
    own = slice(3 * rank, 3 * rank + 3)
    part = whole.detach()[own].requires_grad_()
    expected, result = plain.loss(whole, label), sharded.loss(part, label[own])
    expected["loss"].backward()
    result["loss"].backward()
    torch.testing.assert_close(result, expected, **EXACT)
    torch.testing.assert_close(sharded.weight.grad, sharded.own_rows(plain.weight.grad), **EXACT)
    torch.testing.assert_close(part.grad, 2 * whole.grad[own], **EXACT)  # DistributedDataParallel halves it


class Model(nn.Module):
    def __init__(self, head):
        super().__init__()
        torch.manual_seed(4)
        self.backbone = nn.Linear(5, 5).double()
        self.head = head
        keep_shards_local(self)

    def forward(self, inputs, label):
        return self.head.loss(self.backbone(inputs), label)["loss"]


def _trains_as_one_process_does(rank):
    sharded, plain = (Model(head) for head in _heads())
    wrapped = DistributedDataParallel(sharded)
    inputs, label = _batch()
    for model, part in ((plain, slice(None)), (wrapped, slice(3 * rank, 3 * rank + 3))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        for _ in range(4):
            optimizer.zero_grad()
            model(inputs[part], label[part]).backward()
            optimizer.step()
    torch.testing.assert_close(sharded.backbone.weight, plain.backbone.weight, **EXACT)
    torch.testing.assert_close(sharded.head.weight, sharded.head.own_rows(plain.head.weight), **EXACT)


def _samples_in_each_shard(rank):
    sharded, plain = _heads(num_classes=21, sample_rate=0.5, margins=(1.0, 0.0, 0.35))
    whole, label = _batch(num_classes=21)
    whole, own = whole.requires_grad_(), slice(3 * rank, 3 * rank + 3)
    part = whole.detach()[own].requires_grad_()
    torch.manual_seed(8)
    loss = sharded.loss(part, label[own])["loss"]
    loss.backward()

    shards = [shard_classes(21, r, 2) for r in range(2)]
    sampled = []
    for shard in shards:  # each process drew with the same seed
        torch.manual_seed(8)
        here = label[(label >= shard.start) & (label < shard.stop)] - shard.start
        sampled.append(sample_classes(here, len(shard), 0.5) + shard.start)
    assert [len(classes) for classes in sampled] == [5, 6]
    classes = torch.cat(sampled)
    assert set(label.tolist()) <= set(classes.tolist())

    logits = F.normalize(whole) @ F.normalize(plain.weight[classes]).T
    places = torch.searchsorted(classes, label)
    expected = F.cross_entropy(8.0 * (logits - 0.35 * F.one_hot(places, len(classes)).double()), places)
    expected.backward()
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(part.grad, 2 * whole.grad[own], **EXACT)
    torch.testing.assert_close(sharded.weight.grad, sharded.own_rows(plain.weight.grad), **EXACT)
    touched = sharded.weight.grad.abs().sum(dim=1).nonzero().flatten() + sharded.classes.start
    assert touched.tolist() == sampled[rank].tolist()


def _keeps_a_whole_state(rank):
    sharded, plain = _heads(sub_centers=2)
    embeddings, label = _batch()
    sharded.eval().loss(embeddings, label)
    assert "weight" not in sharded.state_dict()
    sharded.train().loss(embeddings, label)
    with pytest.raises(RuntimeError, match="ShardedCheckpointHook"):
        sharded.state_dict()
    with sharded.whole_state():
        state = sharded.state_dict()
    if rank == 0:
        torch.testing.assert_close(state["weight"], plain.weight.detach(), rtol=0, atol=0)
    else:
        assert not state

    other, _ = _heads(sub_centers=2)
    nn.init.zeros_(other.weight)
    other.load_state_dict(plain.state_dict())
    torch.testing.assert_close(other.weight, sharded.weight, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=r"weight of all processes must be \[14, 5\], the checkpoint has \[6, 5\]"):
        other.load_state_dict({"weight": torch.zeros(6, 5)})


def _tells_errors_to_all(rank):
    sharded, _ = _heads()
    embeddings, label = _batch(3)
    with pytest.raises(IndexError, match="label 7 is not one of num_classes=7"):
        sharded.loss(embeddings, torch.tensor([0, 1, 7]) if rank else label)
    with pytest.raises(ValueError, match=r"got \[2, 3\] images"):
        sharded.loss(embeddings[: 2 + rank], label[: 2 + rank])
