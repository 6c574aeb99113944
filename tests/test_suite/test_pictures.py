from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, FUNCTIONS
from mmpretrain.models import ImageClassifier

from drconv_mm.checkpoint import CheckpointError
from drconv_mm.datasets.sample_classification import generate_sample_classification
from drconv_mm.datasets.sample_detection import generate_sample_detection
from drconv_mm.datasets.sample_faces import generate_sample_faces
from drconv_mm.datasets.sample_segmentation import generate_sample_segmentation
from drconv_mm.engine.model import build_model
from drconv_mm.suite.inspection import sample_regions
from drconv_mm.suite.pictures import best_threshold, collate_of, count_found, draw_run, spread, telling_layers

CONFIGS = Path(__file__).parents[2] / "configs"
DRCONV = {"model.backbone.conv_cfg.type": "drconv_mm.DRConv"}


def untrained(
    folder: Path, name: str, data_root: Path, options: dict, change=lambda model: None
) -> tuple[Config, Path]:
    """A config on generated data and the checkpoint of a model that was never trained."""
    config = Config.fromfile(CONFIGS / name)
    config.merge_from_dict({"val_dataloader.dataset.data_root": f"{data_root}/", **options})
    torch.manual_seed(0)
    model = build_model(config)
    change(model)
    checkpoint = folder / "checkpoint.pth"
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    return config, checkpoint


def check(entries: list[dict], folder: Path, predictions: int, regions: int) -> list[str]:
    """Files, list and numbers agree; the captions of the predictions."""
    assert json.loads((folder / "pictures.json").read_text()) == entries
    kinds = [entry["kind"] for entry in entries]
    assert (kinds.count("predictions"), kinds.count("regions")) == (predictions, regions)
    for entry in entries:
        picture = cv2.imread(str(folder / entry["file"]))
        assert picture is not None and picture.std() > 5 and 400 <= picture.shape[1] <= 700
        assert picture.shape[0] <= 800
    assert {path.name for path in folder.iterdir()} == {"pictures.json", *(entry["file"] for entry in entries)}
    return [entry["caption"] for entry in entries if entry["kind"] == "predictions"]


def confidence(bias):
    """How sure a detector is of everything, whatever it sees."""
    return lambda model: torch.nn.init.constant_(model.bbox_head.retina_cls.bias, bias)


def test_detector(tmp_path):
    data = generate_sample_detection(tmp_path / "data", 1, 4)
    objects = json.loads((data / "annotations/instances_val.json").read_text())["annotations"]

    name = "detection/retinanet_r18_fpn_sample-160x120.py"
    config, checkpoint = untrained(tmp_path, name, data, DRCONV, confidence(-0.8))
    captions = check(draw_run(config, checkpoint, tmp_path / "out", 3), tmp_path / "out", 3, 3)
    first = sum(a["image_id"] == 0 and not a["iscrowd"] for a in objects)
    assert captions[0].startswith(f"000000.png: {first} objects, ") and "with a score of 0.3 or more" in captions[0]
    assert [caption[:10] for caption in captions] == ["000000.png", "000002.png", "000003.png"]


def test_pictures_of_a_convolution_without_regions(tmp_path):
    data = generate_sample_detection(tmp_path / "data", 1, 1)
    name = "detection/retinanet_r18_fpn_sample-160x120.py"
    config, checkpoint = untrained(tmp_path, name, data, {}, confidence(-9.0))
    entries = draw_run(config, checkpoint, tmp_path / "out")
    assert "0 found by 0 detections" in check(entries, tmp_path / "out", 1, 0)[0]


class DepthOfAll(ImageClassifier):
    """Predicts what there is no picture for."""

    def predict(self, inputs, data_samples=None, **kwargs):
        found = super().predict(inputs, data_samples, **kwargs)
        for sample in found:
            sample.set_field(sample.pop("pred_score"), "depth")
        return found


def test_a_model_of_another_task_has_region_maps_alone(tmp_path, capsys):
    data = generate_sample_classification(tmp_path / "data", 1, 1, 64)
    config, checkpoint = untrained(tmp_path, "classification/shufflenet-v2-0.5x_sample-64x64.py", data, DRCONV)
    config.model.type = DepthOfAll
    check(draw_run(config, checkpoint, tmp_path / "out", 2), tmp_path / "out", 0, 2)
    printed = capsys.readouterr().out
    assert "DepthOfAll predicts ['depth'" in printed and "what can be drawn is pred_instances" in printed


