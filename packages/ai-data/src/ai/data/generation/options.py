"""The options of loaders of generated data: told once, checked once."""

from dataclasses import dataclass
from typing import TypedDict

from ai.data.batch.arguments import check_real, check_whole
from ai.data.replay_buffer import ReplayBuffer
from ai.data.workers.engine import Engine


class DatagenOptions(TypedDict, total=False):
    """What `Datagen.loader` and `DatagenLoader` take as keywords.

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
    """

    n_workers: int
    buffer: ReplayBuffer | int | None
    replay_ratio: float | None
    min_steps: int | None
    seed: int
    pin: bool | None
    engine: Engine | None


@dataclass(frozen=True, kw_only=True)
class DatagenChoice:
    """`DatagenOptions` with their defaults, checked.

    Raises:
        TypeError: no number where one is needed.
        ValueError: one that cannot be.
    """

    n_workers: int = 1
    buffer: ReplayBuffer | int | None = None
    replay_ratio: float | None = None
    min_steps: int | None = None
    seed: int = 0
    pin: bool | None = None
    engine: Engine | None = None

    def __post_init__(self) -> None:
        check_whole(n_workers=self.n_workers, seed=self.seed)
        check_whole(or_none=True, min_steps=self.min_steps)
        check_real(or_none=True, replay_ratio=self.replay_ratio)
        if self.n_workers < 0:
            raise ValueError(f"n_workers must be at least 0, got {self.n_workers}")
        if self.engine is not None and not hasattr(self.engine, "start"):
            raise TypeError(f"engine must start workers, as ai.data.Ray() does, got {self.engine!r}")
        if self.engine is not None and self.n_workers == 0:
            raise ValueError("n_workers (0) must be at least 1 with an engine: it starts them")
        if self.replay_ratio is not None and not 0 < self.replay_ratio < float("inf"):
            raise ValueError(f"replay_ratio must be positive and finite, got {self.replay_ratio}")
        if self.min_steps is not None and self.min_steps < 1:
            raise ValueError(f"min_steps must be at least 1, got {self.min_steps}")


class PassesOptions(TypedDict, total=False):
    """What `Datagen.passes` and `PassesLoader` take as keywords.

    Args:
        batches: parts of a pass, 1 by default.
        gamma: what a later reward is worth a step earlier, besides the episodes' `discount`; 0.99 by default.
        lam: λ: 0 trusts the values after one step, 1 trusts the rewards alone; 0.95 by default.
        sequence: None for single steps; L for sequences of up to L steps of one episode, `[B, L, …]` with `mask`
            `[B, L]`, for models with a memory.
        seed: of the source and of the order, 0 by default.
        pin: move through page-locked memory; None means where `device` is CUDA.
    """

    batches: int
    gamma: float
    lam: float
    sequence: int | None
    seed: int
    pin: bool | None


@dataclass(frozen=True, kw_only=True)
class PassesChoice:
    """`PassesOptions` with their defaults, checked.

    Raises:
        TypeError: no number where one is needed.
        ValueError: one that cannot be.
    """

    batches: int = 1
    gamma: float = 0.99
    lam: float = 0.95
    sequence: int | None = None
    seed: int = 0
    pin: bool | None = None

    def __post_init__(self) -> None:
        check_whole(batches=self.batches, seed=self.seed)
        check_whole(or_none=True, sequence=self.sequence)
        check_real(gamma=self.gamma, lam=self.lam)
        for name, value in (("batches", self.batches), ("sequence", self.sequence)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {self.gamma}")
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lam must lie in [0, 1], got {self.lam}")
