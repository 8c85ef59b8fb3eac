"""A search over seeds that is killed again and again, and comes to the same end as one that never was.

Run: `python -m ai.examples.reproduce lab-search [--trials 60] [--kills 12]`; `ai-lab serve lab-search` shows it.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

from ai.lab import Confusion, Experiment, ExperimentTrial, Histogram

_STEPS = 120


def reproduce(*, trials: int = 60, seeds: int = 3, kills: int = 12, seed: int = 0) -> dict[str, float]:
    """Searches twice for a digit classifier, once under SIGKILL at random moments, and compares all that was found.

    Raises:
        RuntimeError: a configuration, a score or the winner differs between the two searches, or a process failed.
    """
    rng = random.Random(seed)
    started = time.monotonic()
    whole = search("lab-search/undisturbed", seeds, clean=True)
    whole.run(trials, objective, progress=False)
    lasted_s = time.monotonic() - started

    survivor = search("lab-search/killed", seeds, clean=True)
    command = [sys.executable, "-m", __spec__.name, str(trials), str(seeds)]
    killed = 0
    for number in range(kills):
        # A trial ends before each kill, so that no load has the same one die with process after process; and as many
        # are left to the kills that follow.
        n = rng.randint(1, max(1, (trials - _ended(survivor)) // (kills - number) // 2))
        process = subprocess.Popen(command)
        try:
            _wait_for_ends(survivor, process, n, limit_s=600 + lasted_s)
            if (status := process.wait(rng.uniform(0, lasted_s / trials))) != 0:
                raise RuntimeError(f"the searching process ended with {status}")
        except subprocess.TimeoutExpired:
            killed += 1
        finally:
            process.kill()
            process.wait()
    subprocess.run(command, check=True)

    found, expected = _outcomes(survivor), _outcomes(whole)
    if found != expected:
        raise RuntimeError(f"{len(set(found) ^ set(expected))} of {len(expected)} trials came to another end")
    if survivor.best_hparams != whole.best_hparams or survivor.best_score != whole.best_score:
        raise RuntimeError(f"the winner is {survivor.best_hparams}, and was {whole.best_hparams}")
    return {
        "trials": trials,
        "runs_of_each": seeds,
        "killed": killed,
        "lost_and_taken_up": sum("losses" in one.user_attrs for one in survivor.study.trials),
        "pruned": sum(row.state == "pruned" for row in survivor.trials()),
        "best_accuracy": round(survivor.best_score, 4),
    }


def _wait_for_ends(experiment: Experiment, process: subprocess.Popen[bytes], n: int, *, limit_s: float) -> None:
    """Waits until `n` more trials have ended, or the process has.

    Raises:
        RuntimeError: neither came in time.
    """
    goal, deadline = _ended(experiment) + n, time.monotonic() + limit_s
    while process.poll() is None and _ended(experiment) < goal:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{n} trials have not ended in {limit_s:.0f} s")
        time.sleep(0.05)


def _ended(experiment: Experiment) -> int:
    return sum(trial.state.is_finished() for trial in experiment.study.get_trials(deepcopy=False))


def search(path: str, seeds: int, *, clean: bool = False) -> Experiment:
    """Returns the search in its folder."""
    return Experiment(
        Path(path),
        "max",
        pruner="median",
        prune_by="val_accuracy",
        seeds=seeds,
        clean=clean,
        save_snapshots=True,
        log_interval=5,
        val_interval=20,
        save_interval=_STEPS,
    )


def objective(trial: ExperimentTrial) -> float:
    """Trains a classifier of 8 × 8 digits and returns its accuracy on held-out ones."""
    import torch

    import ai.model as m
    from ai.data import digits_dataset
    from ai.train import Classify, Trainer, opt

    torch.set_num_threads(1)
    rate = trial.hp.log("lr", 1e-4, 1e-1)
    width = trial.hp.lst("width", [16, 32, 64])
    depth = trial.hp.lst("depth", [1, 2, 3])
    kind = trial.hp.lst("optimizer", ["adamw", "sgd"])
    train_set, held_out = digits_dataset(size=8).split()
    torch.manual_seed(trial.seed)
    hidden = [m.fc(64 if layer == 0 else width, width, actv="relu") for layer in range(depth)]
    model = m.Model(m.seq(m.flatten(), *hidden, m.fc(width, 10))).init(seed=trial.seed)
    loader = train_set.loader(64, "cpu", train=True, seed=trial.seed)
    hook = trial.hook(val_data=held_out.loader(360, "cpu"))
    optimizer = opt.adamw(model, lr=rate) if kind == "adamw" else opt.sgd(model, lr=rate)
    Trainer(Classify(), loader).train(model, optimizer, hook, steplimit=_STEPS)
    first = next(model.parameters()).detach()
    digits = next(iter(held_out.loader(360, "cpu")))
    with torch.no_grad():
        answers = model(digits["x"]).argmax(1)
    trial.keep(_STEPS, "weights", Histogram(first))
    trial.keep(_STEPS, "answers", Confusion(digits["y"], answers))
    trial.save_sample(_STEPS, (first / first.abs().amax(1, keepdim=True)).view(-1, 1, 8, 8))
    return float(trial.metrics()["val_accuracy"].values[-1])


def _outcomes(experiment: Experiment) -> list[tuple[object, ...]]:
    """Returns what each trial chose and came to."""
    rows = [row for row in experiment.trials() if row.state in ("finished", "pruned")]
    return sorted((tuple(sorted(row.hparams.items(), key=str)), row.state, row.runs) for row in rows)


if __name__ == "__main__":
    search("lab-search/killed", int(sys.argv[2])).run(int(sys.argv[1]), objective, progress=False)
