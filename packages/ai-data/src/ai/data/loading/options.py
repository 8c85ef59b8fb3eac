"""The options of a loader: told once, checked once, taken by every function that makes one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from ai.data.arguments import check_flag, check_n_workers, check_real, check_whole
from ai.data.batch.order import Sampler

# Batches that workers prepare ahead: of a stream without end so many are asked for at once.
_MOST_AHEAD = 1 << 20


class LoaderOptions(TypedDict, total=False):
    """What `Dataset.loader`, `DataLoader`, `create_data_loader` and `StreamLoader` take as keywords.

    Args:
        train: go on for ever, shuffled; else one ordered epoch.
        n_workers: how many workers run `preprocess` or read a stream; 0 does it when a batch is asked for; None takes
            one for each CPU up to 4, and one for a stream.
        worker: `process`, or `thread` for a preprocess that releases the interpreter lock or is not worth shipping. In
            threads the global random generators are not seeded: draw from a parameter named `rng` or `generator`.
        seed: of the order and of all random numbers.
        drop_last: leave out the incomplete batch; None means `train`.
        pin: move through page-locked memory; None means where `device` is CUDA.
        resident: keep the stored tensors on the device and gather there.
        prefetch: batches that workers may be ahead; None means two for each worker.
        single_batch: give the first batch again and again, to see whether a model can overfit it.
        collate: makes a batch of a list of preprocessed samples; None stacks tensors, arrays and numbers, follows
            dicts, tuples and lists (to tuples), and keeps other objects in a list.
        sampler: which samples an epoch takes, see `ai.data.sampling`; None takes each once.
        timeout_s: how long a worker may be on one sample (a thread: on one batch; a stream: on one batch) before that
            is an error that names it, and the worker is replaced; None waits as long as the worker lives.
    """

    train: bool
    n_workers: int | None
    worker: Literal["process", "thread"]
    seed: int
    drop_last: bool | None
    pin: bool | None
    resident: bool
    prefetch: int | None
    single_batch: bool
    collate: Callable[[list[Any]], Any] | None
    sampler: Sampler | None
    timeout_s: float | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """`LoaderOptions` with their defaults, checked.

    Raises:
        ValueError: one that cannot be.
    """

    train: bool = False
    n_workers: int | None = None
    worker: Literal["process", "thread"] = "process"
    seed: int = 0
    drop_last: bool | None = None
    pin: bool | None = None
    resident: bool = False
    prefetch: int | None = None
    single_batch: bool = False
    collate: Callable[[list[Any]], Any] | None = None
    sampler: Sampler | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        check_flag(train=self.train, resident=self.resident, single_batch=self.single_batch)
        check_flag(or_none=True, drop_last=self.drop_last)
        check_whole(seed=self.seed)
        check_n_workers(self.n_workers, or_none=True)
        check_whole(or_none=True, prefetch=self.prefetch)
        check_real(or_none=True, timeout_s=self.timeout_s)
        if self.prefetch is not None and not 1 <= self.prefetch <= _MOST_AHEAD:
            bound = "at least 1" if self.prefetch < 1 else f"at most {_MOST_AHEAD}"
            raise ValueError(f"prefetch must be {bound}, got {self.prefetch}")
        object.__setattr__(self, "seed", int(self.seed))  # numpy's own would end up in states
        object.__setattr__(self, "train", bool(self.train))
        if self.worker not in ("process", "thread"):
            raise ValueError(f"worker must be 'process' or 'thread', got {self.worker!r}")
        if self.collate is not None and not callable(self.collate):
            raise TypeError(f"collate must be callable, got {self.collate!r}")
        if self.sampler is not None and not (callable(self.sampler) and hasattr(self.sampler, "fingerprint")):
            raise TypeError(
                f"sampler must be one of ai.data.sampling, or like them a function of places, got {self.sampler!r}"
            )
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be positive, got {self.timeout_s}")
        if self.timeout_s is not None and self.n_workers == 0:
            raise ValueError("timeout_s needs workers: with n_workers=0 nobody is there to end what never returns")


_ELSEWHERE = {
    "collate_fn": "collate",
    "num_workers": "n_workers",
    "pin_memory": "pin",
    "prefetch_factor": "prefetch",
    "shuffle": "train, which shuffles and does not end",
    "timeout": "timeout_s",
}
"""What torch calls an option -> ours."""


def options_of(given: Mapping[str, Any]) -> Options:
    """Returns the options that a loader was given.

    Raises:
        TypeError: one of them is unknown.
        ValueError: one cannot be.
    """
    known = LoaderOptions.__annotations__
    for name in given:
        if name not in known:
            ours = f"what torch calls so is {_ELSEWHERE[name]}; " if name in _ELSEWHERE else ""
            raise TypeError(f"a loader has no option {name!r}; {ours}its options are {', '.join(known)}")
    return Options(**given)
