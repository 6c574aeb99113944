"""Who executes the runs: this process, one after another, or submitit's jobs."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .errors import DiskFullError, SuiteError
from .plan import Run
from .results import RunResult
from .run import TAIL, RunFailedError, execute, failure

_A_WEEK = 7 * 24 * 60  # minutes; submitit's own limit for a job on this machine is 2
_EVERY = 60  # seconds between two lines of progress of a job
LAUNCHERS = ("local", "submitit", "slurm")
Execute = Callable[..., RunResult]
Outcome = tuple[Run, RunResult | RunFailedError]


def run_here(runs: list[Run], execute_run: Execute, report: Callable[..., None]) -> Iterator[Outcome]:
    """One at a time, so that their times mean something. A failed run does not stop the rest."""
    for run in runs:
        try:
            yield run, execute_run(run, report=partial(report, run))
        except DiskFullError:
            raise
        except Exception as error:
            yield run, _failure(run, error)


def run_jobs(
    runs: list[Run],
    execute_run: Execute,
    cluster: str,
    folder: Path,
    jobs: int,
    parameters: dict[str, Any],
    report: Callable[[Run, str], None],
) -> Iterator[Outcome]:
    """As jobs of submitit: on this machine, or of Slurm.

    Args:
        runs: What to do.
        execute_run: Does one, in the job.
        cluster: ``'local'`` for processes on this machine, ``'slurm'``.
        folder: Where submitit keeps its files; all machines see it.
        jobs: How many at once.
        parameters: Of submitit's ``AutoExecutor``: ``timeout_min``, ``gpus_per_node``, ``slurm_partition``, ...
        report: Told when a run becomes a job, and now and then how far it is.

    Raises:
        SuiteError: submitit is not installed, or refuses a parameter; jobs of Slurm have no time limit.
    """
    if cluster == "local":
        parameters = {"timeout_min": _A_WEEK, **parameters}
    elif not {"timeout_min", "slurm_time"} & parameters.keys():
        raise SuiteError(
            "Slurm needs a time limit that is longer than a run: --job-options timeout_min=MINUTES; submitit's own is "
            "5 minutes"
        )
    try:
        import submitit
    except ImportError as error:
        raise SuiteError("this launcher needs submitit: pip install 'submitit>=1.5,<2'") from error
    try:
        executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
        executor.update_parameters(**parameters)
    except Exception as error:  # submitit's own, NameError and AssertionError among them
        raise SuiteError(
            f"submitit can't start jobs with --launcher {cluster} and --job-options "
            f"{' '.join(f'{key}={value}' for key, value in parameters.items())}: {error}"
        ) from error
    waiting, active = list(runs), []
    told: dict[str, tuple[str, float]] = {}  # of each job, its last line and when that was read
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.pop(0)
                with _interruptible():
                    job = executor.submit(_outcome, execute_run, run)
                active.append((run, job))
                told[run.name] = "", time.monotonic()
                report(run, f"job {job.job_id}; its log is {run.folder / 'train.log'}")
            for run, job in [pair for pair in active if pair[1].done()]:
                active.remove((run, job))
                yield run, _result_of(run, job)
            for run, job in active:
                line, when = told[run.name]
                if time.monotonic() - when > _EVERY:
                    last = _last_line(Path(job.paths.stdout))
                    if last not in ("", line):
                        report(run, last)
                    told[run.name] = last, time.monotonic()
            if active:
                time.sleep(1)
    finally:
        for _, job in active:
            job.cancel()


def _last_line(log: Path) -> str:
    """What a run in a job told last, of its progress; submitit's own lines are in the same file."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:  # not there yet
        return ""
    return next((line for line in reversed(lines) if line and not line.startswith("submitit ")), "")


@contextmanager
def _interruptible() -> Iterator[None]:
    """What starts in here heeds SIGINT, by which submitit cancels jobs, though this process ignores it (nohup)."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _outcome(execute_run: Execute, run: Run) -> RunResult | Exception:
    """In the job: an error is handed back as it is, not as a text."""
    try:
        return execute_run(run)
    except SuiteError as error:
        return error


def _result_of(run: Run, job: Any) -> RunResult | RunFailedError:
    error = job.exception()
    if error is not None:  # the job itself crashed, was killed or ran out of time
        log = Path(job.paths.stderr)
        tail = log.read_text(errors="replace").splitlines()[-TAIL:] if log.is_file() else []
        return failure(run, "job", f"its job {job.job_id} ended without a record, in state {job.state}", tail, log)
    result = job.result()
    if isinstance(result, DiskFullError):
        raise result
    return _failure(run, result) if isinstance(result, SuiteError) else result


def _failure(run: Run, error: Exception) -> RunFailedError:
    """A run that another process works on failed, too, as far as the others are concerned; one in an odd state, too."""
    if isinstance(error, RunFailedError):
        return error
    if isinstance(error, SuiteError):
        return RunFailedError(str(error))
    lines = "".join(traceback.format_exception(error)).splitlines()[-TAIL:]
    return RunFailedError("\n    | ".join([f"{run.name}: {type(error).__name__}: {error}", *lines]))


def executor_for(suite_command: str, gpus: int) -> Execute:
    """`execute` for a suite; it can be pickled."""
    return partial(execute, suite_command=suite_command, gpus=gpus)
