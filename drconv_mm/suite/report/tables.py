"""What the report says, before it is laid out: the table of each task, and which runs there are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ...engine.regions import region_entropy
from ..results import ResultError, RunResult
from ..statistics import Paired, Summary, paired_difference, summarize
from .numbers import duration, format_number

Run = tuple[str, str, int]  # task, conv, seed

METHOD = (
    "Multiply-adds are of one image. Time is of a training iteration: the median over a run's log lines, each a mean "
    "over the iterations just before it. Memory is the largest resident size of the training process, or on a GPU the "
    "most that its tensors took. Both are means over the seeds. "
    "Differences are paired by seed: Student's t interval at 95 %, and a paired t test, neither corrected for the "
    "number of comparisons. Few seeds can't test whether differences are normal."
)


@dataclass(frozen=True)
class Layer:
    """How a layer uses its regions, as the mean over the runs of a row.

    Attributes:
        name: The layer's.
        shares: Of the region with most pixels, of the one with second most, ...; they sum to 1.
        entropy: Of the shares, in units of log m.
    """

    name: str
    shares: list[float]
    entropy: float


@dataclass(frozen=True)
class Row:
    """One conv type of one task.

    Attributes:
        conv: Its name.
        results: Finished runs by seed; at least one.
        planned: Runs that there should be.
        difference: To the baseline conv; None for that one, and where they share no seed.
    """

    conv: str
    results: list[RunResult]
    planned: int
    difference: Paired | None

    def summary(self, name: str) -> Summary:
        """Of a field of the results, such as ``'value'``."""
        return summarize(getattr(result, name) for result in self.results)

    @cached_property
    def layers(self) -> list[Layer]:
        """Region use; empty for a conv type without regions."""
        uses: dict[str, list[list[float]]] = {}
        for result in self.results:
            for name, use in result.regions.items():
                uses.setdefault(name, []).append(use["shares"])
        return [
            Layer(
                name,
                # The order of regions means nothing from one training to the next: the mean is by rank.
                np.mean([sorted(shares, reverse=True) for shares in runs], 0).tolist(),
                float(np.mean([region_entropy(torch.tensor(shares, dtype=torch.float64)) for shares in runs])),
            )
            for name, runs in uses.items()
            if len({len(shares) for shares in runs}) == 1
        ]


@dataclass(frozen=True)
class Task:
    """One task: a row a conv type that has a finished run, the baseline conv's first."""

    name: str
    title: str
    metric: dict
    rows: list[Row]
    baselines: dict[str, float]
    baseline_conv: str

    @property
    def base(self) -> Row | None:
        """The baseline conv's row."""
        return next((row for row in self.rows if row.conv == self.baseline_conv), None)

    @property
    def metric_name(self) -> str:
        """The metric with its unit."""
        return self.metric["label"] + (f" ({self.metric['unit']})" if self.metric["unit"] else "")

    @property
    def short_title(self) -> str:
        """The title up to a colon."""
        return self.title.split(":")[0]

    @property
    def unit(self) -> str:
        """The metric's unit, as `format_number` takes it."""
        return self.metric["unit"]

    def judge(self, row: Row) -> str:
        """``'better'`` or ``'worse'`` than the baseline conv where the seeds support a difference, else ``'open'``."""
        if row.difference is None or not row.difference.supported:
            return "open"
        return "better" if (row.difference.mean > 0) == self.metric["higher_is_better"] else "worse"

    def headline(self) -> str:
        """The verdict in a sentence."""
        if self.base is None:
            return f"No run of {self.baseline_conv} to compare with."
        compared = [row for row in self.rows if row.difference is not None]
        if not compared:
            return f"Nothing to compare {self.baseline_conv} with."
        found = {
            judgement: " and ".join(row.conv for row in compared if self.judge(row) == judgement)
            for judgement in ("better", "worse")
        }
        said = [f"{convs} did {judgement}" for judgement, convs in found.items() if convs]
        if said:
            number = _seeds_of(row for row in compared if self.judge(row) != "open")
            return f"{', '.join(said)} than {self.baseline_conv}, supported by {number}."
        tested = [row for row in compared if math.isfinite(row.difference.p_value)]
        if tested:
            return f"No difference to {self.baseline_conv} that {_seeds_of(tested)} support."
        if all(row.difference.n == 1 for row in compared):
            return f"One seed supports no difference to {self.baseline_conv}."
        return f"No difference to {self.baseline_conv} can be tested."

    def findings(self) -> list[str]:
        """What each conv type gave, the baseline conv's first."""
        label = self.metric["label"] + ", lower is better:" * (not self.metric["higher_is_better"])
        return [
            f"{row.conv}: {_difference(row, self.unit)}"
            if self.base is not None and row is not self.base
            else f"{row.conv}: {label} {_value(row, self.unit)}"
            for row in self.rows
        ]

    def sentence(self) -> str:
        """Headline and findings as one text."""
        return f"{self.headline()} {'; '.join(self.findings())}."


