"""Drawn faces: a person is a row of numbers, and a picture is that person under one pose, light and expression.

Lengths are in half-heights of the head. The face's points lie on an ellipsoid, which is turned and projected, so that
a turned head shifts eyes, nose and mouth against the outline as a real one does.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike

Points = ArrayLike  # [n, 2], across to the right and down, from the middle of the head
Color = ArrayLike  # blue, green, red, as OpenCV has them

# From dark to light.
_SKIN = np.array([(60, 84, 132), (84, 118, 172), (120, 156, 208), (158, 188, 232), (182, 206, 242)], np.float64)
_HAIR = ((22, 20, 24), (30, 44, 66), (42, 72, 116), (92, 148, 196), (40, 70, 150), (150, 152, 156))
_IRIS = ((30, 56, 92), (52, 92, 96), (90, 120, 80), (150, 120, 80), (110, 100, 90))
_HAIR_STYLES = ("bald", "crop", "parting", "fringe", "bob", "long", "curls")
_LID = (34, 30, 36)
# Drawn larger and shrunk: that smooths the edges.
_OVERSAMPLING = 2


@dataclass(frozen=True)
class Person:
    """What stays the same in all pictures of somebody."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    hair_style: str
    hair_line: float
    hair_volume: float
    parting: float
    width: float
    jaw: float
    chin: float
    ear: float
    eye_distance: float
    eye_height: float
    eye_width: float
    eye_opening: float
    eye_slant: float
    iris_size: float
    brow_height: float
    brow_thickness: float
    brow_arch: float
    brow_slant: float
    nose_length: float
    nose_width: float
    mouth_height: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    lip_color: float
    beard: float
    mole: tuple[float, float] | None
    freckles: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator) -> Person:
        """Somebody new."""
        tone = rng.uniform(0, len(_SKIN) - 1)
        skin = np.array([np.interp(tone, np.arange(len(_SKIN)), channel) for channel in _SKIN.T])
        beard = float(rng.choice([0.0, 0.0, 0.0, 0.0, 0.18, 0.75]))
        return cls(
            skin=skin + rng.normal(0, 5, 3),
            hair=np.array(_HAIR[rng.integers(len(_HAIR))]) * rng.uniform(0.85, 1.15) + rng.normal(0, 4, 3),
            iris=np.array(_IRIS[rng.integers(len(_IRIS))]) * rng.uniform(0.8, 1.2),
            hair_style=str(rng.choice(_HAIR_STYLES[:4] if beard else _HAIR_STYLES)),
            hair_line=rng.uniform(-0.72, -0.5),
            hair_volume=rng.uniform(0.04, 0.16),
            parting=rng.uniform(-0.45, 0.45),
            width=rng.uniform(0.66, 0.84),
            jaw=rng.uniform(1.75, 3.2),
            chin=rng.uniform(0.92, 1.08),
            ear=rng.uniform(0.1, 0.2),
            eye_distance=rng.uniform(0.27, 0.39),
            eye_height=rng.uniform(-0.2, -0.04),
            eye_width=rng.uniform(0.13, 0.19),
            eye_opening=rng.uniform(0.34, 0.62),
            eye_slant=rng.uniform(-0.16, 0.2),
            iris_size=rng.uniform(0.066, 0.088),
            brow_height=rng.uniform(0.15, 0.24),
            brow_thickness=rng.uniform(0.02, 0.065),
            brow_arch=rng.uniform(0.0, 0.09),
            brow_slant=rng.uniform(-0.16, 0.2),
            nose_length=rng.uniform(0.32, 0.5),
            nose_width=rng.uniform(0.1, 0.2),
            mouth_height=rng.uniform(0.5, 0.62),
            mouth_width=rng.uniform(0.2, 0.33),
            upper_lip=rng.uniform(0.025, 0.07),
            lower_lip=rng.uniform(0.035, 0.095),
            lip_color=rng.uniform(0.2, 0.9),
            beard=beard,
            mole=(rng.uniform(-0.4, 0.4), rng.uniform(0.15, 0.45)) if rng.random() < 0.2 else None,
            freckles=rng.uniform((-0.42, 0.0), (0.42, 0.32), (26 * (rng.random() < 0.2), 2)),
        )


