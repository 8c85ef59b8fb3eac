"""Snapshots of many ranks: whole files from rank 0 under DDP, a DCP folder under FSDP, and each rank's own states.

A DCP folder loads on any number of ranks; `export` makes one file of it.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ai.train.run import Run
from ai.train.snapshot_files import (
    EMA,
    MODEL,
    STATE,
    commit,
    load_pt,
    read_manifest,
    read_state,
    save_tensors,
    write_files,
    write_manifest,
)

if TYPE_CHECKING:
    from ai.train.snapshot import Snapshots

# What differs between ranks.
_OWN = ("data", "states", "random")


def save_ranks(snapshots: "Snapshots", run: Run, target: Path, metrics: Mapping[str, float]) -> None:
    """Save a run of several ranks into one folder that all of them see; every rank calls it."""
    staging = target.with_name(f".{target.name}.ranks.partial")
    if run.ranks.rank == 0:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    run.ranks.barrier()
    state = run.state_dict()
    torch.save({key: state[key] for key in _OWN}, staging / f"rank-{run.ranks.rank}.pt")
    if run.sharded:
        state_dict_saver.save(_tensors(run), checkpoint_id=str(staging / "dcp"))
    run.ranks.barrier()
    if run.ranks.rank == 0:

        def fill(folder: Path) -> None:
            for path in staging.iterdir():
                os.replace(path, folder / path.name)
            if run.sharded:
                ema_keys = {key: list(ema.state_dict()) for key, ema in run.ema.items()}
                torch.save({"step": run.step, "world": run.ranks.world, "ema_keys": ema_keys}, folder / STATE)
                write_manifest(folder, run.step, run.models, run.specs, metrics, bool(run.ema))
            else:
                write_files(folder, state, run.models, run.specs, metrics)

        commit(target, fill)
        shutil.rmtree(staging, ignore_errors=True)
        snapshots.prune()
    run.ranks.barrier()


def load_ranks(run: Run, path: Path) -> None:
    """Load a snapshot of any number of ranks into a run of any number; every rank calls it."""
    rank = run.ranks.rank
    mine = path / f"rank-{rank}.pt"
    own = load_pt(mine if mine.is_file() else path / "rank-0.pt") if (path / "rank-0.pt").is_file() else {}
    if own and not mine.is_file():
        own["random"] = None  # a rank that was not there before must not repeat rank 0's draws
    if not (path / "dcp").is_dir():
        run.load_state_dict({**read_state(path), **own})
        return
    state = _tensors(run)
    state_dict_loader.load(state, checkpoint_id=str(path / "dcp"), no_dist=run.ranks.world == 1)
    for key, model in run.models.items():
        set_model_state_dict(model, state["models"][key])
    for key, optimizer in run.optimizers.items():
        set_optimizer_state_dict(run.models[key], optimizer, state["optimizers"][key])
    run.load_state_dict({"step": load_pt(path / STATE)["step"], "ema": state["ema"], **own})


def export(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Make one-file tensors of a sharded snapshot: `model.safetensors` and, where there is one, `ema.safetensors`.

    Args:
        path: the snapshot.
        folder: where the files go; made if missing.

    Raises:
        FileNotFoundError: the snapshot is not sharded.
    """
    source, target = Path(path), Path(folder)
    if not (source / "dcp").is_dir():
        raise FileNotFoundError(f"{source} is not a sharded snapshot: it has no dcp folder")
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    manifest = read_manifest(source)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        whole = Path(scratch) / "whole.pt"
        dcp_to_torch_save(source / "dcp", whole)
        state = load_pt(whole)
    prefixes = {key: about["prefix"] for key, about in manifest["models"].items()}
    tensors = {prefixes[key] + name: v for key, part in state["models"].items() for name, v in part.items()}
    save_tensors(target / MODEL, tensors)
    if state.get("ema"):
        averaged = {prefixes[key] + name: v for key, part in state["ema"].items() for name, v in part.items()}
        save_tensors(target / EMA, {**tensors, **averaged})


def _tensors(run: Run) -> dict[str, Any]:
    """What DCP saves: keyed by parameter names, so that it fits any sharding."""
    return {
        "models": {key: get_model_state_dict(model) for key, model in run.models.items()},
        "optimizers": {
            key: get_optimizer_state_dict(run.models[key], optimizer) for key, optimizer in run.optimizers.items()
        },
        "ema": {key: ema.state_dict() for key, ema in run.ema.items()},
    }
