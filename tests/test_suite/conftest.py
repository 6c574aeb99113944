from __future__ import annotations

from pathlib import Path

import pytest

from drconv_mm.suite.config import Suite, load_suite
from drconv_mm.suite.plan import Run, make_plan

TINY = Path(__file__).with_name("tiny_suite.py")


def suite_file(tmp_path: Path, text: str) -> Path:
    """The tiny suite's file with more at its end."""
    path = tmp_path / "tiny_suite.py"
    base = TINY.read_text().replace('"tiny_classifier.py"', f'"{TINY.with_name("tiny_classifier.py")}"')
    path.write_text(f"{base}\n{text}\n")
    return path


@pytest.fixture
def suite() -> Suite:
    """One task of seconds, two conv types, one seed."""
    return load_suite(TINY)


@pytest.fixture
def runs(suite, tmp_path) -> list[Run]:
    """The suite's runs, with Conv2d and DRConv."""
    return make_plan(suite, tmp_path / "work", tmp_path / "data")


@pytest.fixture
def run(runs) -> Run:
    """The run with DRConv, its folder made."""
    runs[1].folder.mkdir(parents=True)
    return runs[1]
