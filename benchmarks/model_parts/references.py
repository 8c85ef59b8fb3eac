"""The largest difference between a block and what it is tested against, as the tests that are marked for it find it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

MODEL_TESTS = Path(__file__).parents[2] / "tests" / "model"
_MARK = re.compile(r"^@pytest\.mark\.reference\((.*?)\)$", re.MULTILINE)


class Differences:
    """A plugin of pytest's that looks into the comparisons of marked tests.

    Of a test's comparisons, those count that are held to the closest tolerance: the ones in the widest type.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[float, float]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Runs a test and notes what it compares."""
        mark = item.get_closest_marker("reference")
        with self._noting(self.rows.setdefault(mark.args, {}) if mark else {}):
            return (yield)

    @contextmanager
    def _noting(self, found: dict[float, float]) -> Iterator[None]:
        compare = torch.testing.assert_close

        def noting(ours: Any, theirs: Any, **options: Any) -> None:
            compare(ours, theirs, **options)
            if isinstance(ours, torch.Tensor) and ours.is_floating_point() and ours.numel():
                standard = 1e-7 if ours.dtype == torch.float64 else 1.3e-6
                tolerance = max(options.get("rtol", standard), options.get("atol", 0.0))
                difference = (ours - theirs).abs().max().item()
                found[tolerance] = max(found.get(tolerance, 0.0), difference)

        torch.testing.assert_close = noting  # type: ignore[assignment]
        try:
            yield
        finally:
            torch.testing.assert_close = compare


def labels() -> list[tuple[str, str]]:
    """Returns block and reference of every mark, as the files of the tests have them."""
    found = [match for path in sorted(MODEL_TESTS.rglob("test_*.py")) for match in _MARK.findall(path.read_text())]
    return list(dict.fromkeys(eval(f"({arguments})") for arguments in found))  # literals of our own tests


def rows() -> list[list[str]]:
    """Runs the tests and returns block, reference, largest difference, and what the tests hold it to."""
    plugin = Differences()
    code = pytest.main(["-q", "-m", "reference", "-p", "no:cacheprovider", str(MODEL_TESTS)], plugins=[plugin])
    if code != 0:
        raise RuntimeError(f"a comparison failed: pytest ended with {code}")
    found = []
    for block, reference in labels():
        closest = plugin.rows[block, reference]
        tolerance = min((one for one in closest if one), default=0.0)  # not what is asked to be the same to the bit
        found.append(
            [
                block,
                reference,
                f"{closest[tolerance]:.0e}" if closest[tolerance] else "0",
                f"{tolerance:.0e}" if tolerance else "0",
            ]
        )
    return found
