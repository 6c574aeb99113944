from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from drconv_mm import DRConv2d
from drconv_mm.engine.regions import (
    PALETTE,
    RegionRecorder,
    color_regions,
    draw_regions,
    region_entropy,
    region_shares,
    save_picture,
)


def test_entropy_is_in_units_of_log_m():
    assert region_entropy(region_shares(torch.tensor([5, 5, 5, 5]))) == pytest.approx(1)
    assert region_entropy(region_shares(torch.tensor([7, 0, 0, 0]))) == 0
    assert region_entropy(region_shares(torch.tensor([1, 1, 0, 0]))) == pytest.approx(0.5)
    assert region_entropy(region_shares(torch.tensor([3]))) == 0


def test_every_region_has_a_colour_of_its_own():
    picture = color_regions(np.arange(16, dtype=np.uint8).reshape(4, 4), (4, 4))
    # Black, the eighth, has no darker shade: it stands for the sixteenth as well.
    assert len({tuple(pixel) for pixel in picture.reshape(-1, 3)}) == 15


def test_recorder_crops_the_padding_away():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.data_preprocessor = Pad()
            self.conv = DRConv2d(3, 4, 3, padding=1)

        def forward(self, image):
            return self.conv(self.data_preprocessor(image)["inputs"])

    class Pad(nn.Module):
        def forward(self, image):
            return {"inputs": nn.functional.pad(image, (0, 12, 0, 8))}

    model, image = Model(), torch.rand(1, 3, 24, 20) * 255
    with RegionRecorder(model) as recorder:
        model(image)
    assert recorder.regions["conv"][0].shape == (32, 32)
    picture = recorder.picture(image[0])
    scale = 240 // 20
    assert picture.shape == (24 * scale + 18, 2 * 20 * scale, 3)
    assert model.conv._observer is None and not model.data_preprocessor._forward_hooks


def test_recorder_keeps_a_layers_first_run_in_the_order_of_channels_that_the_model_has():
    class Mirrored(nn.Module):
        def __init__(self, channel_order=None):
            super().__init__()
            self.data_preprocessor = nn.Identity()
            if channel_order:
                self.data_preprocessor.channel_order = channel_order
            self.conv = DRConv2d(3, 4, 3, padding=1)

        def forward(self, image):
            return self.conv(image) + self.conv(image.flip(3))

    torch.manual_seed(0)
    image = torch.rand(1, 3, 16, 240) * 255
    model = Mirrored()
    with RegionRecorder(model) as recorder:
        model(image)
    with RegionRecorder(model) as alone:
        model.conv(image)
    assert (recorder.regions["conv"][0] == alone.regions["conv"][0]).all()
    assert (recorder.regions["conv"][0] != recorder.regions["conv"][0][:, ::-1]).any()
    tiles = []
    for order in (None, "rgb"):
        with RegionRecorder(Mirrored(order)) as recorder:
            recorder.model(image)
        tiles.append(recorder.picture(image[0])[18:, :240])
    expected = image[0].byte().permute(1, 2, 0).numpy()
    assert (tiles[0] == expected[..., ::-1]).all() and (tiles[1] == expected).all()


def test_recorder_keeps_chosen_layers_and_draws_so_many_spread_over_the_model():
    model, image = nn.Sequential(*(DRConv2d(3, 3, 3, padding=1) for _ in range(5))), torch.rand(1, 3, 24, 20) * 255
    pictures = []
    for arguments in (dict(layers=["0", "2", "4"]), dict(max_layers=3)):
        with RegionRecorder(model, **arguments) as recorder:
            model(image)
        pictures.append(recorder.picture(image[0]))
    assert np.array_equal(*pictures)


def test_picture_has_rows_of_four():
    image = np.zeros((60, 240, 3), np.uint8)
    maps = {f"layer{i}": (np.zeros((6, 24), np.uint8), 8) for i in range(5)}
    assert draw_regions(image, maps).shape == (2 * (60 + 18), 4 * 240, 3)


def test_alpha_is_the_weight_of_the_map():
    image = np.full((60, 240, 3), 100, np.uint8)
    picture = draw_regions(image, dict(layer=(np.zeros((6, 24), np.uint8), 8)), alpha=0.75)
    assert (picture[18:, :240] == 100).all() and (picture[18:, 240:] == (0.75 * PALETTE[0] + 25).astype(np.uint8)).all()


def test_save_picture(tmp_path):
    save_picture(tmp_path / "a/b.png", np.zeros((4, 4, 3), np.uint8))
    assert (tmp_path / "a/b.png").stat().st_size > 0
    with pytest.raises(OSError, match=r"c/b.nonsense: .* use a name ending in .png or .jpg"):
        save_picture(tmp_path / "c/b.nonsense", np.zeros((4, 4, 3), np.uint8))
    assert not (tmp_path / "c").exists()
