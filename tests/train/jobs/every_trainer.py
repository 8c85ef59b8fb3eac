"""Options and trainers on two ranks that the other checks do not use, each beside one process on the same rows."""

from collections.abc import Sequence

import resumable
import torch
import torch.distributed as dist
from equal_gradients import Net, assert_close, batches, env, whole
from torch import nn

from ai.data import Datagen, ReplayBuffer
from ai.train import RL, Gan, MultiTrainer, RLTrainer, Trainer, opt
from ai.train.parallel import Fsdp


def _mine() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [pair[dist.get_rank()] for pair in batches()]


def _merged() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.cat([a[0] for a in pair]), torch.cat([a[1] for a in pair])) for pair in batches()]


def _trained(**how: object) -> Net:
    torch.manual_seed(0)
    model = Net()
    data = _mine() if how.get("parallel") else _merged()
    Trainer(env, data, **how).train(model, opt.sgd(model, lr=0.1))
    return model


def check_fsdp() -> None:
    plain = _trained()
    recomputed = _trained(parallel=Fsdp(checkpoint=True))
    half = _trained(parallel="fsdp", precision="bf16")
    for (name, wanted), found, coarse in zip(
        plain.named_parameters(), recomputed.parameters(), half.parameters(), strict=True
    ):
        assert_close(f"recomputed {name}", whole(found.detach()), wanted.detach())
        assert coarse.dtype == torch.float32  # the policy computes in bfloat16 and keeps the parameters
        difference = float((whole(coarse.detach()) - wanted.detach()).abs().max())
        assert 0 < difference < 5e-3, f"bf16 {name} differs by {difference}"
    print(f"options rank {dist.get_rank()}: equal", flush=True)


def check_multi(kinds: Sequence[str]) -> None:
    def trained(parallel: str | None) -> dict[str, nn.Module]:
        torch.manual_seed(0)
        nets: dict[str, nn.Module] = {"d": nn.Linear(6, 1), "g": nn.Linear(6, 6)}
        data = [x for x, _ in (_mine() if parallel else _merged())]

        def gan(key: str, models: dict[str, nn.Module], x: torch.Tensor, step: int) -> torch.Tensor:
            fake = models["g"](x.flip(1))  # of each row, where noise would differ between ranks
            if key == "g":
                return -models["d"](fake).mean()
            return (models["d"](fake.detach()) - models["d"](x)).mean() + models["d"](x).square().mean()

        optimizers = {key: opt.sgd(net, lr=0.1) for key, net in nets.items()}
        MultiTrainer(gan, data, repeats={"d": 2}, parallel=parallel).train(nets, optimizers)
        return nets

    alone = trained(None)
    for parallel in kinds:
        ranks = trained(parallel)
        for key in alone:
            for wanted, found in zip(alone[key].parameters(), ranks[key].parameters(), strict=True):
                assert_close(f"{parallel} {key}", whole(found.detach()), wanted.detach())
    # Noise and the lazy penalty as well; each rank draws its own, and all hold the same model.
    torch.manual_seed(dist.get_rank())
    nets = {"d": nn.Linear(6, 1), "g": nn.Linear(4, 6)}
    optimizers = {key: opt.adam(net, lr=0.01) for key, net in nets.items()}
    data = [x for x, _ in _mine()]
    MultiTrainer(Gan(4, r1=0.1, r1_interval=3), data, parallel="ddp").train(nets, optimizers)
    _assert_same_on_ranks(nets["d"])
    _assert_same_on_ranks(nets["g"])
    print(f"multi rank {dist.get_rank()}: equal", flush=True)


def check_rl() -> None:
    torch.manual_seed(dist.get_rank())
    model = resumable.PolicyValue()
    generator = Datagen(resumable.Coins()).loader(8, n_workers=0, buffer=ReplayBuffer(200, n_step=3))
    trainer = RLTrainer(RL(), generator, push_interval=3, parallel="ddp")
    assert trainer.train(model, opt.adam(model, lr=0.01), steplimit=8) == 8
    _assert_same_on_ranks(model)
    print(f"rl rank {dist.get_rank()}: equal", flush=True)


def _assert_same_on_ranks(model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        first = value.detach().clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, value), name
