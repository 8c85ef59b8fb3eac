"""Two ranks train under FSDP and save; other numbers of ranks load that, compare, and train on; one also exports.

    python tests/train/jobs/other_world.py FOLDER 2 3 1

Each rank is a forked process, which need not import torch anew.
"""

import multiprocessing
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict  # before the fork, once for all processes
import torch.distributed.fsdp
from safetensors.torch import load_file
from torch import nn

from ai.train import Classify, Hook, Run, Snapshots, Trainer, export, opt


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in model.state_dict().items()
    }


class Compare(Hook):
    """Holds what was loaded against what the two ranks had."""

    def __init__(self, wanted: Path, **how: object) -> None:
        super().__init__(**how)
        self.wanted = wanted

    def setup(self, run: Run) -> None:
        super().setup(run)
        assert run.step == 4, run.step
        wanted = torch.load(self.wanted, weights_only=True)
        (model,), (optimizer,) = run.models.values(), run.optimizers.values()
        for name, value in whole(model).items():
            assert torch.equal(value.detach().cpu(), wanted[name]), name
        moments = {
            tuple(s["exp_avg"].shape): s["step"] for g in optimizer.param_groups for s in optimizer.state.values()
        }
        assert all(float(step) == 4 for step in moments.values()), moments


class Reading(Snapshots):
    """Leaves the folder as the two ranks made it."""

    def save(self, run: Run, step: int, metrics: object = None) -> Path:
        return self.folder / f"{step:09d}"


def train(folder: Path, rank: int, world: int) -> None:
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{world}", rank=rank, world_size=world)
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(6, 6, generator=generator), torch.randint(0, 3, (6,), generator=generator)) for _ in range(40)]
    torch.manual_seed(world)  # another start each time: what is equal afterwards was loaded
    model = nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 3))
    optimizer = opt.adamw(model, lr=0.01)
    saving = world == 2
    if saving:
        hook = Hook(snapshots=Snapshots(folder / "snapshots"))
    else:
        hook = Compare(folder / "whole.pt", snapshots=Reading(folder / "snapshots"), resume=True)
    limit = 4 if saving else 6
    trainer = Trainer(Classify(), data, parallel="fsdp", ema=0.9)
    assert trainer.train(model, optimizer, hook, steplimit=limit) == limit
    if saving:
        state = {name: value.detach().cpu() for name, value in whole(model).items()}
        if rank == 0:
            torch.save(state, folder / "whole.pt")
    if world == 1:
        export(folder / "snapshots" / "000000004", folder / "one")
        wanted = torch.load(folder / "whole.pt", weights_only=True)
        found = load_file(folder / "one" / "model.safetensors")
        assert found.keys() == wanted.keys(), found.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert (folder / "one" / "ema.safetensors").is_file()
        print("export equal", flush=True)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    for world in map(int, sys.argv[2:]):
        ranks = [
            multiprocessing.get_context("fork").Process(target=train, args=(Path(sys.argv[1]), rank, world))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        assert [process.exitcode for process in ranks] == [0] * world, (world, [p.exitcode for p in ranks])
