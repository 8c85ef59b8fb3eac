"""Bytes that FSDP2 really sends and holds in one step, on ranks that are faked: printed as JSON beside the plan."""

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from ai.train.distributed.fsdp import Fsdp
from ai.train.loop.options import Options
from ai.train.planning import plan
from ai.train.state.shards import local


class Sent(TorchDispatchMode):
    """Adds up what each rank sends, of rings."""

    def __init__(self, world):
        super().__init__()
        self.world, self.total = world, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name == "c10d::_allgather_base_":
            self.total += args[1].nbytes * (self.world - 1)
        elif name == "c10d::_reduce_scatter_base_":
            self.total += args[0].nbytes * (self.world - 1)
        elif name == "c10d::allreduce_":
            self.total += 2 * (self.world - 1) / self.world * sum(x.nbytes for x in args[0])
        return func(*args, **(kwargs or {}))


def main(world, precision, reshard, accumulate):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(32, 33), nn.Tanh(), nn.Linear(33, 32))  # 33 rows are no multiple of any world
    model = nn.Sequential(nn.Linear(7, 32), inner, nn.Linear(32, 5))
    how = Fsdp(reshard=reshard)
    planned = plan(model, how, world, precision=precision, accumulate=accumulate)
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    how.apply(model, None, Options(precision=precision))
    shards = sum(local(p).nbytes for p in model.parameters())
    with Sent(world) as sent:
        for index in range(accumulate):
            model.set_requires_gradient_sync(index + 1 == accumulate)
            model(torch.ones(4, 7)).float().sum().backward()
    gradients = sum(local(p.grad).nbytes for p in model.parameters())
    print(
        json.dumps({"planned": [planned.weights, planned.sent], "real": [shards, sent.total], "gradients": gradients})
    )
    dist.destroy_process_group()


for settings in json.loads(sys.argv[1]):
    main(*settings)
