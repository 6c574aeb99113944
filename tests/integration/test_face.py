"""Face recognition through tools/train.py and tools/test.py: pairs of configs, records, and faces not seen before."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner

import drconv_mm
from drconv_mm import DRConv2d
from drconv_mm.datasets.sample_faces import generate_sample_faces

from .toolbox import command, run

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs/face"
# Number of dynamic layers by pair, with the default choice of layers.
PAIRS = {
    ("mobilefacenet", "sample-64x64"): 31,
    ("mobilefacenet", "lfw-mini-112x112"): 31,
    ("mobilefacenet", "lfw-mini-64x64"): 31,
    ("mobilefacenet", "8xb64_ms1mv3-112x112"): 31,
    ("mobilefacenet", "8xb64_casia-112x112"): 31,
    ("iresnet50", "8xb64_ms1mv3-112x112"): 9,
    ("iresnet50", "8xb64_casia-112x112"): 9,
}
FULL_SCALE = [(*pair, kind) for pair in PAIRS if "8xb64" in pair[1] for kind in ("", "-drconv")]
SETS = ("lfw", "cfp_fp", "agedb_30")
PEOPLE = 6


def path_of(network: str, suffix: str, kind: str = "") -> Path:
    return CONFIGS / f"{network}{kind}_{suffix}.py"


def own(tool: str, *arguments: object, options: dict | None = None) -> list[str]:
    """A command line of this repository's tools/train.py or test.py."""
    line = command("mmpretrain", tool, *arguments, options=options)
    line[1] = str(ROOT / "tools" / tool)
    return line


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Few drawn faces: 24 to train on, 24 pairs to verify."""
    root = tmp_path_factory.mktemp("data") / "sample_faces"
    return generate_sample_faces(root, PEOPLE, 4, num_strangers=4, num_stranger_images=3, num_pairs=24)


@pytest.fixture(scope="module")
def records(tmp_path_factory, faces) -> Path:
    """The same in the files of insightface's sets."""
    root = tmp_path_factory.mktemp("data") / "records"
    tool = [sys.executable, ROOT / "tools/face/make_records.py"]
    subprocess.run([*tool, faces / "train", root / "train.rec"], check=True)
    subprocess.run([*tool, faces / "verify", root / "lfw.bin", "--pairs", faces / "pairs.txt"], check=True)
    for name in SETS[1:]:
        (root / f"{name}.bin").symlink_to(root / "lfw.bin")
    return root


def short(root: Path) -> dict:
    """Two epochs of three iterations."""
    values = {
        "train_cfg.max_epochs": 2,
        "train_cfg.val_interval": 2,
        "default_hooks.logger.interval": 1,
        "train_dataloader.batch_size": 8,
        "model.head.num_classes": PEOPLE,
    }
    for loader in ("train", "val", "test"):
        prefix = f"{loader}_dataloader"
        values[f"{prefix}.dataset.data_root"] = root
        values[f"{prefix}.num_workers"], values[f"{prefix}.persistent_workers"] = 0, False
    return values


def scalars(work_dir: Path, key: str) -> list[float]:
    """What was logged of it, in order."""
    (file,) = work_dir.glob("*/vis_data/scalars.json")
    return [row[key] for row in map(json.loads, file.open()) if key in row]


class TestPairs:
    def test_all_configs_are_in_a_pair(self):
        expected = {path_of(*pair, kind).name for pair in PAIRS for kind in ("", "-drconv")}
        assert {path.name for path in CONFIGS.glob("*.py")} == expected

    @pytest.mark.parametrize("network, suffix", PAIRS)
    def test_differs_in_one_key(self, network, suffix):
        standard, dynamic = (Config.fromfile(path_of(network, suffix, kind)) for kind in ("", "-drconv"))
        assert "conv_cfg" not in standard.model.backbone
        assert dynamic.model.backbone.pop("conv_cfg") == dict(type="drconv_mm.DRConv")
        assert standard.to_dict() == dynamic.to_dict()

    @pytest.mark.parametrize("network, suffix", PAIRS)
    def test_builds_with_dynamic_layers_in_the_backbone_of_one_alone(self, network, suffix):
        init_default_scope("mmengine")
        for kind, expected in (("", 0), ("-drconv", PAIRS[network, suffix])):
            model = Config.fromfile(path_of(network, suffix, kind)).model
            model.head.num_classes = 2
            names = [n for n, module in MODELS.build(model).named_modules() if isinstance(module, DRConv2d)]
            assert len(names) == expected and all(name.startswith("backbone.") for name in names)
        # README.md says how many, in the line of the pair.
        dynamic, lines = path_of(network, suffix, "-drconv").name, (CONFIGS / "README.md").read_text().splitlines()
        (line,) = [line for line in lines if f"({dynamic})" in line]
        assert f"({path_of(network, suffix).name})" in line and f"| {expected} |" in line

    @pytest.mark.parametrize("network", ["mobilefacenet", "iresnet50"])
    @pytest.mark.parametrize(
        "data, length, steps, identities",
        [
            ("ms1mv3", 420_000, [252_000, 364_000, 406_000], 93_431),
            ("casia", 32_000, [20_000, 28_000], 10_572),
        ],
    )
    def test_full_scale_recipes(self, network, data, length, steps, identities):
        config = Config.fromfile(path_of(network, f"8xb64_{data}-112x112"))
        optimizer = config.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("SGD", 0.1, 0.9, 5e-4)
        assert 8 * config.train_dataloader.batch_size == config.auto_scale_lr.base_batch_size == 512
        assert config.train_cfg.max_iters == length and config.param_scheduler[0].milestones == steps
        head = config.model.head
        assert (head.num_classes, head.scale, head.margins) == (identities, 64.0, (1.0, 0.5, 0.0))


