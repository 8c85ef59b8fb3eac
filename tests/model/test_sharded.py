import json
from pathlib import Path

import pytest
import torch

from tests import warm_python


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 shards on GPUs alone")
def test_every_block_draws_computes_and_learns_the_same_sharded_over_two_ranks(tmp_path):
    job = Path(__file__).parent / "jobs" / "sharded_blocks.py"
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = warm_python.run(job, tmp_path, folder=Path.cwd(), environment=environment, timeout=270)
    for rank in range(2):
        path = tmp_path / f"rank-{rank}.json"
        assert path.exists(), done.stderr
        found = json.loads(path.read_text())
        assert len(found["seen"]) > 40
        assert not found["wrong"]
