"""Long fault runs: `python tests/lab/soak.py kills 200` and `python tests/lab/soak.py search 4 500`.

`kills`: a training run is killed at a random moment until it is through, resuming each time; its weights and rows must
equal those of a run that was never killed. `search`: processes × trials each on one experiment, the count exact.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = [sys.executable, str(Path(__file__).with_name("resumable_run.py"))]


def kills(total: int) -> None:
    """Kills `total` processes at random moments of start, training, snapshots and end."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as text:
        root = Path(text)
        begun = time.monotonic()
        whole = subprocess.run([*RUN, root / "whole", "-1"], capture_output=True, text=True, check=True)
        length_s = time.monotonic() - begun
        weights, killed, through = whole.stdout.split(maxsplit=2)[2], 0, 0
        while killed < total:
            folder = root / f"run{through}"
            while True:
                process = subprocess.Popen([*RUN, folder, "-1", "resume"], stdout=subprocess.PIPE, text=True)
                try:
                    out, _ = process.communicate(timeout=rng.uniform(0.3, 1.3) * length_s)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    killed += 1
                    continue
                assert process.returncode == 0, f"{folder} could not be resumed after kill {killed}"
                break
            assert out.split(maxsplit=2)[2] == weights, f"the weights of {folder} differ"
            assert rows(folder) == rows(root / "whole"), f"the rows of {folder} differ"
            through += 1
    print(f"{killed} kills, {through} runs through: weights and rows of each equal those of a run never killed")


def search(processes: int, each: int) -> None:
    """Runs processes × each trials of one experiment at once."""
    from ai.lab import Experiment

    with tempfile.TemporaryDirectory() as text:
        experiment = Experiment(Path(text) / "e", search="random")
        begun = time.monotonic()
        experiment.run(processes * each, lambda trial: trial.hp.lin("x", 0, 1), processes, progress=False)
        states = [row.state for row in experiment.trials()]
        assert states == ["finished"] * (processes * each)
        print(
            f"{len(states)} trials by {processes} processes in {time.monotonic() - begun:.0f} s, none lost or doubled"
        )


def rows(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("time", "steps_per_s")} for line in lines]


if __name__ == "__main__":
    {"kills": kills, "search": search}[sys.argv[1]](*map(int, sys.argv[2:]))
