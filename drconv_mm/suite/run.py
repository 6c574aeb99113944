"""One run: the toolbox's own train.py, then its test.py beside an inspection, each in a process of its own."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TextIO

from mmengine.config import Config

from ..files import write_whole
from ..info import cpu_name
from ..memory import KEEP_FREED_MEMORY
from .errors import DiskFullError, SuiteError, disk_full_is_told
from .lock import locked
from .plan import FAILED_FILE, Run
from .results import INSPECTION_FILE, RESULT_FILE, RunResult
from .toolbox import resume_arguments, tool_path

ROOT = Path(__file__).resolve().parents[2]
TAIL = 25  # lines of a log that a failure shows
_GRACE = 15  # seconds that a step has to end by itself
# Such as "Epoch(train)  [3][10/30] ... eta: 0:01:10  time: ... loss: 0.61" and "Iter(train) [ 10/200] ...".
_LINE = re.compile(
    r"(Epoch|Iter)\(train\)\s+(?:\[\s*(\d+)\])?\[\s*(\d+)/(\d+)\].*?"
    r"eta: (?P<eta>(?:(?P<days>\d+) days?, )?(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+))  "
    r".*?\bloss: (?P<loss>\S+)"
)
# For steps that share the cores: threads that spin at barriers keep the other's from working.
_SHARING = {"OMP_WAIT_POLICY": "PASSIVE"}
# What Python and, of checkpoints, PyTorch say.
_DISK_FULL = r"No space left on device|Errno 28|Disk quota exceeded|PytorchStreamWriter failed writing"
# Of the memory that a loader's workers share, which has nothing to do with the work dir.
_SHARED_MEMORY = r"</torch_|/dev/shm|shared memory"
# Results that are no metrics.
_TIMES = ("time", "data_time")


class RunFailedError(SuiteError):
    """One run failed; the others go on."""


_STATE_FILE = "state.json"


class State:
    """What a run has done so far, in ``state.json``: it outlives a kill."""

    def __init__(self, path: Path):
        self.path = path
        if path.exists():
            self.values = json.loads(path.read_text())
        else:
            self.values = {"started": _now(), "seconds": 0.0, "peak_memory_bytes": 0, "trained": False}
        # Of each sitting: one may go on with another version of the project, or on another machine.
        for key, value in (("git_commits", git_commit()), ("cpus", cpu_name())):
            before = self.values.setdefault(key, [])
            if value and value not in before:
                before.append(value)
        self._sitting = time.monotonic(), self.values["seconds"]

    def save(self, **changes: Any) -> None:
        """Notes changes, and the seconds of this sitting."""
        begin, before = self._sitting
        self.values.update(changes, seconds=round(before + time.monotonic() - begin, 3))
        write_whole(self.path, json.dumps(self.values) + "\n")


def seconds_spent(run: Run) -> float:
    """Of work on a run that was begun before; 0 of one that was not."""
    try:
        return json.loads((run.folder / _STATE_FILE).read_text())["seconds"]
    except (OSError, ValueError, KeyError):
        return 0.0


def _tell(text: str, seconds_left: float = 0.0) -> None:
    print(text, flush=True)


def execute(run: Run, suite_command: str, gpus: int = 0, report: Callable[..., None] = _tell) -> RunResult:
    """Does what is left of a run.

    Args:
        run: The run.
        suite_command: The suite's command line, for the record.
        gpus: Trained by torchrun on so many, where it is more than one.
        report: Gets a line of progress now and then, while training with the seconds that are left of it.

    Returns:
        Its record, which is also in ``result.json``.

    Raises:
        RunFailedError: A step failed; ``failed.json`` has the last lines of its log.
        DiskFullError: Nothing can be written any more.
        SuiteError: Another process works on it.
    """
    with disk_full_is_told(run.folder), locked(run.folder / "run.lock", str(run.folder)):
        if (run.folder / RESULT_FILE).exists():
            return run.result()
        (run.folder / FAILED_FILE).unlink(missing_ok=True)
        checkpoint, noted = newest_checkpoint(run), run.folder / _STATE_FILE
        if checkpoint is None:
            # Nothing to go on from: what an earlier attempt logged, perhaps with other settings, is not this run's.
            shutil.rmtree(run.folder / "training", ignore_errors=True)
            noted.unlink(missing_ok=True)
        state = State(noted)
        batch_size = state.values.setdefault("batch_size", run.batch_size)
        if batch_size != run.batch_size:
            raise SuiteError(
                f"{run.name}: {run.folder} was begun with batches of {batch_size} images, this call has "
                f"{run.batch_size}: give --gpus as it was, or delete the folder to begin anew"
            )
        state.save()
        _write_config(run)
        # The last checkpoint of a finished training may be lost: deleted to make room, or not on the disk yet when the
        # power failed. What it lacks is trained again.
        if not (state.values["trained"] and _is_the_end(run, checkpoint)):
            _train(run, state, gpus, report)
            checkpoint = newest_checkpoint(run)
        if not _is_the_end(run, checkpoint):
            last = checkpoint.name if checkpoint else "none"
            raise failure(
                run, "train", f"the training ended without a whole checkpoint and the validation of its end "
                f"({run.unit} {run.budget}); the last that has both: {last}"
            )  # fmt: skip
        report("test; cost, regions and pictures")
        # Side by side: each spends most of its time importing, on one core.
        with _step(run, _inspection_command(run, checkpoint), "inspection", _SHARING):
            _call(run, _test_command(run, checkpoint), "test", environment=_SHARING)
        state.save()
        result = _collect(run, state, suite_command, _train_command(run, gpus))
        result.write(run.folder / RESULT_FILE)
        for path in checkpoint.parent.glob("*.pth"):  # checkpoint.pth has the weights
            path.unlink()
        return result


def _write_config(run: Run) -> None:
    """The run's whole config, as it is trained."""
    config = Config.fromfile(run.task.config, import_custom_modules=False)
    config.merge_from_dict(run.options)
    write_whole(run.folder / "config.py", config.pretty_text)


