"""A config's model, built as mmengine's Runner builds it."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

# What the toolboxes' stock configs read: ImageNet's crop, COCO's and Cityscapes' pictures, and faces.
STOCK_SHAPES = {"mmpretrain": (224, 224), "mmdet": (800, 1333), "mmseg": (512, 1024), "mmengine": (112, 112)}


def build_model(config: Config, scope: str = "mmengine") -> nn.Module:
    """The model with the weights of its initialisation, in the scope of its toolbox, which stays the default one.

    A ``data_preprocessor`` beside the model is put into it, as the Runner does: without it images would neither be
    normalised nor have their channels in order.

    Args:
        config: The config.
        scope: Of a config that names no ``default_scope``.
    """
    init_default_scope(config.get("default_scope") or scope)
    if config.get("data_preprocessor"):
        config.model.setdefault("data_preprocessor", config.data_preprocessor)
    return MODELS.build(config.model)


def stock_shape(model: nn.Module, scope: str) -> tuple[int, int]:
    """Height and width of the images that stock configs of this toolbox read, or that a face network was built for."""
    own = getattr(getattr(model, "backbone", None), "input_size", None) if scope == "mmengine" else None
    return tuple(own or STOCK_SHAPES.get(scope, (224, 224)))
