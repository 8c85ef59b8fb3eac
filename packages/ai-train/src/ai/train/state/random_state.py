"""The global random states that dropout and users draw from: taken, put back, and set aside during an evaluation."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The states of Python, numpy and torch on the CPU and every CUDA device that is in use.

    >>> state = random_state()
    >>> first = torch.rand(2)
    >>> set_random_state(state)
    >>> bool((first == torch.rand(2)).all())
    True
    """
    numpy = np.random.get_state(legacy=False)
    # As a tensor, so that the file can be read without running code from it.
    inner = {**numpy["state"], "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64))}
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": inner},
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` took; CUDA states beyond this machine's devices are left out."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": inner["key"].numpy().astype(np.uint32)}})
    torch.set_rng_state(state["torch"].cpu())
    for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state.cpu(), device)


def move_apart(rank: int) -> None:
    """Seed the global states anew, from where they are and from the rank; rank 0 keeps its own by not calling this.

    >>> _ = torch.manual_seed(0)
    >>> first = torch.rand(1)
    >>> _ = torch.manual_seed(0)
    >>> move_apart(1)
    >>> bool(torch.rand(1) == first)
    False
    """
    drawn = int(torch.randint(2**62, (), device="cpu"))
    words = np.random.SeedSequence([drawn, rank]).generate_state(3, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


@contextmanager
def own_randomness(seed: int = 0) -> Iterator[None]:
    """Run the body on its own seed and put the global states back.

    A validation that draws noise thus draws the same noise each time, and training goes on as if it had not happened.
    """
    state = random_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(state)
