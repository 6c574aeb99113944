"""Steps of a run, with small processes in place of trainings."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from drconv_mm.memory import KEEP_FREED_MEMORY
from drconv_mm.suite.errors import DiskFullError, SuiteError
from drconv_mm.suite.lock import locked
from drconv_mm.suite.run import (
    RunFailedError,
    State,
    _call,
    _collect,
    _curves,
    _progress,
    _step,
    _test_command,
    _train,
    _train_command,
    execute,
    git_commit,
    newest_checkpoint,
)
from drconv_mm.suite.toolbox import resume_arguments


def python(text: str) -> list[str]:
    """A process that fails, and says where it was, after a time that none needs."""
    deadline = "import faulthandler; faulthandler.dump_traceback_later(120, exit=True)"
    return [sys.executable, "-c", f"{deadline}\n{text}"]


def wait_for(sign: Path) -> str:
    return f"import os, time\nwhile not os.path.exists({str(sign)!r}): time.sleep(0.01)"


def test_step_is_logged_and_measured(run, tmp_path):
    """Its own peak, not the larger one of the process that starts it."""
    ballast = b"x" * 500_000_000
    sign, lines = tmp_path / "sign", []

    def on_line(line: str) -> None:
        lines.append(line)
        if line == "one\n":  # until now the process was there to be measured
            sign.touch()

    text = f"data = b'x' * 200_000_000; print('one', flush=True)\n{wait_for(sign)}\nprint('two')"
    peak = _call(run, python(text), "train", on_line)
    assert lines == ["one\n", "two\n"] and 200e6 < peak < 300e6 < len(ballast)
    assert (run.folder / "train.log").read_text().endswith("one\ntwo\n")


def test_crash_has_the_last_lines(run):
    with pytest.raises(RunFailedError) as caught:
        _call(run, python("[print(i) for i in range(100)]; raise RuntimeError('nothing works')"), "train")
    message = str(caught.value)
    assert "train ended with exit code 1" in message and "    | RuntimeError: nothing works" in message
    document = json.loads((run.folder / "failed.json").read_text())
    assert document["step"] == "train" and document["last_lines"][-1] == "RuntimeError: nothing works"
    assert "12" not in document["last_lines"] and run.state() == "failed"


def test_killed_worker(run):
    with pytest.raises(RunFailedError, match="test was killed by SIGKILL"):
        _call(run, python("import os; os.kill(os.getpid(), 9)"), "test")


def test_interrupted_suite_ends_its_step(run):
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    step = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    with pytest.raises(KeyboardInterrupt):
        _call(run, python(step), "train", interrupt)
    pid = int((run.folder / "train.log").read_text().splitlines()[-1])
    # It has ended and was waited for. (This process may have other children.)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_two_steps_side_by_side(run, tmp_path):
    sign = tmp_path / "sign"
    with _step(run, python(f"print('beside'); open({str(sign)!r}, 'w')"), "inspection"):
        _call(run, python(wait_for(sign)), "test")
    assert (run.folder / "inspection.log").read_text().endswith("beside\n")


def test_a_step_does_not_outlive_the_one_beside_it(run, tmp_path):
    sign, log = tmp_path / "sign", run.folder / "inspection.log"
    forever = f"import os, time; print(os.getpid(), flush=True); open({str(sign)!r}, 'w'); time.sleep(1000)"
    with pytest.raises(RunFailedError, match="test ended with exit code 3"), _step(run, python(forever), "inspection"):
        _call(run, python(f"{wait_for(sign)}\nraise SystemExit(3)"), "test")
    with pytest.raises(ChildProcessError):
        os.waitpid(int(log.read_text().splitlines()[-1]), os.WNOHANG)


def test_crash_of_the_step_beside_shows_the_lines_of_this_sitting(run):
    (run.folder / "inspection.log").write_text("No space left on device\n")  # an earlier one's
    message = r"inspection ended with exit code 1.*\n    \| last words"
    with pytest.raises(RunFailedError, match=message), _step(run, python("exit('last words')"), "inspection"):
        pass
    assert json.loads((run.folder / "failed.json").read_text())["last_lines"] == ["last words"]


def test_full_disk_of_the_step(run):
    text = "raise OSError(28, 'No space left on device')"
    with pytest.raises(DiskFullError, match=r"disk is full.*finished runs are kept.*--resume"):
        _call(run, python(text), "train")
    assert run.state() == "new"  # it did not fail: it was stopped


def test_memory_that_workers_share_is_no_disk(run):
    text = "raise RuntimeError('unable to write to file </torch_42_7>: No space left on device (28)')"
    with pytest.raises(RunFailedError, match="unable to write to file </torch_42_7>"):
        _call(run, python(text), "train")


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs /dev/full, a file on which every write finds no space"
)
def test_full_disk_of_the_suite(run):
    (run.folder / "train.log").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="disk is full"):
        execute(run, "suite.py", report=lambda text: None)


def test_steps_beside_each_other_keep_their_memory_and_leave_the_cores(run, monkeypatch):
    expected = {**KEEP_FREED_MEMORY, "OMP_WAIT_POLICY": "PASSIVE"}
    for name in expected:
        monkeypatch.delenv(name, raising=False)
    for name in ("_inspection_command", "_test_command"):
        text = "import json, os; print(json.dumps(dict(os.environ)))"
        monkeypatch.setattr(f"drconv_mm.suite.run.{name}", lambda *_, text=text: python(text))
    monkeypatch.setattr("drconv_mm.suite.run.newest_checkpoint", lambda run: run.folder / "epoch_4.pth")
    State(run.folder / "state.json").save(trained=True)
    assert run.budget == 4
    with pytest.raises(RunFailedError, match="wrote no results"):
        execute(run, "suite.py", report=lambda text: None)
    for step in ("inspection", "test"):
        found = json.loads((run.folder / f"{step}.log").read_text().splitlines()[-1])
        assert found.items() >= expected.items(), step


def test_a_run_that_is_tried_again_has_not_failed_yet(run, monkeypatch):
    (run.folder / "failed.json").touch()
    states = []
    monkeypatch.setattr("drconv_mm.suite.run._train", lambda run, *_: states.append(run.state()))
    with pytest.raises(RunFailedError, match="without a whole checkpoint"):
        execute(run, "suite.py", report=lambda text: None)
    assert states == ["started"] and run.state() == "failed"


@pytest.mark.parametrize("left", ["nothing", "an earlier one"])
def test_a_lost_checkpoint_of_the_end_is_made_again(run, monkeypatch, left):
    """Never is an earlier one evaluated in its place."""
    save_and_log(run, *([1, 2] if left == "an earlier one" else []))
    State(run.folder / "state.json").save(trained=True)
    trained = []
    monkeypatch.setattr("drconv_mm.suite.run._train", lambda run, *_: trained.append(newest_checkpoint(run)))
    with pytest.raises(RunFailedError, match="without a whole checkpoint and the validation of its end"):
        execute(run, "suite.py", report=lambda text: None)
    assert [path and path.name for path in trained] == ["epoch_2.pth" if left == "an earlier one" else None]


def test_nothing_counts_of_an_attempt_that_left_no_checkpoint(run, monkeypatch):
    """It may have been of other settings: batches that did not fit into memory, another budget."""
    save_and_log(run)
    state = State(run.folder / "state.json")
    state.save(peak_memory_bytes=7, batch_size=32, started="2020-01-01T00:00:00+00:00")
    found = []
    monkeypatch.setattr("drconv_mm.suite.run._train", lambda run, state, *_: found.append(dict(state.values)))
    with pytest.raises(RunFailedError, match=r"of its end \(epoch 4\); the last that has both: none"):
        execute(run, "suite.py", report=lambda text: None)
    assert found[0]["peak_memory_bytes"] == 0 and found[0]["batch_size"] == 8 and found[0]["started"] > "2021"
    assert not (run.folder / "training").exists()


@pytest.mark.parametrize("sitting", ["20260102_000000", "20251231_000000"])  # clocks differ between machines
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_training_that_did_not_go_on_is_no_result(run, monkeypatch, epoch, sitting):
    """It would have trained for longer than the others."""
    save_and_log(run, 1)
    rows = [{"loss": 1.0, "time": 0.1, "step": 2 * epoch - 1, "epoch": epoch}]

    def train(*_):
        scalars = run.folder / f"training/{sitting}/vis_data/scalars.json"
        scalars.parent.mkdir(parents=True)
        scalars.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return 0

    monkeypatch.setattr("drconv_mm.suite.run._call", train)
    state = State(run.folder / "state.json")
    if epoch == 2:
        _train(run, state, 0, lambda text: None)
        assert state.values["trained"]
        return
    with pytest.raises(RunFailedError, match="did not go on from epoch_1.pth, but began at the beginning"):
        _train(run, state, 0, lambda text: None)
    assert not state.values["trained"] and newest_checkpoint(run) is None


def save_and_log(run, *epochs: int) -> None:
    """Checkpoints, each with the validations that are due (of epochs 2 and 4)."""
    scalars = run.folder / "training/20260101_000000/vis_data/scalars.json"
    scalars.parent.mkdir(parents=True)
    for epoch in epochs:
        with zipfile.ZipFile(run.folder / f"training/epoch_{epoch}.pth", "w") as archive:
            archive.writestr("data", "x")
    rows = [{"accuracy/top1": 5.0, "step": 2 * epoch} for epoch in epochs if epoch % 2 == 0]
    scalars.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_batches_of_another_size_do_not_go_on_with_a_training(run, monkeypatch):
    save_and_log(run, 1)
    State(run.folder / "state.json").save(batch_size=32)
    monkeypatch.setattr("drconv_mm.suite.run._train", lambda *_: pytest.fail("it trains"))
    with pytest.raises(SuiteError, match="batches of 32 images, this call has 8: give --gpus as it was, or delete"):
        execute(run, "suite.py", report=lambda text: None)


@pytest.mark.parametrize(("peak", "expected"), [(5, 7), (9, 9)])
def test_peak_is_of_all_sittings(run, monkeypatch, peak, expected):
    save_and_log(run, 1)
    state = State(run.folder / "state.json")
    state.save(peak_memory_bytes=7)
    monkeypatch.setattr("drconv_mm.suite.run._call", lambda *_: peak)
    _train(run, state, 0, lambda text: None)
    assert state.values["peak_memory_bytes"] == expected


def test_several_gpus_are_left_to_torchrun(run):
    command = _train_command(run, 4)
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"]
    assert command[command.index("--launcher") + 1] == "pytorch"
    assert "--launcher" not in _train_command(run, 1)


def test_state_outlives_its_process(tmp_path):
    path = tmp_path / "state.json"
    first = State(path)
    first.save(trained=True)
    path.write_text(json.dumps({**first.values, "seconds": 100.0}))
    State(path).save()
    again = State(path).values
    assert again["trained"] and again["started"] == first.values["started"] and again["seconds"] >= 100


LINES = [
    "01/01 08:20:15 - mmengine - INFO - Epoch(train)  [3][10/30]  eta: 0:01:10  time: 0.1  loss: 0.6143  x: 1",
    "01/01 08:20:15 - mmengine - INFO - Epoch(train) [12][10/30]  eta: 1 day, 2:01:10  time: 0.1  loss: nan",
    "11/25 08:20:15 - mmengine - INFO - Iter(train) [ 10/200]  base_lr: 1.0e-03  eta: 0:00:09  loss: 2.5000  l.loss: 3",
    "11/25 08:20:15 - mmengine - INFO - Epoch(val) [3][10/30]    eta: 0:00:01  time: 0.1",
]


def test_progress_of_the_toolboxes_lines(run):
    told = []
    on_line = _progress(run, lambda *what: told.append(what), State(run.folder / "state.json"), every=0)
    for line in LINES:
        on_line(line)
    assert told == [
        ("epoch 3/4, loss 0.6143, 0:01:10 left", 70),
        ("epoch 12/4, loss nan, 1 day, 2:01:10 left", 26 * 3600 + 70),
        ("iteration 10/200, loss 2.5000, 0:00:09 left", 9),
    ]
    told.clear()
    on_line = _progress(run, lambda *what: told.append(what), State(run.folder / "state.json"), every=1000)
    for line in LINES:
        on_line(line)
    assert len(told) == 1


@pytest.mark.parametrize("scope", ["mmpretrain", "mmengine", "mmdet", "mmseg"])
def test_weights_to_start_from_do_not_take_a_checkpoints_place(run, scope):
    """mmpretrain's tools let the last of the options have its way."""
    run = replace(run, scope=scope, options={**run.options, "load_from": "start.pth"})
    for command in (
        _test_command(run, Path("epoch_4.pth")),
        [*_train_command(run, 0), *resume_arguments(scope, Path("epoch_4.pth"))],
    ):
        assert [part for part in command if part.startswith("load_from=")][-1] == "load_from=epoch_4.pth"