class TestSample:
    """The pair on drawn faces, by the real tools."""

    @pytest.fixture(scope="class", params=["", "-drconv"])
    def trained(self, request, tmp_path_factory, faces) -> tuple[Path, str, str]:
        folder, path = tmp_path_factory.mktemp("trained"), path_of("mobilefacenet", "sample-64x64", request.param)
        output = run(own("train.py", path, "--work-dir", "work", options=short(faces)), folder)
        return folder, path.name, output

    def test_trains_and_tests(self, trained):
        folder, name, output = trained
        assert ("31 of 49 convolutions are DRConv" in output) == ("drconv" in name)
        assert len(scalars(folder / "work", "loss")) == 6
        # Half of the margin in the second of two epochs.
        assert re.findall(r"margin_factor: ([\d.]+)", output)[::3] == ["0.0000", "0.5000"]
        (validated,) = scalars(folder / "work", "face/accuracy")
        options = {"test_evaluator.roc_file": "roc.png"}
        arguments = ("test.py", f"work/{name}", "work/epoch_2.pth", "--work-dir", "tested")
        figures = dict(re.findall(r"face/(\S+): ([\d.]+)", run(own(*arguments, options=options), folder)))
        assert float(figures["accuracy"]) == pytest.approx(validated, abs=1e-3)
        assert {"auc", "eer", "pixels/accuracy", "tar_far_1e-1"} <= set(figures)
        (picture,) = (folder / "tested").glob("**/roc.png")
        assert picture.read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("trained", [""], indirect=True)
    def test_records_of_the_folder_give_the_same_losses(self, trained, faces, records):
        folder, name, _ = trained
        (folder / "records.py").write_text(
            f"_base_ = {str(CONFIGS / name)!r}\n"
            "train_dataloader = dict(dataset=dict(_delete_=True, type='drconv_mm.FaceRecords', data_root='', "
            "pipeline={{_base_.train_pipeline}}))\n"
        )
        options = short(faces) | {"train_dataloader.dataset.data_root": records}
        run(own("train.py", "records.py", "--work-dir", "records", options=options), folder)
        losses = scalars(folder / "records", "loss")
        assert len(losses) == 6 and losses == scalars(folder / "work", "loss")


def test_another_number_of_people_is_said_before_training(tmp_path, faces):
    options = short(faces) | {"model.head.num_classes": 5}
    line = own("train.py", path_of("mobilefacenet", "sample-64x64"), options=options)
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode
    assert re.search(r"head\.num_classes=5, but train_dataloader has 6 classes \(person_0000.*set model", done.stderr)


@pytest.mark.parametrize("network, suffix, kind", FULL_SCALE)
def test_full_scale_configs_run_two_iterations_on_records_of_the_right_layout(tmp_path, records, network, suffix, kind):
    config = Config.fromfile(path_of(network, suffix, kind))
    for loader in ("train", "val", "test"):
        loader = config[f"{loader}_dataloader"]
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(records)
    config.model.head.num_classes = PEOPLE
    # The same networks with less to compute.
    config.model.backbone.update(dict(depth=18) if "iresnet" in network else dict(widen_factor=0.25))
    config.model.neck.in_channels = MODELS.build(config.model.backbone).out_channels
    config.train_cfg.update(max_iters=2, val_interval=2)
    config.default_hooks.checkpoint.interval = 2
    config.env_cfg = dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="gloo"))
    config.optim_wrapper.optimizer.lr = 0.001  # four faces are no batch to learn from at the full rate
    config.default_hooks.logger.interval = 1
    config.work_dir = str(tmp_path)
    Runner.from_cfg(config).train()
    assert len(scalars(tmp_path, "loss")) == 2
    # Each set by its own name, once, and as the files are the same, the same figures.
    figures = [scalars(tmp_path, f"{name}/accuracy") for name in SETS]
    assert len(figures[0]) == 1 and figures == [figures[0]] * 3
    state = torch.load(tmp_path / "iter_2.pth", weights_only=False, map_location="cpu")["state_dict"]
    assert any(key.endswith("guide_weight") for key in state) == bool(kind)
    assert state["head.weight"].shape == (PEOPLE, config.model.neck.embedding_size)


