"""A config's model, built as mmengine's Runner builds it."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn


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
