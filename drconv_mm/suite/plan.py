"""From a suite to its runs: which there are, with which options, and how far each is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..files import write_whole
from .config import Suite, Task
from .errors import SuiteError, nearest
from .results import RESULT_FILE, RunResult

FAILED_FILE = "failed.json"
SUITE_FILE = "suite.json"
_CHECKPOINTS = 10  # a run's checkpoints, over its budget, where its config has no more
_VALIDATES = {"val_begin": 1, "dynamic_intervals": None}
_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "val_evaluator", "test_evaluator")


@dataclass(frozen=True)
class Run:
    """One training and its evaluation, ready to go.

    Attributes:
        suite: The suite's name.
        task: The task.
        conv: Name of the conv type.
        seed: The seed.
        folder: Where everything of the run goes.
        scope: The config's ``default_scope``.
        options: All settings of the config that the run changes, by dotted name.
        unit: What the budget counts: ``'epoch'`` or ``'iter'``.
        budget: How many of them.
        val_interval: Between two validations, in the same unit.
        batch_size: Images of one iteration, of all GPUs.
    """

    suite: str
    task: Task
    conv: str
    seed: int
    folder: Path
    scope: str
    options: dict[str, Any]
    unit: str
    budget: int
    val_interval: int
    batch_size: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.task.name}, {self.conv}, seed {self.seed}"

    @property
    def cfg_options(self) -> list[str]:
        """`options` as ``--cfg-options`` takes them."""
        return [f"{key}={_text(key, value)}" for key, value in self.options.items()]

    def state(self) -> str:
        """``'finished'``, ``'failed'``, ``'started'`` or ``'new'``."""
        if (self.folder / RESULT_FILE).exists():
            return "finished"
        if (self.folder / FAILED_FILE).exists():
            return "failed"
        return "started" if (self.folder / "state.json").exists() else "new"

    def result(self) -> RunResult:
        """The record of a finished run, checked to be of this run.

        Raises:
            SuiteError: It is of another, or of another batch size.
            ResultError: It can't be read.
        """
        path = self.folder / RESULT_FILE
        result = RunResult.read(path)
        found = (result.suite, result.task, result.conv, result.seed)
        expected = (self.suite, self.task.name, self.conv, self.seed)
        if found != expected:
            raise SuiteError(f"{path} is the result of {found}, expected {expected}; move it to where it belongs")
        if result.batch_size != self.batch_size:
            raise SuiteError(
                f"{path} was trained with batches of {result.batch_size} images, this run has {self.batch_size}: give "
                "--gpus as it was, or choose another --work-dir"
            )
        return result


def select(suite: Suite, convs: list[str] | None, tasks: list[str] | None, seeds: int | None) -> Suite:
    """The part of a suite that was asked for, with conv types of the command line added.

    Args:
        suite: The suite.
        convs: Names in the suite, or conv types that OpenMMLab can build (``'DCNv2'``, a dotted name); None for all.
        tasks: Names in the suite; None for all.
        seeds: Number of seeds; None for the suite's.

    Raises:
        SuiteError: A name that is not known, with the nearest; a conv type that can't be built; seeds below 1.
    """
    for name in tasks or ():
        if name not in suite.tasks:
            raise SuiteError(
                f"--task {name!r} is not in suite {suite.name!r}: {list(suite.tasks)}{nearest(name, suite.tasks)}"
            )
    if seeds is not None and seeds < 1:
        raise SuiteError(f"--seeds must be at least 1, got {seeds}")
    chosen: dict[str, dict[str, Any] | None] = {}
    for name in convs or suite.convs:
        # A type that the suite has under a name of its own is that one.
        known = [key for key, conv in suite.convs.items() if conv is not None and conv.get("type") == name]
        if name not in suite.convs and known:
            name = known[0]
        chosen[name] = suite.convs[name] if name in suite.convs else dict(type=name)
        if chosen[name] is not None and "type" in chosen[name]:
            _check_conv(name, chosen[name], suite)
    return Suite(
        suite.name,
        suite.title,
        {name: task for name, task in suite.tasks.items() if tasks is None or name in tasks},
        chosen,
        suite.seeds if seeds is None else seeds,
        suite.baseline,
        suite.exact_resume,
    )


def _check_conv(name: str, conv: dict[str, Any], suite: Suite) -> None:
    """Builds a layer of a conv type, which says more than its name does."""
    import mmcv.ops  # noqa: F401  (registers the conv types that are operators)
    from mmcv.cnn import build_conv_layer
    from mmengine.registry import MODELS

    try:
        build_conv_layer(conv, 64, 64, 3, padding=1)
    except Exception as error:  # a type of any kind may be named here, and fail in any way
        kind = str(conv["type"])
        names = [*suite.convs, *MODELS.module_dict, "drconv_mm.DRConv"]
        known = kind in names
        reason = f" ({type(error).__name__}: {error})" if known else ""
        if name in suite.convs:
            where = f"conv {name!r} of suite {suite.name!r} is of no conv type that can be built: {conv!r}"
        else:
            where = (
                f"--conv {name!r} is neither in suite {suite.name!r} ({', '.join(suite.convs)}) nor a conv type that "
                "can be built"
            )
        raise SuiteError(f"{where}{reason or nearest(kind, names)}") from error


def make_plan(
    suite: Suite, work_dir: Path, data_root: Path, gpus: int = 0, widths: Mapping[str, dict] | None = None
) -> list[Run]:
    """All runs in their order: task by task, and seed by seed, so that conv types can be compared early.

    Args:
        suite: The suite, or the part of it that was asked for.
        work_dir: Where runs go.
        data_root: Folder with the tasks' data sets.
        gpus: GPUs of a run; 0 and 1 for a training in one process.
        widths: Settings of widened networks, see `drconv_mm.suite.matching`.

    Raises:
        SuiteError: A config that can't be read or doesn't fit its task; a setting that ``--cfg-options`` can't take.
    """
    _text("--work-dir", str(work_dir))  # a resumed training is given its checkpoint by --cfg-options
    runs = []
    for task in suite.tasks.values():
        config = read_config(task)
        config.merge_from_dict(task.options)
        for seed in range(suite.seeds):
            for name, conv in suite.convs.items():
                if name in task.leave_out:
                    continue
                folder = work_dir / "runs" / task.name / name / str(seed)
                width = (widths or {}).get(f"{task.name}/{name}", {}).get("options", {})
                budget = _budget(task, config)
                options = {
                    **budget["options"],
                    **_data_options(task, config, data_root),
                    **_common_options(config, seed, suite.exact_resume, budget),
                    **task.options,
                    **_conv_options(task, name, conv, config),
                    **width,
                }
                batch_size = config.train_dataloader.batch_size * max(gpus, 1)
                facts = (budget["unit"], budget["length"], budget["val_interval"], batch_size)
                runs.append(Run(suite.name, task, name, seed, folder, config.default_scope, options, *facts))
    for run in runs:
        _ = run.cfg_options  # an error now, not in the run
    return runs


def read_config(task: Task) -> Config:
    """The task's config.

    Raises:
        SuiteError: It can't be read, or lacks what the suite needs.
    """
    try:
        config = Config.fromfile(task.config, import_custom_modules=False)
    except Exception as error:  # whatever a Python file can raise
        raise SuiteError(f"config {task.config} can't be read: {type(error).__name__}: {error}") from error
    loops = ("train_cfg", "train_dataloader", "val_cfg", "val_dataloader", "test_cfg", "test_dataloader")
    for key in ("default_scope", *loops, "data_root", "default_hooks"):
        if config.get(key) is None:
            raise SuiteError(f"config {task.config} of task {task.name!r} has no {key}, which the suite sets or reads")
    return config


def _budget(task: Task, config: Config) -> dict[str, Any]:
    """Length of the training, and the options that set it, schedules included."""
    unit = "epoch" if "max_epochs" in config.train_cfg else "iter"
    key, given = ("max_epochs", "epochs") if unit == "epoch" else ("max_iters", "iterations")
    other = task.iterations if unit == "epoch" else task.epochs
    if other is not None:
        wrong = "iterations" if unit == "epoch" else "epochs"
        raise SuiteError(f"task {task.name!r}: {task.config.name} trains by {given}: give {given} in place of {wrong}")
    own = config.train_cfg[key]
    length = getattr(task, given) or own
    val_interval = ceil(length / task.evaluations)
    options: dict[str, Any] = {f"train_cfg.{key}": length, "train_cfg.val_interval": val_interval}
    # Other times of validation, which the interval is to have alone.
    options |= {f"train_cfg.{key}": value for key, value in _VALIDATES.items() if config.train_cfg.get(key)}
    if length != own:
        options.update(_scaled_schedules(config, unit == "epoch", own, length))
    return {"unit": unit, "length": length, "val_interval": val_interval, "options": options}


def _scaled_schedules(config: Config, by_epoch: bool, own: int, length: int) -> dict[str, Any]:
    """What reaches to the training's end is fitted to the new length; a warmup keeps its own where there is room."""
    schedulers = config.get("param_scheduler") or []
    if isinstance(schedulers, dict):
        schedulers, names = [schedulers], ["param_scheduler"]
    else:
        names = [f"param_scheduler.{index}" for index in range(len(schedulers))]
    counted = [pair for pair in zip(names, schedulers, strict=True) if pair[1].get("by_epoch", True) == by_epoch]
    # The Runner lets a schedule without an end run to that of the training.
    first = [scheduler.get("end", own) for _, scheduler in counted if not scheduler.get("begin")]
    warmup = min((end for end in first if end <= own / 2 and end < length), default=0)

    def moved(step: int) -> int:
        if step == own:
            return length
        if step <= warmup:
            return step
        fitted = warmup + round((step - warmup) * (length - warmup) / (own - warmup))
        return max(1, min(fitted, length - 1))

    options = {}
    for name, scheduler in counted:
        old_begin, old_end = scheduler.get("begin", 0), scheduler.get("end", own)
        if old_end <= warmup:
            continue
        begin = min(moved(old_begin), length - 1)
        end = max(moved(old_end), begin + 1)
        new: dict[str, Any] = {"begin": begin, "end": end}
        scale = (end - begin) / (old_end - old_begin)
        for key in ("T_max", "total_steps"):
            if scheduler.get(key):
                whole = scheduler[key] == old_end - old_begin
                new[key] = end - begin if whole else max(1, round(scheduler[key] * length / own))
        if "milestones" in scheduler:  # which are counted from its begin
            new["milestones"] = [moved(old_begin + step) - begin for step in scheduler["milestones"]]
        elif "step_size" in scheduler:
            new["step_size"] = max(1, round(scheduler["step_size"] * scale))
            stretched = new["step_size"] / (scheduler["step_size"] * scale)  # 1, where steps are not too short for it
            new["gamma"] = scheduler.get("gamma", 0.1) ** stretched
        elif "gamma" in scheduler:  # exponential
            new["gamma"] = scheduler["gamma"] ** (1 / scale)
        options |= {f"{name}.{key}": value for key, value in new.items() if scheduler.get(key, value) != value}
    return options


