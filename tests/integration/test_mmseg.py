"""Segmentation under mmseg's own train.py and test.py: Cityscapes' layout, and pairs that differ in one key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from PIL import Image, ImageDraw

from drconv_mm import DRConv2d
from drconv_mm.datasets.sample_segmentation import generate_sample_segmentation

from ..conftest import SHARED
from .toolbox import command, run

pytestmark = pytest.mark.integration

CONFIGS = Path(__file__).parents[2] / "configs/segmentation"
CITYSCAPES, CAMVID, SAMPLE = "80k_cityscapes-512x1024", "camvid-240x180", "sample-160x120"
# Number of dynamic layers by pair, with the default choice of layers.
PAIRS = {
    ("fcn_mobilenet-v2-d8", f"4xb4-{CITYSCAPES}"): 26,
    ("deeplabv3plus_mobilenet-v2-d8", f"4xb4-{CITYSCAPES}"): 26,
    ("pspnet_mobilenet-v2-d8", f"4xb4-{CITYSCAPES}"): 26,
    ("deeplabv3plus_r18-d8", f"4xb2-{CITYSCAPES}"): 8,
    ("deeplabv3plus_r50-d8", f"4xb2-{CITYSCAPES}"): 20,
    ("fcn_unet-s5-d16", "4xb4-160k_cityscapes-512x1024"): 2,
    ("fast_scnn", "8xb4-160k_cityscapes-512x1024"): 6,
    ("fcn_mobilenet-v2-d8", CAMVID): 26,
    ("fast_scnn", CAMVID): 6,
    ("fcn_mobilenet-v2-d8", SAMPLE): 32,
}
FULL_SCALE = CONFIGS / f"fcn_mobilenet-v2-d8-drconv_4xb4-{CITYSCAPES}.py"
NUM_CLASSES = 19
PREFIXES = {
    "train": ("leftImg8bit/train", "gtFine/train"),
    "val": ("leftImg8bit/val", "gtFine/val"),
    "test": ("leftImg8bit/test", "gtFine/test"),
}


def draw_street(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """A frame and its trainIds: sky, buildings, road and cars under noise."""
    width, height = 240, 180
    horizon = int(rng.integers(70, 110))
    image, label = Image.new("RGB", (width, height), (150, 190, 235)), Image.new("L", (width, height), 10)
    shapes = [((0, horizon, width, height), (105, 100, 110), 0)]
    for left in range(0, width, 60):
        top = int(rng.integers(20, horizon - 10))
        shapes.append(((left, top, left + int(rng.integers(30, 55)), horizon), (140, 95, 70), 2))
    for _ in range(3):
        left, top = int(rng.integers(0, width - 40)), int(rng.integers(horizon, height - 20))
        shapes.append(((left, top, left + 40, top + 18), (30, 40, 160), 13))
    for box, colour, number in shapes:
        ImageDraw.Draw(image).rectangle(box, fill=colour)
        ImageDraw.Draw(label).rectangle(box, fill=number)
    noisy = np.asarray(image) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), label


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """Frames in Cityscapes' layout: real ones where there are any."""
    if (SHARED / "camvid").is_dir():
        return SHARED / "camvid"
    root, rng = tmp_path_factory.mktemp("data") / "streets", np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 10)):
        folders = [root / prefix / "drawn" for prefix in PREFIXES[split]]
        for folder in folders:
            folder.mkdir(parents=True)
        for number in range(count):
            image, label = draw_street(rng)
            image.save(folders[0] / f"{number:04d}_leftImg8bit.png")
            label.save(folders[1] / f"{number:04d}_gtFine_labelTrainIds.png")
    return root


def labels_of(image: Path) -> Path:
    """The label file of a frame."""
    parts = ["gtFine" if part == "leftImg8bit" else part for part in image.parts]
    return Path(*parts).with_name(image.name.replace("_leftImg8bit", "_gtFine_labelTrainIds"))


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory, frames) -> Path:
    """The official layout and names; the labels of the test split are void, as the official ones are."""
    root = tmp_path_factory.mktemp("data") / "cityscapes"
    images = {split: sorted((frames / PREFIXES[split][0]).rglob("*.png")) for split in ("train", "val")}
    for split, cities, count in (
        ("train", ("aachen", "bochum"), 2),
        ("val", ("frankfurt",), 2),
        ("test", ("bonn",), 2),
    ):
        for city in cities:
            folders = [root / prefix / city for prefix in PREFIXES[split]]
            for folder in folders:
                folder.mkdir(parents=True)
            for number in range(count):
                source, stem = images["val" if split == "test" else split].pop(0), f"{city}_{number:06d}_000019"
                (folders[0] / f"{stem}_leftImg8bit.png").symlink_to(source)
                target = folders[1] / f"{stem}_gtFine_labelTrainIds.png"
                if split == "test":
                    Image.new("L", Image.open(source).size, 255).save(target)
                else:
                    target.symlink_to(labels_of(source))
    return root


