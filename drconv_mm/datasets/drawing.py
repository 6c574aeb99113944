"""The pictures of the sample data sets: textured objects before a textured ground.

Every object has a striped part and another part; the four classes differ only by *where* the stripes are. Shapes,
colours and textures come from one pool, so that nothing else tells the classes apart.
"""

from __future__ import annotations

import cv2
import numpy as np

CLASSES = ("stripes_above", "stripes_below", "stripes_core", "stripes_rim")
PALETTE = [(230, 85, 13), (49, 130, 189), (49, 163, 84), (117, 107, 177)]
# An object that is covered more than this much is not placed.
_MIN_VISIBLE = 0.4


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[np.ndarray, list[tuple[np.ndarray, int, bool]]]:
    """A picture [H, W, 3] (uint8) and its objects as (visible mask [H, W], class index, crowd), back to front.

    Objects cover one another; in some scenes the first is a crowd, a heap of tiny ones of one class.
    """
    width, height = size
    picture = draw_background(rng, size)
    objects: list[tuple[np.ndarray, int, bool]] = []
    full: list[int] = []
    if rng.random() < 0.3:
        label = int(rng.integers(len(CLASSES)))
        heap = np.zeros((height, width), bool)
        middle = rng.uniform(0.15, 0.85, 2) * size
        for _ in range(int(rng.integers(12, 20))):
            place = middle + rng.normal(0, 0.07, 2) * min(size)
            heap |= draw_object(rng, picture, label, place, rng.uniform(0.035, 0.05, 2) * min(size))
        objects.append((heap, label, True))
        full.append(int(heap.sum()))
    for _ in range(int(rng.integers(3, 8))):
        label, radii = int(rng.integers(len(CLASSES))), rng.uniform(0.1, 0.2, 2) * min(size)
        before, place = picture.copy(), rng.uniform(0.08, 0.92, 2) * size
        mask = draw_object(rng, picture, label, place, radii)
        left = [earlier & ~mask for earlier, _, _ in objects]
        if any(part.sum() < _MIN_VISIBLE * whole for part, whole in zip(left, full, strict=True)):
            picture[:] = before
            continue
        objects = [(part, *rest) for part, (_, *rest) in zip(left, objects, strict=True)] + [(mask, label, False)]
        full.append(int(mask.sum()))
    noisy = cv2.GaussianBlur(picture, (3, 3), 0.6) + rng.normal(0, 5, picture.shape)
    return noisy.clip(0, 255).astype(np.uint8), objects


def draw_background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Sky over ground, each with noise at several scales: [H, W, 3], float32."""
    width, height = size
    horizon = rng.uniform(0.25, 0.6) + 0.06 * _noise(rng, (width, 1), (4, 8))[0]
    ground = np.linspace(0, 1, height)[:, None] > horizon
    sky, earth = rng.uniform((150, 130, 110), (235, 215, 200)), rng.uniform((40, 60, 60), (110, 140, 150))
    light = np.linspace(-18, 18, height)[:, None, None]
    picture = np.where(ground[..., None], earth - light, sky + light)
    grain = np.where(ground, 22 * _noise(rng, size, (6, 16, 40)), 9 * _noise(rng, size, (3, 6)))
    return (picture + grain[..., None]).astype(np.float32)


def _noise(rng: np.random.Generator, size: tuple[int, int], scales: tuple[int, ...]) -> np.ndarray:
    """Smooth noise [H, W] of about unit variance: random grids of several resolutions, interpolated and added."""
    layers = [cv2.resize(rng.normal(size=(scale, scale)), size, interpolation=cv2.INTER_CUBIC) for scale in scales]
    return np.sum(layers, 0) / len(layers) ** 0.5


def draw_object(
    rng: np.random.Generator, picture: np.ndarray, label: int, place: np.ndarray, radii: np.ndarray
) -> np.ndarray:
    """Draws one object into the picture and returns its mask [H, W]."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(np.float32)
    u, v = (x - place[0]) / radii[0], (y - place[1]) / radii[1]
    power = rng.choice([2.0, 2.6, 6.0])  # from an ellipse to a rounded box
    distance = (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)
    mask = distance < 1
    striped = (v < 0, v > 0, distance < 0.66, distance > 0.66)[label]
    angle, period = rng.uniform(0, np.pi), max(3.0, radii.min() / rng.uniform(2.5, 4))
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    spots = np.sin(2 * np.pi * x / (2 * period)) * np.sin(2 * np.pi * y / (2 * period))
    other = rng.choice([0.0, 0.5]) * spots
    first, second = rng.uniform(20, 235, (2, 3))
    if np.abs(first - second).sum() < 160:  # stripes must be seen
        second = (first + 128) % 256
    blend = np.where(striped, np.sign(wave), other)[..., None]
    color = (first + second) / 2 + (first - second) / 2 * blend
    shade = (14 * (1 - distance.clip(0, 1)) - 7)[..., None]
    picture[mask] = (color + shade)[mask]
    return mask
