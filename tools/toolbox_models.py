"""Models of any toolbox's config, and samples that they can be trained on."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from torch import nn

from drconv_mm.engine.complexity import image_samples
from drconv_mm.engine.model import build_model

# (height, width) at which a toolbox's models are measured.
SHAPES = {"mmpretrain": (224, 224), "mmdet": (240, 320), "mmseg": (240, 320)}


def build(path: str, options: dict, changes: dict | None = None) -> tuple[nn.Module, str]:
    """A config's model with fresh weights, and its toolbox.

    Args:
        path: The config.
        options: As with ``--cfg-options``.
        changes: Keys that get a new value, whatever they have; ``model.drconv`` turns the model into a `Retrofit`.
    """
    config = Config.fromfile(path)
    config.merge_from_dict(options)
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        part = config
        for parent in parents:
            part = part[parent]
        part[last] = value
    if "model.drconv" in (changes or {}):
        retrofit(config, config.model.drconv)
    scope = config.get("default_scope") or "mmdet"
    _forget_pretrained(config.model)
    torch.manual_seed(0)
    return build_model(config, scope), scope


def retrofit(config: Config, drconv: dict) -> None:
    """Turns a config's model into a `Retrofit` of it, in place; ``drconv`` are `convert`'s arguments."""
    config.model.drconv = dict(drconv, model_type=config.model.type)
    config.model.type = "drconv_mm.Retrofit"


def _forget_pretrained(part: object) -> None:
    """So that nothing is downloaded."""
    if isinstance(part, dict):
        init = part.get("init_cfg")
        if isinstance(init, dict) and init.get("type") == "Pretrained":
            part["init_cfg"] = None
        if isinstance(part.get("pretrained"), str):
            part["pretrained"] = None
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for item in part:
            _forget_pretrained(item)


def training_samples(scope: str, model: nn.Module, batch: int, shape: tuple[int, int]) -> list:
    """Labels for pictures of one size: one class, eight boxes, or a picture of classes."""
    height, width = shape
    described = image_samples(model, batch, shape)  # of mmdet's detectors
    samples = []
    for index in range(batch):
        if scope == "mmpretrain":
            from mmpretrain.structures import DataSample

            samples.append(DataSample().set_gt_label(index % getattr(model.head, "num_classes", 10)))
        elif scope == "mmdet":
            from mmdet.structures.mask import BitmapMasks

            corner = torch.rand(8, 2) * torch.tensor([width, height]) * 0.6
            boxes = torch.cat([corner, corner + torch.tensor([width, height]) * (0.1 + 0.3 * torch.rand(8, 2))], 1)
            sample = described[index]
            sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.arange(8) % 3)
            if getattr(model, "with_mask", False):
                sample.gt_instances.masks = BitmapMasks([draw_box(box, shape) for box in boxes], height, width)
            sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=torch.arange(0))
            samples.append(sample)
        else:
            from mmseg.structures import SegDataSample

            meta = dict(img_shape=shape, pad_shape=shape, ori_shape=shape)
            sample = SegDataSample(metainfo=meta)
            head = model.decode_head[-1] if isinstance(model.decode_head, nn.ModuleList) else model.decode_head
            sample.gt_sem_seg = PixelData(data=torch.randint(head.num_classes, (1, *shape)))
            sample.gt_edge_map = PixelData(data=torch.randint(2, (1, *shape)))  # PIDNet's
            samples.append(sample)
    return samples


def draw_box(box: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """A mask of ones inside (left, top, right, bottom)."""
    mask = np.zeros(shape, np.uint8)
    left, top, right, bottom = box.round().int().tolist()
    mask[top:bottom, left:right] = 1
    return mask
