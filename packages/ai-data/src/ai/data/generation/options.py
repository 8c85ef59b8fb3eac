"""The options of loaders of generated data: told once, with their defaults, and checked once."""

from collections.abc import Mapping
from typing import Annotated, Any, TypedDict, get_type_hints

from ai.data.arguments import check_at_least, check_n_workers, check_real, check_whole
from ai.data.replay_buffer import ReplayBuffer
from ai.data.workers.engine import Engine, check_engine


class DatagenOptions(TypedDict, total=False):
    """What `Datagen.loader` and `DatagenLoader` take as keywords, each with its default.

    Args:
        n_workers: processes that each run a copy of the source, 1 by default; 0 runs the source itself when a batch is
            asked for, so that everything is a function of the seed.
        buffer: what keeps and draws steps; None keeps 100,000 rows and draws single steps uniformly. A number is its
            capacity.
        replay_ratio: how often a step is drawn on average. Batches wait for steps, and workers that are a few batches
            ahead wait for the trainer. None leaves the workers running freely; with n_workers=0 it means one new
            episode before each batch.
        min_steps: steps to make before the first batch, which `replay_ratio` leaves out of its count; None means
            batch_size.
        seed: of the sources, 0 by default; a buffer made here takes it too.
        pin: move through page-locked memory; None means where `device` is CUDA.
        engine: starts the workers; None means processes of this machine.
        stall_timeout_s: a worker that was asked for episodes, or sent parameters, and gives no sign for so long counts
            as dead although its process lives: a warning says where its source is, and another takes its place.
            1800 by default; give more than one episode can take. For its first sign, before which it imports and
            compiles, it has at least 120. None waits for ever.
    """

    n_workers: Annotated[int, 1]
    buffer: Annotated[ReplayBuffer | int | None, None]
    replay_ratio: Annotated[float | None, None]
    min_steps: Annotated[int | None, None]
    seed: Annotated[int, 0]
    pin: Annotated[bool | None, None]
    engine: Annotated[Engine | None, None]
    stall_timeout_s: Annotated[float | None, 1800.0]


class PassesOptions(TypedDict, total=False):
    """What `Datagen.passes` and `PassesLoader` take as keywords, each with its default.

    Args:
        batches: parts of a pass, 1 by default.
        gamma: what a later reward is worth a step earlier, besides the episodes' `discount`; 0.99 by default.
        lam: λ: 0 trusts the values after one step, 1 trusts the rewards alone; 0.95 by default.
        sequence: None for single steps; L for sequences of up to L steps of one episode, `[B, L, …]` with `mask`
            `[B, L]`, for models with a memory.
        seed: of the source and of the order, 0 by default.
        pin: move through page-locked memory; None means where `device` is CUDA.
    """

    batches: Annotated[int, 1]
    gamma: Annotated[float, 0.99]
    lam: Annotated[float, 0.95]
    sequence: Annotated[int | None, None]
    seed: Annotated[int, 0]
    pin: Annotated[bool | None, None]


def datagen_options(options: DatagenOptions) -> DatagenOptions:
    """Returns all of the options, checked.

    Raises:
        TypeError: no number where one is needed, or an option that there is none of.
        ValueError: one that cannot be.
    """
    chosen: DatagenOptions = {**_defaults(DatagenOptions, options), **options}  # type: ignore[typeddict-item]
    check_n_workers(chosen["n_workers"])
    check_whole(seed=chosen["seed"])
    check_whole(or_none=True, min_steps=chosen["min_steps"])
    check_real(or_none=True, replay_ratio=chosen["replay_ratio"])
    chosen["seed"] = int(chosen["seed"])  # numpy's own would end up in states
    buffer = chosen["buffer"]
    if not isinstance(buffer, ReplayBuffer):
        check_whole(or_none=True, **{"buffer, if no ReplayBuffer,": buffer})
    check_engine(chosen["engine"])
    if chosen["engine"] is not None and chosen["n_workers"] == 0:
        raise ValueError("n_workers (0) must be at least 1 with an engine: it starts them")
    check_real(or_none=True, stall_timeout_s=chosen["stall_timeout_s"])
    if chosen["stall_timeout_s"] is not None and not 0 < chosen["stall_timeout_s"] < float("inf"):
        raise ValueError(f"stall_timeout_s must be positive and finite, or None, got {chosen['stall_timeout_s']}")
    if options.get("stall_timeout_s") is not None and chosen["n_workers"] == 0:
        raise ValueError("n_workers (0) must be at least 1 with stall_timeout_s: nobody else is there to end a source")
    if chosen["replay_ratio"] is not None and not 0 < chosen["replay_ratio"] < float("inf"):
        raise ValueError(f"replay_ratio must be positive and finite, got {chosen['replay_ratio']}")
    if chosen["min_steps"] is not None and chosen["min_steps"] < 1:
        raise ValueError(f"min_steps must be at least 1, got {chosen['min_steps']}")
    return chosen


def passes_options(options: PassesOptions) -> PassesOptions:
    """Returns all of the options, checked.

    Raises:
        TypeError: no number where one is needed, or an option that there is none of.
        ValueError: one that cannot be.
    """
    chosen: PassesOptions = {**_defaults(PassesOptions, options), **options}  # type: ignore[typeddict-item]
    check_at_least(1, batches=chosen["batches"])
    check_at_least(1, or_none=True, sequence=chosen["sequence"])
    check_whole(seed=chosen["seed"])
    chosen["seed"] = int(chosen["seed"])
    check_real(gamma=chosen["gamma"], lam=chosen["lam"])
    if not 0 <= chosen["gamma"] <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {chosen['gamma']}")
    if not 0 <= chosen["lam"] <= 1:
        raise ValueError(f"lam must lie in [0, 1], got {chosen['lam']}")
    return chosen


def _defaults(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    if unknown := sorted(given.keys() - hints.keys()):
        raise TypeError(f"there is no option {unknown[0]!r}; the options are {', '.join(hints)}")
    return {name: hint.__metadata__[0] for name, hint in hints.items()}