def _value(row: Row, unit: str) -> str:
    summary = row.summary("value")
    spread = f" ± {format_number(summary.std, unit)}" if summary.n > 1 else ""
    return f"{format_number(summary.mean, unit)}{' %' * (unit == '%')}{spread} ({seeds(summary.n)})"


def _difference(row: Row, unit: str) -> str:
    paired = row.difference
    if paired is None:
        return "shares no seed with it"
    points = " points" * (unit == "%")
    text = f"{format_number(paired.mean, unit, sign=True)}{points}"
    if paired.n > 1:
        ends = " to ".join(format_number(end, unit, sign=True) for end in (paired.low, paired.high))
        text += f" (95 % interval {ends}, p = {format_number(paired.p_value, 'p')})".replace("p = <", "p <")
    return f"{text}, {paired.verdict}"


def _seeds_of(rows: Iterable[Row]) -> str:
    """``3 seeds``, or ``2 to 3 seeds`` where the rows have not as many."""
    numbers = sorted({row.difference.n for row in rows})
    return seeds(numbers[-1]) if len(numbers) == 1 else f"{numbers[0]} to {seeds(numbers[-1])}"


def seeds(count: int) -> str:
    """``3 seeds``, ``1 seed``."""
    return f"{count} seed{'s' * (count != 1)}"


@dataclass(frozen=True)
class Unfinished:
    """A run without a result, and what is known of it."""

    task: str
    conv: str
    seed: int
    reason: str
    log: str


@dataclass(frozen=True)
class Content:
    """All that a report says.

    Attributes:
        environments: Each distinct environment with what was run in it, most first, as `_runs_of` says it.
        commits: The project's commits that the runs were made with.
    """

    title: str
    command: str
    conclusions: str | None
    baseline_conv: str
    suite: str
    tasks: list[Task]
    convs: list[str]
    results: list[RunResult]
    planned: int
    unfinished: list[Unfinished]
    environments: list[tuple[dict[str, str], str]]
    commits: list[str]

    @property
    def total_time(self) -> str:
        """Of all runs together."""
        return duration(sum(result.seconds for result in self.results))

    @property
    def dates(self) -> str:
        """The first run's day and the last one's, ISO 8601, UTC."""
        first, last = (pick(r.finished for r in self.results)[:10] for pick in (min, max))
        return first if first == last else f"{first} to {last}"


def run_folder(work_dir: Path, run: Run) -> Path:
    """Where a run lies."""
    return work_dir / "runs" / run[0] / run[1] / str(run[2])