def draw_face(person: Person, rng: np.random.Generator, size: int) -> np.ndarray:
    """One picture of somebody, [size, size, 3], uint8, BGR.

    Args:
        person: Who it is.
        rng: Draws all that changes from picture to picture: pose, place, light, expression, ground, glasses, noise.
        size: Side, pixels.
    """
    sketch = _Sketch(rng, size * _OVERSAMPLING)
    smile, opening = rng.normal(0.25, 0.45), max(0.0, rng.normal(-0.02, 0.05))
    lids, brows = rng.uniform(0.72, 1.12), rng.normal(0, 0.025)
    glasses = rng.random() < 0.14
    _draw_behind(sketch, person, rng)
    _draw_head(sketch, person)
    for side in (-1, 1):
        _draw_eye(sketch, person, side, lids)
    _draw_nose(sketch, person)
    _draw_mouth(sketch, person, smile, opening)
    for side in (-1, 1):
        _draw_brow(sketch, person, side, brows)
    _draw_hair(sketch, person)
    if glasses:
        _draw_glasses(sketch, person, rng)
    return _expose(sketch.lit(person.width), rng, size)


class _Sketch:
    """A picture on which faces' points have a place: pose and light of one picture."""

    def __init__(self, rng: np.random.Generator, side: int):
        self.side = side
        columns, rows = rng.integers(2, 7, 2)
        grid = rng.uniform(60, 210) + rng.normal(0, 26, 3) + rng.normal(0, 30, (rows, columns, 1))
        grid = grid + rng.normal(0, 12, (rows, columns, 3))
        self.picture = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
        yaw, pitch, roll = rng.normal(0, (0.26, 0.13, 0.12)).clip(-0.5, 0.5)
        turn_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        turn_x = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
        turn_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
        self.turn = (turn_z @ turn_x @ turn_y)[:2]
        self.scale = side * rng.uniform(0.34, 0.43)
        self.middle = side * (np.array([0.5, 0.53]) + rng.normal(0, 0.035, 2))
        direction = np.array([rng.normal(0, 0.8), rng.normal(-0.35, 0.4), 1.0])
        self.light = direction / np.linalg.norm(direction)
        self.contrast = rng.uniform(0.25, 0.75)

    def place(self, points: Points, depth: float = 0.0, raised: bool = True) -> np.ndarray:
        """Pixels [n, 2] of points [n, 2]; those that are raised lie on the ellipsoid, ``depth`` above it."""
        points = np.asarray(points, np.float64).reshape(-1, 2)
        height = np.sqrt(np.maximum(1 - (points[:, 0] / 0.9) ** 2 - (points[:, 1] / 1.15) ** 2, 0)) * 0.75
        space = np.column_stack([points, (height + depth) if raised else np.full(len(points), depth)])
        return space @ self.turn.T * self.scale + self.middle

    def fill(self, points: Points, color: Color, alpha: float = 1.0, within: np.ndarray | None = None, **place) -> None:
        """A filled polygon; ``within`` is a mask [H, W] (uint8) that it does not leave."""
        path = self._path(points, place)
        if alpha == 1 and within is None:
            cv2.fillPoly(self.picture, [path], _ink(color), cv2.LINE_AA, 4)
            return
        left, top, width, height = cv2.boundingRect(path // 16)
        box = np.s_[max(top - 1, 0) : top + height + 2, max(left - 1, 0) : left + width + 2]
        over = cv2.fillPoly(self.picture.copy(), [path], _ink(color), cv2.LINE_AA, 4)[box]
        share = alpha if within is None else alpha * within[box][..., None] / 255
        self.picture[box] = np.round(share * over + (1 - share) * self.picture[box])

    def stroke(self, points: Points, color: Color, thickness: float, **place) -> None:
        """A line with round ends."""
        width = max(1, round(thickness * self.scale))
        cv2.polylines(self.picture, [self._path(points, place)], False, _ink(color), width, cv2.LINE_AA, 4)

    def mask(self, points: Points) -> np.ndarray:
        """Where a polygon is, [H, W], uint8."""
        empty = np.zeros(self.picture.shape[:2], np.uint8)
        return cv2.fillPoly(empty, [self._path(points, {})], 255, cv2.LINE_AA, 4)

    def _path(self, points: Points, place: dict) -> np.ndarray:
        """Sixteenths of a pixel, as OpenCV takes them."""
        return np.round(self.place(points, **place) * 16).astype(np.int32)[:, None]

    def lit(self, width: float) -> np.ndarray:
        """The picture under its light, float32: an ellipsoid's shading where the head is, none around it."""
        y, x = np.mgrid[: self.side, : self.side].astype(np.float32)
        u, v = (x - self.middle[0]) / (self.scale * width * 1.15), (y - self.middle[1]) / (self.scale * 1.15)
        z = np.sqrt(np.maximum(1 - u * u - v * v, 0))
        lambert = np.maximum(u * self.light[0] + v * self.light[1] + z * self.light[2], 0)
        shade = 1 + self.contrast * np.where(z > 0, lambert - 0.72, -0.25)
        shade = cv2.GaussianBlur(shade.astype(np.float32), (0, 0), self.side / 28)
        return self.picture * shade[..., None]


def _ink(color: Color) -> tuple[float, ...]:
    return tuple(float(channel) for channel in np.clip(color, 0, 255))


def _oval(width: float, height: float, middle: Points, count: int = 24) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.column_stack([width * np.cos(angle), height * np.sin(angle)]) + middle


def _outline(person: Person, grow: float = 0.0) -> np.ndarray:
    """The head's contour [n, 2]: round above, and below as the jaw has it."""
    v = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 33))
    half = person.width * np.where(v < 0, np.sqrt(1 - v**2), (1 - np.abs(v) ** person.jaw) ** (1 / 1.9))
    v = np.where(v > 0, v * person.chin, v)
    right = np.column_stack([half * (1 + grow), v * (1 + grow)])
    return np.concatenate([right, right[::-1] * (-1, 1)])


