"""One call of the suite: checks before anything starts, then the runs, with progress, then the report."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from .config import Suite
from .errors import SuiteError
from .launch import Outcome, executor_for, run_here, run_jobs
from .lock import locked
from .matching import forget_widths, match_widths, read_widths
from .plan import (
    FAILED_FILE,
    SUITE_FILE,
    Run,
    check_claim,
    claim,
    generate_data,
    make_plan,
    missing_data,
    read_document,
    select,
)
from .report import write_report
from .report.numbers import duration, format_number
from .results import RunResult, read_results
from .run import RunFailedError, seconds_spent
from .toolbox import tool_path

CONCLUSIONS_FILE = "conclusions.md"


class Session:
    """A suite in a work dir.

    Args:
        suite: The suite.
        convs: Conv types to run, None for all of the suite; likewise ``tasks`` and ``seeds``.
        tasks: Names of tasks.
        seeds: Number of seeds.
        work_dir: Where everything goes; None for ``work_dirs/suite/<name>``.
        data_root: Folder of the data sets.
        gpus: GPUs of a run.
        command: The command line, for the records.

    Raises:
        SuiteError: A name that is not known; a config that can't be read.
    """

    def __init__(
        self,
        suite: Suite,
        *,
        convs: list[str] | None = None,
        tasks: list[str] | None = None,
        seeds: int | None = None,
        work_dir: Path | None = None,
        data_root: Path = Path("data"),
        gpus: int = 0,
        command: str = "",
    ):
        self.whole = suite
        self.suite = select(suite, convs, tasks, seeds)
        self.work_dir = work_dir or Path("work_dirs/suite") / suite.name
        self.data_root = data_root
        self.gpus = gpus
        self.command = command
        self.runs = make_plan(self.suite, self.work_dir, data_root, gpus, read_widths(self.work_dir))

    def describe(self) -> str:
        """The plan as a text: a row a run, what data are missing, and the time it will take where that is known.

        Raises:
            SuiteError: The work dir has runs with other settings, or a tool is missing.
        """
        check_claim(self.work_dir, self.suite, self.whole.convs)
        self._check_tools()
        known = {id(run): run.result() for run in self.runs if run.state() == "finished"}
        clock = _Clock(known.values())
        lines = [f"suite {self.suite.name}: {self.suite.title}; {len(self.runs)} runs in {self.work_dir}", ""]
        lines += ["| task | conv | seed | config | key | budget | batch | state | about |", "|---" * 9 + "|"]
        for run in self.runs:
            seconds = known[id(run)].seconds if id(run) in known else clock.estimate(run)
            budget = f"{run.budget} {'epochs' if run.unit == 'epoch' else 'iterations'}"
            lines.append(
                f"| {run.task.name} | {run.conv} | {run.seed} | {run.task.config.stem} | {self._key_text(run)} "
                f"| {budget} | {run.batch_size} | {run.state()} | {'?' if seconds is None else duration(seconds)} |"
            )
        left = [run for run in self.runs if id(run) not in known]
        total = clock.left(left)
        lines += ["", f"{len(left)} runs to do" + (f", about {duration(total)}" if total else "")]
        missing = missing_data(self.suite, self.data_root)
        lines += [
            "",
            f"data under {self.data_root}: " + ("complete" if not missing else "\n".join(["missing", *missing])),
        ]
        return "\n".join(lines)

    def _key_text(self, run: Run) -> str:
        conv = self.suite.convs[run.conv]
        if conv is None:
            return "-"
        key = run.task.widen["key"] if "widened_to" in conv else run.task.key
        return f"{key}: {', '.join(f'{name}={value}' for name, value in conv.items())}"

    def run(
        self, resume: bool, launcher: str = "local", jobs: int = 1, parameters: dict[str, Any] | None = None
    ) -> list[str]:
        """Does what is left, and writes the report of all that is finished.

        Returns:
            For each failed run what went wrong.

        Raises:
            SuiteError: Something is not as it must be before the start; a full disk.
            ResultError: A record in the work dir can't be read.
        """
        if jobs < 1:
            raise SuiteError(f"--jobs must be at least 1, got {jobs}")
        if launcher == "local" and (jobs > 1 or parameters):
            raise SuiteError("--jobs and --job-options are for --launcher submitit and slurm: runs go one by one here")
        options = dict(parameters or {})
        if self.gpus:
            options = {"gpus_per_node": self.gpus, **options}
        elif launcher == "submitit" and torch.cuda.is_available():
            options = {"gpus_per_node": 1, **options}  # else submitit hides them from a job on this machine
        elif launcher == "slurm" and not any("gpu" in key or "gres" in key for key in options):
            print(f"suite {self.suite.name}: the jobs ask Slurm for no GPU; --gpus N gives each run N", flush=True)
        if launcher == "submitit" and jobs > 1 and options.get("gpus_per_node"):
            raise SuiteError(
                f"--jobs {jobs} with --launcher submitit: jobs on this machine all get its first "
                f"{options['gpus_per_node']} GPUs; use --jobs 1, --launcher slurm, or --job-options gpus_per_node=0"
            )
        read_results(self.work_dir / "runs")  # what the report could not read is said now
        tasks = {run.task.name: run.task for run in self.runs if run.state() != "finished"}
        unfinished = replace(self.suite, tasks=tasks)  # finished runs need no data
        missing = missing_data(unfinished, self.data_root)
        if missing:
            raise SuiteError("data are missing, nothing was started:\n  " + "\n  ".join(missing))
        self._check_tools()
        with locked(self.work_dir / "suite.lock", f"work dir {self.work_dir}"):
            done = [run for run in self.runs if run.state() == "finished"]
            begun = [run for run in self.runs if run.state() in ("started", "failed")]
            if (done or begun) and not resume:
                raise SuiteError(
                    f"{self.work_dir} holds {len(done)} finished and {len(begun)} unfinished of these {len(self.runs)} "
                    "runs: add --resume to go on, or choose another --work-dir"
                )
            results = [run.result() for run in done]
            # Before the new settings are written: a kill in between must not leave widths of the old ones.
            _, _, changed = check_claim(self.work_dir, self.suite, self.whole.convs)
            forget_widths(self.work_dir, changed, self.whole.convs)
            claim(self.work_dir, self.suite, self.whole.convs, self.runs)
            print(f"suite {self.suite.name}: looking for the data, and drawing those that are generated", flush=True)
            generate_data(unfinished, self.data_root)
            widths = match_widths(self.suite, self.whole.convs, self.work_dir)
            self.runs = make_plan(self.suite, self.work_dir, self.data_root, self.gpus, widths)
            left = [run for run in self.runs if run.state() != "finished"]
            print(
                f"suite {self.suite.name}: {len(self.runs)} runs, {len(done)} finished, {len(left)} to do", flush=True
            )
            progress = _Progress(self.runs, left, results, jobs)
            execute_run = executor_for(self.command, self.gpus)
            if launcher == "local":
                outcomes: Iterable[Outcome] = run_here(left, execute_run, progress.step)
            else:
                cluster = "slurm" if launcher == "slurm" else "local"
                outcomes = run_jobs(left, execute_run, cluster, self.work_dir / "jobs", jobs, options, progress.step)
            failed = []
            for run, outcome in outcomes:
                progress.end(run, outcome)
                if isinstance(outcome, RunFailedError):
                    failed.append(str(outcome))
            finished = read_results(self.work_dir / "runs")
            if finished:
                self._write_report(finished, self.command)
        if failed:
            print(f"\n{len(failed)} of {len(left)} runs failed; --resume tries them again:", flush=True)
            for message in failed:
                print(f"  {message.splitlines()[0]}", flush=True)
        return failed

    def report(self) -> None:
        """Writes the report of all that is finished so far, also while the suite runs.

        Raises:
            SuiteError: Nothing is finished, or the work dir is another suite's.
            ResultError: A record in the work dir can't be read.
        """
        check_claim(self.work_dir, self.suite, self.whole.convs)
        results = read_results(self.work_dir / "runs")
        if not results:
            raise SuiteError(
                f"{self.work_dir} has no finished runs to report; the command without --report-only trains"
            )
        self._write_report(results, max(results, key=lambda result: result.finished).suite_command)

    def _is_wanted(self, task: str, conv: str, seed: int) -> bool:
        """Whether the suite still has a run that was asked for once, or something is left of it."""
        if (self.work_dir / "runs" / task / conv / str(seed)).exists():
            return True
        if task not in self.whole.tasks or conv in self.whole.tasks[task].leave_out:
            return False
        return conv in {*self.whole.convs, *self.suite.convs} and seed < max(self.whole.seeds, self.suite.seeds)

    def _check_tools(self) -> None:
        for run in self.runs:
            for tool in ("train.py", "test.py"):
                tool_path(run.scope, tool)

    def _write_report(self, results: list[RunResult], command: str) -> None:
        """Of everything finished in the work dir, whatever part of the suite was asked for this time."""
        tasks, convs = list(self.whole.tasks), list(self.whole.convs)

        def place(name: str, names: list[str]) -> tuple[int, str]:
            return (names.index(name) if name in names else len(names), name)

        results.sort(key=lambda result: (place(result.task, tasks), place(result.conv, convs), result.seed))
        there = {result.conv for result in results}
        conclusions = self.work_dir / CONCLUSIONS_FILE
        # Of earlier calls, too, which may have asked for another part of the suite.
        path = self.work_dir / SUITE_FILE
        planned = read_document(path)["planned"] if path.exists() else []
        asked = [tuple(name.split("/")) for name in planned]
        asked += [path.parts[-4:-1] for path in (self.work_dir / "runs").glob(f"*/*/*/{FAILED_FILE}")]
        triples = [(task, conv, int(seed)) for task, conv, seed in asked if seed.isdigit()]
        triples = [run for run in triples if self._is_wanted(*run)]
        triples.sort(key=lambda run: (place(run[0], tasks), place(run[1], convs), run[2]))
        written = write_report(
            self.work_dir,
            results,
            self.work_dir / "report",
            title=self.suite.title,
            command=command,
            conclusions=conclusions.read_text(encoding="utf-8") if conclusions.exists() else None,
            baseline_conv=self.whole.baseline if self.whole.baseline in there else results[0].conv,
            planned=list(dict.fromkeys([*((r.task, r.conv, r.seed) for r in results), *triples])),
        )
        for task in dict.fromkeys(result.task for result in results):
            print(_summary([result for result in results if result.task == task]), flush=True)
        print(f"report: {written[0]} (open it in a browser), and report.md beside it", flush=True)


class _Clock:
    """How long runs take, from those that are finished."""

    def __init__(self, results: Iterable[RunResult]):
        self.seconds: dict[tuple[str, str], list[float]] = {}
        for result in results:
            self.add(result)

    def add(self, result: RunResult) -> None:
        self.seconds.setdefault((result.task, result.conv), []).append(result.seconds)

    def estimate(self, run: Run) -> float | None:
        """Of the same task and conv type, else of the same task, else of any; None where nothing is known."""
        same = self.seconds.get((run.task.name, run.conv))
        task = [value for (name, _), values in self.seconds.items() for value in values if name == run.task.name]
        every = [value for values in self.seconds.values() for value in values]
        known = same or task or every
        return sum(known) / len(known) if known else None

    def left(self, runs: list[Run]) -> float | None:
        estimates = [self.estimate(run) for run in runs]
        return None if None in estimates else sum(estimates)

    def knows(self, runs: list[Run]) -> bool:
        """Whether something of each run's task is finished."""
        return {run.task.name for run in runs} <= {name for name, _ in self.seconds}


