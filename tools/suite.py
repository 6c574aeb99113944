#!/usr/bin/env python
"""Train and evaluate conv types on several tasks and seeds, and report what each gives at what cost.

Each run is the toolbox's own train.py and test.py with one key set, and leaves its record in
WORK_DIR/runs/<task>/<conv>/<seed>/. A stopped suite goes on with --resume: finished runs are kept, a stopped one goes
on from its last checkpoint. docs/suite.md says more.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path

from drconv_mm.suite.config import load_suite
from drconv_mm.suite.errors import SuiteError, disk_full_is_told
from drconv_mm.suite.launch import LAUNCHERS
from drconv_mm.suite.results import ResultError
from drconv_mm.suite.session import Session


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", metavar="SUITE", help="suite config, such as configs/suite/sample.py")
    parser.add_argument(
        "--conv", nargs="+", metavar="CONV", help="conv types: names in the suite, or any type that OpenMMLab can build"
    )
    parser.add_argument("--task", nargs="+", metavar="TASK", help="names of tasks (default: all)")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N-1 (default: the suite's)")
    parser.add_argument("--work-dir", type=Path, help="where everything goes (default: work_dirs/suite/NAME)")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder of the data sets (default: data)")
    parser.add_argument("--resume", action="store_true", help="go on with what is in the work dir")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and what is missing, and stop")
    parser.add_argument(
        "--report-only", action="store_true", help="write the report of what is finished so far, and stop"
    )
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="local",
        help="local: one run after another; submitit: jobs on this machine; slurm: jobs of Slurm (default: local)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="jobs at once, for submitit and slurm (default: 1)")
    parser.add_argument(
        "--job-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="parameters of submitit's executor: timeout_min=600 slurm_partition=gpu gpus_per_node=8 ...",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        default=0,
        help="GPUs of a run, by torchrun where more than one; 0 and 1: one process, on a GPU where PyTorch finds one "
        "(CUDA_VISIBLE_DEVICES= hides it) (default: 0)",
    )
    return parser.parse_args()


def job_options(texts: list[str]) -> dict[str, object]:
    """``KEY=VALUE`` of the command line; numbers are numbers."""
    options: dict[str, object] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign:
            raise SuiteError(f"--job-options {text!r}: expected KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def main() -> None:
    """Runs what is left to do."""
    # As Ctrl-C: the training that runs is ended with the suite.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("suite.py: stopped by SIGTERM; go on with --resume"))
    args = parse_args()
    try:
        session = Session(
            load_suite(args.suite),
            convs=args.conv,
            tasks=args.task,
            seeds=args.seeds,
            work_dir=args.work_dir,
            data_root=args.data_root,
            gpus=args.gpus,
            command=f"python {shlex.join(sys.argv)}",
        )
        if args.dry_run:
            print(session.describe())
            return
        with disk_full_is_told(session.work_dir):
            if args.report_only:
                session.report()
                return
            failed = session.run(args.resume, args.launcher, args.jobs, job_options(args.job_options))
    except (SuiteError, ResultError) as error:
        sys.exit(f"suite.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("suite.py: stopped; the same command with --resume goes on")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
