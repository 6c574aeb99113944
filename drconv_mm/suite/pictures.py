"""Pictures of a finished run: predictions beside the ground truth, and region maps of its DRConv layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, FUNCTIONS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..checkpoint import read_checkpoint
from ..engine.model import build_model
from ..engine.regions import PALETTE, RegionRecorder, region_entropy, region_shares, save_picture
from ..files import write_whole

SCORE = 0.3  # detections below are not drawn, as OpenMMLab's own tools do
_IOU = 0.5  # of a detection that has found an object
_SIDE = 320  # longest side of a tile, pixels
_PAIRS = 200  # of faces, that the threshold is chosen on
_WHITE, _INK = (255, 255, 255), (27, 36, 48)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


class Drawn(NamedTuple):
    """A picture [H, W, 3] (uint8, RGB), what it shows, and its kind: ``'predictions'`` or ``'regions'``."""

    picture: np.ndarray
    caption: str
    kind: str


def draw_run(config: Config, checkpoint: Path, out_dir: Path, count: int = 4) -> list[dict[str, str]]:
    """Draws a few validation images as a run's model sees them; the same images for each model of a data set.

    What is drawn follows from what the model predicts: boxes, a map of classes, a class, or, for a data set of pairs of
    faces, whether a pair is one person. Of a model that predicts something else there are region maps alone.

    Args:
        config: The run's.
        checkpoint: Its weights.
        out_dir: Where ``predictions_<i>.jpg``, ``regions_<i>.jpg`` and ``pictures.json`` go.
        count: Images, or pairs of faces.

    Returns:
        What ``pictures.json`` holds: a list of ``dict(file=..., caption=..., kind='predictions' or 'regions')``.

    Raises:
        CheckpointError: The checkpoint can't be read, or holds more than weights.
    """
    model = build_model(config).eval()
    model.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    dataset, collate = DATASETS.build(config.val_dataloader.dataset), collate_of(config.val_dataloader)
    # Pairs of templates number sets of images, not images.
    pairs = dataset.metainfo.get("pairs") is not None and "templates" not in dataset.metainfo
    with torch.no_grad():
        drawn = list((_draw_faces if pairs else _draw_images)(model, dataset, collate, count))
    entries, numbers = [], {"predictions": 0, "regions": 0}
    for picture, caption, kind in drawn:
        file = f"{kind}_{numbers[kind]}.jpg"
        numbers[kind] += 1
        save_picture(out_dir / file, picture)
        entries.append({"file": file, "caption": caption, "kind": kind})
    write_whole(out_dir / "pictures.json", json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    return entries


def collate_of(loader: Config) -> Callable[[list], object]:
    """What makes a batch of items, as the Runner chooses it from a loader's config."""
    given = loader.get("collate_fn", {"type": "pseudo_collate"})
    if callable(given):
        return given
    settings = dict(given)
    kind = settings.pop("type")
    return partial(FUNCTIONS.get(kind) if isinstance(kind, str) else kind, **settings)


def spread(candidates: Sequence[int], count: int) -> list[int]:
    """Up to ``count`` of the candidates, spread evenly."""
    places = np.unique(np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(int))
    return [int(candidates[place]) for place in places]


def _draw_images(model: nn.Module, dataset: Dataset, collate: Callable, count: int) -> Iterator[Drawn]:
    """Of a detector, segmentor or classifier."""
    with_objects = [i for i in range(len(dataset)) if dataset.get_data_info(i).get("instances", True)]
    recorders = []
    for index in spread(with_objects, count):
        item = dataset[index]
        with RegionRecorder(model) as recorder:
            found = model.test_step(collate([item]))
        image = item["inputs"]  # as the toolboxes' pipelines pack it: BGR
        recorders.append((recorder, image))
        found = found[0] if isinstance(found, (list, tuple)) and found else found
        canvas = np.ascontiguousarray(image.flip(0).permute(1, 2, 0).byte().numpy())
        fields = found.keys() if isinstance(found, BaseDataElement) else ()
        if "pred_instances" in fields:
            picture, caption = _boxes(canvas, dataset, index, found)
        elif "pred_sem_seg" in fields:
            picture, caption = _classes_of_pixels(canvas, dataset, found)
        elif "pred_score" in fields:
            picture, caption = _class(canvas, dataset, found)
        else:
            there = sorted(found.keys()) if hasattr(found, "keys") else type(found).__name__
            print(
                f"no picture of a prediction: {type(model).__name__} predicts {there}; what can be "
                "drawn is pred_instances (detection), pred_sem_seg (segmentation) and pred_score (classification)"
            )
            continue
        name = Path(str(found.metainfo.get("img_path", index))).name
        yield Drawn(picture, f"{name}: {caption}", "predictions")
    yield from _draw_regions(recorders)


