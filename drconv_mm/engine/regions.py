"""How a layer uses its regions, as numbers and as pictures."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..layers.drconv import observe_regions

# A qualitative colormap of eight that stays apart for the colour-blind (Okabe and Ito, 2008), RGB.
PALETTE = np.array(
    [
        [230, 159, 0],
        [86, 180, 233],
        [0, 158, 115],
        [240, 228, 66],
        [0, 114, 178],
        [213, 94, 0],
        [204, 121, 167],
        [0, 0, 0],
    ],
    dtype=np.uint8,
)


def region_shares(counts: Tensor) -> Tensor:
    """Share of each region from its number of pixels ``[m]``; they sum to 1."""
    return counts.double() / counts.sum().clamp_min(1)


def region_entropy(shares: Tensor) -> float:
    """Entropy of the shares ``[m]`` in units of log m: 0 where one region has all, 1 where all have the same."""
    if len(shares) < 2:
        return 0.0
    used = shares[shares > 0]
    return max(0.0, float(-(used * used.log()).sum() / np.log(len(shares))))


def color_regions(regions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The region map ``[Ho, Wo]`` as an RGB picture ``[H, W, 3]`` of ``size`` (H, W), each pixel of it a block."""
    palette = PALETTE[np.arange(int(regions.max(initial=0)) + 1) % len(PALETTE)]
    # From the ninth region on the colours come again, darker each time.
    palette = palette * (0.6 ** (np.arange(len(palette)) // len(PALETTE)))[:, None]
    picture = palette.astype(np.uint8)[regions]
    return cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)


class RegionRecorder:
    """While entered, keeps the region maps of the first image of the batch that a model runs, and draws them.

    A map that is not of the whole image is left out: of a crop, as mmseg's ``test_cfg.mode='slide'`` makes them, or of
    a detector's proposal.

    Args:
        model: A model of one of the toolboxes: its ``data_preprocessor`` says how images were padded, its ``backbone``
            what part of them runs.
        layers: Names of the layers to keep; None for all.
        max_layers: Layers in a picture at most, spread evenly over the model.
    """

    def __init__(self, model: nn.Module, layers: list[str] | None = None, max_layers: int = 11):
        self.model = model
        self.layers = layers
        self.max_layers = max_layers
        self.regions: dict[str, tuple[np.ndarray, int]] = {}
        self._padded: tuple[int, int] | None = None
        self._batch: int | None = None
        self._part: tuple[int, int] | None = None  # of the padded image, that runs now; None for the whole
        self._left_out: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> RegionRecorder:
        def keep_regions(name: str, regions: Tensor, num_regions: int) -> None:
            # The first run of the layer: later ones may see the mirror image, or a smaller level of a pyramid.
            if name in self.regions or (self.layers is not None and name not in self.layers):
                return
            if self._part is not None:
                self._left_out[name] = (
                    f"the backbone ran on {self._part[0]} x {self._part[1]} pixels of "
                    f"{self._padded[0]} x {self._padded[1]}; to see the whole image's regions set "
                    "model.test_cfg.mode='whole', and leave out test-time scales"
                )
            elif "roi_head" in name.split(".") or self._batch not in (None, len(regions)):
                self._left_out[name] = "its maps are of parts of the image, such as proposals; see other layers"
            elif len(regions):
                self.regions[name] = (regions[0].cpu().numpy().astype(np.uint16), num_regions)

        def keep_size(module: nn.Module, args: tuple, output: dict) -> None:
            self._batch, self._padded = len(output["inputs"]), tuple(output["inputs"].shape[-2:])

        def keep_part(module: nn.Module, args: tuple) -> None:
            if args and isinstance(args[0], Tensor):
                size = tuple(args[0].shape[-2:])
                self._batch, self._part = len(args[0]), None if self._padded in (None, size) else size

        self._stack.enter_context(observe_regions(self.model, keep_regions))
        preprocessor, backbone = (getattr(self.model, name, None) for name in ("data_preprocessor", "backbone"))
        if preprocessor is not None:
            self._stack.callback(preprocessor.register_forward_hook(keep_size).remove)
        if isinstance(backbone, nn.Module):
            self._stack.callback(backbone.register_forward_pre_hook(keep_part).remove)
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def why_empty(self) -> str:
        """Says why there is no map to draw."""
        for name, reason in self._left_out.items():
            return f"no map of a DRConv layer is of the whole image: {name}: {reason}"
        return "no DRConv layer ran"

    def picture(self, image: Tensor) -> np.ndarray:
        """The maps over the image they belong to.

        Args:
            image: ``[3, H, W]``, 0 to 255, as the pipeline packed it: BGR, as the toolboxes', unless the model's
                ``data_preprocessor.channel_order`` is ``'rgb'``. The model padded it to the right and below.

        Returns:
            ``[H', W', 3]``, uint8, RGB.
        """
        height, width = image.shape[-2:]
        padded = self._padded or (height, width)
        names = list(self.regions)
        if len(names) > self.max_layers:
            names = [names[i] for i in np.linspace(0, len(names) - 1, self.max_layers).round().astype(int)]
        maps = {}
        for name in names:
            regions, num_regions = self.regions[name]
            whole = cv2.resize(regions, (padded[1], padded[0]), interpolation=cv2.INTER_NEAREST)
            maps[name] = whole[:height, :width], num_regions
        order = getattr(getattr(self.model, "data_preprocessor", None), "channel_order", "bgr")
        array = (image if order == "rgb" else image.flip(0)).permute(1, 2, 0).float().clamp(0, 255).byte().cpu().numpy()
        return draw_regions(np.ascontiguousarray(array), maps)


def draw_regions(image: np.ndarray, regions: dict[str, tuple[np.ndarray, int]], alpha: float = 0.55) -> np.ndarray:
    """The image, then the region map of each layer over it, in rows of up to four, each with a caption.

    Args:
        image: ``[H, W, 3]``, uint8, RGB.
        regions: For each layer its map ``[Ho, Wo]``, which covers the image, and m.
        alpha: Weight of the map over the image, 0 to 1.

    Returns:
        ``[H', W', 3]``, uint8, RGB.
    """
    # Small pictures would make the captions unreadable.
    scale = max(1, round(240 / image.shape[1]))
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    tiles = [_captioned(image, "input")]
    for name, (layer_regions, num_regions) in regions.items():
        colored = color_regions(layer_regions, image.shape[:2])
        blended = (alpha * colored + (1 - alpha) * image).astype(np.uint8)
        shares = region_shares(torch.from_numpy(np.bincount(layer_regions.ravel(), minlength=num_regions)))
        tiles.append(_captioned(blended, f"{name}  entropy {region_entropy(shares):.2f}"))
    columns = min(4, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def _captioned(picture: np.ndarray, text: str) -> np.ndarray:
    strip = np.full((18, picture.shape[1], 3), 255, dtype=np.uint8)
    size = 0.4
    while size > 0.2 and cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0] > strip.shape[1] - 6:
        size -= 0.02
    cv2.putText(strip, text, (3, 13), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, picture])


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Writes an RGB picture, making its folder.

    Raises:
        OSError: The file could not be written.
    """
    path = Path(path)
    try:
        encoded, data = cv2.imencode(path.suffix or ".png", picture[..., ::-1])
    except cv2.error:  # of a suffix that names no format
        encoded = False
    if not encoded:
        raise OSError(f"{path}: the picture could not be encoded; use a name ending in .png or .jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())