def test_the_last_validation_is_due_too(run):
    odd = replace(run, budget=5)  # validated after 2, 4 and 5
    save_and_log(odd, 2, 4, 5)
    assert newest_checkpoint(odd).name == "epoch_4.pth"
    with (run.folder / "training/20260101_000000/vis_data/scalars.json").open("a") as log:
        log.write('{"accuracy/top1": 5.0, "step": 10}\n')
    assert newest_checkpoint(odd).name == "epoch_5.pth"


def test_checkpoint_to_go_on_from(run):
    """Epochs 2 and 4 are validated; a checkpoint comes before the validation of its epoch."""
    training = run.folder / "training"
    scalars = training / "20260101_000000/vis_data/scalars.json"
    scalars.parent.mkdir(parents=True)
    assert newest_checkpoint(run) is None

    def save(epoch: int, whole: bool = True) -> None:
        path = training / f"epoch_{epoch}.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", "x" * 1000)
        if not whole:
            path.write_bytes(path.read_bytes()[:-30])

    def log(*steps: int) -> None:
        rows = [{"loss": 1.0, "time": 0.1, "step": 1}, *({"accuracy/top1": 5.0, "step": step} for step in steps)]
        scalars.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"accuracy/to')

    def newest() -> str:
        return newest_checkpoint(run).name

    log()
    save(1)
    assert newest() == "epoch_1.pth"
    save(2)
    assert newest() == "epoch_1.pth"  # epoch 2 is not validated yet
    log(4)
    assert newest() == "epoch_2.pth"
    save(3)
    assert newest() == "epoch_3.pth"
    save(4, whole=False)
    log(4, 8)
    assert newest() == "epoch_3.pth"
    save(4)
    log(4)
    assert newest() == "epoch_3.pth"
    log(4, 4)  # logged again by a resumed training
    assert newest() == "epoch_3.pth"
    log(4, 8)
    assert newest() == "epoch_4.pth"
    # A detector that found nothing at epoch 2: mmdet logs no metric.
    scalars.write_text(scalars.read_text().replace('"accuracy/top1": 5.0, "step": 4', '"time": 0.1, "step": 4'))
    assert newest() == "epoch_4.pth"


