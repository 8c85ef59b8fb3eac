"""Long fault runs: `python tests/lab/soak.py kills 200` and `python tests/lab/soak.py search 4 500`.

`kills`: processes are killed at random moments, in turn while one trains with snapshots, while one searches, and while
one rewrites indexes and metadata. After each kill every row that was acknowledged must be in its file; every trial must
go on, and at its end a training run's weights and rows must equal those of one never killed, a search must have each
acknowledged score exactly once, and an index must tell what its file does. Processes are forked from this one, which
has imported everything, so that the kills fall on writing and not on imports.

`search`: processes × trials each on one experiment, the count exact.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from resumable_run import run

from ai.lab import Experiment, Record, Trial
from ai.lab.files import metrics_index, metrics_writer
from ai.lab.files.metrics_columns import read_columns
from ai.lab.files.metrics_file import read_rows
from ai.lab.files.metrics_index import Index, load_index, read_indexed

Ack = Callable[[object], None]


def kills(total: int) -> None:
    """Kills `total` processes."""
    torch.set_num_threads(1)
    metrics_index.BLOCK_BYTES = metrics_writer.BLOCK_BYTES = 1
    rng = random.Random(0)
    counts: Counter[str] = Counter()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as text:
        root = Path(text)
        lengths = {}
        for job in JOBS:
            started = time.monotonic()
            assert not watch(job, root / f"{job.__name__}-whole", None)[0]
            lengths[job] = time.monotonic() - started
        runs = {job: (root / f"{job.__name__}0", []) for job in JOBS}
        while sum(counts[job.__name__] for job in JOBS) < total:
            job = JOBS[counts["tries"] % len(JOBS)]
            counts["tries"] += 1
            folder, acknowledged = runs[job]
            dead, said = watch(job, folder, rng.uniform(0.02, 1.0) * lengths[job])
            acknowledged += said
            CHECKS[job](folder, root / f"{job.__name__}-whole", acknowledged, said, not dead)
            counts["acknowledged"] += len(said)
            counts[job.__name__] += dead
            if not dead:
                counts["through"] += 1
                runs[job] = (root / f"{job.__name__}{counts['tries']}", [])
    shares = ", ".join(f"{counts[job.__name__]} of {job.__name__}" for job in JOBS)
    print(
        f"{total} kills ({shares}), {counts['through']} runs brought to their end between them, "
        f"{counts['acknowledged']} acknowledged writes, none lost, every run gone on, {time.monotonic() - begun:.0f} s"
    )


def watch(job: Callable[[Path, Ack], None], folder: Path, kill_after_s: float | None) -> tuple[bool, list]:
    """Forks a process for `job` and kills it after a time; whether that met it alive, and what it acknowledged."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(receive)
            job(folder, lambda said: os.write(send, json.dumps(said).encode() + b"\n"))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(send)
    os.set_blocking(receive, False)
    said, deadline = b"", time.monotonic() + (3600 if kill_after_s is None else kill_after_s)
    while time.monotonic() < deadline:
        said += drain(receive)
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            break
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    said += drain(receive)
    os.close(receive)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, f"{folder} could not go on after a kill"
    return os.WIFSIGNALED(status), [json.loads(line) for line in said.splitlines()]


def drain(descriptor: int) -> bytes:
    said = b""
    try:
        while part := os.read(descriptor, 1 << 16):
            said += part
    except BlockingIOError:
        pass
    return said


# -- what is killed, and what must hold afterwards


def training(folder: Path, ack: Ack) -> None:
    _, weights = run(
        str(folder), -1, True, lambda step, values: ack([step, values.get("loss", values.get("val_loss"))])
    )
    (folder / "weights.json").write_text(json.dumps(weights))


def check_training(folder: Path, whole: Path, acknowledged: list, said: list, through: bool) -> None:
    rows = [[row["step"], row.get("loss", row.get("val_loss"))] for row in read_rows(folder / "metrics.jsonl")]
    assert all(row in rows for row in said), f"an acknowledged row of {folder} is lost"
    if through:
        assert (folder / "weights.json").read_bytes() == (whole / "weights.json").read_bytes(), f"weights of {folder}"
        assert plain_rows(folder) == plain_rows(whole), f"the rows of {folder} differ"
        assert Record(folder).state == "finished"


