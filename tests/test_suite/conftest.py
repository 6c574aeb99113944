from __future__ import annotations

from pathlib import Path

import pytest

from drconv_mm.suite.config import Suite, load_suite
from drconv_mm.suite.plan import Run, make_plan

TINY = Path(__file__).with_name("tiny_suite.py")


@pytest.fixture
def suite() -> Suite:
    """One task of seconds, two conv types, one seed."""
    return load_suite(TINY)


@pytest.fixture
def run(suite, tmp_path) -> Run:
    """The suite's run with DRConv."""
    run = make_plan(suite, tmp_path / "work", tmp_path / "data")[1]
    run.folder.mkdir(parents=True)
    return run
