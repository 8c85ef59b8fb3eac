"""Run by path, no part of the suite, for it takes minutes of C++: every block through inductor, with its gradients.

`python tests/model/jobs/inductor_blocks.py [NAME ...]` prints a line a block, and ends with 1 if one differs.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch._inductor import config

import ai.model as m

sys.path.insert(0, str(Path(__file__).parents[1]))  # `tests.model` is a package to pytest alone
from blocks import BLOCKS


def trained(call: torch.nn.Module, model: m.Model, inputs: tuple[Tensor, ...]) -> list[Tensor | None]:
    model.zero_grad()
    torch.manual_seed(1)
    own = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    out = call(*own)
    if out.requires_grad:
        out.square().sum().backward()
    return [out.detach(), *(x.grad for x in own), *(p.grad for p in model.parameters())]


def main() -> int:
    failed = 0
    # The same random numbers as without compilation; torch leaves its recurrent layers out unless asked.
    with config.patch(fallback_random=True), torch._dynamo.config.patch(allow_rnn=True):
        for name in sys.argv[1:] or BLOCKS:
            model = m.Model(BLOCKS[name].make()).init(seed=0).double().eval()
            inputs = BLOCKS[name].inputs(torch.float64)
            expected = trained(model, model, inputs)
            torch.compiler.reset()
            try:
                found = trained(torch.compile(model, fullgraph=True), model, inputs)
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
            except Exception as error:  # all are to be seen
                failed += 1
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
            else:
                print(f"{name}: the same", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
