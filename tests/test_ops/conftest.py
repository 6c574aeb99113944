"""Without a compiler the tests of the compiled backend are left out."""

from __future__ import annotations

import pytest
import torch

from drconv_mm.ops.backends import BACKENDS


@pytest.fixture(autouse=True)
def _compiled_kernels(request):
    values = getattr(request.node, "callspec", None)
    if values is not None and (values.params.get("backend") == "cpu" or values.params.get("compiled")):
        reason = BACKENDS["cpu"].why_not(torch.device("cpu"))
        if reason is not None:
            pytest.skip(reason)
