"""The soak of a worker, in short."""

import pytest

from ai.examples.infer_soak import reproduce


@pytest.mark.slow
def test_worker_answers_in_flat_memory_while_a_client_is_killed():
    numbers = reproduce(requests=40_000, n_clients=2, kill_every_s=0.1)
    assert numbers["requests"] >= 40_000
    assert numbers["kills"] >= 1
    assert numbers["errors"] == 0
    assert numbers["rows_per_batch"] > 1