def _draw_regions(recorders: list[tuple[RegionRecorder, Tensor]]) -> Iterator[Drawn]:
    layers = telling_layers([recorder.regions for recorder, _ in recorders])
    if recorders and not layers:
        empty = [recorder for recorder, _ in recorders if not recorder.regions]
        print(f"no picture of regions: {empty[0].why_empty() if empty else 'no DRConv layer ran for every image'}")
    for recorder, image in recorders if layers else ():
        recorder.regions = {name: recorder.regions[name] for name in layers}
        # One row of the image and a map a layer, made two rows, which a phone can show.
        tiles = np.hsplit(recorder.picture(image), 1 + len(layers))
        tiles += [np.full_like(tiles[0], 255)] * (len(tiles) % 2)
        picture = np.vstack([np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles), 2)])
        found = [
            f"{name} ({regions.shape[0]} x {regions.shape[1]}) uses {len(np.unique(regions))} of {number} regions"
            for name, (regions, number) in recorder.regions.items()
        ]
        yield Drawn(picture, "; ".join(found), "regions")


def telling_layers(maps: list[dict[str, tuple[np.ndarray, int]]], most: int = 3) -> list[str]:
    """Of the layers with the finest map, of those with the next finest, ..., the one that divides images most evenly.

    Those that did not run for every image, such as of a mask head where nothing was detected, are left out.

    Args:
        maps: For each image the map of each layer and its number of regions, as `RegionRecorder` has them.
        most: Layers at most.
    """

    def entropy(name: str) -> float:
        counts = sum(np.bincount(image[name][0].ravel(), minlength=image[name][1]) for image in maps)
        return region_entropy(region_shares(torch.from_numpy(counts)))

    sizes: dict[int, list[str]] = {}
    for name in maps[0] if maps else ():
        if not all(name in image for image in maps):
            continue
        regions, _ = maps[0][name]
        sizes.setdefault(regions.size, []).append(name)
    return [max(sizes[size], key=entropy) for size in sorted(sizes, reverse=True)[:most]]


# Detection


