"""Face recognition. Needs mmengine and mmcv."""

from .embedding import LinearEmbedding
from .iresnet import IResNet
from .mobilefacenet import MobileFaceNet
from .preprocessor import FaceDataPreprocessor
from .recognizer import FaceRecognizer

__all__ = ["FaceDataPreprocessor", "FaceRecognizer", "IResNet", "LinearEmbedding", "MobileFaceNet"]