def _draw_behind(sketch: _Sketch, person: Person, rng: np.random.Generator) -> None:
    """Clothes, neck, ears, and hair that falls behind them."""
    hair = person.hair * 0.8
    if person.hair_style in ("bob", "long", "curls"):
        length = {"bob": 0.75, "long": 1.5, "curls": 0.7}[person.hair_style]
        wide, volume = person.width + 0.08 + person.hair_volume, person.hair_volume
        top = [(wide * np.sin(t), -(1 + volume) * np.cos(t)) for t in np.linspace(-np.pi / 2, np.pi / 2, 17)]
        sketch.fill([*top, (wide * 1.06, length), (-wide * 1.06, length)], hair, raised=False, depth=-0.2)
    if person.hair_style == "curls":
        for t in np.linspace(-0.72 * np.pi, 0.72 * np.pi, 19):
            place = ((person.width + 0.1) * np.sin(t), -1.02 * np.cos(t))
            sketch.fill(_oval(0.17, 0.17, place, 12), hair * (1 + 0.12 * np.cos(9 * t)), raised=False, depth=-0.15)
    cloth = rng.uniform(40, 220, 3)
    neck = [(-0.34, 0.5), (0.34, 0.5), (0.38, 1.45), (-0.38, 1.45)]
    shoulders = [(-1.5, 1.9), (-1.3, 1.38), (-0.42, 1.16), (0, 1.3), (0.42, 1.16), (1.3, 1.38), (1.5, 1.9)]
    sketch.fill(neck, person.skin * 0.78, raised=False, depth=-0.2)
    sketch.fill(shoulders, cloth, raised=False, depth=-0.25)
    for side in (-1, 1):
        ear = _oval(person.ear * 0.62, person.ear * 1.25, (side * (person.width + 0.02), person.eye_height + 0.16))
        sketch.fill(ear, person.skin * 0.9, raised=False, depth=-0.1)


def _draw_head(sketch: _Sketch, person: Person) -> None:
    sketch.fill(_outline(person), person.skin, raised=False)
    for side in (-1, 1):  # cheeks
        color = person.skin * (0.94, 0.93, 1.02)
        sketch.fill(_oval(0.15, 0.12, (side * person.width * 0.58, 0.28)), color, 0.5)
    if person.beard:
        _draw_beard(sketch, person)
    for spot in person.freckles:
        sketch.fill(_oval(0.014, 0.014, spot, 8), person.skin * 0.72)
    if person.mole:
        sketch.fill(_oval(0.03, 0.03, person.mole, 10), person.skin * 0.4)


