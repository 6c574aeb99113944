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


# Where the tests of the operator and of the layers put their tensors, such as `cuda`.
DEVICE = os.environ.get("DRCONV_MM_TEST_DEVICE")


@pytest.fixture(autouse=True)
def _device():
    if DEVICE is not None:
        torch.set_default_device(DEVICE)
        torch.backends.cudnn.allow_tf32 = False  # the tolerances are those of fp32


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
