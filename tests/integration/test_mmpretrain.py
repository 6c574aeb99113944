"""Classification under mmpretrain's own train.py and test.py: pairs of configs that differ in one key."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from drconv_mm.datasets.sample_classification import generate_sample_classification

from ..conftest import SHARED
from .toolbox import KEY, command, environment, run

pytestmark = pytest.mark.integration

CONFIGS = Path(__file__).parents[2] / "configs/classification"
NETWORKS = ["shufflenet-v2-0.5x", "shufflenet-v2-1.0x", "mobilenet-v2", "mobilenet-v1", "resnet18"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> tuple[Path, int]:
    """A folder of a split and class, and the number of classes: real images where there are any."""
    if SHARED.is_dir():
        return SHARED / "caltech20", 20
    return generate_sample_classification(tmp_path_factory.mktemp("data") / "sample", 20, 8), 4


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory, images) -> Path:
    """ImageNet's layout: a thousand folders named by WordNet's numbers."""
    root = tmp_path_factory.mktemp("data") / "imagenet"
    (source, *_) = sorted(path for path in (images[0] / "train").rglob("*.*g"))
    for split in ("train", "val"):
        for number in range(1000):
            folder = root / split / f"n{number:08d}"
            folder.mkdir(parents=True)
            (folder / f"{folder.name}_1.JPEG").symlink_to(source)
    return root


def options(root: Path, num_train: int, num_val: int, batch_size: int) -> dict:
    values = {"env_cfg.dist_cfg.backend": "gloo", "default_hooks.logger.interval": 1}
    for loader, count in (("train", num_train), ("val", num_val), ("test", num_val)):
        prefix = f"{loader}_dataloader"
        values[f"{prefix}.dataset.data_root"] = root
        values[f"{prefix}.dataset.indices"] = count
        values[f"{prefix}.batch_size"] = batch_size
        values[f"{prefix}.num_workers"], values[f"{prefix}.persistent_workers"] = 0, False
    return values


def short(images: tuple[Path, int]) -> dict:
    """Two epochs of two iterations: what matters is that all of it runs."""
    root, num_classes = images
    num_images = len([*(root / "train").rglob("*.*g")])
    return {
        **options(root, 32, 16, 16),
        "model.head.num_classes": num_classes,
        "train_cfg.max_epochs": 2,
        "train_cfg.val_interval": 2,
        # Images of all classes at the whole rate: four steps must move each parameter by what float32 resolves.
        "param_scheduler.0.start_factor": 1.0,
        "train_dataloader.dataset.indices": [index * num_images // 32 for index in range(32)],
        "default_hooks.checkpoint.interval": 1,
        "default_hooks.checkpoint.max_keep_ckpts": 2,
    }


PAIRS = [(network, suffix) for network in NETWORKS for suffix in ("8xb128_in1k", "caltech20-96x96")]
PAIRS += [("mobilenet-v1-0.25x", "caltech20-96x96")]
PAIRS += [(network, "sample-64x64") for network in ("resnet18-0.25x", "shufflenet-v2-0.5x")]


@pytest.mark.parametrize("network, suffix", PAIRS)
def test_a_pair_differs_in_one_key(network, suffix):
    standard, dynamic = (Config.fromfile(CONFIGS / f"{network}{kind}_{suffix}.py") for kind in ("", "-drconv"))
    assert "conv_cfg" not in standard.model.backbone
    assert dynamic.model.backbone.pop("conv_cfg") == dict(type="drconv_mm.DRConv")
    assert standard.to_dict() == dynamic.to_dict()


@pytest.mark.parametrize(
    "config, key",
    [("shufflenet-v2-0.5x", KEY)]
    + [(f"{network}{kind}", None) for network in NETWORKS for kind in ("", "-drconv")]
    + [("drconv-shufflenet-v2-0.5x", None)],
)
def test_trains_and_tests_on_real_images(tmp_path, images, config, key):
    path = CONFIGS / f"{config}_caltech20-96x96.py"
    values = {**short(images), **({None: key} if key else {})}
    if config.startswith("resnet"):  # its branches would start at zero, and so would the gradients in them
        values["model.backbone.zero_init_residual"] = False
    run(command("mmpretrain", "train.py", path, "--work-dir", "work", options=values), tmp_path)
    first, second = (
        torch.load(tmp_path / f"work/epoch_{epoch}.pth", map_location="cpu", weights_only=False)["state_dict"]
        for epoch in (1, 2)
    )
    dynamic = [name for name in first if name.endswith("guide_weight")]
    assert bool(dynamic) == (key is not None or "drconv" in config)
    for name in first:
        if "generator." in name or name.endswith(("guide_weight", "static_weight")):
            assert not torch.equal(first[name], second[name]), f"{name} did not change"
    output = run(command("mmpretrain", "test.py", f"work/{path.name}", "work/epoch_2.pth"), tmp_path)
    assert re.search(r"accuracy/top1: [\d.]+", output)


@pytest.mark.parametrize("kind", ["", "-drconv"])
def test_generated_objects_train_and_test(tmp_path, kind):
    generate_sample_classification(tmp_path / "data/sample_classification", 8, 4)
    path = CONFIGS / f"shufflenet-v2-0.5x{kind}_sample-64x64.py"
    values = {"env_cfg.dist_cfg.backend": "gloo", "train_cfg.max_epochs": 2, "train_cfg.val_interval": 2}
    values.update({"default_hooks.checkpoint.interval": 2, "train_dataloader.batch_size": 16})
    for loader in ("train", "val", "test"):
        values[f"{loader}_dataloader.num_workers"], values[f"{loader}_dataloader.persistent_workers"] = 0, False
    output = run(command("mmpretrain", "train.py", path, "--work-dir", "work", options=values), tmp_path)
    assert bool(re.search(r"\d+ of \d+ convolutions are DRConv", output)) == bool(kind)
    (validated,) = re.findall(r"Epoch\(val\) \[2\].*accuracy/top1: ([\d.]+)", output)
    tested = run(command("mmpretrain", "test.py", f"work/{path.name}", "work/epoch_2.pth"), tmp_path)
    assert re.findall(r"accuracy/top1: ([\d.]+)", tested)[-1] == validated


@pytest.mark.parametrize(
    "network", [*(f"{network}{kind}" for network in NETWORKS for kind in ("", "-drconv")), "drconv-shufflenet-v2-0.5x"]
)
def test_full_scale_configs_run_on_images_of_the_right_layout(tmp_path, imagenet, network):
    values = {
        **options(imagenet, 4, 2, 2),
        "train_cfg.max_iters": 2,
        # Two images are no batch to learn from at the full learning rate.
        "optim_wrapper.optimizer.lr": 0.001,
    }
    path = CONFIGS / f"{network}_8xb128_in1k.py"
    output = run(command("mmpretrain", "train.py", path, "--work-dir", "work", options=values), tmp_path)
    assert len(re.findall(r"Iter\(train\) \[2/2\].*loss: \d", output)) == 1
    assert re.search(r"accuracy/top1: ", output)
    # DRConvShuffleNetV2 has its layers by its structure, not by the key, which alone tells of them.
    assert bool(re.search(r"\d+ of \d+ convolutions are DRConv", output)) == network.endswith("-drconv")


def fails(tmp_path: Path, images: tuple[Path, int], **changed) -> str:
    values = {**short(images), **changed}
    line = command("mmpretrain", "train.py", CONFIGS / "shufflenet-v2-0.5x-drconv_caltech20-96x96.py", options=values)
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode
    return done.stderr


def test_a_head_with_another_number_of_classes_is_said_before_training(tmp_path, images):
    text = fails(tmp_path, images, **{"model.head.num_classes": 7})
    expected = rf"model\.head\.num_classes=7, but train_dataloader has {images[1]} classes \(\w+.*set model\.head"
    assert re.search(expected, text), text[-2000:]


def test_a_wrong_layout_is_said_with_what_is_there(tmp_path, images):
    (tmp_path / "flat/train").mkdir(parents=True)
    shutil.copy(next(path for path in (images[0] / "train").rglob("*.*g")), tmp_path / "flat/train")
    text = fails(tmp_path, images, **{"train_dataloader.dataset.data_root": tmp_path / "flat"})
    assert re.search(r"looked for \S*flat/train/<class>/<image>.*has no class folders; found in ", text), text[-2000:]
