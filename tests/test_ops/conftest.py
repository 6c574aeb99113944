"""Without a compiler the tests of the compiled kernels are left out."""

from __future__ import annotations

import pytest

from drconv_mm.ops import extension


@pytest.fixture(scope="session")
def kernels():
    """Loads them. Where there is a compiler, that they can't be built is a failure."""
    try:
        extension.compiler()
    except extension.BuildError as error:
        pytest.skip(str(error))
    assert extension.why_not() is None, extension.why_not()


@pytest.fixture(autouse=True)
def _compiled_kernels(request):
    values = getattr(request.node, "callspec", None)
    if values is not None and (values.params.get("backend") == "cpu" or values.params.get("compiled")):
        request.getfixturevalue("kernels")