def _train(run: Run, state: State, gpus: int, report: Callable[..., None]) -> None:
    """From the beginning, or from the last checkpoint."""
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        begins, more = "begins", []
    else:
        # Named, as the file that mmengine would look into may be half written.
        begins, more = f"goes on from {checkpoint.name}", resume_arguments(run.scope, checkpoint)
    report(f"training {begins} ({run.budget} {_plural(run)})")
    sittings = set(_log_files(run.folder))
    peak = _call(run, [*_train_command(run, gpus), *more], "train", _progress(run, report, state))
    if checkpoint is not None:
        _check_resumed(run, checkpoint, _rows(path for path in _log_files(run.folder) if path not in sittings))
    state.save(trained=True, peak_memory_bytes=max(peak, state.values["peak_memory_bytes"]))


def _check_resumed(run: Run, checkpoint: Path, rows: list[dict[str, Any]]) -> None:
    """One that begins at the beginning with a checkpoint's weights trains for longer than the others."""
    unit = "epoch" if run.unit == "epoch" else "step"  # a config that logs no epochs can't be told
    first = next((row[unit] for row in rows if "loss" in row and unit in row), None)
    if first is not None and first - 1 < _step_of(checkpoint):
        shutil.rmtree(run.folder / "training")
        raise failure(
            run, "train", f"train.py did not go on from {checkpoint.name}, but began at the beginning with its "
            "weights; what it made is deleted, and --resume begins anew"
        )  # fmt: skip


def _is_the_end(run: Run, checkpoint: Path | None) -> bool:
    return checkpoint is not None and _step_of(checkpoint) == run.budget


def _step_of(checkpoint: Path) -> int:
    """Of a name such as ``epoch_12.pth``; -1 of another."""
    step = checkpoint.stem.rsplit("_", 1)[1]
    return int(step) if step.isdecimal() else -1


def _plural(run: Run) -> str:
    return {"epoch": "epochs", "iter": "iterations"}[run.unit]


def _train_command(run: Run, gpus: int) -> list[str]:
    launch, launcher = [sys.executable], []
    if gpus > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}"]
        launcher = ["--launcher", "pytorch"]
    tool, work_dir = str(tool_path(run.scope, "train.py")), str(run.folder / "training")
    arguments = [str(run.task.config), "--work-dir", work_dir, *launcher]
    return [*launch, tool, *arguments, "--cfg-options", *run.cfg_options]


def _test_command(run: Run, checkpoint: Path) -> list[str]:
    tool, work_dir = str(tool_path(run.scope, "test.py")), str(run.folder / "testing")
    arguments = [str(run.task.config), str(checkpoint), "--work-dir", work_dir]
    # Again among the options, of which a task's own `load_from` may be one: mmpretrain's test.py would prefer that.
    return [sys.executable, tool, *arguments, "--cfg-options", *run.cfg_options, f"load_from={checkpoint}"]


