import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from ai.game import fast

numba = pytest.importorskip("numba")


def test_without_a_folder_to_write_kernels_are_compiled_in_memory_and_it_is_said_once(monkeypatch):
    from numba.core import caching

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    fast._say_uncached.cache_clear()
    with pytest.warns(RuntimeWarning, match="cannot be kept on disk.*NUMBA_CACHE_DIR"):

        @fast.jit()
        def twice(x):
            return 2 * x

    with warnings.catch_warnings():
        warnings.simplefilter("error")

        @fast.jit(inline="always")
        def thrice(x):
            return 3 * x

    assert twice(2) == 4
    assert thrice(2) == 6
    fast._say_uncached.cache_clear()


def test_other_errors_of_numba_are_not_hidden(monkeypatch):
    def decorator(**options):
        del options
        raise RuntimeError("something else")

    monkeypatch.setattr(numba, "njit", decorator)
    with pytest.raises(RuntimeError, match="something else"):
        fast.jit()(lambda x: x)


@pytest.mark.slow
def test_a_game_is_played_where_nothing_may_be_written(tmp_path):
    code = (
        "from numba.core import caching; caching.CacheImpl._locator_classes = [];"
        "import numpy as np, ai.game as g; game = g.TicTacToe();"
        "print(game.reward(game.step(game.init(2), np.array([4, 4]))))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), timeout=120
    )
    assert ran.stdout.strip() == str(np.zeros(2)), ran.stderr
    assert ran.stderr.count("cannot be kept on disk") == 1