def test_curves_are_by_iteration_and_the_time_is_a_median(run):
    rows = [{"loss": float(step), "time": time, "step": step} for step, time in ((3, 9.0), (1, 1.0), (2, 2.0))]
    rows += [{"accuracy/top1": 10.0 * step, "step": step} for step in (3, 1)]
    curves, seconds = _curves(run, rows)
    assert curves == {"loss": [[1, 1.0], [2, 2.0], [3, 3.0]], "metric": [[1, 10.0], [3, 30.0]]} and seconds == 2


HOLD = """
import sys, subprocess
from pathlib import Path
from drconv_mm.suite.lock import locked
with locked(Path(sys.argv[1]), "it"):
    {body}
"""


def hold(path: Path, body: str) -> subprocess.Popen:
    command = [*python(HOLD.format(body=body)), str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_lock_keeps_others_out_and_is_freed_by_death(tmp_path):
    path = tmp_path / "a/lock"
    holder = hold(path, "print('held', flush=True); sys.stdin.read()")
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(SuiteError, match=rf"the folder is in use .*pid {holder.pid} on"), locked(path, "the folder"):
        pass
    holder.kill()
    holder.wait()
    with locked(path, "the folder"):
        pass
    with locked(path, "the folder"):
        pass


def test_lock_is_kept_by_a_training_that_outlives_its_suite(tmp_path):
    path = tmp_path / "lock"
    child = f"subprocess.Popen({python('import sys; sys.stdin.read()')}, close_fds=False)"
    holder = hold(path, f"{child}; print('held', flush=True); import os; os._exit(0)")
    assert holder.stdout.readline() == "held\n"
    holder.wait()
    with pytest.raises(SuiteError, match="in use"), locked(path, "it"):
        pass
    # Closes its standard input, which ends the child, whose standard output then closes.
    assert holder.communicate(timeout=120)[0] == ""
    with locked(path, "it"):
        pass


def left_behind(run, **metrics) -> State:
    """What the steps of a run leave behind."""
    for name, content in (
        ("training/1/vis_data/scalars.json", {"loss": 1.0, "time": 0.5, "step": 1, "memory": 300}),
        ("testing/1/1.json", {"time": 0.1, "data_time": 0.1, **metrics}),
        ("inspection.json", dict(iterations=8, multiply_adds=1, parameters=1, regions={}, environment={})),
    ):
        path = run.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return State(run.folder / "state.json")


def test_record_is_put_together(run):
    state = left_behind(run, **{"accuracy/top1": 40.0, "accuracy/top5": 90.0})
    result = _collect(run, state, "suite.py", [sys.executable, str(Path.cwd() / "train.py"), "/elsewhere/config.py"])
    assert result.command == ["python", "train.py", "/elsewhere/config.py"]  # nothing of this machine's
    assert result.value == 40 and result.metrics == {"accuracy/top1": 40.0, "accuracy/top5": 90.0}
    assert result.seconds_per_iteration == 0.5 and result.peak_memory_bytes == 300 * 2**20  # a GPU's


def test_baselines_are_kept_and_memory_is_of_the_rows_that_know_it(run):
    run = replace(run, task=replace(run.task, baselines={"raw pixels": "pixels"}))
    state = left_behind(run, **{"accuracy/top1": 40.0, "pixels": 7.0})
    with (run.folder / "training/1/vis_data/scalars.json").open("a") as log:
        log.write('\n{"accuracy/top1": 40.0, "step": 1}\n')
    result = _collect(run, state, "suite.py", [])
    assert result.baselines == {"raw pixels": 7.0} and result.peak_memory_bytes == 300 * 2**20


def test_gpus_reach_the_training(run, monkeypatch):
    seen = []

    def train(run, state, gpus, report):
        seen.append(gpus)
        raise RunFailedError("as far as this goes")

    monkeypatch.setattr("drconv_mm.suite.run._train", train)
    with pytest.raises(RunFailedError):
        execute(run, "suite.py", gpus=4, report=lambda *_: None)
    assert seen == [4]


def test_a_detector_that_finds_nothing_is_a_result(run):
    result = _collect(run, left_behind(run), "suite.py", ["python"])
    assert math.isnan(result.value) and result.metrics == {}
    assert math.isnan(type(result).from_json(result.to_json()).value)


def test_a_metric_by_another_name_is_an_error(run):
    state = left_behind(run, **{"accuracy/top5": 90.0})
    with pytest.raises(RunFailedError, match=r"gave no metric 'accuracy/top1', only \['accuracy/top5'\]"):
        _collect(run, state, "suite.py", [])
    (run.folder / "testing/1/1.json").unlink()
    with pytest.raises(RunFailedError, match="wrote no results"):
        _collect(run, state, "suite.py", [])


def test_commits_of_all_sittings(run, monkeypatch):
    for commit in ("a" * 40, None, "b" * 40, "a" * 40):
        monkeypatch.setattr("drconv_mm.suite.run.git_commit", lambda commit=commit: commit)
        monkeypatch.setattr("drconv_mm.suite.run.cpu_name", lambda commit=commit: commit and commit[0])
        State(run.folder / "state.json").save()
    result = _collect(run, left_behind(run, **{"accuracy/top1": 1.0}), "suite.py", [])
    assert result.git_commit == f"{'a' * 40}, {'b' * 40}" and result.device == "a, b"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_says_where_tracked_files_differ(tmp_path):
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True)

    assert git_commit(tmp_path) is None
    git("init", "--quiet")
    (tmp_path / "file").touch()
    git("add", "file")
    git("commit", "--quiet", "--message=one")
    (tmp_path / "untracked").touch()
    commit = git_commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "file").write_text("changed")
    assert git_commit(tmp_path) == f"{commit}+"
