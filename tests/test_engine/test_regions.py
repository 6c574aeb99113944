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
from drconv_mm.layers import observe_regions


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
    assert not model.conv._observers and not model.data_preprocessor._forward_hooks


def test_maps_lie_on_the_pixels_that_they_are_of():
    recorder, regions = RegionRecorder(nn.Identity()), np.zeros((16, 24), np.uint16)
    regions[:, 6:12] = 4
    recorder.regions, recorder._padded = {"a": (regions, 8)}, (32, 48)  # of which the image has 24 x 24
    tile = recorder.picture(torch.zeros(3, 24, 24))[18:, 240:]
    for half, region in ((tile[:, :120], 0), (tile[:, 120:], 4)):
        assert (half == (0.55 * PALETTE[region]).astype(np.uint8)).all()


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


class Slides(nn.Module):
    """Runs its backbone on crops, then its second stage on proposals."""

    def __init__(self, crop):
        super().__init__()
        self.data_preprocessor = Batch()
        self.backbone = DRConv2d(3, 3, 3, padding=1)
        self.roi_head = DRConv2d(3, 3, 3, padding=1)
        self.mask = DRConv2d(3, 3, 3, padding=1)
        self.crop = crop

    def forward(self, images):
        inputs = self.data_preprocessor(images)["inputs"]
        for left in range(0, inputs.shape[3], self.crop):
            features = self.backbone(inputs[..., left : left + self.crop])
        self.roi_head(features[..., :4, :4])
        self.mask(features.repeat(2, 1, 1, 1)[..., :4, :4])


class Batch(nn.Module):
    def forward(self, images):
        return {"inputs": images}


def test_recorder_leaves_out_maps_of_parts_of_the_image():
    image = torch.rand(1, 3, 8, 16) * 255
    with RegionRecorder(Slides(16)) as recorder:
        recorder.model(image)
    assert list(recorder.regions) == ["backbone"] and recorder.regions["backbone"][0].shape == (8, 16)
    with RegionRecorder(Slides(16), ["roi_head", "mask"]) as recorder:
        recorder.model(image)
    assert not recorder.regions and "roi_head: its maps are of parts of the image" in recorder.why_empty()
    with RegionRecorder(Slides(8)) as recorder:
        recorder.model(image)
    assert not recorder.regions and "ran on 8 x 8 pixels of 8 x 16; to see the whole" in recorder.why_empty()
    assert not recorder.model.backbone._forward_pre_hooks


def test_recorder_bears_an_empty_batch_and_hundreds_of_regions():
    layer = DRConv2d(3, 3, 3, padding=1, num_regions=300)
    all_last = observe_regions(layer, lambda name, regions, m: torch.full_like(regions, 299))
    with all_last, RegionRecorder(layer) as recorder:
        layer(torch.rand(0, 3, 8, 8))
        assert recorder.regions == {} and recorder.why_empty() == "no DRConv layer ran"
        layer(torch.rand(1, 3, 8, 8))
    assert (recorder.regions[""][0] == 299).all()
    recorder.picture(torch.rand(3, 8, 8))


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
