"""How the benchmarks measure: what is compared by its time takes turns, in one process."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from drconv_mm import __version__
from drconv_mm.info import cpu_name
from drconv_mm.ops.backends import BACKENDS

Name = TypeVar("Name", bound=Hashable)


def restart_with(environment: Mapping[str, str]) -> None:
    """Starts the program anew where a variable has another value: glibc reads its own at the start alone."""
    if any(os.environ.get(key) != value for key, value in environment.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment})


def interleaved(runs: dict[Name, Callable[[], None]], rounds: int | None, device: str) -> dict[Name, list[float]]:
    """Milliseconds of each candidate, one timing a round."""
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    times: dict[Name, list[float]] = {name: [] for name in runs}
    start, warm = time.perf_counter(), 3
    for index in range(-warm, rounds or 60):
        if index == 0 and rounds is None:
            a_round = (time.perf_counter() - start) / warm
            rounds = max(15, min(60, int(1.5 * len(runs) ** 0.5 / a_round)))
        if index >= (rounds or 60):
            break
        for name, run in runs.items():
            synchronize()
            begin = time.perf_counter()
            run()
            synchronize()
            if index >= 0:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return times


def extra_memory(run: Callable[[], None]) -> float:
    """MB that ``run`` takes at its peak beyond what the process has before it: Linux alone, to 0.1 MB."""
    status = Path("/proc/self/status")

    def megabytes(key: str) -> float:
        return int(re.search(rf"{key}:\s+(\d+)", status.read_text()).group(1)) / 1024

    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    run()
    return megabytes("VmHWM") - before


def machine(device: str) -> dict:
    """What the figures depend on."""
    found = dict(
        date=datetime.date.today().isoformat(), drconv_mm=__version__, torch=torch.__version__,
        python=platform.python_version(), cpu=cpu_name(), threads=torch.get_num_threads(), device=device,
    )  # fmt: skip
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    elif BACKENDS["cpu"].why_not(torch.device("cpu")) is None:
        found["capability"] = torch.ops.drconv_mm_cpu.capability()
    return found
