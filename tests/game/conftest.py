"""What tests of games share."""

import pytest

from ai.game import fast


@pytest.fixture(params=["numba", "numpy"])
def engine(request, monkeypatch):
    """Runs a test with compiled kernels, where numba is there, and without."""
    if request.param == "numpy":
        monkeypatch.setattr(fast, "available", lambda: False)
    elif not fast.available():
        pytest.skip("numba is not installed")
    return request.param
