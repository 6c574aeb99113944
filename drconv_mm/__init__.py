"""Dynamic Region-Aware Convolution (DRConv, CVPR 2021) as an OpenMMLab conv type."""

from importlib import import_module

from .layers import DRConv, DRConv2d, Retrofit, convert
from .ops import region_conv2d
from .version import __version__

__all__ = ["DRConv", "DRConv2d", "Retrofit", "__version__", "convert", "region_conv2d"]

# What needs more than torch: mmengine, mmcv, OpenCV, matplotlib.
_EXTRAS = {
    "engine.hooks": ["CheckClassesHook", "RegionStatsHook", "RegionVisHook"],
    "engine.face_hooks": ["MarginWarmupHook", "ShardedCheckpointHook"],
    "engine.verification_loops": ["VerificationTestLoop", "VerificationValLoop"],
    "models.backbones": ["DRConvShuffleNetV2", "MobileNetV1"],
    "models.face": [
        "ArcFaceHead",
        "FaceDataPreprocessor",
        "FaceRecognizer",
        "IResNet",
        "LinearEmbedding",
        "MobileFaceNet",
    ],
    "datasets.face": [
        "FaceBin",
        "FaceFolder",
        "FaceIdentities",
        "FacePairs",
        "FaceRecords",
        "FaceTemplates",
        "LoadFace",
        "PackFace",
        "RandomBrightnessContrast",
        "RandomShift",
    ],
    "evaluation": ["FaceIdentification", "FaceTemplateVerification", "FaceVerification"],
}
_missing: dict[str, ImportError] = {}

for _module, _names in _EXTRAS.items():
    try:
        _found = import_module(f".{_module}", __name__)
    except ImportError as _error:  # plain PyTorch does without
        _missing.update(dict.fromkeys(_names, _error))
    else:
        globals().update({_name: getattr(_found, _name) for _name in _names})
        __all__ += _names


def __getattr__(name: str) -> object:
    """Says why a part of the package is not there; without it a registry says that it knows no such name."""
    if name in _missing:
        raise ImportError(f"drconv_mm.{name} can't be imported here: {_missing[name]}") from _missing[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
