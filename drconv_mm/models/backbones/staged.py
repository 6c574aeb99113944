"""What the toolboxes' detectors and classifiers expect of a backbone, for one that is a stem and a list of stages."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class StagedBackbone(BaseModule):
    """A backbone of a stem and stages, each stage's output a candidate for a neck or head.

    A subclass sets ``layers``, implements `stem`, and calls `freeze` once it is built.

    Args:
        num_stages: Number of stages.
        out_indices: Stages whose outputs are returned, from 0.
        frozen_stages: Stages up to this number (from 1) do not train, nor does the stem (0); -1 trains all.
        norm_eval: Whether batch norm keeps its statistics while training.
        init_cfg: mmengine's initialisation, ``dict(type='Pretrained', checkpoint=...)`` among others.

    Raises:
        ValueError: A stage that does not exist.
    """

    layers: nn.ModuleList

    def __init__(
        self,
        num_stages: int,
        out_indices: Sequence[int],
        frozen_stages: int,
        norm_eval: bool,
        init_cfg: dict | list[dict] | None,
    ):
        super().__init__(init_cfg)
        for index in out_indices:
            if index not in range(num_stages):
                raise ValueError(f"out_indices={tuple(out_indices)} must be stages 0 to {num_stages - 1}, got {index}")
        if frozen_stages not in range(-1, num_stages + 1):
            raise ValueError(f"frozen_stages must be -1 (none) to {num_stages}, got {frozen_stages!r}")
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

    def stem(self, input: Tensor) -> Tensor:
        """What comes before the first stage."""
        raise NotImplementedError

    def frozen_modules(self) -> list[nn.Module]:
        """The stem's and the stages' modules that do not train."""
        if self.frozen_stages < 0:
            return []
        stem = [module for name, module in self.named_children() if name != "layers"]
        return stem + list(self.layers[: self.frozen_stages])

    def freeze(self) -> None:
        """Once the layers are there, and not with the first ``train()`` alone: DDP asks before what is to train."""
        for module in self.frozen_modules():
            module.eval().requires_grad_(False)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """``[N, 3, H, W]`` to the outputs of the stages in ``out_indices``."""
        features, outputs = self.stem(input), []
        for index, layer in enumerate(self.layers):
            features = layer(features)
            if index in self.out_indices:
                outputs.append(features)
        return tuple(outputs)

    def train(self, mode: bool = True) -> StagedBackbone:
        """As in ``nn.Module``, but what is frozen stays in evaluation mode."""
        super().train(mode)
        self.freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def round_channels(channels: float, widen_factor: float, divisor: int = 1) -> int:
    """The nearest multiple of ``divisor``.

    Args:
        channels: Channels of a layer at a width.
        widen_factor: The width, for the message.
        divisor: What the number must divide by.

    Raises:
        ValueError: Nothing is left.
    """
    rounded = int(channels / divisor + 0.5) * divisor
    if rounded < 1:
        raise ValueError(f"widen_factor={widen_factor!r} leaves a layer without channels ({channels:.2g}); enlarge it")
    return rounded
