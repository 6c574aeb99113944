"""Class centres spread over processes, after PartialFC (An et al., CVPR 2022, section 3), on torch.distributed.

Each process holds the centres of a contiguous range of classes, and all processes see the embeddings of all images.
The functions here are collective: every process of the default group calls them in the same order.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def shard_classes(num_classes: int, rank: int, world_size: int) -> range:
    """The classes of one process: contiguous ranges whose sizes differ by one at most."""
    return range(num_classes * rank // world_size, num_classes * (rank + 1) // world_size)


def sample_classes(positives: Tensor, num_classes: int, sample_rate: float) -> Tensor:
    """All positive classes, and random others up to the rate.

    Args:
        positives: ``[P]``, int64, the labels of a batch, with repetitions, each below ``num_classes``.
        num_classes: Classes to choose from.
        sample_rate: Share of the classes that is wanted; more are returned where there are more positives.

    Returns:
        ``[S]``, int64, ascending, without repetitions; S is at least 1.
    """
    count = max(round(sample_rate * num_classes), len(positives.unique()), 1)
    priority = torch.rand(num_classes, device=positives.device)
    priority[positives] = 2.0
    return priority.topk(count).indices.sort().values


def gather_batch(embeddings: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """The batches of all processes, one after another.

    The gradient that comes back to ``embeddings`` is the sum over all processes, times their number:
    DistributedDataParallel divides the backbone's gradients by it, and a loss that is a mean over the whole batch
    then trains the backbone as one process with the whole batch would.

    Args:
        embeddings: ``[N, D]``, float.
        label: ``[N]``, int64.

    Returns:
        ``[world_size * N, D]`` and ``[world_size * N]``.

    Raises:
        ValueError: N differs between the processes.
    """
    sizes = _all_gather(label.new_tensor([len(label)])).tolist()
    if len(set(sizes)) > 1:
        raise ValueError(
            f"sharded class centres need batches of one size in all processes, got {sizes} images; "
            "set drop_last=True in train_dataloader, or round_up=True in its sampler"
        )
    return _GatherEmbeddings.apply(embeddings), _all_gather(label)


def sharded_cross_entropy(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Softmax cross entropy, mean over the batch, where each process has the logits of its own classes.

    Args:
        logits: ``[N, S]``, float: all images, this process's classes.
        rows: ``[P]``, int64, the images whose class this process holds; each image is in one process's ``rows``.
        columns: ``[P]``, int64, the column of that class.

    Returns:
        A scalar, the same in all processes; each backpropagates it into its own ``logits``.
    """
    return _ShardedCrossEntropy.apply(logits, rows, columns)


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor | None:
    """The rows of all processes on process 0, in main memory; one process at a time, so that a GPU needs no room.

    Args:
        rows: ``[counts[rank], ...]``.
        counts: The number of rows of each process.

    Returns:
        ``[sum(counts), ...]`` on process 0, None elsewhere.
    """
    if dist.get_rank():
        dist.send(rows.contiguous(), 0)
        return None
    parts = [rows.cpu()]
    for source, count in enumerate(counts[1:], start=1):
        part = rows.new_empty(count, *rows.shape[1:])
        dist.recv(part, source)
        parts.append(part.cpu())
    return torch.cat(parts)


def _all_gather(values: Tensor) -> Tensor:
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


class _GatherEmbeddings(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings: Tensor) -> Tensor:
        return _all_gather(embeddings)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()


class _ShardedCrossEntropy(torch.autograd.Function):
    """By hand, so that one matrix of the logits' size is kept for the backward pass, not three."""

    @staticmethod
    def forward(ctx, logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        highest = logits.amax(dim=1)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        probabilities = (logits - highest[:, None]).exp_()
        target = torch.zeros_like(highest)
        target[rows] = logits[rows, columns] - highest[rows]
        sums = torch.stack([probabilities.sum(dim=1), target])
        dist.all_reduce(sums)
        total, target = sums
        ctx.save_for_backward(probabilities.div_(total[:, None]), rows, columns)
        return (total.log() - target).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        probabilities, rows, columns = ctx.saved_tensors
        grad = grad / len(probabilities)
        grad_logits = probabilities * grad
        grad_logits[rows, columns] -= grad
        return grad_logits, None, None