def options(root: Path, scale: str) -> dict:
    """Options that point a config at a small folder and a machine without a GPU."""
    values = {"env_cfg.dist_cfg.backend": "gloo", "default_hooks.logger.interval": 1}
    for loader in ("train", "val", "test"):
        prefix = f"{loader}_dataloader"
        values[f"{prefix}.dataset.data_root"] = root
        values[f"{prefix}.num_workers"], values[f"{prefix}.persistent_workers"] = 0, False
        values[f"{prefix}.dataset.pipeline.{2 if loader == 'train' else 1}.scale"] = scale
    return values


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cityscapes) -> tuple[Path, str]:
    """The full-scale config after two iterations: its folder, and what train.py printed."""
    folder = tmp_path_factory.mktemp("trained")
    values = {
        **options(cityscapes, "(240,180)"),
        "model.data_preprocessor.size": "(96,160)",
        "train_dataloader.dataset.pipeline.3.crop_size": "(96,160)",
        "train_dataloader.batch_size": 2,
        "model.backbone.init_cfg": None,
        "train_cfg.max_iters": 2,
        "train_cfg.val_interval": 2,
        "default_hooks.checkpoint.interval": 1,
    }
    output = run(command("mmseg", "train.py", FULL_SCALE, "--work-dir", "work", options=values), folder)
    # test.py writes the config that it ran over the one in its work directory.
    (folder / "work" / FULL_SCALE.name).rename(folder / "trained.py")
    return folder, output


def path_of(network: str, suffix: str, kind: str = "") -> Path:
    return CONFIGS / f"{network}{kind}_{suffix}.py"


def build(config: Config) -> torch.nn.Module:
    """The model without pretrained weights and, as train.py does it on one device, without SyncBN."""
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    config.model.backbone.init_cfg = None
    return revert_sync_batchnorm(MODELS.build(config.model))


def dynamic_layers(model: torch.nn.Module) -> dict[str, DRConv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, DRConv2d)}


def test_every_config_is_one_of_a_tested_pair():
    expected = {path_of(*pair, kind).name for pair in PAIRS for kind in ("", "-drconv")}
    assert {path.name for path in CONFIGS.glob("*.py")} == expected


@pytest.mark.parametrize("network, suffix", PAIRS)
def test_a_pair_differs_in_one_key(network, suffix):
    standard, dynamic = (Config.fromfile(path_of(network, suffix, kind)) for kind in ("", "-drconv"))
    assert "conv_cfg" not in standard.model.backbone
    assert dynamic.model.backbone.pop("conv_cfg") == dict(type="drconv_mm.DRConv")
    assert standard.to_dict() == dynamic.to_dict()


@pytest.mark.parametrize("network, suffix", PAIRS)
def test_the_dynamic_layers_of_a_pair_learn(network, suffix):
    from mmseg.structures import SegDataSample

    assert not dynamic_layers(build(Config.fromfile(path_of(network, suffix))))
    config = Config.fromfile(path_of(network, suffix, "-drconv"))
    config.model.data_preprocessor.size = (64, 128)
    model = build(config)
    layers = dynamic_layers(model)
    assert len(layers) == PAIRS[network, suffix]
    assert all(name.startswith("backbone.") for name in layers)
    samples = [SegDataSample() for _ in range(2)]
    for sample in samples:
        sample.set_data({"gt_sem_seg": _pixels(torch.randint(model.num_classes, (1, 64, 128)))})
    images = [torch.randint(256, (3, 64, 128), dtype=torch.uint8) for _ in samples]
    losses = model(**model.data_preprocessor({"inputs": images, "data_samples": samples}, True), mode="loss")
    model.parse_losses(losses)[0].backward()
    # A layer that builds on what no output depends on would have no gradient.
    assert all(layer.guide_weight.grad is not None for layer in layers.values())
    assert sum(float(layer.guide_weight.grad.abs().sum()) for layer in layers.values()) > 0


