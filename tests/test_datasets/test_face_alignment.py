from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.optimize import least_squares

from drconv_mm.datasets.face.alignment import align_face, fit_similarity, is_mirrored, reference_points


def transform(points, scale, angle, shift):
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return points @ np.array([[c, s], [-s, c]]) + shift


def test_reference_points_of_arcface():
    expected = [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
    assert np.abs(reference_points() - expected).max() < 1e-9
    assert np.abs(reference_points((112, 96)) - expected + [8, 0]).max() < 1e-9
    with pytest.raises(ValueError, match=r"size must be \(112, 112\) or \(112, 96\).*got \(96, 112\)"):
        reference_points((96, 112))


def test_known_transforms_are_found():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scale, angle, shift = rng.uniform(0.05, 20), rng.uniform(-np.pi, np.pi), rng.uniform(-500, 500, 2)
        target = reference_points()
        source = transform(target, scale, angle, shift)
        matrix = fit_similarity(source, target)
        assert np.abs(source @ matrix[:, :2].T + matrix[:, 2] - target).max() < 1e-6
        assert (
            np.abs(matrix[:, :2] - matrix[0, 0] * np.eye(2) - matrix[1, 0] * np.array([[0, -1], [1, 0]])).max() < 1e-12
        )
        assert abs(np.hypot(matrix[0, 0], matrix[1, 0]) * scale - 1) < 1e-6


def test_noisy_landmarks_against_a_general_minimiser():
    rng = np.random.default_rng(0)
    for _ in range(5):
        target = reference_points()
        source = transform(target, 2, rng.uniform(-1, 1), [30, 40]) + rng.normal(0, 6, (5, 2))

        def residual(p, source=source, target=target):
            return (transform(source, np.exp(p[0]), p[1], p[2:]) - target).ravel()

        best = min((least_squares(residual, [0, angle, 0, 0], xtol=1e-14, ftol=1e-14) for angle in (-2, 0, 2)),
                   key=lambda found: found.cost)  # fmt: skip
        matrix = fit_similarity(source, target)
        moved = source @ matrix[:, :2].T + matrix[:, 2]
        assert np.abs(moved - target - best.fun.reshape(5, 2)).max() < 1e-4


def test_mirrored_landmarks_are_not_reflected():
    mirrored = reference_points() * [-1, 1] + [112, 0]
    assert np.linalg.det(fit_similarity(mirrored, reference_points())[:, :2]) > 0
    assert is_mirrored(mirrored) and not is_mirrored(reference_points())
    upside_down = transform(reference_points(), 1, np.pi, [112, 112])
    assert not is_mirrored(upside_down) and is_mirrored(transform(mirrored, 2, 1.0, [0, 0]))


@pytest.mark.parametrize(
    "source, message",
    [
        (np.zeros((5, 2)), "coincide or lie on a line"),
        (np.full((5, 2), 1e6), "coincide or lie on a line"),
        (np.arange(5)[:, None] * [3.0, -2.0] + 40, "coincide or lie on a line"),
        (np.full((5, 2), np.nan), "must be finite numbers"),
        (np.zeros((4, 2)), r"expected two arrays \[n, 2\] of points, got \(4, 2\) and \(5, 2\)"),
    ],
)
def test_landmarks_of_no_face_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        fit_similarity(source, reference_points())


@pytest.mark.parametrize("size", [(112, 112), (112, 96)])
def test_a_face_lands_on_the_reference_points(size):
    """A dot at each landmark of a turned picture is at its reference point afterwards."""
    landmarks = transform(reference_points(), 2.5, 0.4, [120, 60])
    for i in range(5):
        picture = np.zeros((420, 420, 3), dtype=np.uint8)
        cv2.circle(picture, tuple(np.rint(landmarks[i] * 16).astype(int).tolist()), 6 * 16, (255,) * 3, -1, shift=4)
        face = align_face(picture, landmarks, size)
        assert face.shape == (*size, 3) and face.dtype == np.uint8
        rows, columns = np.nonzero(face[..., 0] > 127)
        assert np.abs([columns.mean(), rows.mean()] - reference_points(size)[i]).max() < 0.3
