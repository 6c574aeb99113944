"""Face data sets and transforms."""

from .bin import FaceBin
from .folder import FaceFolder
from .identities import FaceIdentities
from .pairs import FacePairs
from .records import FaceRecords
from .templates import FaceTemplates
from .transforms import LoadFace, PackFace, RandomBrightnessContrast, RandomShift

__all__ = [
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
]
