"""Face evaluation: one-to-one verification of images and of templates, and one-to-many identification."""

from .identification import FaceIdentification
from .templates import FaceTemplateVerification
from .verification import FaceVerification

__all__ = ["FaceIdentification", "FaceTemplateVerification", "FaceVerification"]
