"""Runs a function in several processes of one gloo group, without a network port."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist
import torch.multiprocessing


def run_in_processes(function: Callable, folder: Path, *args, world_size: int = 2) -> None:
    """Calls ``function(rank, *args)`` in each process; an exception in one of them is raised here.

    Args:
        function: Of a module's top level.
        folder: Where the processes find each other.
        *args: For the function; must pickle.
        world_size: The number of processes.
    """
    meeting = folder / f"meeting_{uuid4().hex}"
    torch.multiprocessing.spawn(_run, (function, meeting, world_size, args), nprocs=world_size)


def _run(rank: int, function: Callable, meeting: Path, world_size: int, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=meeting.as_uri(), rank=rank, world_size=world_size, timeout=timedelta(minutes=5)
    )
    function(rank, *args)
    # Whoever leaves first would cut the connections the other still uses.
    dist.barrier()
    dist.destroy_process_group()
