"""The report as Markdown, with its pictures beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...files import write_whole
from .gallery import KINDS, Picture
from .numbers import COLUMN_UNITS, MISSING, format_number
from .plots import Plot, TaskPlots
from .tables import METHOD, Content, Row, Task

FIGURES = "figures"
_HEADINGS = {"predictions": "Predictions beside ground truth", "regions": "Regions"}


def write_markdown(
    path: Path, content: Content, plots: Sequence[TaskPlots], pictures: Sequence[Picture], left_out: int
) -> None:
    """Writes the report and what it shows, in `FIGURES` beside it; pictures of an earlier report there go.

    Args:
        path: The report's file.
        content: What it says.
        plots: Of each task.
        pictures: Of the runs.
        left_out: Pictures that are not among them.
    """
    folder = path.parent / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    stale = {*folder.glob("*.svg"), *folder.glob("*.jpg")}
    written: dict[str, Path] = {}

    def file(name: str, data: str | bytes, ending: str) -> str:
        name = re.sub(r"[^\w.-]+", "-", name)
        while name in written:
            name += "-"
        written[name] = target = folder / f"{name}{ending}"
        write_whole(target, data)
        return f"{FIGURES}/{target.name}"

    def plot_lines(plot: Plot) -> list[str]:
        return [f"![{_text(plot.alt)}]({file(plot.name, plot.svg, '.svg')})", "", f"*{_text(plot.caption)}*", ""]

    lines = [f"# {_text(content.title)}", "", _done(content), "", "## In short", ""]
    if content.conclusions:
        lines += [content.conclusions.strip(), ""]
    lines += [f"- **{_text(task.title)}.** {_text(task.sentence())}" for task in content.tasks]
    lines += [""]
    for task, task_plots in zip(content.tasks, plots, strict=True):
        lines += [f"## {_text(task.title)}", "", *_table(task), ""]
        for plot in task_plots.all:
            lines += plot_lines(plot)
        for kind in KINDS:
            own = [picture for picture in pictures if (picture.task, picture.kind) == (task.name, kind)]
            lines += [f"### {_HEADINGS[kind]}", ""] if own else []
            for p in own:
                link = file(f"{p.task}_{p.conv}_{p.kind}_{p.index}", p.jpeg, ".jpg")
                lines += [f"![{_text(p.alt)}]({link})", "", f"*{_text(p.conv)}: {_text(p.caption)}*", ""]
    if content.unfinished:
        lines += ["## Missing runs", ""]
        lines += [f"- {_text(f'{u.task}, {u.conv}, seed {u.seed}: {u.reason}')}" for u in content.unfinished] + [""]
    lines += ["## How it was made", "", *_code(content.command), ""]
    if content.commits:
        lines += [f"The project's commit: {', '.join(content.commits)}.", ""]
    lines += [METHOD, "", "All runs are in [results.csv](results.csv).", ""]
    if left_out:
        lines += [f"{left_out} more pictures are in the runs' folders.", ""]
    for environment, of in content.environments:
        lines += [f"Environment of {_text(of)}:", "", "| | |", "|---|---|"]
        lines += [f"| {_text(name)} | {_text(value)} |" for name, value in environment.items()] + [""]
    write_whole(path, "\n".join(lines))
    for old in stale - set(written.values()):
        old.unlink(missing_ok=True)  # another report of the same suite may be faster


def _done(content: Content) -> str:
    return (
        f"{len(content.results)} of {content.planned} runs done, {content.total_time} of runs, {content.dates}; "
        f"suite {_text(content.suite)}. [report.html](report.html) says the same as one page."
    )


def _table(task: Task) -> list[str]:
    lines = [
        f"| convolution | {_text(task.metric_name)} | difference (95 % interval) | p | multiply-adds | parameters "
        "| time an iteration | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in task.rows:
        value = row.summary("value")
        spread = f" ± {format_number(value.std, task.unit)}" if value.n > 1 else ""
        cells = [
            _text(row.conv),
            f"{format_number(value.mean, task.unit)}{spread} ({value.n} of {row.planned})",
            *_difference(row, task.unit),
            *(format_number(row.summary(field).mean, unit) for field, unit in COLUMN_UNITS.items()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for label, value in task.baselines.items():
        lines.append(f"| {_text(label)} | {format_number(value, task.unit)} |" + f" {MISSING} |" * 6)
    return lines


def _difference(row: Row, unit: str) -> tuple[str, str]:
    """With its interval and verdict, and its p value."""
    paired = row.difference
    if paired is None:
        return MISSING, MISSING
    text = format_number(paired.mean, unit, sign=True)
    if paired.n > 1:
        text += " ({} to {})".format(*(format_number(end, unit, sign=True) for end in (paired.low, paired.high)))
    return f"{text}, {paired.verdict}", format_number(paired.p_value, "p")


def _code(text: str) -> list[str]:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}bash", text, fence]


def _text(text: str) -> str:
    """A name or sentence as it is: nothing in it is taken for Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", " ".join(text.split()))