def test_classifier(tmp_path):
    data = generate_sample_classification(tmp_path / "data", 1, 1, 64)

    def always_the_third(model):
        model.head.fc.bias.data[2] = 50

    name = "classification/shufflenet-v2-0.5x_sample-64x64.py"
    config, checkpoint = untrained(tmp_path, name, data, DRCONV, always_the_third)
    captions = check(draw_run(config, checkpoint, tmp_path / "out"), tmp_path / "out", 4, 4)
    verdicts = [caption.split("probability 1.00: ")[1] for caption in captions]
    shown = ("stripes_above", "stripes_below", None, "stripes_rim")
    assert verdicts == ["right" if name is None else f"wrong, the image shows {name}" for name in shown]


def test_segmentor(tmp_path):
    data = generate_sample_segmentation(tmp_path / "data", 1, 2)
    labels = cv2.imread(str(data / "ann_dir/val/000000.png"), cv2.IMREAD_UNCHANGED)

    def all_background(model):
        torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
        model.decode_head.conv_seg.bias.data = torch.tensor([1.0, 0, 0, 0, 0])

    name = "segmentation/fcn_mobilenet-v2-d8_sample-160x120.py"
    config, checkpoint = untrained(tmp_path, name, data, DRCONV, all_background)
    captions = check(draw_run(config, checkpoint, tmp_path / "out", 2), tmp_path / "out", 2, 2)
    assert captions[0].startswith(
        f"000000.png: {(labels == 0).sum() / (labels != 255).sum():.0%} of the labelled pixels"
    )


def test_faces(tmp_path):
    data = generate_sample_faces(tmp_path / "data", 2, 1, 4, 2, 8)
    config, checkpoint = untrained(tmp_path, "face/mobilefacenet_sample-64x64.py", data, DRCONV)
    captions = check(draw_run(config, checkpoint, tmp_path / "out", 4), tmp_path / "out", 4, 4)
    assert sum("one person: cosine" in caption for caption in captions) == 2
    for caption in captions:
        cosine, threshold = (float(caption.split(word)[1].split()[0].strip(",")) for word in ("cosine", "threshold of"))
        if abs(cosine - threshold) > 0.01:  # two digits tell no more
            assert ("taken for one person" in caption) == (cosine > threshold)
        truth, verdict = caption.split(", ", 1)[1].split(":")[0], caption.split("taken for ")[1].split(":")[0]
        assert caption.endswith("right" if truth == verdict else "wrong")


@pytest.mark.parametrize("kind", ["FaceIdentities", "FaceTemplates"])
def test_faces_without_pairs_of_images_have_region_maps_alone(tmp_path, capsys, kind):
    """Pairs of templates, and a gallery with probes; the loader's own collate_fn stacks the images."""
    data = generate_sample_faces(tmp_path / "data", 2, 1, 3, 2, 2)
    people = sorted(folder.name for folder in (data / "verify").iterdir())
    files = [path.relative_to(data) for path in sorted((data / "verify").rglob("*.png"))]
    (data / "images.txt").write_text("".join(f"{name} {people.index(name.parts[1]) + 900} 1\n" for name in files))
    (data / "templates.txt").write_text("900 901 0\n901 901 1\n")
    folders = dict(gallery="verify", probe="verify", distractor=None)
    config, checkpoint = untrained(tmp_path, "face/mobilefacenet_sample-64x64.py", data, DRCONV)
    dataset = config.val_dataloader.dataset
    config.val_dataloader.dataset = dict(
        type=f"drconv_mm.{kind}",
        data_root=dataset.data_root,
        pipeline=dataset.pipeline,
        **(folders if kind == "FaceIdentities" else dict(images="images.txt", pairs="templates.txt")),
    )
    check(draw_run(config, checkpoint, tmp_path / "out", 2), tmp_path / "out", 0, 2)
    assert "FaceRecognizer predicts ['embedding', 'index']" in capsys.readouterr().out
    regions = sample_regions(build_model(config), config, 2)
    assert regions and all(len(layer["shares"]) == layer["num_regions"] for layer in regions.values())


def test_regions_are_counted_over_images_spread_over_the_set(tmp_path):
    data = generate_sample_classification(tmp_path / "data", 2, 2)
    config, _ = untrained(tmp_path, "classification/resnet18-0.25x_sample-64x64.py", data, DRCONV)
    model = build_model(config)
    last = len(DATASETS.build(config.val_dataloader.dataset)) - 1
    singles = []
    for index in (0, last):
        config.val_dataloader.dataset.indices = [index]
        singles.append(sample_regions(model, config, 1))
    del config.val_dataloader.dataset["indices"]
    found = sample_regions(model, config, 2)
    assert found and any(0 < max(layer["shares"]) < 1 for layer in found.values())
    for name, layer in found.items():
        assert layer["shares"] == pytest.approx(np.mean([single[name]["shares"] for single in singles], 0))


