"""How fast is the library on a GPU, and is it right there? One command of at most eight minutes.

    python benchmarks/gpu.py [--device cuda] [--parts tests training …] [--out gpu-results] [--quick]

Each part has a limit of its own and runs in a process of its own, and every row is on disk as soon as it was measured.
A row that fails (a package that is missing, no memory left) says so in its place. One that hangs or ends its process
costs itself: the part goes on behind it in another process. Results are `gpu.json` and `gpu.md` in the folder `--out`.
`--quick` runs the same code with nothing to do, in one process: with `--device cpu` it is what CI does, and its numbers
say nothing. The parts `recipe`, five minutes of the hour's recipe for Connect Four, and `pong`, PPO's five minutes of
Pong, run only when they are named.
"""

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Seconds, together 480. First what was never measured as it is now: how near a loader comes to the copy's limit.
LIMITS = {"loading": 60, "tests": 90, "training": 180, "selfplay": 60, "inference": 60, "saving": 30}
DRY = 600  # for each part and row of a dry run, which leaves nothing out: a slow machine is no fault
ON_REQUEST = {"recipe": 400, "pong": 360}
MODULES = {"tests": "checks", "recipe": "selfplay", "pong": "frames"}
GRACE = 15  # seconds that a part may take to end
LOST = 3  # the status of a process that cannot go on
TITLES = {
    "tests": "Tests",
    "training": "Training: ours beside a loop written by hand",
    "loading": "Batches on the device",
    "inference": "Inference",
    "selfplay": "Self-play of Connect Four",
    "saving": "A snapshot",
    "recipe": "The hour's recipe",
    "pong": "PPO on Pong",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=[*LIMITS, *ON_REQUEST], default=list(LIMITS))
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--quick", action="store_true")
    # A part in its own process, until that moment of the clock.
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.until is not None:
        measure(args.parts[0], args, args.until)
        return 0
    description = describe(args.device)
    troubles: dict[str, str] = {}
    for part in args.parts:
        lines_of(args, part).unlink(missing_ok=True)
        start = time.perf_counter()
        until = time.monotonic() + (DRY if args.quick else (LIMITS | ON_REQUEST)[part])
        if args.quick:
            measure(part, args, until)
        elif trouble := run_alone(part, args, until):
            troubles[part] = trouble
        print(f"{part}: {time.perf_counter() - start:.0f} s {troubles.get(part, '')}", flush=True)
        report(args, description, troubles)
    print((args.out / "gpu.md").read_text())
    failed = any(
        row.get("failed") or row.get("errors") or row.get("error") for part in args.parts for row in read(args, part)
    )
    return 1 if troubles or failed else 0


def run_alone(part: str, args: argparse.Namespace, until: float) -> str | None:
    """Run one part in processes of its own, the next behind the row that ended the one before; return what is lost."""
    command = [sys.executable, __file__, "--device", args.device, "--out", str(args.out), "--parts", part]
    command += ["--until", str(until)]
    while True:
        begun = len(read(args, part))
        process = subprocess.Popen(command, start_new_session=True)
        try:
            status = process.wait(max(1.0, until + GRACE - time.monotonic()))
        except subprocess.TimeoutExpired:
            return "ended at its limit; what was measured until then stands"
        finally:  # with all that it has started, such as tests that hold the device
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if status == 0:
            return None
        if len(read(args, part)) == begun:
            return f"ended with status {status}; what was measured until then stands"


def measure(part: str, args: argparse.Namespace, until: float) -> None:
    """Run those rows of one part that no process before has begun, and append each to the part's file."""
    from gpu_parts.machine import Machine

    machine = Machine(args.device, args.quick, until)
    begun = {row["row"] for row in read(args, part)}
    with lines_of(args, part).open("a") as file:

        def write(name: str, row: dict[str, Any]) -> None:
            file.write(json.dumps({"row": name, **row}) + "\n")
            file.flush()

        try:
            module = importlib.import_module(f"gpu_parts.{MODULES.get(part, part)}")
            for job in module.recipe(machine) if part == "recipe" else module.rows(machine):
                if job.name in begun:
                    continue
                if not machine.time_left(job.seconds):
                    write(job.name, {"left out": "no time"})
                    continue
                write(job.name, {"error": "did not end"})  # which the row replaces
                try:
                    with ended_after(DRY if args.quick else 2 * job.seconds):
                        row = job.run()
                except Exception as error:
                    write(job.name, {"error": told(error)})
                    if "CUDA error" in str(error):  # from then on every call of this process fails
                        os._exit(LOST)
                else:
                    write(job.name, row)
                machine.forget_peak()
        except Exception as error:  # between two rows, or before the first
            write("the rest", {"error": told(error)})


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Ends this process if the block takes longer, whatever it is waiting for."""
    timer = threading.Timer(seconds, os._exit, [LOST])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def told(error: Exception) -> str:
    """The kind of an error and how it begins, for a cell of a table."""
    return " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")[:200]


def lines_of(args: argparse.Namespace, part: str) -> Path:
    out: Path = args.out
    return out / f"{part}.jsonl"


def read(args: argparse.Namespace, part: str) -> list[dict[str, Any]]:
    file = lines_of(args, part)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return list({row["row"]: row for row in rows}.values())  # the last line of each name


def describe(device: str) -> dict[str, Any]:
    """The machine, as a reader needs it."""
    import torch

    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "device": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        found["cuda"] = torch.version.cuda
    return found


def report(args: argparse.Namespace, description: dict[str, Any], troubles: dict[str, str]) -> None:
    """Write what is known so far, for programs and for people."""
    parts = {part: read(args, part) for part in args.parts}
    whole = {"machine": description, "quick": args.quick, "troubles": troubles, "parts": parts}
    (args.out / "gpu.json").write_text(json.dumps(whole, indent=1))
    name = description.get("name", description["device"])
    text = [f"# On {name}", "", ", ".join(f"{key} {value}" for key, value in description.items()) + ".", ""]
    if not description["device"].startswith("cuda"):
        text += ["Nothing here was measured on a GPU.", ""]
    if args.quick:
        text += ["A dry run: models of nothing, whose numbers say nothing.", ""]
    for part, rows in parts.items():
        text += [f"## {TITLES[part]}", ""]
        if part in troubles:
            text += [f"This part {troubles[part]}.", ""]
        columns = list(dict.fromkeys(key for row in rows for key in row if key != "row"))
        text += ["| " + " | ".join(["", *columns]) + " |", "|" + " --- |" * (len(columns) + 1)]
        text += ["| " + " | ".join([row["row"], *(shown(row.get(key)) for key in columns)]) + " |" for row in rows]
        text += [""]
    (args.out / "gpu.md").write_text("\n".join(text))


def shown(value: Any) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
