"""Snapshots of many ranks: whole files from rank 0 under DDP, a DCP folder under FSDP, and each rank's own states.

A DCP folder loads on any number of ranks; `export` makes one file of it.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from ai.model.arguments import as_path
from ai.model.saved import EMA, MODEL, STATE, load_pt, read_manifest
from ai.model.state import saying_why, write_pt, write_tensors
from ai.train.distributed.process_group import GroupRanks
from ai.train.engine.run import Run
from ai.train.saving.atomic_folder import commit, one_clear_error
from ai.train.saving.checksums import Checksums
from ai.train.saving.files import read_state, write_files, write_manifest
from ai.train.saving.host_copies import HostCopies
from ai.train.saving.ownership import place_aside
from ai.train.state.optimizer_state import check_kind, choose_settings, optimizer_settings


class RanksWriter:
    """Writes snapshots of a run of several ranks into one folder that all of them see; every rank has one.

    Args:
        run: whose ranks they are.
        copies: where states are copied to, to be written while training goes on; None to write them as they are.
        prune: called on rank 0 after each snapshot.
    """

    def __init__(self, run: Run, *, copies: HostCopies | None, prune: Callable[[], None]) -> None:
        assert isinstance(run.ranks, GroupRanks)
        # Apart, since training decides over its own group meanwhile.
        self._ranks = run.ranks.apart() if copies is not None else run.ranks
        self._copies, self._prune = copies, prune
        self._mesh = init_device_mesh("cpu", (run.ranks.world,)) if run.sharded and copies is not None else None

    def prepare(
        self,
        run: Run,
        step: int,
        target: Path,
        metrics: Mapping[str, float],
        structures: Mapping[str, bytes],
        order: Mapping[str, Any],
    ) -> Callable[[], None]:
        """Take the run's state; what writes it, to be called by every rank."""
        ranks, models, specs = self._ranks, dict(run.models), dict(run.specs)
        own, sharded = run.state_of_rank(), run.sharded
        tensors = _tensors(run) if sharded else run.state_of_tensors() if ranks.rank == 0 else {}
        ema_keys = {key: list(ema.state_dict()) for key, ema in run.ema.items()}
        if self._copies is not None:
            own, parts = self._copies.take((own, _parts(tensors)))
            tensors = _shards(parts, tensors, self._mesh)
        staging = target.with_name(f".{target.name}.ranks.partial")

        def make_staging() -> None:
            if ranks.rank == 0:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)

        def fill(folder: Path) -> None:
            for path in staging.iterdir():
                os.replace(path, folder / path.name)
            if sharded:
                write_pt(folder / STATE, {"step": step, "world": ranks.world, "ema_keys": ema_keys})
                with Checksums(folder) as sums:
                    write_manifest(folder, step, models, specs, metrics, bool(ema_keys), order, sums=sums)
            else:
                write_files(folder, {"step": step, **tensors, **own}, models, specs, metrics, structures, order)

        def finish() -> None:
            if ranks.rank == 0:
                commit(target, fill, aside=place_aside(target, order["line"]))
                shutil.rmtree(staging, ignore_errors=True)
                self._prune()

        def write() -> None:
            try:
                with one_clear_error(target):
                    _together(ranks, make_staging)
                    _together(ranks, lambda: write_pt(staging / f"rank-{ranks.rank}.pt", own))
                    if sharded:
                        with _plain_errors(ranks.rank):
                            writer = _ShardWriter(staging / "dcp")
                            state_dict_saver.save(tensors, storage_writer=writer, process_group=ranks.group)
                    _together(ranks, finish)
            except BaseException:
                if ranks.rank == 0:  # on a full disk its place is needed
                    shutil.rmtree(staging, ignore_errors=True)
                raise

        return write

    def prepare_memory(self, run: Run) -> Callable[[], object]:
        """What makes memory for the copies ready; it may run beside training."""
        assert self._copies is not None
        copies = self._copies
        parts = _parts(_tensors(run)) if run.sharded else run.state_of_tensors() if self._ranks.rank == 0 else {}
        return lambda: copies.make_ready(parts)


