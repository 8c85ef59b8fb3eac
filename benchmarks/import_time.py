"""What does an import cost? Milliseconds beyond the bare interpreter, each in fresh processes, alternating.

Run: `python benchmarks/import_time.py [repeats]`. The targets: `import ai` ≤ 30 ms beyond the interpreter, and
`import ai.train` ≤ 50 ms beyond `import torch`.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

STATEMENTS = {
    "interpreter": "pass",
    "import ai": "import ai",
    "import torch": "import torch",
    "import ai.model": "import ai.model",
    "import ai.data": "import ai.data",
    "import ai.train": "import ai.train",
    "import ai.infer": "import ai.infer",
    "import ai.game": "import ai.game",
    "import ai.lab": "import ai.lab",
    "import torchvision": "import torchvision",
}


def main(repeats: int) -> None:
    """Times each statement `repeats` times and prints the medians."""
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    # With bytecode, as an installed package has it: a shell that forbids to write it would time the compiler.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp()
    for repeat in range(repeats + 1):
        for name in sorted(STATEMENTS, reverse=bool(repeat % 2)):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", STATEMENTS[name]], check=True, env=environment)
            if repeat:  # the first round only warms the file cache, and compiles
                times[name].append((time.perf_counter() - start) * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"python {sys.version.split()[0]}, median of {repeats} processes each")
    print(f"{'statement':20} {'ms':>8} {'over interpreter':>18} {'over torch':>12}")
    for name, median in medians.items():
        over_torch = f"{median - medians['import torch']:+12.1f}" if name.startswith("import ai.") else " " * 12
        print(f"{name:20} {median:8.1f} {median - medians['interpreter']:+18.1f} {over_torch}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
