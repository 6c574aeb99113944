"""The model zoo: what the metafiles list, by name, and models built with their published weights.

``python -m drconv_mm.zoo > zoo/README.md`` writes the model cards.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from .checkpoint import CheckpointError, read_checkpoint, sha256

ENV = "DRCONV_MM_ZOO"
# In a checkout these are links to the repository's own files; an installed package has copies.
INDEX = Path(__file__).parent / ".mim" / "model-index.yml"
# What the metadata of a model with weights tells beside its cost.
CARD = ("Training Data", "Data Licence", "Training Budget", "FLOPs", "Parameters", "Input Size", "SHA256", "Limits")

_INTRODUCTION = f"""# Model zoo

*Written by `python -m drconv_mm.zoo > zoo/README.md` from the metafiles in `configs/`.*

```python
from drconv_mm.zoo import get_model, list_models

list_models("retinanet*")  # names of configs; with pretrained=True of those that have weights
model = get_model("NAME")  # built from its config, hash of the weights verified, in eval mode
```

Weights are taken from the folder that `{ENV}` names, from `zoo/` of a checkout, or from the URL in the metafile,
and are read as tensors only: nothing in the file is executed. FLOPs are multiply-adds of convolutions and linear layers
for one image; results carry the names and units that `tools/test.py` prints.
"""


@dataclass(frozen=True)
class Entry:
    """A model of the zoo, as a metafile has it.

    Attributes:
        name: The config's name, less ``.py``.
        config: Path of the config, from the index's folder.
        weights: ``zoo/<file>`` or a URL; None where no weights are published.
        metadata: Facts by OpenMMLab's names (``Training Data``, ``FLOPs``, ...), and this project's, see `CARD`.
        results: A dict for each data set: ``Task``, ``Dataset``, and ``Metrics`` by the names that test.py prints.
        index: The index that lists it.
    """

    name: str
    config: str
    weights: str | None
    metadata: dict[str, Any] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    index: Path = INDEX

    @property
    def file(self) -> str:
        """Name of the weights' file."""
        return (self.weights or "").rpartition("/")[2]

    @property
    def sha256(self) -> str:
        """Of the weights: all 64 digits where the metafile has them, else the 8 in the file's name."""
        named = re.search(r"-([0-9a-f]{8})\.pth$", self.file)
        return self.metadata.get("SHA256") or (named[1] if named else "")


def read_index(index: Path = INDEX) -> dict[str, Entry]:
    """The models of an index and the metafiles that it imports, by name.

    Raises:
        ValueError: A metafile can't be read, an entry lacks a field, or a name comes twice.
    """
    entries: dict[str, Entry] = {}
    for path in [index, *(index.parent / name for name in _read_yaml(index).get("Import") or [])]:
        for model in _read_yaml(path).get("Models") or []:
            missing = [key for key in ("Name", "Config") if not isinstance(model.get(key), str)]
            if missing:
                raise ValueError(f"{path}: the model {model.get('Name', model)!r} has no {missing[0]}; add the line")
            entry = Entry(
                model["Name"], model["Config"], model.get("Weights"), model.get("Metadata") or {},
                model.get("Results") or [], index,
            )  # fmt: skip
            if entry.name in entries:
                raise ValueError(f"{path}: the name {entry.name!r} comes twice; names are those of configs")
            if entry.weights and not entry.sha256:
                raise ValueError(
                    f"{path}: the weights of {entry.name!r} have no hash; add `SHA256` to its metadata, or publish "
                    "them with tools/publish_model.py, which puts it into the name"
                )
            entries[entry.name] = entry
    return entries


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"metafile {str(path)!r} can't be read: {error}; expected YAML") from error
    if not isinstance(content, dict):
        raise ValueError(f"metafile {str(path)!r} holds no mapping; expected `Models:` or `Import:`")
    return content