def _together(ranks: GroupRanks, work: Callable[[], object]) -> None:
    """Do each rank's work; where it fails on one rank, no rank goes on."""
    failure: Exception | None = None
    try:
        work()
    except Exception as error:
        failure = error
    if ranks.any(failure is not None):
        raise failure or OSError("another rank could not write its part of the snapshot")


class _ShardWriter(FileSystemWriter):
    """DCP's own, whose errors say what the system has refused: they reach the ranks without what caused them."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Write this rank's shards."""
        with saying_why(Path(self.path)):
            return super().write_data(plan, planner)


@contextmanager
def _plain_errors(rank: int) -> Iterator[None]:
    """What went wrong on this rank, else on the first of the others, rather than DCP's `BaseException` about all."""
    try:
        yield
    except CheckpointException as error:
        where = rank if rank in error.failures else min(error.failures)
        failure = error.failures[where][0]
    else:
        return
    if where != rank:
        raise OSError(f"rank {where}: {failure}") from None
    raise failure from None


def _parts(value: Any) -> Any:
    """The structure with each sharded tensor's own part in its place."""
    if isinstance(value, Mapping):
        return {key: _parts(item) for key, item in value.items()}
    return value.to_local() if isinstance(value, DTensor) else value


def _shards(parts: Any, like: Any, mesh: DeviceMesh | None) -> Any:
    """The structure of parts as shards again, of tensors that lie on the CPU."""
    if isinstance(like, Mapping):
        return {key: _shards(parts[key], item, mesh) for key, item in like.items()}
    if not isinstance(like, DTensor):
        return parts
    return DTensor.from_local(parts, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def load_ranks(run: Run, path: Path, settings: str = "snapshot") -> None:
    """Load a snapshot of any number of ranks into a run of any number; every rank calls it."""
    rank = run.ranks.rank
    mine = path / f"rank-{rank}.pt"
    own = load_pt(mine if mine.is_file() else path / "rank-0.pt") if (path / "rank-0.pt").is_file() else {}
    if own and not mine.is_file():
        own["random"] = None  # a rank that was not there before must not repeat rank 0's draws
    if not (path / "dcp").is_dir():
        state = {**read_state(path), **own}
        if not own and rank:
            state["random"] = None  # of one process: its draws are rank 0's
        run.load_state_dict(state, settings=settings)
        return
    for key, kind in own.get("optimizer_kinds", {}).items():
        check_kind(key, run.optimizers[key], kind)
    settings_of = {key: optimizer_settings(optimizer) for key, optimizer in run.optimizers.items()}
    state = _tensors(run)
    with _plain_errors(rank):
        state_dict_loader.load(state, checkpoint_id=str(path / "dcp"), no_dist=run.ranks.world == 1)
    for key, model in run.models.items():
        set_model_state_dict(model, state["models"][key])
    for key, optimizer in run.optimizers.items():
        set_optimizer_state_dict(run.models[key], optimizer, state["optimizers"][key])
        choose_settings(key, optimizer, settings_of[key], settings)
    run.load_state_dict({"step": load_pt(path / STATE)["step"], "ema": state["ema"], **own})


def export(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Make one-file tensors of a sharded snapshot: `model.safetensors` and, where there is one, `ema.safetensors`.

    Args:
        path: the snapshot.
        folder: where the files go; made if missing.

    Raises:
        FileNotFoundError: the snapshot is not sharded.
    """
    source, target = as_path(path), as_path(folder, "folder", "folder")
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
    write_tensors(target / MODEL, tensors)
    if state.get("ema"):
        averaged = {prefixes[key] + name: v for key, part in state["ema"].items() for name, v in part.items()}
        write_tensors(target / EMA, {**tensors, **averaged})


def _tensors(run: Run) -> dict[str, Any]:
    """What DCP saves: keyed by parameter names, so that it fits any sharding."""
    return {
        "models": {key: get_model_state_dict(model) for key, model in run.models.items()},
        "optimizers": {
            key: get_optimizer_state_dict(run.models[key], optimizer) for key, optimizer in run.optimizers.items()
        },
        "ema": {key: ema.state_dict() for key, ema in run.ema.items()},
    }
