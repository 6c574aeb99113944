"""The record of one finished run, and the table of many."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..files import draft_of, write_whole

SCHEMA = "drconv_mm.suite.result/1"
RESULT_FILE = "result.json"
INSPECTION_FILE = "inspection.json"
CSV_COLUMNS = (
    "task",
    "conv",
    "seed",
    "metric",
    "value",
    "multiply_adds",
    "parameters",
    "seconds_per_iteration",
    "peak_memory_bytes",
    "git_commit",
    "device",
)  # fmt: skip


class ResultError(ValueError):
    """A record that can't be read: the message names file, field, what was found and what was expected."""


@dataclass(frozen=True)
class RunResult:
    """What one run leaves: one task, one conv type, one seed.

    Attributes:
        suite: Name of the suite.
        task: The task's short name.
        conv: The conv type's name in the suite.
        seed: Seed of the run.
        task_title: The task in words.
        metric: ``name`` (as the toolbox logs it), ``label`` and ``unit`` for people, ``higher_is_better``.
        value: The metric at the end of the training, in ``metric['unit']``.
        metrics: All scalars of the toolbox's test.py.
        baselines: What needs no network, such as the accuracy of raw pixels, by label; in the metric's unit.
        multiply_adds: Of one image of the task's size.
        parameters: Of the whole model.
        seconds_per_iteration: Median over the training's log lines, each a mean over the iterations just before it.
        peak_memory_bytes: Largest resident size of the training process; on a GPU the most that its tensors took there.
        iterations: Iterations trained.
        batch_size: Images of one iteration.
        curves: ``loss`` and ``metric``: ``[[iteration, value], ...]`` while training.
        regions: For each layer with regions ``{'num_regions': m, 'shares': [m numbers that sum to 1]}`` over a sample
            of the validation set; empty for convolutions without.
        environment: Versions and machine.
        git_commit: The project's commit, or those of all sittings; None outside a clone.
        command: The training's command line, as one would repeat it.
        started: ISO 8601, UTC.
        finished: ISO 8601, UTC.
        seconds: Seconds of work on the run, of all its sittings together.
        suite_command: Command line of the suite.
        schema: `SCHEMA`.
    """

    suite: str
    task: str
    conv: str
    seed: int
    task_title: str
    metric: dict[str, Any]
    value: float
    metrics: dict[str, float]
    baselines: dict[str, float]
    multiply_adds: int
    parameters: int
    seconds_per_iteration: float
    peak_memory_bytes: int
    iterations: int
    batch_size: int
    curves: dict[str, list[list[float]]]
    regions: dict[str, dict[str, Any]]
    environment: dict[str, str]
    git_commit: str | None
    command: list[str]
    started: str
    finished: str
    seconds: float
    suite_command: str
    schema: str = SCHEMA

    @property
    def device(self) -> str:
        """What it was trained on."""
        return self.environment.get("gpu") or self.environment.get("cpu", "")

    def to_json(self) -> str:
        """The record as text; the same record gives the same text."""
        document = asdict(self)
        return json.dumps({"schema": document.pop("schema"), **document}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "result") -> RunResult:
        """Reads a record.

        Args:
            text: What `to_json` wrote.
            source: Name for messages, such as the file's path.

        Raises:
            ResultError: No JSON, another schema, or a field that is missing, unknown or of another type.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise ResultError(f"{source}: no JSON ({error}); delete it to let the suite run it again") from error
        found = document.get("schema") if isinstance(document, dict) else None
        if found != SCHEMA:
            raise ResultError(
                f"{source}: schema is {found!r}, expected {SCHEMA!r}; it comes from another version of drconv_mm: "
                "read it with that version, or run the suite in another --work-dir"
            )
        names = {field.name for field in fields(cls)}
        for problem, wrong in (("missing", names - document.keys()), ("unknown", document.keys() - names)):
            if wrong:
                raise ResultError(f"{source}: field {sorted(wrong)[0]!r} is {problem}; schema {SCHEMA!r}")
        for name, (expected, fits) in _EXPECTED.items():
            if not fits(document[name]):
                raise ResultError(f"{source}: field {name!r} must be {expected}, got {_short(document[name])}")
        return cls(**document)

    def write(self, path: Path) -> None:
        """Writes the record, whole or not at all."""
        write_whole(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> RunResult:
        """Reads a record's file; see `from_json`."""
        return cls.from_json(path.read_text(encoding="utf-8"), str(path))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: object) -> bool:
    return _number(value) and math.isfinite(value)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _map_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(check(item) for item in value.values())


def _list_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def _text(value: object) -> bool:
    return isinstance(value, str)


def _metric(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"name", "label", "unit", "higher_is_better"}
        and all(_text(value[key]) for key in ("name", "label", "unit"))
        and isinstance(value["higher_is_better"], bool)
    )


def _curves(value: object) -> bool:
    point = _list_of(_number)
    return _map_of(_list_of(lambda item: point(item) and len(item) == 2))(value) and {"loss", "metric"} <= value.keys()


def _layer(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"num_regions", "shares"}
        and _count(value["num_regions"])
        and _list_of(_finite)(value["shares"])
        and len(value["shares"]) == value["num_regions"]
    )


_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("suite", "task", "conv", "task_title", "started", "finished"), ("a text", _text)),
    "suite_command": ("a text", _text),
    "seed": ("a count", _count),
    "metric": ("a dict of name, label, unit (texts) and higher_is_better (bool)", _metric),
    # A metric may be nan, as a diverged training's is, or of a detector that finds nothing: that is a result.
    "value": ("a number", _number),
    "metrics": ("a dict of numbers", _map_of(_number)),
    "baselines": ("a dict of numbers", _map_of(_finite)),
    **dict.fromkeys(("multiply_adds", "parameters", "peak_memory_bytes", "iterations"), ("a count", _count)),
    "batch_size": ("a count", _count),
    "seconds_per_iteration": ("a number", _finite),
    "seconds": ("a number", _finite),
    "curves": ("a dict with loss and metric, each a list of [iteration, value]", _curves),
    "regions": ("a dict of layers, each with num_regions and as many shares", _map_of(_layer)),
    "environment": ("a dict of texts", _map_of(_text)),
    "git_commit": ("a text or null", lambda value: value is None or _text(value)),
    "command": ("a list of texts", _list_of(_text)),
}


def read_results(folder: Path) -> list[RunResult]:
    """All records ``<task>/<conv>/<seed>/result.json`` in a folder, by path.

    Raises:
        ResultError: One of them can't be read, or is of another run than its place says.
    """
    results = []
    for path in sorted(folder.glob(f"*/*/*/{RESULT_FILE}")):
        result = RunResult.read(path)
        found, expected = (result.task, result.conv, str(result.seed)), path.parts[-4:-1]
        if found != expected:
            raise ResultError(f"{path} is the result of {found}, expected {expected}; move it to where it belongs")
        results.append(result)
    return results


def write_csv(path: Path, results: Iterable[RunResult]) -> None:
    """Writes `CSV_COLUMNS`, a row a run, numbers in full precision."""
    rows = [[getattr(r, name) if name != "metric" else r.metric["name"] for name in CSV_COLUMNS] for r in results]
    with draft_of(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        writer.writerows(rows)