def list_models(pattern: str | None = None, *, pretrained: bool = False, index: Path = INDEX) -> list[str]:
    """Names of the zoo's models, sorted.

    Args:
        pattern: A shell pattern that names must match, such as ``'retinanet*bccd*'``; all of them if None.
        pretrained: Only models that have published weights.
        index: The index to read.
    """
    return sorted(
        name
        for name, entry in read_index(index).items()
        if (pattern is None or fnmatch.fnmatchcase(name, pattern)) and (entry.weights or not pretrained)
    )


def find_entry(name: str, index: Path = INDEX) -> Entry:
    """The model of that name.

    Raises:
        ValueError: There is none; the message has the nearest names.
    """
    entries = read_index(index)
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=3, cutoff=0.5)
        hint = f"near misses: {', '.join(near)}" if near else "drconv_mm.zoo.list_models() has all names"
        raise ValueError(f"name={name!r} is no model of the zoo; {hint}")
    return entries[name]


def get_model(name: str, pretrained: bool = True, *, device: str = "cpu", index: Path = INDEX) -> nn.Module:
    """A model of the zoo, ready for the toolbox's inference functions.

    Args:
        name: One of `list_models`.
        pretrained: Load the published weights. Without, the weights are those of a fresh model, before its
            ``init_weights``.
        device: Where it goes.
        index: The index to read.

    Returns:
        The model in eval mode, with its config as ``cfg`` and, from the weights' file, ``dataset_meta``.

    Raises:
        ValueError: No such model, or it has no published weights.
        CheckpointError: The weights are not found, can't be fetched, are not those of the metafile's hash, can't be
            read safely, or don't fit the config.
        ImportError: The config's toolbox is not installed.
    """
    entry = find_entry(name, index)
    # All that can be wrong with the weights comes before a model is built.
    checkpoint = read_checkpoint(fetch_weights(entry)) if pretrained else None
    model = build_model(entry.index.parent / entry.config)
    if checkpoint is not None:
        load_weights(model, checkpoint, f"weights {entry.file!r}", f"config {entry.config!r}")
    return model.to(device).eval()


def build_model(config: Path) -> nn.Module:
    """A config's model, through the registry of its toolbox; fresh weights, and ``cfg`` as the toolboxes set it.

    Raises:
        ImportError: mmengine or the config's toolbox is not installed.
    """
    remedy = "install it (`make env` in a clone of drconv_mm does)"
    if find_spec("mmengine") is None:
        raise ImportError(f"config {str(config)!r} can't be read, as mmengine is not installed; {remedy}")
    from mmengine.config import Config

    from .engine.model import build_model as build

    cfg = Config.fromfile(config)
    scope = cfg.get("default_scope", "mmengine")
    if find_spec(scope) is None:
        raise ImportError(f"config {str(config)!r} needs {scope}, which is not installed; {remedy}")
    model = build(cfg)  # its scope stays, as with the toolboxes' own functions: inference builds transforms by name
    model.cfg = model._config = cfg  # mmpretrain's inferencers read the second
    return model


