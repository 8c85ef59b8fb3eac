"""What torch's own tools make of each block, and whether it still computes the same."""

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import ai.model as m

MODEL_TESTS = Path(__file__).parents[2] / "tests" / "model"
sys.path.insert(0, str(MODEL_TESTS))  # `tests.model` is a package to pytest alone
from blocks import BLOCKS, Block  # noqa: E402

DRAWN = {"noise", "conv all options", "modconv"}  # their result is drawn, by another generator in another runtime
OF_THE_BATCH = {"minibatch_std"}  # its result depends on the whole batch, which it cuts into groups


def built(name: str) -> tuple[nn.Module, Block]:
    torch.manual_seed(0)
    model = m.Model(BLOCKS[name].make()).init(seed=0).eval()
    return model.net, BLOCKS[name]


def compiled(name: str) -> str:
    """One graph, forward and backward, in float64."""
    net, block = built(name)
    net = net.double()
    inputs = block.inputs(torch.float64)
    expected = _trained(net, net, inputs)
    torch.compiler.reset()
    with torch._dynamo.config.patch(allow_rnn=True):  # torch leaves its recurrent layers out unless asked
        found = _trained(torch.compile(net, backend="aot_eager", fullgraph=True), net, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    return "yes"


def autocast(name: str) -> str:
    """Under bfloat16 autocast, to its precision."""
    net, block = built(name)
    torch.manual_seed(1)
    expected = net(*block.inputs())
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(*block.inputs())
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.15)
    return "yes"


def exported(name: str) -> str:
    """One program for batches of any size, by torch.export."""
    if name in OF_THE_BATCH:
        return "by its batch"
    net, inputs, program = _program(name)
    for n in (2, 5):
        torch.manual_seed(1)
        expected = net(*_rows(inputs, n))
        torch.manual_seed(1)
        torch.testing.assert_close(program.module()(*_rows(inputs, n)), expected, rtol=1e-5, atol=1e-5)
    return "yes"


def onnx(name: str) -> str:
    """One file for batches of two sizes, in onnxruntime."""
    import onnxruntime

    if name in OF_THE_BATCH:
        return "by its batch"
    net, inputs, program = _program(name)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its inner workings
        path = Path(folder, "model.onnx")
        torch.onnx.export(program, dynamo=True, verbose=False).save(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    for n in (2, 5):
        some = _rows(inputs, n)
        (found,) = session.run(None, dict(zip(names, map(np.asarray, some[: len(names)]), strict=True)))
        expected = net(*some).detach()
        if name in DRAWN:
            assert found.shape == expected.shape
        else:
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    return "drawn" if name in DRAWN else "yes"


def sharded() -> dict[str, str]:
    """Over two ranks by FSDP2: drawn, computed and learned as on one."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, MODEL_TESTS / "jobs" / "sharded_blocks.py", folder], check=True, timeout=900)
        results = [json.loads(Path(folder, f"rank-{rank}.json").read_text()) for rank in range(2)]
    cells = dict.fromkeys(BLOCKS, "no weights") | dict.fromkeys(results[0]["seen"], "yes")
    for result in results:
        cells |= {name: f"**no**: {reason.splitlines()[0]}" for name, reason in result["wrong"].items()}
    return cells


CHECKS: dict[str, Callable[[str], str]] = {
    "compile": compiled,
    "autocast": autocast,
    "export": exported,
    "ONNX": onnx,
}


def rows(names: list[str]) -> list[list[str]]:
    """Returns the table of these blocks, without sharding."""
    found = []
    for name in names:
        found.append([name])
        for check in CHECKS.values():
            try:
                cell = check(name)
            except Exception as error:  # all are to be seen
                cell = f"**no**: {type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"
            found[-1].append(cell)
        print(*found[-1], sep=" | ", file=sys.stderr, flush=True)
    return found


def _program(name: str) -> tuple[nn.Module, tuple[Tensor, ...], torch.export.ExportedProgram]:
    net, block = built(name)
    inputs = block.inputs()
    batch = torch.export.Dim("batch", min=2)
    return net, inputs, torch.export.export(net, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))


def _rows(inputs: tuple[Tensor, ...], n: int) -> tuple[Tensor, ...]:
    return tuple(torch.cat([x, x, x])[:n] for x in inputs)


def _trained(call: nn.Module, net: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor | None]:
    net.zero_grad()
    torch.manual_seed(1)
    own = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    out = call(*own)
    if out.requires_grad:
        out.square().sum().backward()
    return [out.detach(), *(x.grad for x in own), *(p.grad for p in net.parameters())]
