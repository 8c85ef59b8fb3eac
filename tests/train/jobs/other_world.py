"""On two ranks: train under FSDP and save. On any other number: load that, compare, and train on; alone also export."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from ai.train import Classify, Hook, Run, Snapshots, Trainer, export, opt

folder = Path(sys.argv[1])
world = int(os.environ.get("WORLD_SIZE", 1))
generator = torch.Generator().manual_seed(0)
data = [(torch.randn(6, 6, generator=generator), torch.randint(0, 3, (6,), generator=generator)) for _ in range(40)]

torch.manual_seed(world)  # another start each time: what is equal afterwards was loaded
model = nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 3))
optimizer = opt.adamw(model, lr=0.01)


def whole() -> dict[str, torch.Tensor]:
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in model.state_dict().items()
    }


class Compare(Hook):
    def setup(self, run: Run) -> None:
        super().setup(run)
        if world != 2:
            wanted = torch.load(folder / "whole.pt", weights_only=True)
            assert run.step == 4, run.step
            for name, value in whole().items():
                assert torch.equal(value.detach().cpu(), wanted[name]), name
            moments = {
                tuple(s["exp_avg"].shape): s["step"] for g in optimizer.param_groups for s in optimizer.state.values()
            }
            assert all(float(step) == 4 for step in moments.values()), moments


class Reading(Snapshots):
    """Leaves the folder as the two ranks made it."""

    def save(self, run: Run, step: int, metrics: object = None) -> Path:
        return self.folder / f"{step:09d}"


hook = Compare(snapshots=(Snapshots if world == 2 else Reading)(folder / "snapshots"), resume=True)
limit = 4 if world == 2 else 6
trainer = Trainer(Classify(), data, parallel="fsdp", ema=0.9)
assert trainer.train(model, optimizer, hook, steplimit=limit) == limit
if world == 2:
    state = {name: value.detach().cpu() for name, value in whole().items()}
    if dist.get_rank() == 0:
        torch.save(state, folder / "whole.pt")
if world == 1:
    export(folder / "snapshots" / "000000004", folder / "one")
    wanted = torch.load(folder / "whole.pt", weights_only=True)
    found = load_file(folder / "one" / "model.safetensors")
    assert found.keys() == wanted.keys(), found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (folder / "one" / "ema.safetensors").is_file()
    print("export equal")
if dist.is_initialized():
    dist.destroy_process_group()
