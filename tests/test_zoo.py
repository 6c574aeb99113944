"""The model index of this repository, and a made-up zoo: models by name, verified weights, cards, figures again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from drconv_mm.checkpoint import CheckpointError, sha256, strip_checkpoint, write_checkpoint
from drconv_mm.zoo import (
    CARD,
    ENV,
    Entry,
    build_model,
    fetch_weights,
    find_entry,
    get_model,
    list_models,
    model_cards,
    read_index,
)

from .conftest import SHARED

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent for path in ROOT.glob("configs/*/metafile.yml"))
PUBLISHED = [entry for entry in read_index().values() if entry.weights]


# --- this repository's index -----------------------------------------------------------------------------------------


def test_every_config_has_an_entry_and_every_entry_a_config():
    folders = {path.name for path in FOLDERS}
    assert {"classification", "detection", "segmentation"} <= folders
    configs = {path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in folder.glob("*.py")}
    entries = read_index()
    assert {entry.config for entry in entries.values()} == configs
    assert all(Path(entry.config).stem == name for name, entry in entries.items())


def test_the_parser_of_mim_reads_the_index():
    modelindex = pytest.importorskip("modelindex")
    index = modelindex.load(str(ROOT / "model-index.yml"))
    assert index.check(silent=True) == []
    assert {model.name for model in index.models} == set(list_models())
    collections = {collection.name for collection in index.collections}
    for model in index.models:
        # What `mim search` relies on: it goes over the results of each model, and looks its collection up.
        assert model.in_collection in collections
        for result in model.results:
            assert isinstance(result.task, str) and isinstance(result.dataset, str) and result.metrics
        assert all(isinstance(value, (str, int, float)) for value in model.metadata.data.values())
        assert model.in_collection == ("DRConv" if "drconv" in model.name else "Standard convolution")


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_published_weights_are_there_and_described(entry):
    assert set(CARD) <= entry.metadata.keys() and "?" not in entry.metadata.values()
    assert re.fullmatch("[0-9a-f]{64}", entry.metadata["SHA256"])
    assert entry.file == f"{entry.name}-{entry.metadata['SHA256'][:8]}.pth"
    assert entry.results and all(result["Metrics"] for result in entry.results)
    if "://" not in entry.weights:
        path = ROOT / entry.weights
        assert path.parent == ROOT / "zoo" and sha256(path) == entry.metadata["SHA256"]
        assert path.stat().st_size <= 12 * 2**20


def test_the_zoo_is_small_and_has_no_other_files():
    files = {path.name for path in (ROOT / "zoo").iterdir()}
    assert files == {"README.md", *(entry.file for entry in PUBLISHED if "://" not in entry.weights)}
    assert sum((ROOT / "zoo" / name).stat().st_size for name in files) <= 60 * 2**20


def test_the_zoos_page_is_up_to_date():
    assert (ROOT / "zoo/README.md").read_text(encoding="utf-8") == model_cards()


def test_list_models():
    names = list_models()
    assert names == sorted(names) and "retinanet_r18_fpn_bccd-160x120" in names
    chosen = list_models("retinanet*drconv*bccd*")
    assert "retinanet_r18-drconv_fpn_bccd-160x120" in chosen
    assert chosen == [n for n in names if n.startswith("retinanet") and "drconv" in n and "bccd" in n]
    assert list_models("no such*") == []
    assert list_models(pretrained=True) == sorted(entry.name for entry in PUBLISHED)


@pytest.mark.integration
def test_an_installed_package_has_the_index(tmp_path):
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).exists() and not name.startswith(("zoo/", "docs/", "tests/")):
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / "source" / name, follow_symlinks=False)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", tmp_path / "site", tmp_path / "source"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not any(path.is_symlink() for path in (tmp_path / "site").rglob("*"))
    code = "import drconv_mm.zoo as zoo; print(zoo.INDEX); print(*zoo.list_models(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    index, *names = done.stdout.split()
    assert Path(index).is_relative_to(tmp_path / "site") and names == list_models()
    config = find_entry(names[0], Path(index)).config
    assert (Path(index).parent / config).is_file() and (Path(index).parent / "tools/train.py").is_file()


# --- a made-up zoo ---------------------------------------------------------------------------------------------------

NAME = "tiny-drconv_sample"
CLASSES = ("stripes_above", "stripes_below", "stripes_core", "stripes_rim")


def write_index(folder: Path, models: list[dict], name: str = "model-index.yml") -> Path:
    path = folder / name
    (folder / f"{name}.metafile.yml").write_text(yaml.safe_dump({"Models": models}))
    path.write_text(yaml.safe_dump({"Collections": [{"Name": "DRConv"}], "Import": [f"{name}.metafile.yml"]}))
    return path


class MadeUp:
    """A zoo of one published model, with random weights; its folder is the module's, so tests don't change it."""

    def __init__(self, folder: Path):
        self.folder = folder
        base = ROOT / "configs/classification/shufflenet-v2-0.5x-drconv_sample-64x64.py"
        (folder / "configs").mkdir()
        self.config = folder / "configs" / f"{NAME}.py"
        self.config.write_text(f"_base_ = {str(base)!r}\n")
        (folder / "configs" / "nowhere.py").write_text("default_scope = 'mmnowhere'\nmodel = dict(type='Net')\n")
        torch.manual_seed(1)
        self.model = build_model(self.config).train()
        self.model(torch.randn(8, 3, 64, 64), mode="tensor")
        self.model.eval()
        meta = {"dataset_meta": {"classes": CLASSES}, "epoch": 1}
        checkpoint = {"state_dict": self.model.state_dict(), "meta": meta}
        self.weights = write_checkpoint(strip_checkpoint(checkpoint, half=True), folder / "zoo" / NAME)
        self.facts = {
            "Training Data": "generated objects", "Data Licence": "Apache-2.0", "Training Budget": "none",
            "FLOPs": 4_560_000, "Parameters": 1_234_567, "Input Size": "64x64", "SHA256": sha256(self.weights),
            "Limits": "random weights",
            "Data Command": "python -m drconv_mm.datasets.sample_classification data/sample_classification",
        }  # fmt: skip
        self.index = write_index(folder, [self.entry(), self.entry(Name="bare", Weights=None), self.nowhere()])

    def entry(self, **changes: object) -> dict:
        entry = {
            "Name": NAME, "In Collection": "DRConv", "Config": f"configs/{NAME}.py", "Metadata": dict(self.facts),
            "Weights": f"zoo/{self.weights.name}", "Results": [],
        }  # fmt: skip
        return {key: value for key, value in {**entry, **changes}.items() if value is not None}

    def nowhere(self) -> dict:
        return self.entry(Name="nowhere", Config="configs/nowhere.py")

    def with_weights(self, folder: Path, data: bytes, **changes: object) -> Path:
        """An index elsewhere, of the same model with other bytes as its weights."""
        (folder / "zoo").mkdir(exist_ok=True)
        (folder / "zoo" / self.weights.name).write_bytes(data)
        return write_index(folder, [self.entry(Config=str(self.config), **changes)])


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    pytest.importorskip("mmpretrain")
    return MadeUp(tmp_path_factory.mktemp("zoo"))


def test_get_model_computes_what_was_published(made_up):
    model = get_model(NAME, index=made_up.index)
    assert not model.training and all(p.dtype == torch.float32 for p in model.parameters())
    assert model.dataset_meta == {"classes": CLASSES}
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = (net(images, mode="tensor") for net in (model, made_up.model))
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())
        fresh = get_model(NAME, pretrained=False, index=made_up.index)(images, mode="tensor")
    assert (fresh - expected).abs().max() > 10 * (found - expected).abs().max()


def test_a_toolboxs_inferencer_takes_the_model(made_up):
    from mmpretrain import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(get_model(NAME, index=made_up.index))
    (result,) = inferencer(torch.randint(255, (70, 80, 3), dtype=torch.uint8).numpy())
    assert result["pred_class"] in CLASSES


@pytest.mark.parametrize("toolbox", ["mmdet", "mmseg"])
def test_a_toolboxs_inference_function_takes_the_model(toolbox):
    apis = pytest.importorskip(f"{toolbox}.apis")
    picture = torch.randint(255, (120, 160, 3), dtype=torch.uint8).numpy()
    if toolbox == "mmdet":
        result = apis.inference_detector(get_model("retinanet_r18_fpn_sample-160x120", pretrained=False), picture)
        assert len(result.pred_instances.bboxes) == len(result.pred_instances.scores)
    else:
        result = apis.inference_model(get_model("fcn_mobilenet-v2-d8_sample-160x120", pretrained=False), picture)
        assert result.pred_sem_seg.data.shape[-2:] == (120, 160)


def test_unknown_name(made_up):
    with pytest.raises(ValueError, match=r"name='tiny-drconv_sampel' is no model.*near misses: tiny-drconv_sample"):
        get_model("tiny-drconv_sampel", index=made_up.index)
    with pytest.raises(ValueError, match="list_models"):
        get_model("qqqqqqqqqqqqqqqq", index=made_up.index)


def test_no_weights_are_published(made_up):
    with pytest.raises(ValueError, match="no weights are published for 'bare'; train it"):
        get_model("bare", index=made_up.index)
    model = get_model("bare", pretrained=False, device="meta", index=made_up.index)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert list_models(pretrained=True, index=made_up.index) == ["nowhere", NAME]


def test_missing_toolbox(made_up):
    with pytest.raises(ImportError, match=r"nowhere.py' needs mmnowhere, which is not installed; install it"):
        get_model("nowhere", index=made_up.index)


@pytest.mark.parametrize("place", [0.02, 0.5, 0.999])
def test_tampered_weights_are_refused(made_up, tmp_path, place):
    data = bytearray(made_up.weights.read_bytes())
    data[int(place * len(data))] ^= 1
    index = made_up.with_weights(tmp_path, bytes(data))
    with pytest.raises(CheckpointError, match=rf"{made_up.weights.name}' have sha256 .* delete it and get it again"):
        get_model(NAME, index=index)


def test_the_hash_in_the_name_counts_where_the_metadata_has_none(made_up, tmp_path):
    index = made_up.with_weights(tmp_path, made_up.weights.read_bytes(), Metadata={})
    assert fetch_weights(find_entry(NAME, index)) == tmp_path / "zoo" / made_up.weights.name
    index = made_up.with_weights(tmp_path, made_up.weights.read_bytes() + b"\0", Metadata={})
    with pytest.raises(CheckpointError, match=rf"says {made_up.weights.stem[-8:]}"):
        fetch_weights(find_entry(NAME, index))


class Trap:
    """What hostile weights would hold."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_hostile_weights_are_refused_though_the_metafile_vouches(made_up, tmp_path):
    torch.save({"state_dict": made_up.model.state_dict(), "trap": Trap(tmp_path / "sprung")}, tmp_path / "hostile.pth")
    facts = {**made_up.facts, "SHA256": sha256(tmp_path / "hostile.pth")}
    index = made_up.with_weights(tmp_path, (tmp_path / "hostile.pth").read_bytes(), Metadata=facts)
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        get_model(NAME, index=index)
    assert not (tmp_path / "sprung").exists()


