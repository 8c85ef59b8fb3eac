"""What a full or read-only disk costs a training run: a sentence, and nothing that was saved.

Run: `python -m ai.examples.reproduce disk-faults [--runs 20]`, on Linux with `unshare` and user namespaces.
"""

import gc
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_STEPS, _EVERY, _SIZE_KB = 40, 5, 2048


def reproduce(*, runs: int = 20, seed: int = 0) -> dict[str, float]:
    """Trains `runs` times on a disk that fills up, and as often on one that becomes read-only, and goes on afterwards.

    The disk is a small one in memory, in a mount namespace of its own, which ends with the process.

    Raises:
        RuntimeError: a run failed otherwise than by one `OSError` that names the snapshot, a snapshot was damaged, or
            the continued run differs from an undisturbed one.
    """
    command = [sys.executable, "-m", "ai.examples.disk_faults", str(runs), str(seed)]
    script = 'mount -t tmpfs -o size="$0"k tmpfs "$1" && shift && exec "$@"'
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(_SIZE_KB), str(folder), *command],
        capture_output=True,
        text=True,
        env={**os.environ, "AI_DISK": str(folder)},
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    names = ("full_runs", "full_refused", "read_only_runs", "read_only_refused")
    return dict(zip(names, map(float, done.stdout.split()), strict=True))


def main(runs: int, seed: int) -> None:
    """Runs in the namespace; prints runs, and how many were refused a snapshot, on a full and on a read-only disk."""
    rng, disk = random.Random(seed), Path(os.environ["AI_DISK"])
    counts, expected = [], _train(None, False, [])
    for spoil, mend in ((_fill, _empty), (_forbid, _allow)):
        failed = 0
        for index in range(runs):
            step = rng.randrange(1, _STEPS)
            failed += _spoiled_run(disk / f"{spoil.__name__}-{index}", index % 2 == 1, step, rng, spoil, mend, expected)
        counts += [runs, failed]
    print(*counts)


def _spoiled_run(
    folder: Path,
    asynchronous: bool,
    step: int,
    rng: random.Random,
    spoil: Callable[[Path, random.Random], None],
    mend: Callable[[Path], None],
    expected: dict[str, Any],
) -> bool:
    """One run, spoiled at a step, and continued; whether it failed, where the last snapshot may have been over."""
    import torch

    from ai.train import HookInterface
    from ai.train.snapshot import verify

    class Spoil(HookInterface):
        def step(self, at: int) -> None:
            if at == step:
                spoil(folder.parent, rng)

    error: OSError | None = None
    try:
        _train(folder, asynchronous, [Spoil()])
    except OSError as caught:
        error = caught
        if "\n" in str(caught) or "snapshot" not in str(caught):
            raise RuntimeError(f"not one sentence that names the snapshot: {caught}") from caught
    whole = [path for path in folder.glob("0*") if path.is_dir()]
    if problem := next((problem for path in whole if (problem := verify(path)) is not None), None):
        raise RuntimeError(f"a snapshot of {folder.name} is damaged: {problem}")
    on_disk = (step - 1) // _EVERY * _EVERY - asynchronous * _EVERY  # in a thread the last one may be under way
    if max((int(path.name) for path in whole), default=0) < on_disk:
        raise RuntimeError(f"{folder.name} lost snapshot {on_disk}")
    mend(folder.parent)
    found = _train(folder, asynchronous, [])
    if not all(torch.equal(found[name], value) for name, value in expected.items()):
        raise RuntimeError(f"{folder.name} went on to other weights")
    shutil.rmtree(folder)
    return error is not None


def _train(folder: Path | None, asynchronous: bool, more: list[Any]) -> dict[str, Any]:
    import torch

    from ai.data import Dataset
    from ai.train import Classify, Hook, Snapshots, Trainer, opt

    torch.manual_seed(0)
    x = torch.randn(128, 64, device="cpu")
    loader = Dataset({"x": x, "y": (x[:, 0] > 0).to(torch.uint8)}).loader(16, train=True)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Dropout(0.1), torch.nn.Linear(128, 2))
    hooks = list(more)
    if folder is not None:
        saving = Snapshots(folder, asynchronous=asynchronous, keep_last=2, keep_best=0)
        hooks.append(Hook(snapshots=saving, save_interval=_EVERY, resume=True))
    Trainer(Classify(), loader).train(model, opt.adam(model, lr=0.01), hooks, steplimit=_STEPS)
    return model.state_dict()


def _fill(disk: Path, rng: random.Random) -> None:
    """Leaves less than a snapshot takes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with suppress(OSError):  # what is being written meanwhile may fill it first
        (disk / "filler").write_bytes(bytes(max(0, free - rng.randrange(100_000))))


def _empty(disk: Path) -> None:
    (disk / "filler").unlink(missing_ok=True)


def _forbid(disk: Path, rng: random.Random) -> None:
    gc.collect()  # files that were deleted and are still mapped keep a disk writable
    deadline = time.monotonic() + 30
    while subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{disk} cannot be made read-only")
        time.sleep(0.005)  # a file is being written there


def _allow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
