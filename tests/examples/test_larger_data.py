"""A file beyond a limit of memory, in short."""

import pytest

from ai.examples import larger_data


@pytest.mark.slow
def test_a_file_larger_than_the_limit_is_read_within_it():
    numbers = larger_data.reproduce(gib=1, limit_mib=128, batches=50)
    assert numbers["own_memory_above_mib"] < 64
    assert numbers["pages_of_the_file_mib"] > 1