def plain_rows(folder: Path) -> list[dict[str, float]]:
    rows = read_rows(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in ("time", "steps_per_s")} for row in rows]


def searching(folder: Path, ack: Ack) -> None:
    def objective(trial) -> float:
        x = trial.hp.lin("x", 0, 1)
        for step in range(5):
            trial.log(step, {"x": x})
            ack([trial.number, step, x])
        return x

    experiment = Experiment(folder, search="random")
    while (done := ended(experiment)) < 12:
        experiment.run(done + 1, objective, progress=False)
        ack(["through", done + 1])


def ended(experiment: Experiment) -> int:
    """Counts trials with a score, and those that were killed four times in a row."""
    return sum(one.state.is_finished() for one in experiment.study.get_trials(deepcopy=False))


def check_searching(folder: Path, whole: Path, acknowledged: list, said: list, through: bool) -> None:
    if not folder.exists():
        return  # killed while it began
    experiment = Experiment(folder, search="random")
    rows = {row.number: row for row in experiment.trials()}
    finished = [row for row in rows.values() if row.state == "finished"]
    assert ended(experiment) >= max([one[1] for one in acknowledged if one[0] == "through"], default=0), (
        "a score is lost"
    )
    for number, step, x in (one for one in said if one[0] != "through"):
        logged = {row["step"]: row["x"] for row in read_rows(rows[number].path / "metrics.jsonl")}
        assert logged[step] == x == rows[number].hparams["x"], f"a row of trial {number} of {folder} is lost"
    for row in finished:
        assert Record(row.path).metrics()["x"].values.tolist() == [row.score] * 5
    if through:
        assert sorted(rows) == list(range(12)), f"{folder} has the trials {sorted(rows)}"  # each kept its number
        assert ended(experiment) == 12, f"{folder} has {ended(experiment)} trials that ended"


def indexing(folder: Path, ack: Ack) -> None:
    trial = Trial(folder, system_interval_s=None, capture=False)
    with trial:
        start = int(trial.record.last().get("step", -1)) + 1
        for step in range(start, 150):
            trial.log(step, {"loss": step / 3})
            ack(step)
            trial.note(step=step)


def check_indexing(folder: Path, whole: Path, acknowledged: list, said: list, through: bool) -> None:
    if not acknowledged and not (folder / "meta.json").exists():
        return  # killed while it began
    indexed, read = read_indexed(folder / "metrics.jsonl"), read_columns(folder / "metrics.jsonl")
    assert indexed.keys() == read.keys()
    for key in read:
        assert all(np.array_equal(a, b) for a, b in zip(indexed[key], read[key], strict=True)), f"index of {folder}"
    steps = read["loss"][0].tolist() if read else []
    assert steps == list(range(len(steps)))
    assert len(steps) >= len(acknowledged), f"an acknowledged row of {folder} is lost"
    json.loads((folder / "meta.json").read_bytes())
    (folder / "metrics.columns").unlink(missing_ok=True)  # it can be rebuilt
    Index(folder / "metrics.jsonl").extend()
    assert load_index(folder / "metrics.jsonl")[1] == (folder / "metrics.jsonl").stat().st_size or not steps
    litter = [path.name for path in folder.iterdir() if path.name.startswith(".write-")]
    assert not (through and litter), f"{folder} holds {litter}"


JOBS = [training, searching, indexing]
CHECKS = {training: check_training, searching: check_searching, indexing: check_indexing}


def search(processes: int, each: int) -> None:
    """Runs processes × each trials of one experiment at once."""
    with tempfile.TemporaryDirectory() as text:
        experiment = Experiment(Path(text) / "e", search="random")
        begun = time.monotonic()
        experiment.run(processes * each, lambda trial: trial.hp.lin("x", 0, 1), processes, progress=False)
        states = [row.state for row in experiment.trials()]
        assert states == ["finished"] * (processes * each)
        print(
            f"{len(states)} trials by {processes} processes in {time.monotonic() - begun:.0f} s, none lost or doubled"
        )


if __name__ == "__main__":
    {"kills": kills, "search": search}[sys.argv[1]](*map(int, sys.argv[2:]))
