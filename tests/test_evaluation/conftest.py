"""A run's log."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.logging import MMLogger


@pytest.fixture
def log_file(tmp_path) -> Path:
    """The current log file of mmengine, in a folder of its own."""
    file = tmp_path / "run" / "run.log"
    file.parent.mkdir()
    MMLogger.get_instance(str(tmp_path), log_file=str(file))
    return file
