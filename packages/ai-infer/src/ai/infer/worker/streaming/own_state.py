"""What torch is set to for one reply in parts alone: put in its place when its turn comes, and away when it ends.

`with sdpa_kernel(…)`, `with torch.device(…)` or `with torch.random.fork_rng()` around a `yield` set what belongs to the
whole thread or process, and two generators that take turns would each put back what the other had set.
"""

from typing import Any

import torch
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
from torch.overrides import _pop_mode, _push_mode

from ai.infer.worker.switches import read_switches, set_switches

_THREAD = torch._GLOBAL_DEVICE_CONTEXT  # holds the mode that `torch.set_default_device` has entered


class OwnState:
    """Switches, modes and random numbers of one reply in parts.

    Its random numbers are a stream of its own, whose seed is the next number of the worker's.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._switches: dict[str, Any] = {}  # as the worker's
        self._modes: list[Any] = []
        self._default_device: Any = None
        self._random: list[torch.Tensor] = []  # not drawn from yet
        self._others: tuple[dict[str, Any], list[Any], Any, list[torch.Tensor], int] | None = None

    def enter(self) -> None:
        """Puts it in its place."""
        n_dispatch_modes = _len_torch_dispatch_stack()
        if self._random:
            random = self._read_random()
        else:
            seed = int(torch.randint(1 << 62, (), device="cpu"))
            random = self._read_random()
            torch.manual_seed(seed)
        self._others = (
            read_switches(),
            _take_modes(),
            _swap_default_device(self._default_device),
            random,
            n_dispatch_modes,
        )
        _put_modes(self._modes)
        set_switches(self._switches)
        if self._random:
            self._set_random(self._random)

    def leave(self) -> None:
        """Puts it away again.

        Raises:
            RuntimeError: there is something that cannot be put away.
        """
        assert self._others is not None
        switches, modes, default_device, random, n_dispatch_modes = self._others
        self._others = None
        self._switches, self._random = read_switches(), self._read_random()
        self._modes, self._default_device = _take_modes(), _swap_default_device(default_device)
        _put_modes(modes)
        set_switches(switches)
        self._set_random(random)
        if _len_torch_dispatch_stack() != n_dispatch_modes:
            raise RuntimeError("a reply in parts must not be in a TorchDispatchMode of its own between two parts")

    def _read_random(self) -> list[torch.Tensor]:
        on_gpu = [torch.cuda.get_rng_state(self._device)] if self._on_gpu else []
        return [torch.get_rng_state(), *on_gpu]

    def _set_random(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state, self._device)


def _take_modes() -> list[Any]:
    """Leaves this thread without function modes; returns those that it was in, the innermost first."""
    return [_pop_mode() for _ in range(_len_torch_function_stack())]  # type: ignore[no-untyped-call]


def _put_modes(modes: list[Any]) -> None:
    for mode in reversed(modes):
        _push_mode(mode)  # type: ignore[no-untyped-call]


def _swap_default_device(context: Any) -> Any:
    before = getattr(_THREAD, "device_context", None)
    _THREAD.device_context = context
    return before
