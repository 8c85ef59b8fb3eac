"""What does it cost to save weights, and a whole snapshot? Ours beside `safetensors.save_file` of the same tensors.

    python benchmarks/snapshot_cost.py [--width 1024] [--rounds 7] [--folder /dev/shm]

The peer is taken twice: alone, and with the file and its folder flushed to disk, as ours are. A snapshot also has a
sha256 of each file; what that takes of the same bytes stands beside it. Loops alternate, in both directions, on one
torch thread; CPU time of the whole process (the sha256 is taken in a thread) and wall time, least and median.
"""

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ai.model import Model
from ai.train import Ema, Run, Snapshots, opt


def made(width: int) -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(width, width) for _ in range(8)])
    optimizer = opt.adamw(model)
    model(torch.randn(2, width)).square().mean().backward()
    optimizer.step()
    return Run({"model": model}, {"model": optimizer}, [], ema={"model": Ema(model)})


def tensors_of(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's, and those of the whole snapshot."""
    state = run.state_of_tensors()
    model = dict(state["models"]["model"])
    moments = {
        f"optimizer.{index}.{name}": value
        for index, of_one in state["optimizers"]["model"]["state"].items()
        for name, value in of_one.items()
    }
    return model, model | moments | {f"ema.{name}": value for name, value in state["ema"]["model"].items()}


def peer(tensors: Mapping[str, Tensor], *, flush: bool) -> Callable[[str], None]:
    def save(folder: str) -> None:
        save_file(dict(tensors), f"{folder}/peer.safetensors")
        for path in (f"{folder}/peer.safetensors", folder) if flush else ():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    return save


def checksums(tensors: Mapping[str, Tensor]) -> Callable[[str], None]:
    def take(folder: str) -> None:
        for tensor in tensors.values():
            hashlib.sha256(tensor.numpy()).digest()

    return take


def main(width: int, rounds: int, folder: str | None) -> None:
    torch.set_num_threads(1)
    run = made(width)
    model, everything = tensors_of(run)
    wrapped = Model(run.models["model"])
    with tempfile.TemporaryDirectory(dir=folder) as place:
        snapshots, steps = Snapshots(f"{place}/snapshots", keep_last=1), iter(range(1, 10**9))

        def snapshot(folder: str) -> None:
            snapshots.save(run, next(steps))

        rows: dict[str, dict[str, Callable[[str], object]]] = {
            "the model": {
                "save_file": peer(model, flush=False),
                "save_file, flushed": peer(model, flush=True),
                "Model.save": lambda at: wrapped.save(f"{at}/ours.safetensors"),
            },
            "all": {
                "save_file": peer(everything, flush=False),
                "save_file, flushed": peer(everything, flush=True),
                "sha256 alone": checksums(everything),
                "Snapshots.save": snapshot,
            },
        }
        cases = [(what, name, save) for what, by_name in rows.items() for name, save in by_name.items()]
        cpu: dict[tuple[str, str], list[float]] = {(what, name): [] for what, name, _ in cases}
        wall: dict[tuple[str, str], list[float]] = {key: [] for key in cpu}
        for turn in range(rounds):
            for what, name, save in cases[:: 1 if turn % 2 else -1]:
                start, start_wall = time.process_time(), time.perf_counter()
                save(place)
                cpu[what, name].append((time.process_time() - start) * 1e3)
                wall[what, name].append((time.perf_counter() - start_wall) * 1e3)
    print(f"{sum(t.nbytes for t in model.values()) / 1e6:.0f} MB of weights, ", end="")
    print(f"{sum(t.nbytes for t in everything.values()) / 1e6:.0f} MB in all; ms, x: flushed save_file = 1")
    print(f"{'':<34}{'CPU least':>10}{'x':>6}{'median':>9}{'x':>6}{'wall least':>12}{'median':>9}")
    for what, name in cpu:
        least, median = min(cpu[what, name]), statistics.median(cpu[what, name])
        base = cpu[what, "save_file, flushed"]
        print(f"{what + ': ' + name:<34}{least:>10.1f}{least / min(base):>6.2f}{median:>9.1f}", end="")
        print(f"{median / statistics.median(base):>6.2f}", end="")
        print(f"{min(wall[what, name]):>12.1f}{statistics.median(wall[what, name]):>9.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="where to save; the system's folder for temporary files where none is given")
    args = parser.parse_args()
    main(args.width, args.rounds, args.folder)
