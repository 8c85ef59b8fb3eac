"""The result of full and read-only disks, at its smallest."""

import subprocess
import sys

import pytest

from ai.examples import disk_faults


def may_mount() -> bool:
    if sys.platform != "linux":
        return False
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="needs user namespaces that may mount")
def test_a_full_and_a_read_only_disk_are_said_and_nothing_saved_is_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    numbers = disk_faults.reproduce(runs=1, seed=1)
    assert numbers == {"full_runs": 1, "full_refused": 1, "read_only_runs": 1, "read_only_refused": 1}