def test_weights_of_another_config(made_up, tmp_path):
    path = write_checkpoint({"meta": {}, "state_dict": {"weight": torch.ones(2)}}, tmp_path / "other")
    facts = {**made_up.facts, "SHA256": sha256(path)}
    index = made_up.with_weights(tmp_path, path.read_bytes(), Metadata=facts)
    with pytest.raises(CheckpointError, match=r"don't fit config .*Missing key"):
        get_model(NAME, index=index)


def test_another_folder_for_the_weights(made_up, tmp_path, monkeypatch):
    index = write_index(tmp_path, [made_up.entry(Config=str(made_up.config))])
    monkeypatch.delenv(ENV, raising=False)
    with pytest.raises(CheckpointError, match=rf"are not in {tmp_path / 'zoo'}; .*set {ENV}"):
        get_model(NAME, index=index)
    monkeypatch.setenv(ENV, str(made_up.folder / "zoo"))
    assert fetch_weights(find_entry(NAME, index)) == made_up.weights
    (tmp_path / "zoo").mkdir()
    shutil.copy(made_up.weights, tmp_path / "zoo")
    assert fetch_weights(find_entry(NAME, index)) == made_up.weights  # the folder that is named goes first


def test_weights_by_url(made_up, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.delenv(ENV, raising=False)
    (tmp_path / "served").mkdir()
    served = tmp_path / "served" / made_up.weights.name
    index = write_index(tmp_path, [made_up.entry(Config=str(made_up.config), Weights=served.as_uri())])
    entry = find_entry(NAME, index)
    with pytest.raises(CheckpointError, match=rf"can't be had from file://.*set {ENV} to its folder"):
        fetch_weights(entry)
    served.write_bytes(made_up.weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="can't be had.*hash"):
        fetch_weights(entry)
    assert not list((tmp_path / "cache").rglob("*.pth*"))
    served.write_bytes(made_up.weights.read_bytes())
    path = fetch_weights(entry)
    assert path.is_relative_to(tmp_path / "cache") and path.read_bytes() == served.read_bytes()
    served.unlink()
    assert fetch_weights(entry) == path  # from the cache
    path.write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="delete it and get it again"):
        fetch_weights(entry)