def _inspection_command(run: Run, checkpoint: Path) -> list[str]:
    shape = map(str, run.task.input_shape)
    arguments = [str(run.folder), "--checkpoint", str(checkpoint), "--shape", *shape]
    return [sys.executable, "-m", "drconv_mm.suite.inspection", *arguments]


@contextmanager
def _step(
    run: Run, command: list[str], step: str, environment: Mapping[str, str] | None = None, piped: bool = False
) -> Iterator[tuple[subprocess.Popen, TextIO]]:
    """Runs a step while the block does something else, and waits for it; it does not outlive a block that fails.

    What it prints goes to ``<step>.log``, or to the block where it is piped.
    """
    with (run.folder / f"{step}.log").open("a+", encoding="utf-8", errors="replace") as log:
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        begin = log.tell()
        # The lock files stay open in it: whoever kills this process alone does not free them.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE if piped else log, stderr=subprocess.STDOUT, text=True, errors="replace",
            close_fds=False, env={**KEEP_FREED_MEMORY, **(environment or {}), **os.environ},
        )  # fmt: skip
        try:
            yield process, log
            if process.returncode is None:
                process.wait()
        except BaseException:
            process.terminate()  # torchrun then ends its trainings, which a kill would leave running
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise
        code = process.returncode
        if code:
            log.seek(begin)
            tail = [line.rstrip() for line in deque(log, maxlen=TAIL)]
            said = "\n".join(tail)
            if re.search(_DISK_FULL, said) and not re.search(_SHARED_MEMORY, said):
                raise DiskFullError(f"that of {run.folder}, or of temporary files: see {run.folder / step}.log")
            ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise failure(run, step, f"{step} {ended}", tail)


