"""Who executes the runs: this process, one after another, or submitit's jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .errors import DiskFullError, SuiteError
from .plan import Run
from .results import RunResult
from .run import RunFailedError, execute

LAUNCHERS = ("local", "submitit", "slurm")
Execute = Callable[..., RunResult]
Outcome = tuple[Run, RunResult | RunFailedError]


def run_here(runs: list[Run], execute_run: Execute, report: Callable[[Run, str], None]) -> Iterator[Outcome]:
    """One at a time, so that their times mean something. A failed run does not stop the rest."""
    for run in runs:
        try:
            yield run, execute_run(run, report=partial(report, run))
        except RunFailedError as error:
            yield run, error


def run_jobs(
    runs: list[Run],
    execute_run: Execute,
    cluster: str,
    folder: Path,
    jobs: int,
    parameters: dict[str, Any],
) -> Iterator[Outcome]:
    """As jobs of submitit: on this machine, or of Slurm.

    Args:
        runs: What to do.
        execute_run: Does one, in the job.
        cluster: ``'local'`` for processes on this machine, ``'slurm'``.
        folder: Where submitit keeps its files; all machines see it.
        jobs: How many at once.
        parameters: Of submitit's ``AutoExecutor``: ``timeout_min``, ``gpus_per_node``, ``slurm_partition``, ...

    Raises:
        SuiteError: submitit is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise SuiteError("this launcher needs submitit: pip install 'drconv_mm[suite]'") from error
    executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
    executor.update_parameters(**parameters)
    waiting, active = list(runs), []
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.pop(0)
                active.append((run, executor.submit(_outcome, execute_run, run)))
            for run, job in [pair for pair in active if pair[1].done()]:
                active.remove((run, job))
                yield run, _result_of(run, job)
            if active:
                time.sleep(1)
    finally:
        for _, job in active:
            job.cancel()


def _outcome(execute_run: Execute, run: Run) -> RunResult | Exception:
    """In the job: an error is handed back as it is, not as a text."""
    try:
        return execute_run(run)
    except SuiteError as error:
        return error


def _result_of(run: Run, job: Any) -> RunResult | RunFailedError:
    error = job.exception()
    if error is not None:  # the job itself crashed, was killed or ran out of time
        return RunFailedError(f"{run.name}: its job {job.job_id} failed: {error}; see {job.paths.stderr}")
    result = job.result()
    if isinstance(result, DiskFullError):
        raise result
    if isinstance(result, SuiteError) and not isinstance(result, RunFailedError):
        return RunFailedError(str(result))
    return result


def executor_for(suite_command: str, gpus: int) -> Execute:
    """`execute` for a suite; it can be pickled."""
    return partial(execute, suite_command=suite_command, gpus=gpus)
