"""How fast is the library on a GPU, and is it right there? One command of at most eight minutes.

    python benchmarks/gpu.py [--device cuda] [--parts tests training …] [--out gpu-results] [--quick]

Each part has a limit of its own and runs in a process of its own, so that one that hangs costs its own time and no
more; every row is on disk as soon as it was measured. Results are `gpu.json` and `gpu.md` in the folder `--out`.
`--quick` runs the same code with nothing to do, in one process: with `--device cpu` it is what CI does, and its numbers
say nothing. The part `recipe`, five minutes of the hour's recipe for Connect Four, runs only when it is named.
"""

import argparse
import importlib
import json
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Seconds. Together 480.
LIMITS = {"tests": 90, "training": 190, "loading": 50, "inference": 60, "selfplay": 60, "saving": 30}
ON_REQUEST = {"recipe": 400}
MODULES = {"tests": "checks", "recipe": "selfplay"}
TITLES = {
    "tests": "Tests",
    "training": "Training: ours beside a loop written by hand",
    "loading": "Batches on the device",
    "inference": "Inference",
    "selfplay": "Self-play of Connect Four",
    "saving": "A snapshot",
    "recipe": "The hour's recipe",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=[*LIMITS, *ON_REQUEST], default=list(LIMITS))
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # a part in its own process
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.alone:
        measure(args.parts[0], args)
        return 0
    description = describe(args.device)
    troubles: dict[str, str] = {}
    for part in args.parts:
        lines_of(args, part).unlink(missing_ok=True)
        start = time.perf_counter()
        try:
            if args.quick:
                measure(part, args)
            else:
                again = [sys.executable, __file__, "--device", args.device, "--out", str(args.out)]
                limit = (LIMITS | ON_REQUEST)[part]
                subprocess.run([*again, "--parts", part, "--alone"], timeout=limit + 15, check=True)
        except subprocess.TimeoutExpired:
            troubles[part] = "ended at its limit; what was measured until then stands"
        except subprocess.CalledProcessError as error:
            troubles[part] = f"ended with status {error.returncode}; what was measured until then stands"
        print(f"{part}: {time.perf_counter() - start:.0f} s {troubles.get(part, '')}", flush=True)
        report(args, description, troubles)
    print((args.out / "gpu.md").read_text())
    failed = any(row.get("failed") or row.get("errors") or row.get("error") for row in read(args, "tests"))
    return 1 if troubles or failed else 0


def measure(part: str, args: argparse.Namespace) -> None:
    """Run one part, and append each of its rows to its file."""
    import torch
    from gpu_parts.machine import Machine

    limit = (LIMITS | ON_REQUEST)[part]
    machine = Machine(torch.device(args.device), args.quick, time.monotonic() + limit)
    module = importlib.import_module(f"gpu_parts.{MODULES.get(part, part)}")
    made = module.recipe if part == "recipe" else module.rows
    with lines_of(args, part).open("a") as file:
        for row in made(machine):
            file.write(json.dumps(row) + "\n")
            file.flush()


def lines_of(args: argparse.Namespace, part: str) -> Path:
    out: Path = args.out
    return out / f"{part}.jsonl"


def read(args: argparse.Namespace, part: str) -> list[dict[str, Any]]:
    file = lines_of(args, part)
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


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
    text = ["# On a device", "", ", ".join(f"{key} {value}" for key, value in description.items()) + ".", ""]
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