def _call(
    run: Run,
    command: list[str],
    step: str,
    on_line: Callable[[str], None] = lambda line: None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Runs a step to its end.

    Returns:
        Largest resident size of its process, bytes.
    """
    peak = 0
    with _step(run, command, step, environment, piped=True) as (process, log):
        for line in process.stdout:
            log.write(line)
            log.flush()
            peak = max(peak, _peak_memory(process.pid))
            on_line(line)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return peak or usage.ru_maxrss * (1024 if sys.platform == "linux" else 1)


def _peak_memory(pid: int) -> int:
    """Largest resident size of a process or of one of its children (torchrun's trainings), bytes; 0 without /proc.

    On Linux ``ru_maxrss`` will not do: it begins at the size of the process that forked.
    """
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    peaks = [0]
    for process in (str(pid), *children):
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:  # it has ended
            continue
        peaks += [1024 * int(size) for size in re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)]
    return max(peaks)


def failure(run: Run, step: str, error: str, tail: list[str] | None = None, log: Path | None = None) -> RunFailedError:
    """Writes ``failed.json``, and gives the error to raise; the log is ``<step>.log`` unless another is named."""
    log = log or run.folder / f"{step}.log"
    document = {"error": error, "step": step, "log": str(log), "last_lines": tail or [], "time": _now()}
    write_whole(run.folder / FAILED_FILE, json.dumps(document, indent=1) + "\n")
    lines = "".join(f"\n    | {line}" for line in tail or [])
    return RunFailedError(f"{run.name}: {error}; the end of {log}:{lines}")


def _progress(run: Run, report: Callable[..., None], state: State, every: float = 15.0) -> Callable[[str], None]:
    """Reads the toolbox's log lines; tells of one now and then."""
    last = 0.0

    def on_line(line: str) -> None:
        nonlocal last
        found = _LINE.search(line)
        if found is None or time.monotonic() - last < every:
            return
        last = time.monotonic()
        state.save()
        place = f"epoch {found[2]}/{run.budget}" if found[1] == "Epoch" else f"iteration {found[3]}/{found[4]}"
        eta = timedelta(**{unit: int(found[unit] or 0) for unit in ("days", "hours", "minutes", "seconds")})
        report(f"{place}, loss {found['loss']}, {found['eta']} left", eta.total_seconds())

    return on_line


def newest_checkpoint(run: Run) -> Path | None:
    """The last checkpoint that is whole and by which every validation that was due is logged.

    A checkpoint is written before the validation of the same step, which a resumed training does not make up for.
    """
    found = []
    for path in (run.folder / "training").glob(f"{run.unit}_*.pth"):
        # A torch file is a zip archive, whose table of contents is written last.
        if _step_of(path) >= 0 and zipfile.is_zipfile(path):
            found.append((_step_of(path), path))
    # A validation may come to no metric: a detector's that finds nothing.
    validated = len({row["step"] for row in _rows(_log_files(run.folder)) if "loss" not in row})
    for step, path in sorted(found, reverse=True):
        due = step // run.val_interval + (step == run.budget and step % run.val_interval > 0)
        if validated >= due:
            return path
    return None


def _log_files(folder: Path) -> list[Path]:
    """One for each sitting of the training, in their order."""
    return sorted((folder / "training").glob("*/vis_data/scalars.json"))


def _rows(files: Iterable[Path]) -> list[dict[str, Any]]:
    """What the training logged."""
    rows = []
    for path in files:
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # the line at which a training was killed
                continue
    return rows


def _curves(run: Run, rows: list[dict[str, Any]]) -> tuple[dict[str, list[list[float]]], float]:
    """Loss and metric by iteration, and the median time of an iteration."""
    # A resumed training logs some iterations again.
    training: dict[int, dict[str, Any]] = {}
    validation: dict[int, float] = {}
    for row in rows:
        if "loss" in row:
            training[row["step"]] = row
        elif run.task.metric["name"] in row:
            validation[row["step"]] = row[run.task.metric["name"]]
    if not training:
        raise failure(run, "train", "the training logged no loss: is its budget shorter than the logger's interval?")
    curves = {
        "loss": [[step, row["loss"]] for step, row in sorted(training.items())],
        "metric": [[step, value] for step, value in sorted(validation.items())],
    }
    return curves, statistics.median(row["time"] for row in training.values())


def _gpu_memory(rows: list[dict[str, Any]]) -> int:
    """The most that tensors took on a GPU, bytes, as mmengine logs it in MB; 0 where none was used."""
    return max((row.get("memory", 0) for row in rows), default=0) << 20


def _collect(run: Run, state: State, suite_command: str, command: list[str]) -> RunResult:
    """The record of a run from what its steps left."""
    tested = max((run.folder / "testing").glob("*/*.json"), key=lambda path: path.stat().st_mtime, default=None)
    if tested is None:
        raise failure(run, "test", "test.py wrote no results")
    metrics = json.loads(tested.read_text())
    metrics = {name: value for name, value in metrics.items() if name not in _TIMES and isinstance(value, (int, float))}
    wanted = [run.task.metric["name"], *run.task.baselines.values()]
    for name in wanted if metrics else ():  # mmdet's evaluator gives none where a detector finds nothing
        if name not in metrics:
            raise failure(run, "test", f"test.py gave no metric {name!r}, only {sorted(metrics)}")
    inspection = json.loads((run.folder / INSPECTION_FILE).read_text())
    inspection["environment"]["cpu"] = ", ".join(state.values["cpus"])
    rows = _rows(_log_files(run.folder))
    curves, seconds_per_iteration = _curves(run, rows)
    return RunResult(
        suite=run.suite,
        task=run.task.name,
        conv=run.conv,
        seed=run.seed,
        task_title=run.task.title,
        metric=run.task.metric,
        value=metrics.get(run.task.metric["name"], math.nan),
        metrics=metrics,
        baselines={label: metrics[name] for label, name in run.task.baselines.items() if metrics},
        seconds_per_iteration=seconds_per_iteration,
        peak_memory_bytes=_gpu_memory(rows) or state.values["peak_memory_bytes"],
        batch_size=run.batch_size,
        curves=curves,
        git_commit=", ".join(state.values["git_commits"]) or None,
        command=[_relative(part) for part in command],
        started=state.values["started"],
        finished=_now(),
        seconds=state.values["seconds"],
        suite_command=suite_command,
        **inspection,
    )


def _relative(part: str) -> str:
    """A command's part as one repeats it from the present folder."""
    path = Path(part)
    if part == sys.executable:
        return "python"
    return os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else part


def git_commit(root: Path = ROOT) -> str | None:
    """The project's commit, with ``+`` behind it where tracked files differ; None outside a clone."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", root, *arguments], capture_output=True, text=True, check=False
        ).stdout.strip()

    head = git("rev-parse", "HEAD")
    return (head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")) or None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
