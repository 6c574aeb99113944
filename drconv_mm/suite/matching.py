"""Controls at the same cost: the standard network, widened to the multiply-adds of another conv type's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict

from ..engine.model import build_model
from ..files import write_whole
from .config import Suite, Task
from .errors import SuiteError
from .inspection import count_cost
from .plan import read_document

TOLERANCE = 0.03
WIDTHS_FILE = "widths.json"
_STEP, _WIDEST = 0.01, 4.0


def match_widths(
    suite: Suite, convs: Mapping[str, Any], work_dir: Path, report: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """The widths of all widened networks of a suite, found once and kept in ``widths.json``.

    Args:
        suite: The suite, or a part of it.
        convs: All conv types of the suite: a part may leave out those that others are matched to.
        work_dir: Where ``widths.json`` is kept.
        report: Gets a line for each width.

    Returns:
        ``{'task/conv': {'options': {...}, 'multiply_adds': ..., 'target': ...}}``.

    Raises:
        SuiteError: No width comes close enough.
    """
    path = work_dir / WIDTHS_FILE
    widths = read_widths(work_dir)
    wanted = [
        (task, name, conv["widened_to"])
        for task in suite.tasks.values()
        for name, conv in suite.convs.items()
        if conv is not None and "widened_to" in conv and name not in task.leave_out
        if f"{task.name}/{name}" not in widths
    ]
    for task, name, target in wanted:
        widths[f"{task.name}/{name}"] = found = match_width(task, convs[target])
        write_whole(path, json.dumps(widths, indent=1) + "\n")
        report(
            f"{task.name}, {name}: {task.widen['key']}={found['options'][task.widen['key']]} has "
            f"{found['multiply_adds'] / 1e6:.1f} M multiply-adds, {target} {found['target'] / 1e6:.1f} M"
        )
    return widths


def read_widths(work_dir: Path) -> dict[str, dict[str, Any]]:
    """What `match_widths` kept."""
    path = work_dir / WIDTHS_FILE
    return read_document(path) if path.exists() else {}


def forget_widths(work_dir: Path, changed: Iterable[str], convs: Mapping[str, Any]) -> None:
    """Drops the widths that were matched to settings that have changed (``'tasks.<name>'``, ``'convs.<name>'``)."""
    widths = read_widths(work_dir)
    changed = set(changed)
    kept = {}
    for name, width in widths.items():
        task, _, conv = name.partition("/")
        target = (convs.get(conv) or {}).get("widened_to")
        if not changed & {f"tasks.{task}", f"convs.{conv}", f"convs.{target}"}:
            kept[name] = width
    if kept != widths:
        write_whole(work_dir / WIDTHS_FILE, json.dumps(kept, indent=1) + "\n")


def match_width(task: Task, conv: dict[str, Any]) -> dict[str, Any]:
    """The width at which the task's standard network has as many multiply-adds as with ``conv``.

    Widths are multiples of 0.01, and channels are rounded by the network, so the match is the nearest of a grid.

    Returns:
        ``options`` (settings by dotted name), ``multiply_adds``, and ``target``, those with ``conv``.

    Raises:
        SuiteError: The nearest is more than 3 % away.
    """

    def cost(config: Config) -> int:
        return count_cost(build_model(config), task.input_shape)[0]

    target = _config(task)
    parent, _, name = task.key.rpartition(".")
    setting(target, parent)[name] = ConfigDict(conv)
    wanted = cost(target)
    tried: dict[int, tuple[int, dict[str, Any]]] = {}

    def widened(hundredths: int) -> int:
        width = round(hundredths * _STEP, 2)
        if hundredths not in tried:
            try:
                config, options = _widen(task, width)
                tried[hundredths] = cost(config), options
            except Exception as error:  # of the toolboxes' networks, which know what widths they take
                raise SuiteError(
                    f"task {task.name!r}: the network can't be built with {task.widen['key']}={width}: {error}; a "
                    "control needs a network of any width, and widen.follow for all that takes its channels"
                ) from error
        return tried[hundredths][0]

    parent, _, name = task.widen["key"].rpartition(".")
    own = setting(target, parent).get(name, 1.0)  # the network's default, where the config says none
    low, high = round(own / _STEP), round(_WIDEST / _STEP)
    while high - low > 1:  # multiply-adds grow with the width
        middle = (low + high) // 2
        low, high = (middle, high) if widened(middle) < wanted else (low, middle)
    widened(low)
    found, options = min(tried.values(), key=lambda candidate: abs(candidate[0] - wanted))
    if abs(found - wanted) > TOLERANCE * wanted:
        raise SuiteError(
            f"task {task.name!r}: no {task.widen['key']} up to {_WIDEST} gives {wanted} multiply-adds within "
            f"{TOLERANCE:.0%}; the nearest has {found}"
        )
    return {"options": options, "multiply_adds": found, "target": wanted}


def _config(task: Task) -> Config:
    config = Config.fromfile(task.config)
    config.merge_from_dict(task.options)
    return config


def _widen(task: Task, width: float) -> tuple[Config, dict[str, Any]]:
    """The task's config with a wider backbone, and the settings that make it so."""
    config = _config(task)
    options = {task.widen["key"]: width}
    config.merge_from_dict(options)
    if task.widen["follow"]:
        backbone = build_model(Config(dict(default_scope=config.default_scope, model=config.model.backbone)))
        backbone.eval()  # some of the toolboxes' return None
        with torch.no_grad():
            outputs = backbone(torch.zeros(1, 3, *task.input_shape))
        channels = [output.shape[1] for output in ((outputs,) if isinstance(outputs, torch.Tensor) else outputs)]
        for key, places in task.widen["follow"].items():
            options[key] = channels[places] if isinstance(places, int) else [channels[place] for place in places]
        config.merge_from_dict(options)
    return config, options


def setting(config: Config, key: str) -> Any:
    """What a dotted name stands for in a config."""
    for part in key.split("."):
        config = config[part]
    return config
