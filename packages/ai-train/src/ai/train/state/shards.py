"""A sharded tensor's own part."""

from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """A sharded tensor's own part; any other tensor itself."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part
