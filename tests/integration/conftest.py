"""What several integration tests need."""

from __future__ import annotations

from pathlib import Path

import pytest

from drconv_mm.datasets.sample_detection import generate_sample_detection


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    """A small detection data set in COCO's layout."""
    return generate_sample_detection(tmp_path_factory.mktemp("data") / "sample", 12, 4)
