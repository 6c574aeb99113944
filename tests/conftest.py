"""What several tests share."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

# Real images for tests beyond the generated ones: a folder beside the repository, or named by the variable.
SHARED = Path(os.environ.get("DRCONV_MM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture
def shared_data():
    """Folder of real data sets, where there is one."""
    if not SHARED.is_dir():
        pytest.skip(f"no real images at {SHARED}; set DRCONV_MM_TEST_DATA")
    return SHARED
