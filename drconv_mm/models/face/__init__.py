"""Face recognition. Needs mmengine and mmcv."""

from .arcface_head import ArcFaceHead
from .embedding import LinearEmbedding
from .iresnet import IResNet
from .mobilefacenet import MobileFaceNet
from .preprocessor import FaceDataPreprocessor
from .recognizer import FaceRecognizer

__all__ = ["ArcFaceHead", "FaceDataPreprocessor", "FaceRecognizer", "IResNet", "LinearEmbedding", "MobileFaceNet"]
