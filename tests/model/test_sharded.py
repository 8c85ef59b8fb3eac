import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 shards on GPUs alone")
@pytest.mark.timeout(300)
def test_every_block_draws_computes_and_learns_the_same_sharded_over_two_ranks(tmp_path):
    job = Path(__file__).parent / "jobs" / "sharded_blocks.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, job, tmp_path], env=environment, capture_output=True, text=True, timeout=270, check=False
    )
    for rank in range(2):
        path = tmp_path / f"rank-{rank}.json"
        assert path.exists(), done.stderr
        found = json.loads(path.read_text())
        assert len(found["seen"]) > 40
        assert not found["wrong"]
