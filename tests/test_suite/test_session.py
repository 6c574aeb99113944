"""What is checked before anything starts, the plan in words, and the time that is left."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from drconv_mm.suite.config import load_suite
from drconv_mm.suite.errors import DiskFullError, SuiteError
from drconv_mm.suite.launch import run_here
from drconv_mm.suite.lock import locked
from drconv_mm.suite.matching import read_widths
from drconv_mm.suite.plan import check_claim, claim
from drconv_mm.suite.report.numbers import duration
from drconv_mm.suite.results import ResultError, RunResult
from drconv_mm.suite.run import RunFailedError
from drconv_mm.suite.session import Session, _Clock, _Progress

from .conftest import TINY, suite_file

ROOT = Path(__file__).parents[2]


def record(run, seconds: float = 30.0) -> RunResult:
    return RunResult(
        suite=run.suite,
        task=run.task.name,
        conv=run.conv,
        seed=run.seed,
        task_title=run.task.title,
        metric=run.task.metric,
        value=50.0 + run.seed,
        metrics={},
        baselines={},
        multiply_adds=10,
        parameters=10,
        seconds_per_iteration=0.1,
        peak_memory_bytes=10,
        iterations=8,
        batch_size=8,
        curves={"loss": [], "metric": []},
        regions={},
        environment={},
        git_commit=None,
        command=[],
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:00:30+00:00",
        seconds=seconds,
        suite_command="",
    )


@pytest.fixture
def session(suite, tmp_path) -> Session:
    return Session(suite, work_dir=tmp_path / "work", data_root=tmp_path / "data")


def finish(run, **changes) -> None:
    replace(record(run), **changes).write(run.folder / "result.json")


def test_finished_suite_is_only_reported(session, capsys):
    for run in session.runs:
        finish(run)
    assert session.run(resume=True) == []
    printed = capsys.readouterr().out
    assert (
        "2 runs, 2 finished, 0 to do" in printed
        and "shapes: top-1 accuracy in %: Conv2d 50.00, DRConv 50.00\n" in printed
    )
    assert (session.work_dir / "report/report.html").is_file()
    assert (session.work_dir / "report/results.csv").read_text().count("\n") == 3
    assert json.loads((session.work_dir / "suite.json").read_text())["name"] == "tiny_suite"


def test_report_is_of_all_that_is_finished(suite, session, capsys):
    for run in session.runs:
        finish(run)
    (session.work_dir / "conclusions.md").write_text("It is a tie.")
    part = Session(suite, convs=["DRConv"], work_dir=session.work_dir, data_root=session.data_root)
    part.run(resume=True)
    rows = (session.work_dir / "report/results.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["conv", "Conv2d", "DRConv"]
    assert "It is a tie." in (session.work_dir / "report/report.md").read_text()


def test_a_report_can_be_made_while_the_suite_runs(session):
    with pytest.raises(SuiteError, match="has no finished runs to report; the command without --report-only trains"):
        session.report()
    claim(session.work_dir, session.suite, session.suite.convs, session.runs)
    finish(session.runs[1], suite_command="python tools/suite.py tiny_suite.py --gpus 2")
    with locked(session.work_dir / "suite.lock", "it"):
        session.report()
    text = (session.work_dir / "report/report.md").read_text()
    assert "1 of 2 runs done" in text and "python tools/suite.py tiny_suite.py --gpus 2" in text


def test_a_report_is_of_the_work_dirs_own_suite(suite, session):
    finish(session.runs[0])
    session.report()  # records that were copied without the suite's file
    claim(session.work_dir, suite, suite.convs, session.runs)
    other = Session(replace(suite, name="other"), work_dir=session.work_dir, data_root=session.data_root)
    before = (session.work_dir / "report/report.md").read_bytes()
    with pytest.raises(SuiteError, match="holds suite 'tiny_suite', not 'other'"):
        other.report()
    assert (session.work_dir / "report/report.md").read_bytes() == before


def test_report_is_in_the_suites_order(suite, tmp_path):
    tasks = {name: replace(suite.tasks["shapes"], name=name) for name in ("shapes", "cells")}
    suite = replace(suite, tasks=tasks, convs={"DRConv": suite.convs["DRConv"], "Conv2d": None}, baseline="DRConv")
    session = Session(suite, seeds=2, work_dir=tmp_path / "work", data_root=tmp_path / "data")
    for run in session.runs:
        finish(run)
    session.run(resume=True)
    rows = (session.work_dir / "report/results.csv").read_text().splitlines()[1:]
    assert [tuple(row.split(",")[:3]) for row in rows] == [
        (task, conv, seed) for task in ("shapes", "cells") for conv in ("DRConv", "Conv2d") for seed in "01"
    ]


def test_runs_that_are_there_need_resume(session):
    finish(session.runs[0])
    with pytest.raises(SuiteError, match="holds 1 finished and 0 unfinished of these 2 runs: add --resume"):
        session.run(resume=False)


def test_runs_that_failed_need_resume(session):
    folder = session.runs[0].folder
    folder.mkdir(parents=True)
    (folder / "failed.json").write_text("{}")
    with pytest.raises(SuiteError, match="holds 0 finished and 1 unfinished of these 2 runs: add --resume"):
        session.run(resume=False)


def test_two_suites_at_once(session):
    with locked(session.work_dir / "suite.lock", "it"), pytest.raises(SuiteError, match="is in use by another process"):
        session.run(resume=True)


def test_record_of_another_schema(session):
    finish(session.runs[0])
    path = session.runs[0].folder / "result.json"
    path.write_text(path.read_text().replace("suite.result/1", "suite.result/0"))
    for call in (session.describe, lambda: session.run(resume=True)):
        with pytest.raises(ResultError, match="result/0', expected 'drconv_mm.suite.result/1'"):
            call()


def test_record_in_the_wrong_place(session):
    """Before anything starts: the report could not tell which is meant."""
    for changed, error in ((dict(seed=3), ResultError), (dict(suite="another"), SuiteError)):
        finish(session.runs[0], **changed)
        with pytest.raises(error, match=r"is the result of \(.*\), expected \(.*'shapes', .*0'?\); move it to where"):
            session.run(resume=True)
    finish(session.runs[0])
    shutil.copytree(session.runs[0].folder, session.runs[0].folder.with_name("0.bak"))
    with pytest.raises(ResultError, match=r"0.bak/result.json is the result of .*'0'\), expected .*'0.bak'\)"):
        session.run(resume=True)


def test_missing_data_stop_everything(tmp_path):
    session = Session(load_suite(ROOT / "configs/suite/mini.py"), work_dir=tmp_path / "work", data_root=tmp_path)
    with pytest.raises(SuiteError, match="nothing was started") as caught:
        session.run(resume=False)
    assert all(folder in str(caught.value) for folder in ("bccd", "camvid", "lfw_mini", "caltech20"))
    assert not (tmp_path / "work").exists()


def test_finished_runs_need_no_data(tmp_path, capsys):
    suite = load_suite(ROOT / "configs/suite/mini.py")
    session = Session(suite, tasks=["detection"], seeds=1, work_dir=tmp_path / "work", data_root=tmp_path / "none")
    session.work_dir.mkdir()
    widths = json.loads((ROOT / "docs/results/mini/widths.json").read_text())
    (session.work_dir / "widths.json").write_text(json.dumps(widths))
    for run in session.runs:
        finish(run, batch_size=run.batch_size)
    assert session.run(resume=True) == []
    assert "4 runs, 4 finished, 0 to do" in capsys.readouterr().out


def test_committed_records_of_mini_can_be_gone_on_with(tmp_path):
    """No change of `Task` or of a config may shut them out."""
    shutil.copytree(ROOT / "docs/results/mini", tmp_path / "work")
    session = Session(load_suite(ROOT / "configs/suite/mini.py"), work_dir=tmp_path / "work", data_root=tmp_path)
    assert check_claim(session.work_dir, session.suite, session.whole.convs)[2] == []
    assert sum(run.state() == "finished" and bool(run.result()) for run in session.runs) >= 6


@pytest.mark.parametrize("name", ["suite.json", "widths.json"])
def test_damaged_documents(suite, session, name):
    session.work_dir.mkdir()
    (session.work_dir / name).write_text('{"name": "tiny')
    with pytest.raises(SuiteError, match=f"{name} is damaged .*choose another --work-dir"):
        Session(suite, work_dir=session.work_dir, data_root=session.data_root).run(resume=False)


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(jobs=0), "--jobs must be at least 1, got 0"),
        (dict(jobs=2), "are for --launcher submitit and slurm"),
        (dict(parameters={"timeout_min": 5}), "are for --launcher submitit and slurm"),
    ],
)
def test_wrong_launches(session, changed, message):
    with pytest.raises(SuiteError, match=message):
        session.run(resume=False, **changed)


def test_a_conv_type_of_the_suites_file_is_built_before_anything_starts(suite, tmp_path):
    for conv, message in (
        (dict(type="dcnv2s"), "conv 'DRConv' of suite 'tiny_suite' is of no conv type .*did you mean 'DCNv2'"),
        (dict(type="drconv_mm.DRConv", num_region=4), "DRConv has no argument 'num_region'"),
    ):
        broken = replace(suite, convs={"Conv2d": None, "DRConv": conv})
        with pytest.raises(SuiteError, match=message):
            Session(broken, work_dir=tmp_path / "work", data_root=tmp_path / "data")


def test_record_of_another_batch_size(session):
    finish(session.runs[0], batch_size=32)
    with pytest.raises(SuiteError, match=r"batches of 32 images, this run has 8: give --gpus as it was"):
        session.run(resume=True)


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs /dev/full, a file on which every write finds no space"
)
def test_full_disk_in_the_middle_keeps_what_is_finished(session):
    finish(session.runs[0])
    before = (session.runs[0].folder / "result.json").read_bytes()
    session.runs[1].folder.mkdir(parents=True)
    (session.runs[1].folder / "train.log").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=r"the disk is full \(.*\); finished runs are kept.*--resume"):
        session.run(resume=True)
    assert (session.runs[0].folder / "result.json").read_bytes() == before
    assert session.runs[1].state() == "started"  # it did not fail: it is gone on with
    finish(session.runs[1])
    assert session.run(resume=True) == []


def test_report_knows_what_earlier_calls_have_not_finished(suite, session):
    """Of a call that was stopped before most of its runs had begun."""
    runs = Session(suite, seeds=3, work_dir=session.work_dir, data_root=session.data_root).runs
    claim(session.work_dir, suite, suite.convs, runs)
    for run in session.runs:
        finish(run)
    more = replace(suite, seeds=3)
    Session(more, seeds=1, work_dir=session.work_dir, data_root=session.data_root).run(resume=True)
    text = (session.work_dir / "report/report.md").read_text()
    assert "2 of 6 runs done" in text and "- shapes, DRConv, seed 2: not run, or not finished" in text
    # What the suite no longer has is not missing, unless something is left of it.
    (session.work_dir / "runs/shapes/DRConv/2").mkdir()
    session.run(resume=True)
    text = (session.work_dir / "report/report.md").read_text()
    assert "2 of 3 runs done" in text and "- shapes, DRConv, seed 2: not run, or not finished" in text


def test_failed_runs_of_earlier_calls_are_in_the_report(session, suite):
    standard, dynamic = session.runs
    finish(dynamic)
    standard.folder.mkdir(parents=True)
    (standard.folder / "failed.json").write_text(json.dumps({"error": "train ended with exit code 7"}))
    Session(suite, convs=["DRConv"], work_dir=session.work_dir, data_root=session.data_root).run(resume=True)
    assert "train ended with exit code 7" in (session.work_dir / "report/report.md").read_text()


def test_plan_in_words(session):
    assert "2 runs to do\n" in session.describe()
    finish(session.runs[0])
    text = session.describe()
    assert "| shapes | Conv2d | 0 | tiny_classifier | - | 4 epochs | 8 | finished | 30 s |" in text
    assert "| model.backbone.conv_cfg: type=drconv_mm.DRConv | 4 epochs | 8 | new | 30 s |" in text
    assert "1 runs to do, about 30 s" in text


def test_plan_of_what_would_be_refused_is_an_error(suite, session):
    session.run = None  # nothing runs
    finish(session.runs[1])
    claim(session.work_dir, suite, suite.convs, session.runs)
    before = sorted(session.work_dir.rglob("*"))
    other = replace(suite, convs={"Conv2d": None, "DRConv": dict(type="drconv_mm.DRConv", num_regions=4)})
    with pytest.raises(SuiteError, match=r"has runs with other settings of convs\.DRConv"):
        Session(other, work_dir=session.work_dir, data_root=session.data_root).describe()
    assert sorted(session.work_dir.rglob("*")) == before


def test_plan_says_what_is_missing(tmp_path):
    session = Session(load_suite(ROOT / "configs/suite/full.py"), work_dir=tmp_path / "work", data_root=tmp_path)
    text = session.describe()
    assert f"needs {tmp_path / 'coco'} with annotations/instances_train2017.json" in text and "imagenet" in text
    assert not (tmp_path / "work").exists()


def test_a_failed_run_does_not_stop_the_rest(session):
    def execute(run, report):
        report("begins")
        if run.conv == "Conv2d":
            raise RunFailedError("broken")
        return record(run)

    told = []
    outcomes = list(run_here(session.runs, execute, lambda run, text: told.append((run.conv, text))))
    assert isinstance(outcomes[0][1], RunFailedError) and outcomes[1][1] == record(session.runs[1])
    assert told == [("Conv2d", "begins"), ("DRConv", "begins")]


@pytest.mark.parametrize("error", [SuiteError("in use by another process"), RunFailedError("broken")])
def test_what_stops_one_run_and_what_stops_all(session, error):
    def execute(run, report, error=error):
        raise error

    outcomes = [outcome for _, outcome in run_here(session.runs, execute, print)]
    assert [(type(outcome), str(outcome)) for outcome in outcomes] == [(RunFailedError, str(error))] * 2
    with pytest.raises(DiskFullError):
        list(run_here(session.runs, partial(execute, error=DiskFullError("here")), print))


def test_an_error_that_nobody_thought_of_stops_one_run(session):
    def execute(run, report):
        raise PermissionError(13, "Permission denied", "x")

    outcomes = [str(outcome) for _, outcome in run_here(session.runs, execute, print)]
    assert [text.splitlines()[0] for text in outcomes] == [
        f"{run.name}: PermissionError: [Errno 13] Permission denied: 'x'" for run in session.runs
    ]
    assert "in execute\n" in outcomes[0]  # where


def test_full_disk_between_the_runs(monkeypatch, tmp_path):
    import suite as suite_tool

    def no_space(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device", "suite.json")

    monkeypatch.setattr(Session, "run", no_space)
    monkeypatch.setattr("sys.argv", ["suite.py", str(ROOT / "configs/suite/sample.py"), "--work-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: the disk is full \(suite.json\); finished runs are kept"):
        suite_tool.main()


def test_options_of_the_command_line(monkeypatch, tmp_path, capsys):
    import suite as suite_tool

    arguments = [TINY, "--seeds", 3, "--gpus", 2, "--dry-run", "--work-dir", tmp_path / "work"]
    monkeypatch.setattr(Session, "run", lambda *_: pytest.fail("it trains"))
    monkeypatch.setattr("sys.argv", ["suite.py", *map(str, arguments)])
    suite_tool.main()
    printed = capsys.readouterr().out
    assert "6 runs in" in printed and "| 4 epochs | 16 |" in printed
    monkeypatch.setattr("sys.argv", ["suite.py", *map(str, [*arguments[:-3], "--report-only", *arguments[-2:]])])
    with pytest.raises(SystemExit, match="has no finished runs to report"):
        suite_tool.main()
    assert suite_tool.job_options(["timeout_min=60", "slurm_partition=gpu"]) == {
        "timeout_min": 60,
        "slurm_partition": "gpu",
    }


def test_what_the_suites_file_says_is_kept(tmp_path):
    path = suite_file(tmp_path, "exact_resume = False\nbaseline = 'DRConv'\nseeds = 2")
    session = Session(load_suite(path), work_dir=tmp_path / "work", data_root=tmp_path)
    assert not session.suite.exact_resume
    assert all("train_dataloader.num_workers" not in run.options for run in session.runs)
    for run in session.runs:
        finish(run)
    session.report()
    assert "difference to DRConv" in (session.work_dir / "report" / "report.md").read_text()


def test_a_control_is_matched_at_the_first_call(suite, tmp_path, monkeypatch):
    """Also where it is asked for alone; a task that leaves it out needs no width."""
    asked, targets = [], []

    def match_width(task, conv):
        targets.append(conv)
        return dict(options={"model.backbone.widen_factor": 1.5}, multiply_adds=1, target=1)

    monkeypatch.setattr("drconv_mm.suite.matching.match_width", match_width)
    monkeypatch.setattr("drconv_mm.suite.session.run_here", lambda runs, *_: asked.extend(runs) or [])
    convs = {**suite.convs, "Wide": dict(widened_to="DRConv")}
    shapes = suite.tasks["shapes"]
    tasks = {"shapes": shapes, "others": replace(shapes, name="others", leave_out=["Wide"], widen=None)}
    whole = replace(suite, convs=convs, tasks=tasks)
    Session(whole, convs=["Wide"], work_dir=tmp_path / "work", data_root=tmp_path).run(resume=False)
    assert targets == [suite.convs["DRConv"]]
    (run,) = asked
    assert run.options["model.backbone.widen_factor"] == 1.5
    assert list(read_widths(tmp_path / "work")) == ["shapes/Wide"]


def test_jobs_get_what_was_asked_for(suite, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("drconv_mm.suite.session.run_jobs", lambda *arguments: asked.append(arguments) or [])
    session = Session(suite, gpus=2, work_dir=tmp_path / "work", data_root=tmp_path / "data")
    session.run(resume=False, launcher="slurm", jobs=3, parameters={"timeout_min": 60})
    ((left, execute_run, cluster, _, jobs, options, _),) = asked
    assert (cluster, jobs, options) == ("slurm", 3, {"gpus_per_node": 2, "timeout_min": 60})
    assert execute_run.keywords["gpus"] == 2 and {run.batch_size for run in left} == {16}


def test_jobs_on_this_machine_take_its_gpu_one_at_a_time(session, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("drconv_mm.suite.session.run_jobs", lambda *arguments: asked.append(arguments[5]) or [])
    monkeypatch.setattr("drconv_mm.suite.session.torch.cuda.is_available", lambda: True)
    session.run(resume=False, launcher="submitit")
    session.run(resume=True, launcher="submitit", jobs=2, parameters={"gpus_per_node": 0})
    assert "no GPU" not in capsys.readouterr().out
    session.run(resume=True, launcher="slurm", jobs=2, parameters={"timeout_min": 5})
    assert "the jobs ask Slurm for no GPU; --gpus N gives each run N" in capsys.readouterr().out
    assert asked == [{"gpus_per_node": 1}, {"gpus_per_node": 0}, {"timeout_min": 5}]
    with pytest.raises(SuiteError, match=r"--jobs 2 with --launcher submitit: .* all get its first 1 GPUs; use --jobs"):
        session.run(resume=True, launcher="submitit", jobs=2)


def test_time_of_a_run_is_of_the_nearest_that_are_known(runs):
    standard, dynamic = runs
    cells, other = (replace(dynamic, task=replace(dynamic.task, name=name)) for name in ("cells", "other"))
    clock = _Clock([record(standard, 10), record(standard, 20), record(cells, 90)])
    assert [clock.estimate(run) for run in (standard, dynamic, cells, other)] == [15, 15, 90, 40]
    clock.add(record(dynamic, 50))
    assert [clock.estimate(run) for run in (standard, dynamic)] == [15, 50]


def test_jobs_share_the_time_that_is_left(runs, capsys):
    standard = runs[0]
    progress = _Progress(runs, runs, [record(run, 36_000) for run in runs], jobs=2)
    progress.step(standard, "begins")
    progress.end(standard, record(standard, 36_000))
    begin, end = capsys.readouterr().out.splitlines()
    assert begin.endswith("begins; suite: about 10 h 00 min left") and end.endswith("suite: about 5 h 00 min left")


def test_a_guess_by_other_tasks_says_so(runs, capsys):
    dynamic = runs[1]
    cells = replace(dynamic, task=replace(dynamic.task, name="cells"))
    progress = _Progress([*runs, cells], [dynamic, cells], [record(runs[0], 36_000)], jobs=1)
    progress.step(dynamic, "begins")
    progress.end(cells, record(cells, 36_000))
    begin, end = capsys.readouterr().out.splitlines()
    assert begin.endswith("; suite: 2 runs, 20 h 00 min left, if other tasks take as long as those before")
    assert end.endswith("; suite: about 10 h 00 min left")


def test_a_run_that_goes_on_takes_what_is_left_of_it(run, runs, capsys):
    (run.folder / "state.json").write_text(json.dumps({"seconds": 33_000}))
    progress = _Progress(runs, [run], [record(other, 36_000) for other in runs], jobs=1)
    progress.step(run, "goes on")
    assert capsys.readouterr().out.endswith("goes on; suite: about 50 min left\n")


@pytest.mark.parametrize(("seconds", "text"), [(45.4, "45 s"), (119, "119 s"), (600, "10 min"), (12_000, "3 h 20 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text
