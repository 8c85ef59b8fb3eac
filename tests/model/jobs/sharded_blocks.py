"""Run by path with a folder: every block on two ranks under FSDP2 computes and learns what it does on one.

Writes `rank-N.json`: names of the blocks that were compared, and what went wrong by name.
"""

import json
import multiprocessing
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh

import ai.model as m

sys.path.insert(0, str(Path(__file__).parents[1]))  # `tests.model` is a package to pytest alone
from blocks import BLOCKS, Block

WORLD, TIMEOUT_S = 2, 240


def whole(tensor: Tensor | None) -> Tensor | None:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trained(model: nn.Module, block: Block) -> dict[str, Tensor | None]:
    """The output, and all gradients by name; dropout and noise are drawn alike on all ranks."""
    torch.manual_seed(1)
    out = model(*block.inputs())
    out.square().sum().backward()
    return {"output": out.detach(), **{name: whole(p.grad) for name, p in model.named_parameters()}}


def compare(block: Block, mesh: dist.DeviceMesh) -> None:
    alone = m.Model(block.make()).init(seed=0)
    sharded = m.Model(block.make())
    for child in sharded.net.children():
        if any(True for _ in child.parameters()) and not isinstance(child, nn.ModuleList):
            fully_shard(child, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    sharded.init(seed=0)
    assert any(isinstance(p, DTensor) for p in sharded.parameters())
    for (name, ours), theirs in zip(sharded.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(whole(ours), theirs, rtol=0, atol=0, msg=name)
    # All ranks see the same rows, so the mean of their gradients is the gradient.
    torch.testing.assert_close(trained(sharded, block), trained(alone, block), rtol=1e-5, atol=1e-5)


def run(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nothing works in place on it
    meeting = f"file://{folder / 'meeting'}"  # a file instead of a port, which another process could take
    limit = timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD, timeout=limit)
    mesh = init_device_mesh("cpu", (WORLD,))
    seen, wrong = [], {}
    for name, block in BLOCKS.items():
        if any(True for _ in block.make().parameters()):
            seen.append(name)
            try:
                compare(block, mesh)
            except Exception as error:  # collected: all are to be seen at once
                wrong[name] = f"{type(error).__name__}: {error}"
    (folder / f"rank-{rank}.json").write_text(json.dumps({"seen": seen, "wrong": wrong}))
    dist.barrier()
    os._exit(0)  # gloo's threads may not outlive the interpreter


def main() -> None:
    folder = Path(sys.argv[1])
    processes = [multiprocessing.get_context("fork").Process(target=run, args=(folder, rank)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT_S)
        if process.exitcode is None:
            process.kill()


if __name__ == "__main__":
    main()