def load_weights(model: nn.Module, checkpoint: dict[str, Any], what: str, whose: str) -> None:
    """Loads a checkpoint of exactly this model, and sets its ``dataset_meta``.

    Args:
        model: The model.
        checkpoint: As `read_checkpoint` returns it.
        what: The checkpoint, for the message.
        whose: The model, for the message.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        first = str(error).partition("\n")[2].strip().splitlines() or [str(error)]
        raise CheckpointError(
            f"{what} don't fit {whose}: {first[0][:300]}; give the config of that training"
        ) from error
    meta = (checkpoint.get("meta") or {}).get("dataset_meta")
    if meta:
        model.dataset_meta = model._dataset_meta = meta


def fetch_weights(entry: Entry) -> Path:
    """The file of a model's weights, from the local zoo or else its URL, with the hash verified.

    Raises:
        ValueError: No weights are published.
        CheckpointError: They are not found, can't be fetched, or have another hash.
    """
    if not entry.weights:
        raise ValueError(
            f"no weights are published for {entry.name!r}; train it: python tools/train.py {entry.config}, or build it "
            "with pretrained=False. list_models(pretrained=True) has those with weights"
        )
    named = os.environ.get(ENV)
    folders = [*([Path(named)] if named else []), entry.index.resolve().parent / "zoo"]
    path = next((folder / entry.file for folder in folders if (folder / entry.file).is_file()), None)
    if path is None:
        path = _download(entry, folders)
    found = sha256(path)
    if not found.startswith(entry.sha256):
        raise CheckpointError(
            f"weights {str(path)!r} have sha256 {found}, but the metafile of {entry.name!r} says {entry.sha256}: the "
            "file is damaged or another one, and was not loaded; delete it and get it again"
        )
    return path


def _download(entry: Entry, searched: list[Path]) -> Path:
    if "://" not in entry.weights:
        places = " and ".join(str(folder) for folder in searched)
        raise CheckpointError(
            f"weights {entry.file!r} of {entry.name!r} are not in {places}; they come with the repository: set {ENV} "
            "to the zoo folder of a checkout"
        )
    path = Path(torch.hub.get_dir()) / "checkpoints" / entry.file
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(entry.weights, str(path), hash_prefix=entry.sha256, progress=False)
        except (OSError, RuntimeError) as error:  # no network, no such file; another hash
            raise CheckpointError(
                f"weights of {entry.name!r} can't be had from {entry.weights} ({error}); get {entry.file} by other "
                f"means and set {ENV} to its folder"
            ) from error
    return path


def model_cards(index: Path = INDEX) -> str:
    """The zoo's page: a table of the models with weights and a card for each, as Markdown, from metafiles alone."""
    published = [entry for entry in read_index(index).values() if entry.weights]
    lines = [_INTRODUCTION]
    if not published:
        lines.append("No weights are published yet.\n")
    else:
        lines.append("| model | data | result | FLOPs | parameters |\n|---|---|---|---|---|")
        for entry in published:
            results = ", ".join(f"{name} {value}" for name, value in _metrics(entry).items())
            lines.append(
                f"| [{entry.name}](#{_anchor(entry.name)}) | {entry.metadata.get('Training Data', '')} | {results} "
                f"| {_millions(entry, 'FLOPs')} | {_millions(entry, 'Parameters')} |"
            )
        lines += ["", *(_card(entry) for entry in published)]
    return "\n".join(lines)


def _card(entry: Entry) -> str:
    data = entry.metadata
    link = entry.file if "://" not in entry.weights else entry.weights
    folder = Path(entry.config).parent
    layout = "" if data.get("Data Command") else f"; as [{folder}](../{folder}/README.md) says, in `data/`"
    lines = [
        f"## {entry.name}\n",
        f"- **Files:** [config](../{entry.config}), [weights]({link}), sha256 `{entry.sha256}`",
        f"- **Data:** {data.get('Training Data')}; licence: {data.get('Data Licence')}{layout}",
        f"- **Budget:** {data.get('Training Budget')}",
        f"- **Cost:** {_millions(entry, 'FLOPs')} multiply-adds at {data.get('Input Size')}, "
        f"{_millions(entry, 'Parameters')} parameters",
        *(
            f"- **{result['Task']} on {result['Dataset']}:** "
            + ", ".join(f"{name} {value}" for name, value in result["Metrics"].items())
            for result in entry.results
        ),
        f"- **Limits:** {data.get('Limits')}",
        "\n```bash",
    ]
    if data.get("Data Command"):
        lines.append(data["Data Command"])
    weights = entry.weights if "://" in entry.weights else f"zoo/{entry.file}"
    lines += [f"python tools/test.py {entry.config} {weights}", "```\n"]
    return "\n".join(lines)


def _metrics(entry: Entry) -> dict[str, float]:
    return {name: value for result in entry.results for name, value in result["Metrics"].items()}


def _millions(entry: Entry, key: str) -> str:
    value = entry.metadata.get(key)
    return "" if value is None else f"{value / 1e6:.2f} M"


def _anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9_-]", "", heading.lower())


if __name__ == "__main__":
    print(model_cards(), end="")
