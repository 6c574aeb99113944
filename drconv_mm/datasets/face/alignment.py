"""Five-point alignment of faces: eyes, nose and mouth corners moved to where recognition networks expect them."""

from __future__ import annotations

import cv2
import numpy as np

# Eyes, nose, mouth corners as (x, y) in a crop 112 high and 96 wide, as of SphereFace; ArcFace's 112x112 is 8 wider on
# each side.
_POINTS = np.array([[30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366], [33.5493, 92.3655], [62.7299, 92.2041]])
SIZES = ((112, 112), (112, 96))


def reference_points(size: tuple[int, int] = (112, 112)) -> np.ndarray:
    """Where the landmarks lie in an aligned face.

    Args:
        size: (height, width): (112, 112) or (112, 96).

    Returns:
        [5, 2] float64, (x, y): left eye (in the picture), right eye, nose tip, left and right mouth corner.

    Raises:
        ValueError: Another size.
    """
    if tuple(size) not in SIZES:
        raise ValueError(f"size must be (112, 112) or (112, 96), height and width, got {size!r}")
    return _POINTS + np.array([(size[1] - 96) / 2, 0])


def fit_similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scale and shift that moves points onto others with the least squared distance; no reflection.

    With points as complex numbers it is ``z -> a z + b``, whose least squares are linear; the same as Umeyama (1991) in
    the plane where reflections are ruled out.

    Args:
        source: [n, 2], (x, y).
        target: [n, 2].

    Returns:
        [2, 3] float64 matrix for ``cv2.warpAffine``.

    Raises:
        ValueError: Points that are not finite, or coincide or lie on a line, which landmarks of a face can't.
    """
    source, target = (np.asarray(points, dtype=np.float64) for points in (source, target))
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2:
        raise ValueError(f"expected two arrays [n, 2] of points, got {source.shape} and {target.shape}")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError(f"landmarks must be finite numbers, got {source.tolist()}")
    spread = np.linalg.svd(source - source.mean(0), compute_uv=False)
    if spread[1] <= 1e-3 * max(spread[0], 1e-9):
        raise ValueError(f"landmarks coincide or lie on a line: {source.tolist()}")
    z, w = ((points - points.mean(0)) @ (1, 1j) for points in (source, target))
    a = np.vdot(z, w) / np.vdot(z, z).real
    linear = np.array([[a.real, -a.imag], [a.imag, a.real]])
    return np.column_stack([linear, target.mean(0) - linear @ source.mean(0)])


def is_mirrored(landmarks: np.ndarray) -> bool:
    """Whether five landmarks run the wrong way round, as where right and left are swapped; [5, 2], (x, y)."""
    eyes, down = landmarks[1] - landmarks[0], landmarks[3:].mean(0) - landmarks[:2].mean(0)
    return bool(eyes[0] * down[1] - eyes[1] * down[0] < 0)


def align_face(image: np.ndarray, landmarks: np.ndarray, size: tuple[int, int] = (112, 112)) -> np.ndarray:
    """Cuts an aligned face out of a picture.

    Args:
        image: uint8 [H, W, 3].
        landmarks: [5, 2], (x, y), pixels: left eye (in the picture), right eye, nose tip, left and right mouth corner.
        size: (height, width) of the face: (112, 112) or (112, 96).

    Returns:
        uint8 [*size, 3]; black where the picture ends.

    Raises:
        ValueError: The landmarks coincide or lie on a line, or another size.
    """
    matrix = fit_similarity(landmarks, reference_points(size))
    return cv2.warpAffine(image, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR)
