"""The soak of a worker and its faults, in short."""

import sys

import pytest

from ai.examples import infer_faults
from ai.examples.infer_faults import reproduce_idle, reproduce_kills, reproduce_storm
from ai.examples.infer_soak import reproduce
from ai.infer import launcher
from tests import warm_python


@pytest.fixture(autouse=True)
def warm(monkeypatch):
    """Clients and workers share their imports."""
    monkeypatch.setattr(sys, "executable", warm_python.executable())
    warm_python.start_inferencers_warm(monkeypatch)


@pytest.mark.slow
def test_worker_answers_in_flat_memory_while_a_client_is_killed():
    numbers = reproduce(requests=40_000, n_clients=2, kill_every_s=0.1)
    assert numbers["requests"] >= 40_000
    assert numbers["kills"] >= 1
    assert numbers["errors"] == 0
    assert numbers["rows_per_batch"] > 1


@pytest.mark.slow
def test_every_client_learns_of_a_killed_worker_and_is_served_again():
    numbers = reproduce_kills(kills=1, clients=8)
    assert 1 <= numbers["requests_lost"] <= 8
    assert numbers["replies"] > 8


@pytest.mark.slow
def test_no_client_sees_an_older_version_in_a_storm_of_updates():
    for seconds in (1.0, 30.0):  # the second where the system let a client stand still for the first
        numbers = reproduce_storm(seconds=seconds, clients=8)
        assert numbers["clients"] == 8
        if numbers["fewest_versions_seen"] > 2:
            break
    assert numbers["fewest_versions_seen"] > 2


@pytest.mark.slow
def test_idle_clients_cost_one_worker_little(monkeypatch):
    monkeypatch.undo()  # at the worker itself is looked, and not at who starts it
    warm_python.start_inferencers_warm(monkeypatch)
    monkeypatch.setattr(infer_faults, "subprocess", launcher.subprocess)
    numbers = reproduce_idle(clients=40)
    assert (numbers["clients"], numbers["processes"]) == (40, 4)
    assert numbers["worker_descriptors"] - numbers["worker_descriptors_before"] <= 2 * 40
    assert 0.0 < numbers["shared_areas_mb"] < 40.0
    assert numbers["all_mb_more"] < 100.0