def _pixels(data: torch.Tensor):
    from mmengine.structures import PixelData

    return PixelData(data=data)


def test_a_full_scale_config_trains_on_the_official_layout(trained):
    folder, output = trained
    assert len(re.findall(r"Iter\(train\) \[2/2\].*loss: \d", output)) == 1
    assert "26 of 51 convolutions are DRConv" in output
    assert re.search(r"Iter\(val\) \[2/2\].*mIoU: [\d.]+", output)
    first, second = (
        torch.load(folder / f"work/iter_{number}.pth", map_location="cpu", weights_only=False)["state_dict"]
        for number in (1, 2)
    )
    assert sum(name.endswith("guide_weight") for name in first) == 26
    for name in first:
        if "generator." in name or name.endswith(("guide_weight", "static_weight")):
            assert not torch.equal(first[name], second[name]), f"{name} did not change"


def test_test_py_evaluates_what_training_saved(trained):
    folder, output = trained
    tested = run(command("mmseg", "test.py", "trained.py", "work/iter_2.pth"), folder)
    (validated,) = re.findall(r"Iter\(val\) \[2/2\].*(aAcc: \S+ +mIoU: \S+ +mAcc: \S+)", output)
    assert re.findall(r"Iter\(test\) \[2/2\].*(aAcc: \S+ +mIoU: \S+ +mAcc: \S+)", tested) == [validated]


@pytest.mark.parametrize("metric", ["IoUMetric", "CityscapesMetric"])
def test_results_are_written_for_the_test_server(tmp_path, trained, cityscapes, metric):
    from mmseg.apis import inference_model, init_model

    folder, _ = trained
    written_as = np.arange(256)
    if metric == "CityscapesMetric":
        pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
        from cityscapesscripts.helpers.labels import trainId2label

        for number in range(NUM_CLASSES):
            written_as[number] = trainId2label[number].id
    chosen = {
        "test_evaluator.type": metric,
        "test_evaluator.format_only": True,
        "test_evaluator.output_dir": tmp_path / "results",
        # mmseg's CityscapesMetric asks for it.
        "test_evaluator.keep_results": True,
        "test_dataloader.dataset.data_prefix.img_path": PREFIXES["test"][0],
        "test_dataloader.dataset.data_prefix.seg_map_path": PREFIXES["test"][1],
    }
    line = command("mmseg", "test.py", "trained.py", "work/iter_2.pth", options=chosen)
    assert "mIoU" not in re.sub(r"(?s).*Load checkpoint", "", run(line, folder))

    frames = sorted((cityscapes / "leftImg8bit/test").rglob("*.png"))
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [path.name for path in frames]
    config = Config.fromfile(folder / "trained.py")
    config.test_pipeline[1].scale = (240, 180)
    model = init_model(config, str(folder / "work/iter_2.pth"), device="cpu")
    for frame in frames:
        written = np.asarray(Image.open(tmp_path / "results" / frame.name))
        predicted = inference_model(model, str(frame)).pred_sem_seg.data[0].numpy()
        assert written.shape == predicted.shape
        # Two classes that tie within rounding may fall either way.
        assert (written == written_as[predicted]).mean() > 0.999