def _draw_beard(sketch: _Sketch, person: Person) -> None:
    """Down the cheeks, around the mouth and over the chin; it covers the skin as thickly as ``beard`` says."""
    outline = _outline(person)
    low = outline[outline[:, 1] > 0.05]
    u = np.linspace(-0.92, 0.92, 17)
    cheeks = np.column_stack(
        [u * person.width, 0.05 + (person.mouth_height - 0.18) * np.sqrt(1 - (u / 0.92) ** 2) ** 0.7]
    )
    cheeks[:, 1] -= 0.07 * np.exp(-((u / 0.3) ** 2))
    sketch.fill(np.concatenate([low, cheeks]), person.hair * 0.9, person.beard, raised=False, depth=0.02)


def _draw_eye(sketch: _Sketch, person: Person, side: int, lids: float) -> None:
    angle = np.linspace(0, np.pi, 13)
    opening = person.eye_width * person.eye_opening * lids
    along = -np.cos(angle) * person.eye_width
    tilt = -side * person.eye_slant * along
    middle = np.array([side * person.eye_distance, person.eye_height])
    upper = np.column_stack([along, tilt - opening * np.sin(angle) ** 0.8]) + middle
    lower = np.column_stack([along, tilt + 0.7 * opening * np.sin(angle)]) + middle
    sketch.fill(_oval(person.eye_width * 1.3, person.eye_width, middle), person.skin * 0.86, 0.6)
    almond = np.concatenate([upper, lower[::-1]])
    sketch.fill(almond, (238, 240, 242))
    seen = sketch.mask(almond)  # the lids cover the rest of the iris
    sketch.fill(_oval(person.iris_size, person.iris_size, middle), person.iris, within=seen)
    sketch.fill(_oval(person.iris_size * 0.48, person.iris_size * 0.48, middle), (14, 12, 14), within=seen)
    sketch.fill(_oval(0.016, 0.016, middle - 0.028, 8), (255, 255, 255), within=seen)
    sketch.stroke(upper, _LID, 0.03)
    sketch.stroke(lower, person.skin * 0.6, 0.012)


def _draw_brow(sketch: _Sketch, person: Person, side: int, lift: float) -> None:
    along = np.linspace(-1, 1, 9)
    height = person.eye_height - person.brow_height - lift - person.brow_arch * (1 - along**2)
    points = np.column_stack([side * person.eye_distance + along * person.eye_width * 1.15, height])
    points[:, 1] -= side * person.brow_slant * along * person.eye_width
    sketch.stroke(points, person.hair * 0.72, person.brow_thickness, depth=0.02)


def _draw_nose(sketch: _Sketch, person: Person) -> None:
    top, tip, wide = person.eye_height + 0.04, person.eye_height + person.nose_length, person.nose_width
    shadow = [(-0.3 * wide, top), (0.3 * wide, top), (wide, tip), (0, tip + 0.05), (-wide, tip)]
    sketch.fill(shadow, person.skin * 0.9, 0.55, depth=0.03)
    sketch.fill(
        [(-0.05, top), (0.05, top), (0.07, tip - 0.03), (-0.07, tip - 0.03)], person.skin * 1.08, 0.6, depth=0.1
    )
    sketch.fill(_oval(wide * 0.55, wide * 0.42, (0, tip - 0.02)), person.skin * 1.05, 0.7, depth=0.14)
    for side in (-1, 1):
        sketch.fill(_oval(wide * 0.26, wide * 0.15, (side * wide * 0.5, tip + 0.03), 12), person.skin * 0.45, depth=0.1)
        wing = [(side * wide * 0.8, tip - 0.1), (side * wide, tip - 0.02), (side * wide * 0.85, tip + 0.04)]
        sketch.stroke(wing, person.skin * 0.68, 0.018, depth=0.06)


