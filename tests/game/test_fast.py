import importlib.util
import warnings

import numpy as np
import pytest

from ai.game import TicTacToe, fast

numba = pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def kernels_lie_beside_their_source(monkeypatch):
    """Whatever folder the environment names for them."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)


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


MODULE = """
from ai.game.fast import jit

@jit()
def twice(x):
    return 2 * x
"""


def imported(folder, name):
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_another_version_left_on_the_disk_is_compiled_anew(tmp_path, monkeypatch):
    (tmp_path / "kept.py").write_text(MODULE)
    assert imported(tmp_path, "kept").twice(2) == 4
    (index,) = (tmp_path / "__pycache__").glob("*.nbi")
    for damage in (b"cno.such.module\nname\n.", b"", b"junk"):
        version = index.read_bytes().split(b"\x80")[0] if damage else b""
        index.write_bytes(version + damage)
        assert imported(tmp_path, "kept").twice(2) == 4
    again = imported(tmp_path, "kept")
    assert again.twice(2) == 4
    assert sum(again.twice.stats.cache_hits.values()) == 1


def test_on_a_full_disk_kernels_stay_in_memory(tmp_path, monkeypatch):
    from numba.core import caching

    def full(self, name, data):
        raise OSError(28, "No space left on device")

    (tmp_path / "unkept.py").write_text(MODULE)
    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", full)
    fast._say_uncached.cache_clear()
    with pytest.warns(RuntimeWarning, match="cannot be kept on disk"):
        assert imported(tmp_path, "unkept").twice(2) == 4
    fast._say_uncached.cache_clear()


def template(x):
    return part(x) + 1  # noqa: F821


def doubled(x):
    return 2 * helper(x)


def helper(x):
    return x + OFFSET


OFFSET = 10


def test_a_template_is_kept_under_the_code_it_was_bound_to_and_found_again(monkeypatch):
    first = fast.bound(template, part=doubled)
    assert first(1) == 23
    assert fast.bound(template, part=doubled) is first
    monkeypatch.setattr(fast, "_BOUND", {})  # as in another process
    again = fast.bound(template, part=doubled)
    assert again(1) == 23
    assert sum(again.compiled.stats.cache_hits.values()) == 1
    other = fast.bound(template, part=helper)
    assert other(1) == 12
    monkeypatch.setitem(globals(), "OFFSET", 20)  # a constant that a function of a function reads
    moved = fast.bound(template, part=doubled)
    assert moved(1) == 43
    assert len({made.compiled.__name__ for made in (first, again, other, moved)}) == 3
    monkeypatch.setattr(fast, "available", lambda: False)
    assert fast.bound(template, part=doubled)(1) == 43


def test_large_tables_are_told_apart_number_by_number():
    def game(middle):
        table = np.arange(3000.0)
        table[1500] = middle
        tables = (table, table)

        def rule(x):
            return x + tables[1][1500]

        return rule

    assert fast.bound(template, part=game(7.0))(1) == 9
    assert fast.bound(template, part=game(8.0))(1) == 10


def test_a_game_is_played_where_nothing_may_be_written(monkeypatch):
    from numba.core import caching

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    monkeypatch.setattr(fast, "_BOUND", {})
    fast._say_uncached.cache_clear()
    game = TicTacToe()
    with pytest.warns(RuntimeWarning, match="cannot be kept on disk") as said:
        state = game.step(game.init(2), np.array([4, 0]))
    assert sum("cannot be kept on disk" in str(warning.message) for warning in said) == 1
    np.testing.assert_array_equal(game.legal(state).sum(axis=1), 8)
    fast._say_uncached.cache_clear()
