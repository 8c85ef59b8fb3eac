import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import warm_python

JOBS = Path(__file__).parent / "jobs"
# Two cores, several processes that each import torch, and other tests beside them.
JOB_TIMEOUT_S = 280


@pytest.fixture(scope="session")
def job():
    """Runs a script of jobs/ in a process of its own, or under torchrun on several ranks."""

    def run(name: str, *arguments: object, ranks: int = 1) -> subprocess.CompletedProcess[str]:
        script, environment = str(JOBS / f"{name}.py"), {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if ranks == 1:
            return warm_python.run(
                script, *arguments, folder=Path.cwd(), environment=environment, timeout=JOB_TIMEOUT_S, nested=True
            )
        launch = [warm_python.executable(), "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        return subprocess.run(
            [*launch, script, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=JOB_TIMEOUT_S,
            env=os.environ | environment | {"WARM_PYTHON_NESTED": "1"},  # the ranks start warm, too
        )

    return run


@pytest.fixture
def net():
    """Makes the same small classifier each time, with dropout."""

    def make() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 3))

    return make


@pytest.fixture
def batches():
    """Makes n batches of (x, y), always the same."""

    def make(n: int, rows: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        return [
            (torch.randn(rows, 6, generator=generator), torch.randint(0, 3, (rows,), generator=generator))
            for _ in range(n)
        ]

    return make
