"""What has a state that is saved with a run."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Stateful(Protocol):
    """Anything whose state can be taken and put back."""

    def state_dict(self) -> Any:
        """The state, made of tensors, arrays and plain values."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Put a state back."""
