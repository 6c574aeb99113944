"""Transforms for face images; flips, sizes and crops are mmcv's (``RandomFlip``, ``Resize``, ``CenterCrop``).

Random ones draw from NumPy's global generator, as mmcv's do, which mmengine seeds in every worker.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from ...registration import register_in

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"


class CorruptImage(ValueError):
    """An image that can't be read or decoded; the message says which and why."""


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes an image, and does not take half of one for whole as OpenCV does.

    Args:
        data: JPEG, PNG or what else OpenCV reads.
        name: What it is called in a message.

    Returns:
        uint8 [H, W, 3], BGR.

    Raises:
        CorruptImage: It is empty, cut off, or no image.
    """
    if not data:
        raise CorruptImage(f"{name} is empty")
    # After the begin of a JPEG's last scan its end mark must come: within a scan, the mark's bytes can't occur.
    cut = data.startswith(_JPEG) and data.find(b"\xff\xd9", max(data.rfind(b"\xff\xda"), 0)) < 0
    if cut or (data.startswith(_PNG) and b"IEND" not in data[-64:]):
        raise CorruptImage(f"{name} is cut off after {len(data)} bytes")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise CorruptImage(f"{name} can't be decoded: {len(data)} bytes that begin with {data[:4].hex()}")
    return image


@register_in("TRANSFORMS")
class LoadFace(BaseTransform):
    """Decodes ``img_bytes`` where the data set gives them, else the file ``img_path``.

    Sets ``img`` (uint8 [H, W, 3], BGR, as mmcv's transforms take it), ``img_shape`` and ``ori_shape``. An image that is
    empty, cut off or no image raises `CorruptImage`, which training sets may skip (``corrupt='skip'``).
    """

    def transform(self, results: dict) -> dict:
        """Loads."""
        data = results.pop("img_bytes", None)
        name = results.get("img_path") or results.get("img_name", "image")
        if data is None:
            try:
                data = Path(results["img_path"]).read_bytes()
            except OSError as problem:
                raise CorruptImage(f"{name} can't be read: {problem.strerror}") from problem
        results["img"] = decode_image(data, name)
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results


@register_in("TRANSFORMS")
class RandomShift(BaseTransform):
    """Moves the image by up to ``pixels`` along each axis; what it leaves behind repeats the edge.

    Args:
        pixels: Greatest shift, at least 1.

    Raises:
        ValueError: ``pixels`` is no whole number of at least 1.
    """

    def __init__(self, pixels: int = 4):
        if not isinstance(pixels, int) or pixels < 1:
            raise ValueError(f"pixels must be a whole number of at least 1, got {pixels!r}")
        self.pixels = pixels

    @cache_randomness
    def _offset(self) -> tuple[int, int]:
        return tuple(np.random.randint(0, 2 * self.pixels + 1, 2).tolist())

    def transform(self, results: dict) -> dict:
        """Moves."""
        image, (top, left), border = results["img"], self._offset(), self.pixels
        padded = cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_REPLICATE)
        results["img"] = padded[top : top + image.shape[0], left : left + image.shape[1]]
        return results


@register_in("TRANSFORMS")
class RandomBrightnessContrast(BaseTransform):
    """``(x - mean) * c + mean * b``, mean over the image; c and b are drawn evenly from 1 ± contrast, 1 ± brightness.

    Args:
        brightness: Greatest change of the mean, a fraction of it.
        contrast: Greatest change of the distance from the mean, a fraction of it.

    Raises:
        ValueError: A fraction outside [0, 1].
    """

    def __init__(self, brightness: float = 0.2, contrast: float = 0.2):
        for name, value in (("brightness", brightness), ("contrast", contrast)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value!r}")
        self.brightness = brightness
        self.contrast = contrast

    @cache_randomness
    def _factors(self) -> tuple[float, float]:
        return np.random.uniform(-1, 1) * self.brightness + 1, np.random.uniform(-1, 1) * self.contrast + 1

    def transform(self, results: dict) -> dict:
        """Changes the image's values, and clips them."""
        brightness, contrast = self._factors()
        mean = results["img"].mean()
        table = (np.arange(256) - mean) * contrast + mean * brightness
        results["img"] = cv2.LUT(results["img"], table.round().clip(0, 255).astype(np.uint8))
        return results


@register_in("TRANSFORMS")
class PackFace(BaseTransform):
    """Packs ``inputs`` (uint8 tensor [3, H, W], RGB) with ``label`` or ``index``, whichever the data set gives."""

    def transform(self, results: dict) -> dict:
        """Packs."""
        image = np.ascontiguousarray(results["img"][..., ::-1].transpose(2, 0, 1))
        return dict(
            inputs=torch.from_numpy(image), **{key: results[key] for key in ("label", "index") if key in results}
        )
