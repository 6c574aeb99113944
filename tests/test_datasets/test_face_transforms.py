from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose

from drconv_mm.datasets.face.transforms import (
    CorruptImage,
    LoadFace,
    PackFace,
    RandomBrightnessContrast,
    RandomShift,
    decode_image,
)


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8), (20, 24))


def test_loads_bytes_or_a_file(image, tmp_path):
    data = cv2.imencode(".png", image)[1].tobytes()
    (tmp_path / "a.png").write_bytes(data)
    results = LoadFace()(dict(img_path=str(tmp_path / "a.png"), label=3))
    assert np.array_equal(results["img"], image) and results["img_shape"] == (24, 20) and results["label"] == 3
    results = LoadFace()(dict(img_bytes=data, img_path="nowhere"))
    assert np.array_equal(results["img"], image) and "img_bytes" not in results
    with pytest.raises(CorruptImage, match="nowhere can't be read: No such file"):
        LoadFace()(dict(img_path="nowhere"))


@pytest.mark.parametrize("extension, flags", [
    (".jpg", []), (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), (".png", []), (".bmp", []),
])  # fmt: skip
def test_every_cut_is_noticed(image, extension, flags):
    data = cv2.imencode(extension, image, flags)[1].tobytes()
    assert decode_image(data, "a").shape == (24, 20, 3)
    assert decode_image(data + bytes(3), "a").shape == (24, 20, 3)  # a few bytes too many do no harm
    if extension != ".bmp":  # which has no mark at its end; what is missing is noticed by the decoder, or is padding
        for size in range(0, len(data) - 4, 7):
            with pytest.raises(CorruptImage, match=f"a is cut off after {size} bytes|a is empty|a can't be decoded"):
                decode_image(data[:size], "a")


def test_gray_and_transparent_images_have_three_channels(image):
    for other in (image[..., 0], np.dstack([image, image[..., :1]])):
        assert decode_image(cv2.imencode(".png", other)[1].tobytes(), "a").shape == (24, 20, 3)


@pytest.mark.parametrize("arguments, most", [(dict(pixels=3), 3), ({}, 4)])
def test_shift_against_indices_that_stop_at_the_edge(image, arguments, most):
    transform, seen = RandomShift(**arguments), set()
    for _ in range(1000):
        state = np.random.get_state()
        shifted = transform(dict(img=image))["img"]
        np.random.set_state(state)
        top, left = np.random.randint(0, 2 * most + 1, 2) - most
        rows, columns = (np.arange(24) + top).clip(0, 23), (np.arange(20) + left).clip(0, 19)
        assert np.array_equal(shifted, image[rows][:, columns])
        seen.add((int(top), int(left)))
    assert len(seen) == (2 * most + 1) ** 2  # each of them


@pytest.mark.parametrize("arguments, most", [((0.4, 0.5), (0.4, 0.5)), ((), (0.2, 0.2))])
def test_brightness_and_contrast_by_their_formula(image, arguments, most):
    transform = RandomBrightnessContrast(*arguments)
    for _ in range(20):
        state = np.random.get_state()
        changed = transform(dict(img=image))["img"]
        np.random.set_state(state)
        brightness, contrast = (1 + share * np.random.uniform(-1, 1) for share in most)
        mean = image.mean()
        expected = (image - mean) * contrast + mean * brightness
        assert np.array_equal(changed, expected.round().clip(0, 255).astype(np.uint8))
    assert np.array_equal(RandomBrightnessContrast(0, 0)(dict(img=image))["img"], image)


def test_packs_rgb(image):
    packed = PackFace()(dict(img=image[:, ::-1], label=3, img_path="a", sample_idx=1))
    assert packed.keys() == {"inputs", "label"} and packed["inputs"].dtype == torch.uint8
    assert torch.equal(packed["inputs"][0], torch.from_numpy(image[:, ::-1, 2].copy()))
    assert PackFace()(dict(img=image, index=5))["index"] == 5


@pytest.mark.parametrize("last, shape", [
    (dict(type="Resize", scale=(112, 112)), (3, 112, 112)), (dict(type="CenterCrop", crop_size=(16, 20)), (3, 20, 16)),
])  # fmt: skip
def test_works_with_mmcv_transforms_and_its_seed(image, last, shape):
    face = "drconv_mm.datasets.face."
    pipeline = Compose([
        dict(type=f"{face}LoadFace"), dict(type="RandomFlip", prob=0.5), dict(type=f"{face}RandomShift", pixels=2),
        dict(type=f"{face}RandomBrightnessContrast"), last, dict(type=f"{face}PackFace"),
    ])  # fmt: skip
    data = cv2.imencode(".png", image)[1].tobytes()

    def draw(seed):
        np.random.seed(seed)
        return torch.stack([pipeline(dict(img_bytes=data, label=0))["inputs"] for _ in range(4)])

    assert draw(0).shape == (4, *shape) and torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


def test_arguments_out_of_range_are_refused():
    for pixels in (0, -1, 1.5):
        with pytest.raises(ValueError, match="pixels must be a whole number of at least 1"):
            RandomShift(pixels)
    for arguments in (dict(brightness=1.5), dict(contrast=-0.1)):
        with pytest.raises(ValueError, match=r"(brightness|contrast) must be in \[0, 1\]"):
            RandomBrightnessContrast(**arguments)
