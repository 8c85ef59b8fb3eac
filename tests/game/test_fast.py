import enum
import importlib.util
import os
import warnings
from functools import partial
from types import ModuleType, SimpleNamespace

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


def test_a_constant_of_another_module_is_part_of_what_is_kept(tmp_path, monkeypatch):
    (tmp_path / "reads.py").write_text(MODULE.replace("2 * x", "FACTOR * x").replace("jit\n", "jit, FACTOR\n", 1))
    for factor in (2, 3, 2):
        monkeypatch.setattr(fast, "FACTOR", factor, raising=False)
        assert imported(tmp_path, "reads").twice(2) == 2 * factor


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


def table_of(middle):
    table = np.arange(3000.0)
    table[1500] = middle
    return table


def in_a_tuple(k):
    tables = (table_of(k), (table_of(k),))
    return lambda x: x + tables[1][0][1500]


def in_a_default(k):
    table = table_of(k)
    return lambda x, table=table: x + table[1500]


def in_an_enumeration(k):
    kinds = enum.IntEnum("Kinds", {"KING": k})
    return lambda x: x + kinds.KING


def in_a_module(k):
    constants = ModuleType("constants")
    constants.king = k
    return lambda x: x + constants.king


def in_one_of_two_like_functions(k):
    def times(y):
        return lambda x: x * y

    zero, own = times(0), times(k)
    return lambda x: x + zero(x) + own(1)


def in_a_function_within(k):
    scope = {"number": k}
    exec("def rule(x):\n    def inner(y):\n        return y + number\n    return inner(x)\n", scope)
    return scope["rule"]


@pytest.mark.parametrize(
    "rule",
    [in_a_tuple, in_a_default, in_an_enumeration, in_a_module, in_one_of_two_like_functions, in_a_function_within],
)
def test_games_that_differ_in_one_number_are_told_apart_wherever_it_is(rule):
    assert fast._digest(part=rule(7)) == fast._digest(part=rule(7)) != fast._digest(part=rule(8))


def test_other_constants_of_a_module_are_another_kernel():
    assert fast.bound(template, part=in_a_module(7))(1) == 9
    assert fast.bound(template, part=in_a_module(8))(1) == 10


def test_what_tells_functions_apart_holds_in_every_process():
    from numpy import where

    def rule(x):
        return where(x > 0, sum([helper(i) for i in range(3)]), numba.int64(0))

    said = []
    fast._identify(rule, (), SimpleNamespace(update=said.append), {})
    assert b"numpy.where" in b"".join(said)
    assert b" at 0x" not in b"".join(said)


def of_a_long_table(x):
    return int(LONG[x])


LONG = np.arange(150_000.0)  # 1.2 MB


def test_a_table_of_more_than_a_megabyte_is_kept_on_disk_and_found_again(monkeypatch):
    assert fast.bound(template, part=of_a_long_table)(149_000) == 149_001
    monkeypatch.setattr(fast, "_BOUND", {})  # as in another process
    again = fast.bound(template, part=of_a_long_table)
    assert again(149_000) == 149_001
    assert sum(again.compiled.stats.cache_hits.values()) == 1


def test_a_table_larger_than_code_should_be_is_left_where_it_is(monkeypatch):
    monkeypatch.setattr(fast, "LARGEST_TABLE", 1_000_000)
    monkeypatch.setattr(fast, "_PARTS", {})
    with pytest.warns(numba.NumbaWarning, match="large global arrays"):
        assert fast.bound(template, part=lambda x: of_a_long_table(x) + 1)(149_000) == 149_002


EVERY_SECOND, BACKWARDS = np.arange(40.0)[::2], np.arange(40.0)[::-1]
PAIR = EVERY_SECOND[::2], BACKWARDS[1::3]


def of_tables_with_gaps(x):
    return int(EVERY_SECOND[x] * 10_000 + BACKWARDS[x] * 100 + PAIR[1][x])


def test_tables_that_lie_with_gaps_or_backwards_read_as_they_do_by_numpy():
    assert of_tables_with_gaps(3) == 63_629
    assert fast.bound(template, part=of_tables_with_gaps)(3) == 63_630


def of_a_table_that_changes(x):
    return int(CHANGES[x])


CHANGES = np.arange(50)


def test_a_table_that_changes_before_it_is_compiled_is_not_kept_as_what_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(fast, "_BOUND", {})
    monkeypatch.setattr(fast, "_PARTS", {})
    bound = fast.bound(template, part=of_a_table_that_changes)
    CHANGES[7] = -5
    assert bound(7) == -4
    CHANGES[7] = 7
    fast._BOUND.clear()  # as in another process
    fast._PARTS.clear()
    assert fast.bound(template, part=of_a_table_that_changes)(7) == 8


def difference(x):
    return first(x) - second(x)  # noqa: F821


def test_parts_are_told_by_their_names_in_any_order():
    assert fast.bound(difference, first=doubled, second=helper)(1) == 11
    assert fast.bound(difference, second=doubled, first=helper)(1) == -11


def factorial(n):
    if n < 2:
        return 1
    return n * factorial(n - 1)


def test_a_rule_may_call_a_function_that_calls_itself_and_one_that_it_closes_over():
    def of_each(x):
        return [factorial(i) for i in range(x)]

    assert fast.bound(template, part=lambda x: of_each(x)[x - 1])(5) == 25


def test_a_rule_may_be_compiled_already_and_must_be_a_function():
    assert fast.bound(template, part=numba.njit(doubled))(1) == 23
    with pytest.raises(TypeError, match="must be a function, got functools"):
        fast.bound(template, part=partial(doubled))


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


def test_a_folder_keeps_the_code_of_the_functions_that_were_used_last(tmp_path, monkeypatch):
    monkeypatch.setattr(fast, "MOST_KEPT", 2)
    kept = tmp_path / "__pycache__"

    def index_of(name):
        return next(kept.glob(f"{name}.*.nbi"), None)

    for name, age in (("first", 100), ("second", 50)):
        (tmp_path / f"{name}.py").write_text(MODULE)
        imported(tmp_path, name).twice(2)
        os.utime(index_of(name), (age, age))
    assert imported(tmp_path, "second").twice(2) == 4  # found again, by which it is the newer one
    (kept / "mine.txt").write_text("mine")
    (tmp_path / "third.py").write_text(MODULE)
    imported(tmp_path, "third").twice(2)
    assert index_of("first") is None
    assert index_of("second") is not None
    assert index_of("third") is not None
    assert len(list(kept.glob("*.nbc"))) == 2
    assert (kept / "mine.txt").exists()


def test_a_folder_keeps_what_others_compiled_and_what_was_written_now(tmp_path, monkeypatch):
    monkeypatch.setattr(fast, "MOST_KEPT", 1)
    ours, now = "a.f_0123456789abcdef-3.py311", "a.g_0123456789abcdef-3.py311"
    others = ["a.solve-3.py311.nbi", "a.solve-3.py311.1.nbc", "notes.nbi"]
    for name in (*others, f"{ours}.nbi", f"{ours}.1.nbc", f"{ours}.2.nbc", f"{now}.nbi", f"{now}.1.nbc"):
        (tmp_path / name).touch()
    for name in others:
        os.utime(tmp_path / name, (1, 1))
    os.utime(tmp_path / f"{ours}.nbi", (1e10, 1e10))  # by a clock that went wrong
    fast._drop_oldest(tmp_path / f"{now}.nbi")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*others, f"{now}.nbi", f"{now}.1.nbc"])
    fast._drop_oldest(tmp_path / f"{ours}.nbi")  # another process deleted it
    assert len(list(tmp_path.iterdir())) == 5