def data_folder(task: Task, data_root: Path) -> Path:
    """Where the task's data set lies."""
    return data_root / task.data["folder"]


def _data_options(task: Task, config: Config, data_root: Path) -> dict[str, str]:
    """Every path in the loaders and evaluators that begins with the config's ``data_root``, moved."""
    old, new = str(config.data_root).rstrip("/"), str(data_folder(task, data_root))
    options = {}
    for key in _LOADERS:
        for name, value in _leaves(config.get(key), key):
            if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
                options[name] = new + value[len(old) :]
    if not options:
        raise SuiteError(
            f"config {task.config} of task {task.name!r}: no path of its loaders begins with data_root={old!r}"
        )
    return options


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}.{index}")
    else:
        yield name, value


def _common_options(config: Config, seed: int, exact: bool, budget: Mapping[str, Any]) -> dict[str, Any]:
    """What every run sets: seed, checkpoints, log, exact resuming."""
    by_epoch, length = budget["unit"] == "epoch", budget["length"]
    own, interval = config.default_hooks.get("checkpoint", {}), max(1, length // _CHECKPOINTS)
    if own.get("by_epoch", True) == by_epoch and own.get("interval", -1) > 0:
        interval = min(interval, own["interval"])
    options = {
        "randomness.seed": seed,
        "default_hooks.checkpoint.by_epoch": by_epoch,
        "default_hooks.checkpoint.interval": interval,
        # One may be half written when the training is killed.
        "default_hooks.checkpoint.max_keep_ckpts": 2,
        "default_hooks.checkpoint.save_last": True,
        # So that training and validation are logged at the same kind of step.
        "default_hooks.logger.log_metric_by_epoch": False,
    }
    for name, hook in (("checkpoint", "CheckpointHook"), ("logger", "LoggerHook")):
        if name not in config.default_hooks:
            options[f"default_hooks.{name}.type"] = hook
    if not by_epoch and length < config.default_hooks.get("logger", {}).get("interval", 10):
        options["default_hooks.logger.interval"] = length
    if exact:
        options |= {
            "train_dataloader.num_workers": 0,
            "train_dataloader.persistent_workers": False,
            "default_hooks.exact_resume.type": "drconv_mm.engine.exact_resume.ExactResumeHook",
        }
    return options


def _conv_options(task: Task, name: str, conv: dict[str, Any] | None, config: Config) -> dict[str, Any]:
    """The key that makes the difference."""
    found: Any = config.to_dict()
    for part in task.key.split("."):
        found = found.get(part, {}) if isinstance(found, dict) else {}
    if found and found != {"type": "Conv2d"} and (conv is None or "widened_to" in conv):
        raise SuiteError(
            f"task {task.name!r}: its config sets {task.key}={found!r}, so conv {name!r} would not be Conv2d: take a "
            "config without it, or give the conv a type of its own in the suite: dict(type=...)"
        )
    if conv is None:
        return {}
    if "widened_to" in conv:
        if task.widen is None:
            raise SuiteError(
                f"task {task.name!r} has no widen, which conv {name!r} needs: which setting widens its network?"
            )
        return {}
    options = {f"{task.key}.{key}": value for key, value in _flat(conv)}
    # No dict can be merged into a None, and settings of another type must not remain.
    if found is None or found:
        options[f"{task.key}._delete_"] = True
    return options


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", item) for inner, item in _flat(value))
        else:
            yield key, value


def _text(key: str, value: Any) -> str:
    """A value as ``--cfg-options`` reads it."""
    if isinstance(value, Mapping):
        raise SuiteError(f"{key}={dict(value)!r} can't be given to --cfg-options: give each setting by its dotted name")
    if isinstance(value, (list, tuple)):
        brackets = "[]" if isinstance(value, list) else "()"
        return brackets[0] + ",".join(_text(key, item) for item in value) + brackets[1]
    text = str(value)
    if isinstance(value, str) and any(sign in text for sign in " ,[]()'\""):
        raise SuiteError(
            f"{key}={text!r} can't be given to --cfg-options: use names without spaces, commas and brackets"
        )
    return text


def missing_data(suite: Suite, data_root: Path) -> list[str]:
    """For each task without its data what to download and where it goes; data that are generated are never missing."""
    messages = []
    for task in suite.tasks.values():
        if "generate" in task.data:
            continue
        folder = data_folder(task, data_root)
        absent = [name for name in task.data["files"] if not (folder / name).exists()]
        if absent:
            messages.append(
                f"task {task.name!r} needs {folder} with {', '.join(task.data['files'])}; "
                f"missing: {', '.join(absent)}.\n"
                f"    {task.data['source']}"
            )
    return messages


def generate_data(suite: Suite, data_root: Path) -> None:
    """Draws the data sets that are generated, where they are not there yet.

    Raises:
        SuiteError: The folder holds something else, or the function is not there.
    """
    for task in suite.tasks.values():
        if "generate" in task.data:
            module, _, function = task.data["generate"].partition(":")
            try:
                getattr(import_module(module), function)(data_folder(task, data_root), **task.data.get("arguments", {}))
            except (ImportError, AttributeError, FileExistsError, ValueError) as error:
                raise SuiteError(f"task {task.name!r}: its data can't be generated: {error}") from error


def claim(work_dir: Path, suite: Suite, convs: Mapping[str, Any], runs: Iterable[Run]) -> None:
    """Writes into a work dir what suite it holds, or checks that it is this one.

    Tasks and conv types may be added later, and changed while nothing was trained with them. What was must be as it
    was, so that one table never mixes two settings.

    Args:
        work_dir: The suite's folder.
        suite: The suite, or the part of it that was asked for.
        convs: All conv types of the suite: a widened one is matched to another, which may not be asked for.
        runs: What was asked for; the report knows from here what is still missing.

    Raises:
        SuiteError: It holds another suite, or runs of the same with another setting.
    """
    old, settings, _ = check_claim(work_dir, suite, convs)
    planned = [*old.get("planned", []), *("/".join(run.folder.parts[-3:]) for run in runs)]
    document = {
        "name": suite.name, "planned": list(dict.fromkeys(planned)), "settings": old["settings"] | settings
    }  # fmt: skip
    path, text = work_dir / SUITE_FILE, json.dumps(document, indent=1) + "\n"
    if not path.exists() or path.read_text() != text:
        write_whole(path, text)


def check_claim(
    work_dir: Path, suite: Suite, convs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Whether a suite may go on in a work dir; see `claim`.

    Returns:
        What the work dir holds, the settings of now, and the names of those that changed: ``'tasks.<name>'``,
        ``'convs.<name>'``.

    Raises:
        SuiteError: It holds another suite, or runs of the same with another setting.
    """
    path = work_dir / SUITE_FILE
    targets = {conv["widened_to"] for conv in suite.convs.values() if conv and "widened_to" in conv}
    settings = {
        **{f"tasks.{name}": asdict(task) | _config_facts(task) for name, task in suite.tasks.items()},
        **{f"convs.{name}": conv for name, conv in (suite.convs | {name: convs[name] for name in targets}).items()},
        "exact_resume": suite.exact_resume,
    }
    settings = json.loads(json.dumps(settings, default=str))  # as it will be read
    old: dict[str, Any] = {"name": suite.name, "settings": {}}
    if path.exists():
        old = read_document(path)
        if old["name"] != suite.name:
            raise SuiteError(f"{work_dir} holds suite {old['name']!r}, not {suite.name!r}; choose another --work-dir")
    before = old["settings"]
    changed = [name for name in settings if name in before and _lasting(settings, name, before) != before[name]]
    used = [name for name in changed if _is_trained(work_dir, name, before | settings)]
    if used:
        raise SuiteError(
            f"{work_dir} has runs with other settings of {', '.join(used)} (see {path}); set them back, choose another "
            "--work-dir, or give a changed task or conv type another name"
        )
    return old, settings, changed


def _lasting(settings: Mapping[str, Any], name: str, before: Mapping[str, Any]) -> Any:
    """A setting, with what may change at any time as it was before."""
    if not name.startswith("tasks."):
        return settings[name]
    old, new = before[name], settings[name]
    free = {key: old[key] for key in ("title", "leave_out") if key in old}
    if old.get("widen") is None:  # it was not asked for
        free["widen"] = None
    source = {key: value for key, value in old["data"].items() if key == "source"}
    return new | free | {"data": {key: value for key, value in new["data"].items() if key != "source"} | source}


def _is_trained(work_dir: Path, name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a training with a setting has come to a record or a checkpoint."""
    kind, _, own = name.partition(".")
    controls = [
        key.partition(".")[2]
        for key, conv in settings.items()
        if key.startswith("convs.") and isinstance(conv, dict) and conv.get("widened_to") == own
    ]
    places = {"tasks": [f"{own}/*"], "convs": [f"*/{conv}" for conv in (own, *controls)]}.get(kind, ["*/*"])
    folders = [folder for place in places for folder in (work_dir / "runs").glob(f"{place}/*")]
    return any((folder / RESULT_FILE).exists() or any(folder.glob("training/*.pth")) for folder in folders)


def read_document(path: Path) -> dict[str, Any]:
    """What the suite wrote of itself.

    Raises:
        SuiteError: The file is damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SuiteError(
            f"{path} is damaged ({error}); copy it from where it is whole, or choose another --work-dir"
        ) from error
    if not isinstance(document, dict):
        raise SuiteError(f"{path} holds no mapping; copy it from where it is whole, or choose another --work-dir")
    return document


def _config_facts(task: Task) -> dict[str, str]:
    """A task's config by what it says, wherever it lies."""
    text = _canonical(read_config(task).to_dict())
    return {"config": task.config.name, "config_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