def test_official_labels_become_what_mmseg_reads(tmp_path):
    """The official scripts draw ``labelIds`` from polygons; mmseg's converter writes ``labelTrainIds`` with them."""
    pytest.importorskip("cityscapesscripts.preparation.json2labelImg")
    from cityscapesscripts.helpers.labels import id2label, labels
    from cityscapesscripts.preparation.json2labelImg import json2labelImg
    from mmseg.registry import DATASETS
    from mmseg.utils import register_all_modules

    register_all_modules()
    # A stripe of every label that exists, and one pixel column that no polygon covers.
    names, stripe, height = [label.name for label in labels if label.id >= 0], 8, 32
    width = stripe * len(names) + 1
    objects = []
    for index, name in enumerate(names):
        left, right = index * stripe, (index + 1) * stripe - 1
        polygon = [[left, 0], [right, 0], [right, height - 1], [left, height - 1]]
        objects.append({"label": name, "polygon": polygon})
    for split in ("train", "val", "test"):
        folders = [tmp_path / prefix / "aachen" for prefix in PREFIXES[split]]
        for folder in folders:
            folder.mkdir(parents=True)
        Image.new("RGB", (width, height)).save(folders[0] / "aachen_000000_000019_leftImg8bit.png")
        polygons = folders[1] / "aachen_000000_000019_gtFine_polygons.json"
        polygons.write_text(json.dumps({"imgWidth": width, "imgHeight": height, "objects": objects}))
    run(command("mmseg", "dataset_converters/cityscapes.py", tmp_path), tmp_path)

    folder = tmp_path / "gtFine/train/aachen"
    json2labelImg(
        str(folder / "aachen_000000_000019_gtFine_polygons.json"),
        str(folder / "aachen_000000_000019_gtFine_labelIds.png"),
        "ids",
    )
    ids = np.asarray(Image.open(folder / "aachen_000000_000019_gtFine_labelIds.png"))
    config = Config.fromfile(FULL_SCALE).train_dataloader.dataset
    config.pipeline = [step for step in config.pipeline if "Load" in step.type or "Pack" in step.type]
    config.data_root = str(tmp_path)
    dataset = DATASETS.build(config)
    assert len(dataset) == 1
    read = dataset[0]["data_samples"].gt_sem_seg.data[0].numpy()
    assert np.array_equal(read, np.vectorize(lambda number: id2label[number].trainId)(ids))
    # By name, so that the order of mmseg's classes is held against the official one.
    for index, name in enumerate(names):
        classes = dataset.metainfo["classes"]
        expected = classes.index(name) if name in classes else 255
        assert (read[:, index * stripe : (index + 1) * stripe] == expected).all(), name
    assert (read[:, -1] == 255).all()


def per_class(output: str) -> tuple[dict[str, float], float]:
    """IoU of each class that the labels have, and the mIoU that mmseg reports, from the last evaluation printed.

    A class that no label has gets NaN as accuracy. Its IoU is NaN too, unless pixels are taken for it: then mmseg's
    mIoU counts it as 0.
    """
    rows = re.findall(r"\| +([a-z ]+?) +\| +([\d.]+|nan) +\| +([\d.]+|nan) +\|", output)[-NUM_CLASSES:]
    assert len(rows) == NUM_CLASSES
    reported = float(re.findall(r"mIoU: ([\d.]+)", output)[-1])
    assert abs(np.nanmean([float(iou) for _, iou, _ in rows]) - reported) < 0.02
    return {name: float(iou) for name, iou, accuracy in rows if accuracy != "nan"}, reported


def areas(root: Path, split: str) -> np.ndarray:
    """Number of labelled pixels by class."""
    files = (root / PREFIXES[split][1]).rglob("*_gtFine_labelTrainIds.png")
    return sum(np.bincount(np.asarray(Image.open(file)).ravel(), minlength=256)[:NUM_CLASSES] for file in files)


@pytest.mark.parametrize(
    "backbone, channels, layers",
    [
        ({"type": "drconv_mm.MobileNetV1", "widen_factor": 0.25, "conv_cfg.type": "drconv_mm.DRConv",
          "out_indices": "(1,2,3,4)"}, (128, 256), 13),
        ({"type": "drconv_mm.DRConvShuffleNetV2", "widen_factor": 0.5, "out_indices": "(0,1,2,3)"}, (192, 1024), 32),
    ],
    ids=["mobilenet_v1", "drconv_shufflenet_v2"],
)  # fmt: skip
def test_own_backbones_in_a_segmentor(tmp_path, frames, backbone, channels, layers):
    values = {
        **options(frames, "(160,120)"),
        "model.data_preprocessor.size": "(120,160)",
        "model.backbone._delete_": True,
        **{f"model.backbone.{key}": value for key, value in backbone.items()},
        "model.auxiliary_head.in_channels": channels[0],
        "model.decode_head.in_channels": channels[1],
        "train_dataloader.batch_size": 2,
        "val_dataloader.dataset.indices": 2,
        "default_hooks.checkpoint.interval": 1,
        "default_hooks.checkpoint.max_keep_ckpts": 2,
        "train_cfg.max_iters": 2,
        "train_cfg.val_interval": 2,
    }
    line = command("mmseg", "train.py", path_of("fcn_mobilenet-v2-d8", CAMVID), "--work-dir", "work", options=values)
    output = run(line, tmp_path)
    assert re.search(r"Iter\(val\) \[2/2\].*mIoU: [\d.]+", output)
    first, second = (torch.load(tmp_path / f"work/iter_{i}.pth", weights_only=False)["state_dict"] for i in (1, 2))
    kernels = [name for name in first if name.endswith("generator.kernels")]
    assert len(kernels) == layers and not any(torch.equal(first[name], second[name]) for name in kernels)