def collect(
    work_dir: Path,
    results: Sequence[RunResult],
    planned: Iterable[Run] | None,
    *,
    title: str,
    command: str,
    conclusions: str | None,
    baseline_conv: str,
) -> Content:
    """Puts together what the report says; arguments as those of `write_report`.

    Raises:
        ValueError: No result, two results of one run, or two metrics of one task.
    """
    if not results:
        raise ValueError("results must hold at least one finished run, got none")
    by_run: dict[Run, RunResult] = {}
    for result in results:
        run = (result.task, result.conv, result.seed)
        if run in by_run:
            raise ValueError(f"results holds task {run[0]!r}, conv {run[1]!r}, seed {run[2]} twice")
        by_run[run] = result
    if planned is None:
        tasks, convs, numbers = (dict.fromkeys(run[i] for run in by_run) for i in range(3))
        planned = [(task, conv, seed) for task in tasks for conv in convs for seed in numbers]
    planned = list(dict.fromkeys([*planned, *by_run]))
    convs = sorted(dict.fromkeys(run[1] for run in planned), key=lambda conv: conv != baseline_conv)
    names = dict.fromkeys(run[0] for run in planned)
    tasks = [
        _task(name, [by_run[run] for run in planned if run[0] == name and run in by_run], planned, convs, baseline_conv)
        for name in names
        if any(run[0] == name for run in by_run)
    ]
    environments: dict[tuple, list[RunResult]] = {}
    for result in results:
        environments.setdefault(tuple(sorted(result.environment.items())), []).append(result)
    return Content(
        title=title,
        command=command,
        conclusions=conclusions,
        baseline_conv=baseline_conv,
        suite=results[0].suite,
        tasks=tasks,
        convs=convs,
        results=[by_run[run] for run in planned if run in by_run],
        planned=len(planned),
        unfinished=[_unfinished(work_dir, run) for run in planned if run not in by_run],
        environments=[
            (dict(key), _runs_of(found)) for key, found in sorted(environments.items(), key=lambda item: -len(item[1]))
        ],
        commits=sorted({commit for result in results for commit in (result.git_commit or "").split(", ") if commit}),
    )


def _runs_of(results: list[RunResult]) -> str:
    """``3 runs (cells: Conv2d seed 0, 1, DRConv seed 0)``."""
    seeds_of: dict[str, dict[str, list[int]]] = {}
    for result in results:
        seeds_of.setdefault(result.task, {}).setdefault(result.conv, []).append(result.seed)
    which = "; ".join(
        f"{task}: {', '.join(f'{conv} seed ' + ', '.join(map(str, sorted(of))) for conv, of in convs.items())}"
        for task, convs in seeds_of.items()
    )
    return f"{len(results)} run{'s' * (len(results) != 1)} ({which})"


def _task(name: str, results: list[RunResult], planned: list[Run], convs: list[str], baseline_conv: str) -> Task:
    metric = results[0].metric
    for result in results:
        if result.metric != metric:
            raise ResultError(
                f"task {name!r} has results of two metrics, {metric} and {result.metric}: move one task's records away"
            )
    values = {conv: {r.seed: r.value for r in results if r.conv == conv} for conv in convs}
    base = values.get(baseline_conv, {})
    rows = [
        Row(
            conv,
            sorted((r for r in results if r.conv == conv), key=lambda r: r.seed),
            sum(run[:2] == (name, conv) for run in planned),
            paired_difference(base, values[conv])
            if conv != baseline_conv and base.keys() & values[conv].keys()
            else None,
        )
        for conv in convs
        if values[conv]
    ]
    baselines = {label: value for result in results for label, value in result.baselines.items()}
    return Task(name, results[0].task_title, metric, rows, baselines, baseline_conv)


def _unfinished(work_dir: Path, run: Run) -> Unfinished:
    path = run_folder(work_dir, run) / "failed.json"
    if not path.is_file():
        return Unfinished(*run, "not run, or not finished", "")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Unfinished(*run, f"failed: {document['error']}", "\n".join(map(str, document.get("last_lines", []))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Unfinished(*run, f"failed, and {path.name} cannot be read", "")
