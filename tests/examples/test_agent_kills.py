"""Killing an agent: what counts as a kill."""

import signal
import subprocess

import pytest

from ai.examples import agent_kills


class Process:
    """Ends by itself before its time is up, or is killed."""

    def __init__(self, ends, status=0):
        self.ends, self.status = ends, status

    def wait(self, timeout):
        if self.ends is None:
            self.ends = True  # too late for the wait that gave up, just before the kill
            raise subprocess.TimeoutExpired("agent", timeout)
        if not self.ends:
            raise subprocess.TimeoutExpired("agent", timeout)
        return self.status

    def kill(self):
        if not self.ends:
            self.ends, self.status = True, -signal.SIGKILL


@pytest.fixture
def turns(monkeypatch):
    monkeypatch.setattr(agent_kills, "_differences", lambda whole, parts: 0)
    monkeypatch.setattr(agent_kills, "_forget", lambda trial: None)
    processes = []
    monkeypatch.setattr(agent_kills, "start", lambda kind, trial: processes.pop(0))
    return processes


def test_a_turn_that_ended_by_itself_is_no_kill(turns):
    whole, last = Process(True), Process(True)
    turns += [whole, Process(False), Process(True), Process(None), Process(False), Process(False), last]
    assert agent_kills.reproduce(kills=3) == {"kills": 3, "ran_to_the_end": 2, "different": 0}
    assert not turns


def test_a_run_that_fails_by_itself_or_that_nobody_kills_is_said(turns):
    turns += [Process(True), Process(True, status=1)]
    with pytest.raises(RuntimeError, match="the ppo that was killed did not end well"):
        agent_kills.reproduce(kills=1)
    turns += [Process(True) for _ in range(30)]
    with pytest.raises(RuntimeError, match="21 runs in a row ended before they were killed"):
        agent_kills.reproduce(kills=1)