def test_crops_have_no_region_maps_and_a_message_says_why(tmp_path, capsys):
    data = generate_sample_segmentation(tmp_path / "data", 1, 1)
    name = "segmentation/fcn_mobilenet-v2-d8_sample-160x120.py"
    slide = {"model.test_cfg": dict(mode="slide", crop_size=(64, 64), stride=(64, 64))}
    config, checkpoint = untrained(tmp_path, name, data, {**DRCONV, **slide})
    check(draw_run(config, checkpoint, tmp_path / "out"), tmp_path / "out", 1, 0)
    assert re.search(
        r"no picture of regions: .* ran on 64 x 64 pixels of \d+ x \d+; .*mode='whole'", capsys.readouterr().out
    )


@pytest.mark.parametrize("given", [dict(type="pad", value=3), dict(type=partial(dict, value=3)), None])
def test_batches_are_made_as_the_runner_makes_them(given):
    def pad(items, value):
        return dict(items=items, value=value)

    FUNCTIONS.register_module(name="pad", module=pad, force=True)
    try:
        collate = collate_of(Config({} if given is None else dict(collate_fn=given)))
    finally:
        FUNCTIONS.module_dict.pop("pad")
    if given is None:
        assert collate is not None and collate([dict(a=1), dict(a=2)]) == dict(a=[1, 2])
    elif given["type"] == "pad":
        assert collate([1]) == dict(items=[1], value=3)
    else:
        assert collate([("a", 1)]) == dict(a=1, value=3)


def test_drawing_again_gives_the_same(tmp_path):
    data = generate_sample_classification(tmp_path / "data", 1, 1, 64)
    config, checkpoint = untrained(tmp_path, "classification/shufflenet-v2-0.5x_sample-64x64.py", data, DRCONV)
    for folder in ("a", "b"):
        draw_run(config, checkpoint, tmp_path / folder, 2)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_checkpoint_that_holds_code_is_refused(tmp_path):
    data = generate_sample_classification(tmp_path / "data", 1, 1, 64)
    config, checkpoint = untrained(tmp_path, "classification/shufflenet-v2-0.5x_sample-64x64.py", data, {})
    torch.save({"state_dict": {}, "callback": print}, checkpoint)
    with pytest.raises(CheckpointError, match="print"):
        draw_run(config, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_objects_are_found_once_and_by_their_class():
    boxes, labels = np.array([[0, 0, 10, 10], [20, 0, 30, 10.0]]), np.array([0, 1])
    near, twice = np.array([[0, 0, 10, 9], [1, 0, 10, 10], [20, 0, 30, 10.0]]), np.array([0, 0, 0])
    scores = np.array([0.5, 0.9, 0.8])
    assert count_found(boxes, labels, near, twice, scores) == 1
    assert count_found(boxes, labels, near, np.array([0, 0, 1]), scores) == 2
    assert count_found(boxes, labels, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)) == 0
    assert count_found(np.zeros((0, 4)), np.zeros(0, int), near, twice, scores) == 0


def test_threshold_is_the_best_one():
    scores, same = np.array([0.1, 0.2, 0.6, 0.7, 0.3]), np.array([False, False, True, True, True])
    assert best_threshold(scores, same) == 0.3
    rng = np.random.default_rng(0)
    scores, same = rng.normal(size=40), rng.random(40) < 0.5
    best = max(((scores >= value) == same).mean() for value in np.linspace(-4, 4, 2001))
    assert ((scores >= best_threshold(scores, same)) == same).mean() >= best - 1 / 40


def test_layers_shown_are_the_finest_and_the_most_even():
    fine, uneven = np.arange(16, dtype=np.uint8).reshape(4, 4) % 4, np.zeros((4, 4), np.uint8)
    coarse, coarsest = np.zeros((2, 2), np.uint8), np.zeros((1, 1), np.uint8)
    image = {"a": (coarse, 4), "b": (uneven, 4), "c": (fine, 4), "d": (coarsest, 4), "e": (coarsest[:, :0], 4)}
    assert telling_layers([image, image]) == ["c", "a", "d"]
    mask_head = {"f": (fine, 4)}  # does not run where nothing was detected
    assert telling_layers([image | mask_head, image]) == telling_layers([image, image | mask_head]) == ["c", "a", "d"]
    assert telling_layers([{}]) == [] and telling_layers([]) == []


def test_images_are_spread():
    assert spread([3, 5, 7, 9, 11], 3) == [3, 7, 11]
    assert spread([3, 5], 4) == [3, 5] and spread([], 4) == []