def test_cards(made_up):
    page = model_cards(made_up.index)
    assert "| [tiny-drconv_sample](#tiny-drconv_sample) | generated objects |" in page
    card = page[page.index(f"## {NAME}") : page.index("## nowhere")]
    facts = [
        "licence: Apache-2.0", "4.56 M multiply-adds at 64x64", "1.23 M parameters", "random weights",
        sha256(made_up.weights), made_up.facts["Data Command"],
        f"](../configs/{NAME}.py)", f"]({made_up.weights.name})",
        f"python tools/test.py configs/{NAME}.py zoo/{made_up.weights.name}",
    ]  # fmt: skip
    for fact in facts:
        assert fact in card
    assert "## bare" not in page and model_cards(made_up.index) == page
    none = write_index(made_up.folder, [made_up.entry(Name="bare", Weights=None)], "none.yml")
    assert "No weights are published yet" in model_cards(none)


@pytest.mark.parametrize(
    ("models", "message"),
    [([{"Config": "a.py"}], "has no Name"), ([{"Name": "a"}], "'a' has no Config"),
     ([{"Name": "a", "Config": "a.py"}] * 2, "'a' comes twice"),
     ([{"Name": "a", "Config": "a.py", "Weights": "zoo/a.pth"}], "'a' have no hash")],
)  # fmt: skip
def test_errors_in_a_metafile(tmp_path, models, message):
    with pytest.raises(ValueError, match=rf"model-index.yml.metafile.yml: .*{message}"):
        read_index(write_index(tmp_path, models))