def _boxes(canvas: np.ndarray, dataset: Dataset, index: int, found: object) -> tuple[np.ndarray, str]:
    scale = np.tile(found.metainfo.get("scale_factor", (1, 1)), 2)  # what is predicted is of the original size
    instances = dataset.get_data_info(index)["instances"]
    objects = [i for i in instances if not i.get("ignore_flag")]
    truth = np.array([i["bbox"] for i in objects], float).reshape(-1, 4), np.array([i["bbox_label"] for i in objects])
    kept = found.pred_instances[found.pred_instances.scores >= SCORE]
    kept = kept[kept.scores.argsort()]  # the surest is drawn last, over the others
    boxes, labels, scores = (kept[name].cpu().numpy() for name in ("bboxes", "labels", "scores"))
    classes, colors = dataset.metainfo["classes"], _palette(dataset)
    left = _draw_boxes(canvas, truth[0] * scale, [classes[label] for label in truth[1]], [colors[i] for i in truth[1]])
    names = [f"{classes[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    right = _draw_boxes(canvas, boxes * scale, names, [colors[label] for label in labels])
    hits = count_found(*truth, boxes, labels, scores)
    caption = (
        f"{_count(len(objects), 'object')}, {hits} found by {_count(len(boxes), 'detection')} with a score of {SCORE} "
        f"or more (same class, IoU of {_IOU} or more)"
    )
    return _side_by_side([("ground truth", left), ("prediction", right)]), caption


def count_found(
    boxes: np.ndarray, labels: np.ndarray, found: np.ndarray, found_labels: np.ndarray, scores: np.ndarray
) -> int:
    """How many objects detections have found, each at most one, the surest detection first.

    Args:
        boxes: Of the objects, ``[n, 4]``: x1, y1, x2, y2.
        labels: Their classes, ``[n]``.
        found: Of the detections, ``[k, 4]``.
        found_labels: Their classes, ``[k]``.
        scores: Their scores, ``[k]``.
    """
    free = np.ones(len(boxes), bool)
    for i in np.argsort(-scores, kind="stable"):
        corner, other = np.maximum(boxes[:, :2], found[i, :2]), np.minimum(boxes[:, 2:], found[i, 2:])
        common = (other - corner).clip(0).prod(1)
        union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (found[i, 2:] - found[i, :2]).prod() - common
        overlap = np.where(free & (labels == found_labels[i]), common / np.maximum(union, 1e-9), 0)
        if len(overlap) and overlap.max() >= _IOU:
            free[overlap.argmax()] = False
    return int((~free).sum())


def _draw_boxes(canvas: np.ndarray, boxes: np.ndarray, names: list[str], colors: list[tuple]) -> np.ndarray:
    picture = _fit(canvas)
    factor = picture.shape[1] / canvas.shape[1]
    for box, name, color in zip(boxes, names, colors, strict=True):
        left, top, right, bottom = (round(factor * float(edge)) for edge in box)
        cv2.rectangle(picture, (left, top), (right, bottom), color, 2)
        (wide, tall), _ = cv2.getTextSize(name, _FONT, 0.38, 1)
        left, top = max(0, min(left, picture.shape[1] - wide - 2)), max(top, tall + 4)
        cv2.rectangle(picture, (left, top - tall - 4), (left + wide + 2, top), color, -1)
        cv2.putText(picture, name, (left + 1, top - 3), _FONT, 0.38, _readable_on(color), 1, cv2.LINE_AA)
    return picture


# Segmentation


def _classes_of_pixels(canvas: np.ndarray, dataset: Dataset, found: object) -> tuple[np.ndarray, str]:
    prediction = found.pred_sem_seg.data[0].cpu().numpy().astype(np.int64)
    truth = found.gt_sem_seg.data[0].cpu().numpy().astype(np.int64)
    if truth.shape != prediction.shape:
        truth = _resize_labels(truth, prediction.shape)
    classes, colors = dataset.metainfo["classes"], _palette(dataset)
    labelled = truth < len(classes)
    present = [i for i in range(len(classes)) if (truth == i).any() or (prediction == i).any()]
    tiles = []
    for title, labels in (("ground truth", truth), ("prediction", prediction)):
        large = _fit(canvas)
        whole = _resize_labels(labels, large.shape[:2])
        for i in present:
            mask = whole == i
            large[mask] = (0.4 * large[mask] + 0.6 * np.array(colors[i])).astype(np.uint8)
        tiles.append((title, large))
    picture = _side_by_side(tiles)
    legend = _legend(picture.shape[1], [classes[i] for i in present], [colors[i] for i in present])
    right = float((prediction == truth)[labelled].mean()) if labelled.any() else float("nan")
    return np.vstack([picture, legend]), f"{right:.0%} of the labelled pixels are right, {len(present)} classes"


def _resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(labels.astype(np.int16), size[::-1], interpolation=cv2.INTER_NEAREST)


def _legend(width: int, names: list[str], colors: list[tuple]) -> np.ndarray:
    """Names beside squares of their colours, in as many lines as it takes."""
    places, x, y = [], 6, 0
    for name in names:
        wide = 26 + cv2.getTextSize(name, _FONT, 0.4, 1)[0][0]
        if x + wide > width and x > 6:
            x, y = 6, y + 18
        places.append((x, y))
        x += wide
    strip = np.full((y + 22, width, 3), 255, np.uint8)
    for name, color, (left, top) in zip(names, colors, places, strict=True):
        cv2.rectangle(strip, (left, top + 6), (left + 10, top + 16), color, -1)
        cv2.putText(strip, name, (left + 15, top + 15), _FONT, 0.4, _INK, 1, cv2.LINE_AA)
    return strip


# Classification


def _class(canvas: np.ndarray, dataset: Dataset, found: object) -> tuple[np.ndarray, str]:
    scores, truth = found.pred_score.cpu().numpy(), int(found.gt_label[0])
    classes = dataset.metainfo["classes"]
    best = np.argsort(-scores, kind="stable")[:3]
    image = _fit(canvas, 240)
    panel = np.full((image.shape[0], _SIDE, 3), 255, np.uint8)
    step = min(60, image.shape[0] // (len(best) + 1))
    for row, label in enumerate(best):
        y = row * step + 10
        color = (0, 114, 178) if label == truth else (160, 160, 160)
        text = f"{classes[label]} {scores[label]:.2f}" + " (true)" * (label == truth)
        cv2.putText(panel, text, (10, y + 12), _FONT, 0.45, _INK, 1, cv2.LINE_AA)
        length = int(np.nan_to_num(scores[label]) * (_SIDE - 20))
        cv2.rectangle(panel, (10, y + 18), (10 + length, y + 28), color, -1)
    verdict = "right" if best[0] == truth else f"wrong, the image shows {classes[truth]}"
    picture = _side_by_side([(f"ground truth: {classes[truth]}", image), ("prediction", panel)])
    return picture, f"predicted {classes[best[0]]} with probability {scores[best[0]]:.2f}: {verdict}"


# Faces


def _draw_faces(model: nn.Module, dataset: Dataset, collate: Callable, count: int) -> Iterator[Drawn]:
    """Pairs of faces, of one person and of two in turn, with the threshold that is best on pairs of the same set."""
    pairs = dataset.metainfo["pairs"]
    first, second, same = (np.asarray(pairs[name]) for name in ("first", "second", "same"))
    chosen = np.array(sorted(i for kind in (True, False) for i in spread(np.flatnonzero(same == kind), _PAIRS // 2)))
    images = sorted({int(i) for i in (*first[chosen], *second[chosen])})
    embeddings: dict[int, np.ndarray] = {}
    for start in range(0, len(images), 32):
        found = model.test_step(collate([dataset[i] for i in images[start : start + 32]]))
        embeddings.update((int(sample["index"]), sample["embedding"].cpu().numpy()) for sample in found)
    cosines = {int(i): float(embeddings[int(first[i])] @ embeddings[int(second[i])]) for i in chosen}
    threshold = best_threshold(np.array(list(cosines.values())), same[chosen])
    shown = [spread([i for i in cosines if same[i] == kind], (count + kind) // 2) for kind in (True, False)]
    recorders = []
    for i in sorted(shown[0] + shown[1]):
        faces = [dataset[int(member[i])]["inputs"] for member in (first, second)]
        accepted = cosines[i] >= threshold
        truth, verdict = ("one person" if value else "two persons" for value in (same[i], accepted))
        tiles = [np.ascontiguousarray(face.permute(1, 2, 0).numpy()) for face in faces]
        titles = (f"ground truth: {truth}", f"cosine {cosines[i]:.2f}: {verdict}")
        picture = _side_by_side([(title, _fit(tile, 240)) for title, tile in zip(titles, tiles, strict=True)])
        caption = (
            f"Pair {i}, {truth}: cosine {cosines[i]:.2f} against a threshold of {threshold:.2f}, taken for {verdict}: "
            f"{'right' if accepted == same[i] else 'wrong'}"
        )
        yield Drawn(picture, caption, "predictions")
        with RegionRecorder(model) as recorder:
            model.test_step(collate([dataset[int(first[i])]]))
        recorders.append((recorder, faces[0]))
    yield from _draw_regions(recorders)


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The score at or above which most pairs are taken rightly, the lowest of equally good ones.

    Args:
        scores: ``[P]``.
        same: bool ``[P]``.
    """
    candidates = np.unique(scores)
    return float(candidates[np.argmax([((scores >= value) == same).mean() for value in candidates])])


# Tiles


def _palette(dataset: Dataset) -> list[tuple[int, int, int]]:
    """A colour a class: the data set's own where it has one for each, else one that the colour-blind tell apart."""
    classes, own = dataset.metainfo["classes"], dataset.metainfo.get("palette")
    few = PALETTE[:-1]  # without black
    if len(classes) <= len(few) and (own is None or len(own) != len(classes)):
        return [tuple(map(int, color)) for color in few[: len(classes)]]
    if own is not None and len(own) >= len(classes):
        return [tuple(map(int, color)) for color in own]
    hues = np.uint8([[[180 * i // len(classes), 200, 220 - 70 * (i % 2)] for i in range(len(classes))]])
    return [tuple(map(int, color)) for color in cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0]]


def _readable_on(color: tuple) -> tuple:
    return _INK if np.dot(color, (0.299, 0.587, 0.114)) > 140 else _WHITE


def _fit(picture: np.ndarray, side: int = _SIDE) -> np.ndarray:
    """The picture with its longest side as asked."""
    factor = side / max(picture.shape[:2])
    size = tuple(max(1, round(factor * length)) for length in picture.shape[1::-1])
    return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)


def _side_by_side(tiles: list[tuple[str, np.ndarray]], gap: int = 6) -> np.ndarray:
    """Pictures of one height, each below its title."""
    parts = []
    for title, picture in tiles:
        strip = np.full((22, picture.shape[1], 3), 255, np.uint8)
        size = 0.45
        while size > 0.25 and cv2.getTextSize(title, _FONT, size, 1)[0][0] > strip.shape[1] - 8:
            size -= 0.02
        cv2.putText(strip, title, (4, 15), _FONT, size, _INK, 1, cv2.LINE_AA)
        parts += [np.vstack([strip, picture]), np.full((22 + picture.shape[0], gap, 3), 255, np.uint8)]
    return np.hstack(parts[:-1])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
