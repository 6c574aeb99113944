"""Runs as submitit's jobs on this machine."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import pytest

from drconv_mm.suite.errors import DiskFullError, SuiteError
from drconv_mm.suite.launch import run_jobs
from drconv_mm.suite.lock import locked
from drconv_mm.suite.results import RunResult
from drconv_mm.suite.run import RunFailedError

from .test_session import record

pytest.importorskip("submitit")


def execute(run) -> RunResult:
    """In the job: what a run may come to."""
    if run.conv == "Conv2d":
        raise RunFailedError(f"{run.name}: broken")
    return record(run)


def crash(run) -> RunResult:
    print("last words", file=sys.stderr, flush=True)
    os._exit(3)


def lock_of(run) -> Path:
    return run.folder.parents[1] / "lock"


def no_space(run) -> None:
    """Once the job beside it, which takes long, has begun."""
    if run.conv == "DRConv":
        with locked(lock_of(run), "it"):
            time.sleep(1000)
    for _ in range(6000):  # imports of a busy machine take minutes
        if lock_of(run).exists():
            raise DiskFullError("here")
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def jobs_find_this_module(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def launch(runs, function, folder):
    return {run.conv: outcome for run, outcome in run_jobs(runs, function, "local", folder, 2, {}, lambda *_: None)}


def test_jobs_hand_back_records_and_failures(runs, tmp_path):
    found = launch(runs, execute, tmp_path)
    assert isinstance(found["Conv2d"], RunFailedError) and str(found["Conv2d"]).endswith("broken")
    assert found["DRConv"] == record(runs[1])


def test_a_job_may_take_as_long_as_a_training(runs, tmp_path):
    """submitit's own limit is two minutes."""
    launch(runs[:1], execute, tmp_path)
    (submission,) = tmp_path.glob("*_submitted.pkl")
    assert pickle.loads(submission.read_bytes())._timeout_min >= 24 * 60  # written by the line above


@pytest.mark.parametrize(
    ("cluster", "parameters", "message"),
    [
        ("slurm", {}, "Slurm needs a time limit .*timeout_min=MINUTES"),
        ("local", {"timeout": 60}, "can't start jobs with --launcher local and --job-options .*timeout=60"),
        ("local", {"timeout_min": "long"}, "can't start jobs .*timeout_min=long"),
    ],
)
def test_options_that_submitit_does_not_take(runs, tmp_path, cluster, parameters, message):
    with pytest.raises(SuiteError, match=message):
        list(run_jobs(runs, execute, cluster, tmp_path, 1, parameters, print))


def test_crashed_job(runs, tmp_path):
    found = launch(runs[:1], crash, tmp_path)["Conv2d"]
    assert isinstance(found, RunFailedError) and "its job" in str(found) and str(tmp_path) in str(found)
    assert "    | last words" in str(found) and runs[0].state() == "failed"
    assert json.loads((runs[0].folder / "failed.json").read_text())["last_lines"][-1] == "last words"


def speak(run) -> RunResult:
    """Until it was heard."""
    print("epoch 1/4, loss 0.5", flush=True)
    for _ in range(6000):
        if lock_of(run).exists():
            return record(run)
        time.sleep(0.1)


def test_progress_of_a_job_is_told(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("drconv_mm.suite.launch._EVERY", 0)
    told = []

    def report(run, text):
        told.append(text)
        if text.startswith("epoch"):
            lock_of(run).parent.mkdir(parents=True, exist_ok=True)
            lock_of(run).touch()

    ((_, outcome),) = run_jobs(runs[:1], speak, "local", tmp_path, 1, {}, report)
    assert outcome == record(runs[0]) and told.count("epoch 1/4, loss 0.5") == 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_so_many_jobs_at_once(runs, tmp_path, jobs):
    """With submitit's cluster of this process, whose jobs run when they are asked for."""
    told = []
    parameters = {"timeout_min": 5}
    for run, _ in run_jobs(runs, execute, "debug", tmp_path, jobs, parameters, lambda run, _: told.append(run.conv)):
        told.append(f"{run.conv} ended")
    expected = ["Conv2d", "Conv2d ended", "DRConv", "DRConv ended"]
    assert told == (expected if jobs == 1 else [*expected[::2], *expected[1::2]])


def test_full_disk_stops_the_suite_and_its_jobs(runs, tmp_path):
    """Also where the shell has told the suite to ignore SIGINT, as in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(DiskFullError, match=r"^the disk is full \(here\); finished runs are kept"):
            launch(runs, no_space, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    for _ in range(120):
        try:
            with locked(lock_of(runs[1]), "it"):
                return  # its process has ended
        except SuiteError:
            time.sleep(1)
    pytest.fail("a job goes on")