class _Progress:
    """Prints a line at the start and the end of a run, and now and then between."""

    def __init__(self, runs: list[Run], left: list[Run], results: list[RunResult], jobs: int):
        self.number = {run.name: f"[{index}/{len(runs)}]" for index, run in enumerate(runs, 1)}
        self.left = list(left)
        self.clock = _Clock(results)
        self.jobs = jobs
        self.begin: dict[str, float] = {}

    def step(self, run: Run, text: str, seconds_left: float = 0.0) -> None:
        """While a run goes on; ``seconds_left`` is what its training says itself."""
        begin = self.begin.setdefault(run.name, time.monotonic() - seconds_spent(run))
        rest = self.clock.left([other for other in self.left if other is not run])
        own = self.clock.estimate(run)
        if rest is not None and own is not None:
            rest += max(seconds_left, own - (time.monotonic() - begin))
            text += self._rest(rest)
        print(f"{self.number[run.name]} {run.name}: {text}", flush=True)

    def _rest(self, seconds: float) -> str:
        left = f"{duration(seconds / self.jobs)} left"
        if self.clock.knows(self.left):
            return f"; suite: about {left}"
        return f"; suite: {len(self.left)} runs, {left}, if other tasks take as long as those before"

    def end(self, run: Run, outcome: RunResult | RunFailedError) -> None:
        """When it has ended."""
        self.left = [other for other in self.left if other is not run]
        if isinstance(outcome, RunFailedError):
            print(f"{self.number[run.name]} FAILED {outcome}", flush=True)
            return
        self.clock.add(outcome)
        metric = outcome.metric
        value = "nan" if math.isnan(outcome.value) else f"{outcome.value:.4g}"
        rest = self.clock.left(self.left)
        more = self._rest(rest) if rest else ""
        print(
            f"{self.number[run.name]} {run.name}: {metric['label']} {value}{metric['unit'] and ' ' + metric['unit']} "
            f"in {duration(outcome.seconds)}{more}",
            flush=True,
        )


def _summary(results: list[RunResult]) -> str:
    """A task's means in a line."""
    metric, values = results[0].metric, {}
    for result in results:
        values.setdefault(result.conv, []).append(result.value)
    means = ", ".join(f"{conv} {format_number(mean(found), metric['unit'])}" for conv, found in values.items())
    return f"{results[0].task}: {metric['label']}{' in %' if metric['unit'] == '%' else ''}: {means}"
