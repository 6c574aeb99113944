"""A suite config: a small Python file in mmengine's style that says which tasks, conv types and seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .errors import SuiteError, nearest

UNITS = ("", "%", "count", "seconds", "bytes", "ratio")  # of metrics; '' is a number from 0 to 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONFIGS = (Path(__file__).parents[1] / ".mim/configs").resolve()  # in a clone a link to the repository's own


@dataclass(frozen=True)
class Task:
    """One task: what is trained, for how long, and what is measured.

    Attributes:
        name: Its key in the config, and its folder.
        title: The task in words.
        config: The toolbox's config, relative to the suite's file or to the project's ``configs`` folder.
        metric: ``dict(name=..., label=..., unit='', higher_is_better=True)``, by the name that the toolbox logs; the
            unit is one of `UNITS`.
        key: Where the config takes a conv type, such as ``'model.backbone.conv_cfg'``.
        input_shape: (height, width) that multiply-adds are counted at, pixels.
        iterations: Budget of a config that trains by iterations; None for the config's own.
        epochs: Budget of a config that trains by epochs; None for the config's own.
        evaluations: Validations while training at most, at equal distances, but for the last, which is at the end.
        data: ``dict(folder=..., files=[...], source=...)``: the folder under ``--data-root``, what must be in it, and
            where to get it; or ``dict(folder=..., generate='module:function', arguments={})``, called with the folder.
        options: Further settings of the config, by dotted name, as ``--cfg-options`` takes them.
        baselines: Results that need no network: ``{label: metric name}``.
        widen: ``dict(key=..., follow={...})`` for conv types with ``widened_to``: the setting that widens the backbone,
            and the settings that then take the channels of its outputs: an index, or a list of them.
        leave_out: Names of conv types that this task is not run with.
    """

    name: str
    title: str
    config: Path
    metric: dict[str, Any]
    key: str
    input_shape: tuple[int, int]
    data: dict[str, Any]
    iterations: int | None = None
    epochs: int | None = None
    evaluations: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, str] = field(default_factory=dict)
    widen: dict[str, Any] | None = None
    leave_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Suite:
    """A suite, read and checked.

    Attributes:
        name: The config file's name.
        title: What the report is called.
        tasks: By name.
        convs: Settings of each conv type by its name: None for the toolbox's own ``Conv2d``, a conv_cfg, or
            ``dict(widened_to=NAME)`` for the standard network at the multiply-adds of another.
        seeds: How many seeds: 0, 1, ...
        baseline: Name of the conv type that others are compared with.
        exact_resume: Whether a resumed training repeats an undisturbed one to the bit: data are then loaded by the
            training's own process. For GPUs, whose kernels are not exact anyway, workers are worth more.
    """

    name: str
    title: str
    tasks: dict[str, Task]
    convs: dict[str, dict[str, Any] | None]
    seeds: int
    baseline: str
    exact_resume: bool


def load_suite(path: str | Path) -> Suite:
    """Reads a suite config.

    Raises:
        SuiteError: The file can't be read, or a field is missing, unknown or of no use; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise SuiteError(f"suite config {str(path)!r} is no file; expected a path such as configs/suite/sample.py")
    try:
        document = Config.fromfile(path, import_custom_modules=False).to_dict()
    except Exception as error:  # whatever a Python file can raise
        raise SuiteError(f"suite config {path} can't be read: {type(error).__name__}: {error}") from error
    where = f"suite config {path}"
    known = {"title", "tasks", "convs", "seeds", "baseline", "exact_resume"}
    _check_keys(document, known, known - {"exact_resume", "baseline"}, where)
    for name in ("tasks", "convs"):
        if not isinstance(document[name], dict) or not document[name]:
            raise SuiteError(f"{where}: {name} must be a dict with at least one entry, got {document[name]!r}")
        for key in document[name]:
            if not _NAME.fullmatch(key):
                raise SuiteError(f"{where}: {name}: {key!r} names a folder; use letters, digits, '.', '_' and '-'")
    convs = document["convs"]
    for name, conv in convs.items():
        _check_conv(name, conv, convs, where)
    baseline = document.get("baseline", next(iter(convs)))
    if baseline not in convs:
        raise SuiteError(f"{where}: baseline={baseline!r} is none of its convs {list(convs)}")
    if not isinstance(document["seeds"], int) or document["seeds"] < 1:
        raise SuiteError(f"{where}: seeds must be at least 1, got {document['seeds']!r}")
    tasks = {name: _task(name, settings, path.parent, where) for name, settings in document["tasks"].items()}
    for name, task in tasks.items():
        for conv in task.leave_out:
            if conv not in convs:
                raise SuiteError(f"{where}: tasks[{name!r}]: leave_out: {conv!r} is none of its convs {list(convs)}")
    exact = document.get("exact_resume", True)
    return Suite(path.stem, document["title"], tasks, convs, document["seeds"], baseline, exact)