def _draw_mouth(sketch: _Sketch, person: Person, smile: float, opening: float) -> None:
    along = np.linspace(-1, 1, 15)
    wide = person.mouth_width * (1 + 0.12 * smile)
    bow = 0.06 * smile * (0.35 - along**2)
    middle = np.column_stack([along * wide, person.mouth_height + bow])
    arch = np.sqrt(1 - along**2)
    dip = 1 - 0.3 * np.exp(-((along / 0.16) ** 2))
    upper, lower = middle.copy(), middle.copy()
    upper[:, 1] -= person.upper_lip * arch * dip + 0.3 * opening * arch
    lower[:, 1] += person.lower_lip * arch + opening * arch
    lips = person.skin * (1 - 0.4 * person.lip_color) * (0.85, 0.8, 1.0) + np.array([10, 5, 40]) * person.lip_color
    sketch.fill(np.concatenate([upper, lower[::-1]]), lips, depth=0.03)
    if opening > 0.012:
        top, bottom = middle.copy(), middle.copy()
        top[:, 1] -= 0.3 * opening * arch
        bottom[:, 1] += opening * arch
        sketch.fill(np.concatenate([top, bottom[::-1]]), (30, 22, 60), depth=0.03)
        bottom[:, 1] = top[:, 1] + 0.5 * opening * arch
        sketch.fill(np.concatenate([top, bottom[::-1]]), (236, 238, 240), depth=0.03)
    else:
        sketch.stroke(middle, lips * 0.5, 0.018, depth=0.03)


def _draw_hair(sketch: _Sketch, person: Person) -> None:
    """Hair over the forehead."""
    if person.hair_style == "bald":
        return
    grow = person.hair_volume
    wide, line, color = person.width + grow * 0.6, person.hair_line, person.hair
    angle = np.linspace(-np.pi / 2, np.pi / 2, 25)
    cap = np.column_stack([wide * np.sin(angle), -(1 + grow) * np.cos(angle)])
    low = 0.0 if person.hair_style in ("bob", "long", "curls") else -0.22
    cap[:, 1] = np.minimum(cap[:, 1], low)
    u = np.linspace(1, -1, 15)
    inner = np.column_stack([u * person.width * 0.93, line + (low - line) * np.abs(u) ** 3.2])
    if person.hair_style == "parting":
        inner[:, 1] += 0.22 * np.abs(u - person.parting) * (1 - u**2) - 0.1
    if person.hair_style == "fringe":
        inner[:, 1] += (1 - u**4) * (person.eye_height - person.brow_height - line - 0.06) * 0.9
    if person.hair_style == "crop":
        inner[:, 1] -= 0.08 * (1 - u**2)
    both = np.concatenate([cap, inner])
    sketch.fill(both, color, raised=False, depth=0.12)
    for shift in (-0.3, 0.05, 0.35):  # strands
        u = shift + np.array([0.03, 0.12, 0.21])
        strand = np.column_stack([u, -(1 + grow * 0.5) * np.sqrt(1 - u**2) + 0.8 * (u - shift)])
        sketch.stroke(strand, color * 1.12 + 6, 0.02, raised=False, depth=0.12)


def _draw_glasses(sketch: _Sketch, person: Person, rng: np.random.Generator) -> None:
    color, size = rng.uniform(20, 130, 3), rng.uniform(0.2, 0.25)
    for side in (-1, 1):
        lens = _oval(size, size * 0.82, (side * (person.eye_distance + 0.01), person.eye_height + 0.02), 28)
        sketch.stroke([*lens, lens[0]], color, 0.03, depth=0.12)
        sketch.stroke(
            [(side * (person.eye_distance + size), person.eye_height), (side * person.width, person.eye_height + 0.05)],
            color,
            0.03,
            depth=0.02,
        )
    inner = person.eye_distance - size
    sketch.stroke([(-inner, person.eye_height), (inner, person.eye_height)], color, 0.03, depth=0.14)


def _expose(picture: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """What a camera makes of it: sharpness, exposure, white balance and noise."""
    picture = cv2.resize(picture.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.0) * size / 112)
    gain = np.exp(rng.normal(-0.02, 0.17)) * np.exp(rng.normal(0, 0.05, 3))
    gamma = np.exp(rng.normal(0, 0.12))
    picture = 255 * (picture.clip(0, 255) / 255) ** gamma * gain
    return (picture + rng.normal(0, rng.uniform(2, 7), picture.shape)).clip(0, 255).astype(np.uint8)