@pytest.mark.parametrize("kind", ["", "-drconv"])
def test_fast_scnn_runs_on_frames(tmp_path, frames, kind):
    values = {
        **options(frames, "(240,180)"),
        "train_dataloader.batch_size": 2,
        "val_dataloader.dataset.indices": 2,
        "train_cfg.max_iters": 2,
        "train_cfg.val_interval": 2,
    }
    line = command("mmseg", "train.py", path_of("fast_scnn", CAMVID, kind), "--work-dir", "work", options=values)
    output = run(line, tmp_path)
    assert re.search(r"Iter\(val\) \[2/2\].*mIoU: [\d.]+", output)
    # Of its 40 convolutions mmseg gives `conv_cfg` to nine: the depthwise separable blocks don't take it.
    assert ("6 of 9 convolutions are DRConv" in output) == bool(kind)


def test_a_short_training_beats_the_commonest_class(tmp_path, frames):
    values = {
        **options(frames, "(160,120)"),
        "model.data_preprocessor.size": "(120,160)",
        "default_hooks.logger.interval": 10,
        "train_cfg.max_iters": 60,
        "train_cfg.val_interval": 60,
        "param_scheduler.0.end": 60,
        # In 60 iterations the usual momentum leaves the running statistics behind the weights.
        **{f"model.{part}.norm_cfg.momentum": 0.3 for part in ("backbone", "decode_head", "auxiliary_head")},
    }
    path = path_of("fcn_mobilenet-v2-d8", CAMVID, "-drconv")
    output = run(command("mmseg", "train.py", path, "--work-dir", "work", options=values), tmp_path, timeout=1200)
    ious, reported = per_class(output)
    area = areas(frames, "val")
    assert len(ious) == (area > 0).sum()
    commonest = areas(frames, "train").argmax()
    baseline = 100 * area[commonest] / area.sum() / len(ious)
    mean = np.mean(list(ious.values()))
    print(f"mIoU {mean:.2f} over {len(ious)} classes (mmseg says {reported}); commonest class: {baseline:.2f}")
    assert mean > 3 * baseline


@pytest.mark.parametrize("kind", ["", "-drconv"])
def test_generated_scenes_train_and_test(tmp_path, kind):
    generate_sample_segmentation(tmp_path / "data/sample_segmentation", num_train=8, num_val=2)
    values = {
        "env_cfg.dist_cfg.backend": "gloo",
        "default_hooks.logger.interval": 1,
        "train_cfg.max_iters": 2,
        "train_cfg.val_interval": 2,
        "train_dataloader.batch_size": 4,
    }
    for loader in ("train", "val", "test"):
        values[f"{loader}_dataloader.num_workers"], values[f"{loader}_dataloader.persistent_workers"] = 0, False
    path = path_of("fcn_mobilenet-v2-d8", SAMPLE, kind)
    output = run(command("mmseg", "train.py", path, "--work-dir", "work", options=values), tmp_path)
    assert ("32 of 51 convolutions are DRConv" in output) == bool(kind)
    (validated,) = re.findall(r"Iter\(val\) \[2/2\].*(mIoU: [\d.]+)", output)
    tested = run(command("mmseg", "test.py", f"work/{path.name}", "work/iter_2.pth"), tmp_path)
    assert re.findall(r"Iter\(test\) \[2/2\].*(mIoU: [\d.]+)", tested) == [validated]
    rows = re.findall(r"\| +(background|stripes_\w+) +\|", tested)
    assert rows == ["background", "stripes_above", "stripes_below", "stripes_core", "stripes_rim"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "-drconv"])
def test_camvid_reaches_30_miou(tmp_path, shared_data, kind):
    path = path_of("fcn_mobilenet-v2-d8", CAMVID, kind)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/camvid").symlink_to(shared_data / "camvid")
    output = run(command("mmseg", "train.py", path, "--work-dir", "work"), tmp_path, timeout=3600)
    assert ("26 of 51 convolutions are DRConv" in output) == bool(kind)
    ious, reported = per_class(output)
    mean = np.mean(list(ious.values()))
    print(f"{path.stem}: mIoU {mean:.2f} over {len(ious)} classes (mmseg says {reported})")
    assert len(ious) == (areas(shared_data / "camvid", "val") > 0).sum()
    assert mean >= 30