def test_the_pairs_of_the_guide(tmp_path, faces, monkeypatch):
    """The lines of docs/face.md that make pairs.txt from folders."""
    (block,) = re.findall(r"```python\n(import random.*?)```", (ROOT / "docs/face.md").read_text(), re.DOTALL)
    (tmp_path / "data/mine").mkdir(parents=True)
    (tmp_path / "data/mine/verify").symlink_to(faces / "verify")
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    pairs = drconv_mm.FacePairs("data/mine", data_prefix="verify").metainfo["pairs"]
    assert pairs["same"].sum() == 12 and (~pairs["same"]).sum() == 12  # 4 people with 3 images


def test_the_records_of_the_guide(tmp_path, records, monkeypatch):
    """Its config for records and a .bin, which are read where it says that they lie."""
    blocks = re.findall(r"```python\n(_base_.*?)```", (ROOT / "docs/face.md").read_text(), re.DOTALL)
    (block,) = [text for text in blocks if "FaceRecords" in text]
    (tmp_path / "my_records.py").write_text(block.replace('"configs/', f'"{ROOT}/configs/'))
    mine = tmp_path / "data/mine"
    mine.mkdir(parents=True)
    for name, source in (("train.rec", "train.rec"), ("train.idx", "train.idx"), ("mine.bin", "lfw.bin")):
        (mine / name).symlink_to(records / source)
    monkeypatch.chdir(tmp_path)
    config = Config.fromfile("my_records.py")
    init_default_scope("mmengine")
    train, verified = (DATASETS.build(config[f"{split}_dataloader"].dataset) for split in ("train", "val"))
    assert len(train) == 24 and len(train.metainfo["classes"]) == PEOPLE
    assert train[0]["inputs"].shape == verified[0]["inputs"].shape == (3, 112, 112)
    assert len(verified.metainfo["pairs"]["same"]) == 24


@pytest.mark.parametrize(("name", "figure"), [("FaceTemplates", "tar_far_1e-1"), ("FaceIdentities", "rank1")])
def test_other_protocols_of_the_guide(tmp_path, faces, monkeypatch, name, figure):
    """The configs of docs/face.md for templates and for identification, on drawn faces."""
    blocks = re.findall(r"```python\n(_base_.*?)```", (ROOT / "docs/face.md").read_text(), re.DOTALL)
    own_faces, (block,) = blocks[0], [text for text in blocks if name in text]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_faces.py").write_text(own_faces.replace('"configs/', f'"{ROOT}/configs/'))
    (tmp_path / "test.py").write_text(block)
    mine = tmp_path / "data/mine"
    mine.mkdir(parents=True)
    for role in ("gallery", "probe", "distractor"):
        (mine / role).symlink_to(faces / ("train" if role == "distractor" else "verify"))
    lists = tmp_path / "data/ijbc"
    lists.mkdir()
    people = [sorted(folder.iterdir()) for folder in sorted((faces / "verify").iterdir())]
    # Two templates a person: the first image, and the others.
    numbers = {path: 2 * p + (path != images[0]) for p, images in enumerate(people) for path in images}
    lines = [f"{path} {number} {media}\n" for media, (path, number) in enumerate(numbers.items())]
    (lists / "images.txt").write_text("".join(lines))
    ids = range(len(people))
    (lists / "pairs.txt").write_text("".join(f"{2 * a} {2 * b + 1} {int(a == b)}\n" for a in ids for b in ids))

    config = Config.fromfile("test.py")
    config.merge_from_dict({"work_dir": "work", "test_dataloader.num_workers": 0})
    config.test_dataloader.persistent_workers = False
    init_default_scope("mmengine")
    metrics = Runner.from_cfg(config).test()
    assert any(key.endswith(figure) and 0 <= value <= 100 for key, value in metrics.items()), metrics


def test_real_people_not_seen_in_training_are_told_apart_better_than_by_pixels(tmp_path, shared_data):
    """The smaller LFW mini config, shortened."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/lfw_mini").symlink_to(shared_data / "lfw_mini")
    epochs = 4
    options = {
        "train_cfg.max_epochs": epochs,
        "train_cfg.val_interval": epochs,
    }
    config = path_of("mobilefacenet", "lfw-mini-64x64")
    run(own("train.py", config, "--work-dir", "work", options=options), tmp_path, timeout=3600)
    (network,), (pixels,) = (scalars(tmp_path / "work", f"face/{key}") for key in ("accuracy", "pixels/accuracy"))
    print(f"network {network:.1f} %, pixels {pixels:.1f} %")
    assert 55 < pixels < 65 and network > pixels + 3