@pytest.mark.parametrize("text", ["a: [", "- 1", "!!python/object/apply:os.getcwd []", None])
def test_what_is_no_metafile(tmp_path, text):
    if text is not None:
        (tmp_path / "index.yml").write_text(text)
    with pytest.raises(ValueError, match="(?s)index.yml' (can't be read|holds no mapping).*expected"):
        read_index(tmp_path / "index.yml")


# --- the figures again -----------------------------------------------------------------------------------------------


# Of generated and of real images; the others are for `make test-slow`.
QUICK = {"fcn_mobilenet-v2-d8-drconv_sample-160x120", "retinanet_r18-0.5x-drconv_fpn_bccd-160x120"}


def have_data(entry: Entry, cwd: Path, shared: Path) -> bool:
    """Puts a model's data below ``cwd``, where its config looks for it: generated, or linked from ``shared``."""
    command = entry.metadata.get("Data Command")
    if command:
        made = re.fullmatch(r"python -m (drconv_mm\.datasets\.\w+) (data/[\w/]+)", command)
        assert made, f"{entry.name}: {command!r} is no command of drconv_mm.datasets"
        subprocess.run([sys.executable, "-m", *made.groups()], cwd=cwd, check=True, capture_output=True)
        return True
    from mmengine.config import Config

    name = Path(Config.fromfile(entry.index.parent / entry.config).data_root).name
    if not (shared / name).is_dir():
        return False
    (cwd / "data").mkdir()
    (cwd / "data" / name).symlink_to(shared / name)
    return True


def measure(entry: Entry, cwd: Path) -> dict[str, float]:
    """What tools/test.py gives for a model's published weights; its data lies below ``cwd``."""
    config, weights = entry.index.parent.resolve() / entry.config, fetch_weights(entry)
    line = [sys.executable, ROOT / "tools/test.py", config, weights, "--work-dir", cwd / "test"]
    done = subprocess.run(line, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    (path,) = (cwd / "test").glob("*/*.json")
    return json.loads(path.read_text())


def listed(entry: Entry) -> dict[str, float]:
    return {name: value for result in entry.results for name, value in result["Metrics"].items()}


@pytest.mark.integration
@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.name, marks=[] if entry.name in QUICK else [pytest.mark.slow])
        for entry in PUBLISHED
    ],
)
def test_zoo_figures(entry, tmp_path):
    if not have_data(entry, tmp_path, SHARED):
        pytest.skip(f"the data of {entry.name} is not at {SHARED}; set DRCONV_MM_TEST_DATA")
    found = measure(entry, tmp_path)
    assert {name: found.get(name) for name in listed(entry)} == pytest.approx(listed(entry), rel=0.01, abs=1e-4)


@pytest.mark.integration
def test_figures_of_the_made_up_zoo(made_up, tmp_path):
    entry = find_entry(NAME, made_up.index)
    assert have_data(entry, tmp_path, Path())
    found = measure(entry, tmp_path)
    # The oracle: the same images through the published model, one at a time.
    import cv2
    import numpy as np

    right, images = 0, sorted((tmp_path / "data/sample_classification/val").glob("*/*.png"))
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    with torch.no_grad():
        for path in images:
            picture = cv2.resize(cv2.imread(str(path)), (64, 64))[..., ::-1].astype(np.float32)
            scores = made_up.model(((torch.from_numpy(picture) - mean) / std).permute(2, 0, 1)[None], mode="tensor")
            right += CLASSES[scores[0].argmax()] == path.parent.name
    assert found["accuracy/top1"] == pytest.approx(100 * right / len(images), abs=100 * 1.5 / len(images))
