"""Face images from the data loader to the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from ...registration import register


@register
class FaceDataPreprocessor(BaseDataPreprocessor):
    """Moves a batch to the device and normalises its images; the defaults are arcface_torch's, to [-1, 1].

    Args:
        mean: What is subtracted, one number or one a channel (RGB), in grey levels of 0 to 255.
        std: What is divided by then.
        non_blocking: Whether the copy to the device may overlap with computation.

    Raises:
        ValueError: ``mean`` or ``std`` is neither 1 nor 3 numbers, or a ``std`` is not positive.
    """

    channel_order = "rgb"  # of ``inputs``; read by `RegionRecorder`

    def __init__(
        self, mean: float | Sequence[float] = 127.5, std: float | Sequence[float] = 127.5, non_blocking: bool = False
    ):
        super().__init__(non_blocking)
        self.register_buffer("mean", _per_channel("mean", mean), persistent=False)
        self.register_buffer("std", _per_channel("std", std), persistent=False)
        if not (self.std > 0).all():
            raise ValueError(f"std must be positive, got {std!r}")

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalises ``inputs``; what else the batch has is moved only.

        Args:
            data: ``inputs`` uint8 ``[N, 3, H, W]``, RGB; and ``label``, ``index`` or other entries.
            training: Not used: faces are augmented in the data set's pipeline.

        Returns:
            The batch on the device, ``inputs`` float32.

        Raises:
            ValueError: ``inputs`` is no uint8 tensor of that shape.
        """
        images = data["inputs"]
        if not isinstance(images, Tensor):
            raise ValueError(
                f"inputs must be one uint8 tensor [N, 3, H, W], got a {type(images).__name__}; set "
                "collate_fn=dict(type='default_collate') in the data loader, and let all images have one size"
            )
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(
                f"inputs must be uint8 [N, 3, H, W] in RGB, got shape {tuple(images.shape)}"
                + ("; the channels come before height and width" if images.shape[-1] == 3 else "")
            )
        if images.dtype != torch.uint8:
            raise ValueError(
                f"inputs must be uint8 grey levels of 0 to 255, got {images.dtype}; "
                "leave scaling and normalisation out of the pipeline, they are done here"
            )
        data = self.cast_data(data)
        return {**data, "inputs": (data["inputs"].float() - self.mean) / self.std}


def _per_channel(name: str, value: float | Sequence[float]) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1)
    if len(tensor) not in (1, 3):
        raise ValueError(f"{name} must be one number or three, got {value!r}")
    return tensor
