"""``ArcFaceHead``: softmax over identities with margins on the angle to the own class centre."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_dist_info
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...registration import register
from .class_centers import gather_batch, gather_rows, sample_classes, shard_classes, sharded_cross_entropy
from .margins import angle_between, cosine_with_margins

# Centres are drawn in blocks of so many rows: each process passes over all of them and keeps its own.
_ROWS_DRAWN_AT_ONCE = 2**14


@register
class ArcFaceHead(BaseModule):
    """Cross entropy of ``scale * cos(angle to each class centre)``, with margins on the own class.

    The own class's cosine becomes ``cos(m1 * angle + m2) - m3`` (Deng et al., ArcFace, CVPR 2019, eq. 3 and 4; see
    `cosine_with_margins` for what happens beyond pi): ArcFace is ``margins=(1, 0.5, 0)``, CosFace ``(1, 0, 0.35)``,
    SphereFace ``(m1, 0, 0)``. With ``sub_centers`` above 1 a class has several centres and the nearest counts (Deng et
    al., Sub-center ArcFace, ECCV 2020, section 3). Everything is computed in float32 at least, under autocast too:
    rounding a cosine to bfloat16 moves a logit by up to ``scale / 512``.

    With ``sharded=True`` under torch.distributed each process holds the centres of a contiguous range of classes only,
    and ``sample_rate`` below 1 takes part of the classes without an image in the batch at each step (An et al., Partial
    FC, CVPR 2022, section 3). Steps equal those of one process with the whole batch. The model that
    DistributedDataParallel wraps must call `keep_shards_local` (`FaceRecognizer` does), and checkpoints need
    ``default_hooks=dict(checkpoint=dict(type='drconv_mm.ShardedCheckpointHook'))``: they are those of one process, and
    any number of processes reads them.

    Args:
        num_classes: Number of identities, at least 2.
        in_channels: Size of the embedding, D.
        scale: Factor of the cosines, s in the papers.
        margins: (m1, m2, m3): m1 at least 1; m2, in radians, and m3 at least 0.
        sub_centers: Centres of a class.
        sample_rate: Share of the classes (of each process's, where sharded) in the softmax of one step, above 0 up
            to 1; the classes of the batch are always in. Below 1 the logged accuracy is among these classes.
        sharded: Whether the processes of a distributed run share the centres out; nothing changes with one process.
        init_cfg: mmengine's initialisation.

    Attributes:
        weight: ``[num_classes * sub_centers, D]`` (where sharded, this process's rows); the centres of class c are the
            rows from ``c * sub_centers`` on. Their length does not matter.
        margin_factor: Multiplies m1 - 1, m2 and m3; `MarginWarmupHook` raises it from 0 to 1.

    Raises:
        ValueError: An argument out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        scale: float = 64.0,
        margins: Sequence[float] = (1.0, 0.5, 0.0),
        sub_centers: int = 1,
        sample_rate: float = 1.0,
        sharded: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        if num_classes < 2:
            raise ValueError(
                f"num_classes={num_classes}: one identity only cannot be told from others; train on at least 2"
            )
        if in_channels < 1 or sub_centers < 1 or not scale > 0:
            raise ValueError(
                "in_channels, sub_centers and scale must be positive, "
                f"got in_channels={in_channels}, sub_centers={sub_centers}, scale={scale}"
            )
        if len(margins) != 3 or not (margins[0] >= 1 and margins[1] >= 0 and margins[2] >= 0):
            raise ValueError(f"margins must be (m1, m2, m3) with m1 >= 1, m2 >= 0 and m3 >= 0, got {margins}")
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate must be above 0 and at most 1, got {sample_rate}")
        self._rank, self._world_size = get_dist_info() if sharded else (0, 1)
        if num_classes < self._world_size:
            raise ValueError(
                f"num_classes={num_classes} cannot be sharded over {self._world_size} processes; set sharded=False"
            )
        self.sharded = self._world_size > 1
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.scale = scale
        self.margins = tuple(margins)
        self.sub_centers = sub_centers
        self.sample_rate = sample_rate
        self.margin_factor = 1.0
        self.classes = shard_classes(num_classes, self._rank, self._world_size)
        self.weight = nn.Parameter(torch.empty(len(self.classes) * sub_centers, in_channels))
        self.reset_parameters()
        self._trained = False
        self._gathered: dict[str, Tensor] | None = None

    def reset_parameters(self) -> None:
        """Draws the centres from N(0, 0.01): for one seed the same, whatever the number of processes."""
        first = self.classes.start * self.sub_centers
        with torch.no_grad():
            for start in range(0, self.num_classes * self.sub_centers, _ROWS_DRAWN_AT_ONCE):
                stop = min(start + _ROWS_DRAWN_AT_ONCE, self.num_classes * self.sub_centers)
                drawn = torch.empty(stop - start, self.in_channels).normal_(std=0.01)
                begin, end = max(start, first), min(stop, first + len(self.weight))
                if begin < end:
                    self.weight[begin - first : end - first] = drawn[begin - start : end - start]

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (
            f"num_classes={self.num_classes}, in_channels={self.in_channels}, scale={self.scale}, "
            f"margins={self.margins}, sub_centers={self.sub_centers}, sample_rate={self.sample_rate}, "
            f"sharded={self.sharded}"
        )

    def loss(self, embeddings: Tensor, label: Tensor) -> dict[str, Tensor]:
        """The loss of a batch; where sharded, of the batches of all processes together, and collective.

        Args:
            embeddings: ``[N, D]``, float, of any length but 0.
            label: ``[N]``, int64, from 0 to ``num_classes - 1``.

        Returns:
            ``loss``: mean cross entropy; ``accuracy``: percentage of images whose nearest centre, without the margins,
            is one of their own class. Both scalars.

        Raises:
            ValueError: Shapes or dtypes that do not fit, an embedding of length 0.
            IndexError: A label out of range.
        """
        self._check_shapes(embeddings, label)
        self._trained = self._trained or self.training
        dtype = torch.promote_types(torch.promote_types(embeddings.dtype, self.weight.dtype), torch.float32)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(dtype)
            if self.sharded:
                embeddings, label = gather_batch(embeddings, label)
            self._check_values(embeddings, label)
            return self._loss(F.normalize(embeddings), label)

    def _loss(self, unit: Tensor, label: Tensor) -> dict[str, Tensor]:
        centers, rows, columns = self._select_centers(label)
        centers = F.normalize(centers.to(unit.dtype), dim=-1)
        cosines = F.linear(self.scale * unit, centers.flatten(0, 1)).unflatten(1, (-1, self.sub_centers))
        nearest = cosines.detach()[rows, columns].argmax(dim=-1)
        logits = cosines.squeeze(-1) if self.sub_centers == 1 else cosines.max(dim=-1).values
        accuracy = self._accuracy(logits.detach(), rows, columns)

        m1, m2, m3 = self.margins
        factor = self.margin_factor
        angle = angle_between(unit[rows], centers[columns, nearest])
        own = self.scale * cosine_with_margins(angle, 1 + factor * (m1 - 1), factor * m2, factor * m3)
        logits = logits.index_put((rows, columns), own)
        loss = sharded_cross_entropy(logits, rows, columns) if self.sharded else F.cross_entropy(logits, columns)
        return dict(loss=loss, accuracy=accuracy)

    def _select_centers(self, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The centres ``[S, sub_centers, D]`` of this step, the images whose class is here, and its number in S."""
        centers = self.weight.unflatten(0, (-1, self.sub_centers))
        rows = torch.arange(len(label), device=label.device)
        columns = label - self.classes.start
        if self.sharded:
            rows = rows[(columns >= 0) & (columns < len(self.classes))]
            columns = columns[rows]
        if self.sample_rate < 1:
            sampled = sample_classes(columns, len(self.classes), self.sample_rate)
            centers, columns = centers[sampled], torch.searchsorted(sampled, columns)
        return centers, rows, columns

    def _accuracy(self, logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        highest = logits.amax(dim=1)
        if self.sharded:
            all_reduce(highest, op="max")
        correct = (logits[rows, columns] >= highest[rows]).sum()
        if self.sharded:
            all_reduce(correct)
        return 100 * correct / len(logits)

    def _check_shapes(self, embeddings: Tensor, label: Tensor) -> None:
        if embeddings.dim() != 2 or embeddings.shape[1] != self.in_channels or len(embeddings) == 0:
            raise ValueError(
                f"embeddings must be [N, {self.in_channels}] with at least one image, got {list(embeddings.shape)}; "
                "set head.in_channels to the size of the embedding"
            )
        if label.shape != embeddings.shape[:1] or label.dtype != torch.int64:
            raise ValueError(
                f"label must be int64 [{len(embeddings)}], one for each embedding, got {label.dtype} "
                f"{list(label.shape)}"
            )

    def _check_values(self, embeddings: Tensor, label: Tensor) -> None:
        shortest = torch.linalg.vector_norm(embeddings.detach(), dim=1).min()
        # One transfer from the device for all checks.
        low, high, shortest = torch.stack([label.min().double(), label.max().double(), shortest.double()]).tolist()
        if low < 0 or high >= self.num_classes:
            wrong = int(low if low < 0 else high)
            raise IndexError(
                f"label {wrong} is not one of num_classes={self.num_classes} identities, 0 to {self.num_classes - 1}; "
                "set head.num_classes to the number of identities of the training set"
            )
        if shortest == 0:
            raise ValueError(
                "an embedding of length 0 has no direction and no angle to a class centre; look for an image or a "
                "network whose output is all zero"
            )

    def gather_rows(self, rows: Tensor) -> Tensor | None:
        """Puts together what each process has for each row of its ``weight``; collective.

        Args:
            rows: Of the first dimension of ``weight``, such as its momentum.

        Returns:
            The rows of all classes in main memory on process 0, None elsewhere.
        """
        shards = [shard_classes(self.num_classes, rank, self._world_size) for rank in range(self._world_size)]
        return gather_rows(rows, [len(shard) * self.sub_centers for shard in shards])

    def own_rows(self, rows: Tensor) -> Tensor:
        """This process's part of rows for all classes, ``[num_classes * sub_centers, ...]``."""
        first = self.classes.start * self.sub_centers
        return rows[first : first + len(self.weight)]

    @contextmanager
    def whole_state(self) -> Iterator[None]:
        """Inside, ``state_dict()`` on process 0 holds the centres of all processes; entering is collective."""
        if self.sharded:
            weight = self.gather_rows(self.weight.detach())
            self._gathered = {} if weight is None else {"weight": weight}
        try:
            yield
        finally:
            self._gathered = None

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        if not self.sharded:
            super()._save_to_state_dict(destination, prefix, keep_vars)
        elif self._gathered is not None:
            destination.update({prefix + name: rows for name, rows in self._gathered.items()})
        elif self._trained:
            # Before training they are left out in silence: mmengine makes all that state_dict() gives equal.
            raise RuntimeError(
                f"each of {self._world_size} processes holds part of the class centres, and a checkpoint needs all; "
                "use default_hooks=dict(checkpoint=dict(type='drconv_mm.ShardedCheckpointHook')), or take state_dict() "
                "inside head.whole_state(), entered by every process"
            )

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        key = prefix + "weight"
        if self.sharded and key in state_dict:
            expected, shape = [self.num_classes * self.sub_centers, self.in_channels], list(state_dict[key].shape)
            if shape != expected:
                errors.append(f"{key} of all processes must be {expected}, the checkpoint has {shape}")
                return
            state_dict = {**state_dict, key: self.own_rows(state_dict[key])}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)


def keep_shards_local(model: nn.Module) -> None:
    """Tells DistributedDataParallel, which will wrap the model, not to make the processes' class centres equal."""
    heads = [(name, head) for name, head in model.named_modules() if isinstance(head, ArcFaceHead) and head.sharded]
    if heads:
        names = [f"{name}.weight" for name, _ in heads]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
