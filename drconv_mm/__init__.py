"""Dynamic Region-Aware Convolution (DRConv, CVPR 2021) as an OpenMMLab conv type."""

from .layers import DRConv, DRConv2d, Retrofit, convert
from .ops import region_conv2d
from .version import __version__

__all__ = ["DRConv", "DRConv2d", "Retrofit", "__version__", "convert", "region_conv2d"]

try:
    from .engine.hooks import CheckClassesHook, RegionStatsHook, RegionVisHook
except ImportError:  # without mmengine and OpenCV there is nothing to hook into
    pass
else:
    __all__ += ["CheckClassesHook", "RegionStatsHook", "RegionVisHook"]

try:
    from .models.backbones import DRConvShuffleNetV2, MobileNetV1
except ImportError:  # networks need mmengine and mmcv
    pass
else:
    __all__ += ["DRConvShuffleNetV2", "MobileNetV1"]

try:
    from .models.face import ArcFaceHead, FaceDataPreprocessor, FaceRecognizer, IResNet, LinearEmbedding, MobileFaceNet
except ImportError:  # as above
    pass
else:
    __all__ += [
        "ArcFaceHead",
        "FaceDataPreprocessor",
        "FaceRecognizer",
        "IResNet",
        "LinearEmbedding",
        "MobileFaceNet",
    ]

try:
    from .datasets.face import (
        FaceBin,
        FaceFolder,
        FaceIdentities,
        FacePairs,
        FaceRecords,
        FaceTemplates,
        LoadFace,
        PackFace,
        RandomBrightnessContrast,
        RandomShift,
    )
    from .engine.face_hooks import MarginWarmupHook, ShardedCheckpointHook
    from .engine.verification_loops import VerificationTestLoop, VerificationValLoop
    from .evaluation import FaceIdentification, FaceTemplateVerification, FaceVerification
except ImportError:  # data sets and metrics need OpenCV and matplotlib too
    pass
else:
    __all__ += [
        "FaceBin",
        "FaceFolder",
        "FaceIdentification",
        "FaceIdentities",
        "FacePairs",
        "FaceRecords",
        "FaceTemplateVerification",
        "FaceTemplates",
        "FaceVerification",
        "LoadFace",
        "MarginWarmupHook",
        "PackFace",
        "RandomBrightnessContrast",
        "RandomShift",
        "ShardedCheckpointHook",
        "VerificationTestLoop",
        "VerificationValLoop",
    ]