def _check_keys(found: Mapping[str, Any], known: set[str], needed: set[str], where: str) -> None:
    for key in found:
        if key not in known:
            raise SuiteError(f"{where}: {key!r} is not known; expected {sorted(known)}{nearest(key, known)}")
    for key in sorted(needed - found.keys()):
        raise SuiteError(f"{where}: {key!r} is missing")


def _check_conv(name: str, conv: Any, convs: Mapping[str, Any], where: str) -> None:
    if conv is None:
        return
    where = f"{where}: convs[{name!r}]"
    if not isinstance(conv, dict) or ("type" in conv) == ("widened_to" in conv):
        raise SuiteError(f"{where} must be None, dict(type=...) or dict(widened_to=...), got {conv!r}")
    if "widened_to" in conv:
        target = conv["widened_to"]
        if set(conv) != {"widened_to"} or "type" not in (convs.get(target) or {}):
            raise SuiteError(f"{where}: widened_to must name another of the convs with a type, got {conv!r}")


def _task(name: str, settings: Any, folder: Path, where: str) -> Task:
    where = f"{where}: tasks[{name!r}]"
    if not isinstance(settings, dict):
        raise SuiteError(f"{where} must be a dict, got {settings!r}")
    for key in ("metric", "data", "options", "baselines", "widen"):
        if settings.get(key) is not None and not isinstance(settings[key], dict):
            raise SuiteError(f"{where}: {key} must be a dict, got {settings[key]!r}")
    specs = [spec for spec in fields(Task) if spec.name != "name"]
    needed = {spec.name for spec in specs if spec.default is MISSING and spec.default_factory is MISSING}
    _check_keys(settings, {spec.name for spec in specs}, needed, where)
    _check_keys(settings["metric"], {"name", "label", "unit", "higher_is_better"}, {"name", "label"}, f"{where}.metric")
    metric = {"unit": "", "higher_is_better": True, **settings["metric"]}
    if metric["unit"] not in UNITS:
        raise SuiteError(f"{where}.metric: unit={metric['unit']!r} is not known; choose one of {list(UNITS)}")
    data = settings["data"]
    _check_keys(data, {"folder", "files", "source", "generate", "arguments"}, {"folder"}, f"{where}.data")
    if "generate" not in data:
        _check_keys(data, {"folder", "files", "source"}, {"files", "source"}, f"{where}.data")
    if settings.get("widen") is not None:
        _check_keys(settings["widen"], {"key", "follow"}, {"key", "follow"}, f"{where}.widen")
    if settings.get("iterations") is not None and settings.get("epochs") is not None:
        raise SuiteError(f"{where}: give iterations or epochs, not both")
    for key in ("iterations", "epochs", "evaluations"):
        value = settings.get(key)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise SuiteError(f"{where}: {key} must be an integer of at least 1, got {value!r}")
    candidates = [folder / settings["config"], _CONFIGS / settings["config"]]
    config = next((path for path in candidates if path.is_file()), None)
    if config is None:
        raise SuiteError(
            f"{where}: config {settings['config']!r} is no file; looked for {' and '.join(map(str, candidates))}"
        )
    shape = settings["input_shape"]
    if not isinstance(shape, (list, tuple)) or len(shape) != 2 or not all(isinstance(v, int) and v > 0 for v in shape):
        raise SuiteError(f"{where}: input_shape must be (height, width) in pixels, got {shape!r}")
    return Task(name, **{**settings, "config": config.resolve(), "metric": metric, "input_shape": tuple(shape)})
