"""The suite's report: one HTML page that needs nothing else, the same as Markdown, and all runs as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...files import write_whole
from ..results import RunResult, write_csv
from .gallery import collect_pictures
from .html import render_html
from .markdown import write_markdown
from .plots import Looks, task_plots
from .tables import Run, collect

__all__ = ["write_report"]


def write_report(
    work_dir: Path,
    results: Sequence[RunResult],
    out_dir: Path,
    *,
    title: str,
    command: str,
    conclusions: str | None = None,
    baseline_conv: str,
    planned: Iterable[Run] | None = None,
) -> list[Path]:
    """Writes ``report.html``, ``report.md`` with ``figures/``, and ``results.csv``.

    Args:
        work_dir: The suite's folder: pictures are looked for in ``runs/<task>/<conv>/<seed>/pictures/``, reasons of
            failures in ``failed.json`` beside. Neither is needed.
        results: Finished runs; the report keeps their order of tasks and conv types.
        out_dir: Where the report goes.
        title: Its title.
        command: The command line that wrote it.
        conclusions: What the author makes of it, in Markdown.
        baseline_conv: The conv type that others are compared with.
        planned: (task, conv, seed) of all runs there should be; None for each task with each conv type and seed
            that the results have.

    Returns:
        The three files.

    Raises:
        ValueError: No result, or two results of one run.
        ResultError: Two metrics of one task.
        OSError: A file could not be written; each is whole or not there.
    """
    content = collect(
        work_dir,
        results,
        planned,
        title=title,
        command=command,
        conclusions=conclusions,
        baseline_conv=baseline_conv,
    )
    looks = Looks(content.convs, baseline_conv)
    plots = [task_plots(task, looks) for task in content.tasks]
    pictures, left_out = collect_pictures(work_dir, content)
    table, page, text = out_dir / "results.csv", out_dir / "report.html", out_dir / "report.md"
    write_csv(table, content.results)
    write_whole(page, render_html(content, looks, plots, pictures, left_out, table.read_bytes()))
    write_markdown(text, content, plots, pictures, left_out)
    return [page, text, table]
