"""The weights on their way from the trainer to the workers: one flat double buffer that all of them map.

Version v lies in buffer v mod 2. The writer fills one buffer while workers may still read the other, and each worker
copies the newest version into its model between two batches. Beside the buffers stands the number of the newest
version that was announced, so that a worker need not ask its socket before every batch.
"""

import copy
import pickle
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from ai.infer.transport.shared_memory import ALIGNMENT, align, anonymous_file, map_file

_EXTRA = "_extra_state"  # how torch ends the names of what get_extra_state returns


class _Entry(NamedTuple):
    dtype: torch.dtype
    shape: torch.Size
    offset: int
    n_bytes: int


class SharedWeights:
    """Two buffers in shared memory, each with room for a model's whole state.

    Args:
        model: whose state it is; writer and reader derive the same places from equal models.
        descriptor: of the file that another process made; None: a new one is made.
    """

    def __init__(self, model: nn.Module, descriptor: int | None = None) -> None:
        self._entries: dict[str, _Entry] = {}
        end = 0
        self._extra = {_plain(name) for name in model.state_dict() if name.endswith(_EXTRA)}
        for name, x in tensor_state(model).items():
            n_bytes = x.numel() * x.dtype.itemsize
            self._entries[name] = _Entry(x.dtype, x.shape, end, n_bytes)
            end += align(n_bytes)
        size = 2 * end + ALIGNMENT
        self.descriptor = anonymous_file(size) if descriptor is None else descriptor
        data = map_file(self.descriptor, size)
        self._buffers = [self._views(data[:end]), self._views(data[end : 2 * end])]
        self._announced = data[2 * end : 2 * end + 8].view(torch.int64).numpy().data

    @property
    def announced(self) -> int:
        """The newest version that workers were told of."""
        return int(self._announced[0])

    def announce(self, version: int) -> None:
        """Says that workers are being told of a version, before any of them is."""
        self._announced[0] = version

    def _views(self, data: Tensor) -> list[Tensor]:
        return [
            data[entry.offset : entry.offset + entry.n_bytes].view(entry.dtype).view(entry.shape)
            for entry in self._entries.values()
        ]

    def check(self, state_dict: Mapping[str, Tensor]) -> list[Tensor]:
        """Returns the state's tensors in the buffer's order.

        Raises:
            TypeError: an entry is no tensor.
            ValueError: an entry is missing, unknown, of another shape, or of a kind of number that the model's dtype
                has not (complex for real, real for whole). Numbers of the same kind are rounded to the model's dtype.
                Extra states may be left out all together: those that hold go on.
        """
        for name, x in state_dict.items():
            if not isinstance(name, str):
                raise TypeError(f"state_dict must have names for keys, not {name!r}")
            if not isinstance(x, Tensor) and not name.endswith(_EXTRA):
                raise TypeError(f"state_dict[{name!r}] must be a tensor, not {type(x).__name__}")
        given = {_plain(name): x for name, x in state_dict.items() if _is_weight(name, x)}
        missing = [name for name in self._entries if name not in given]
        if missing:
            raise ValueError(f"state_dict must hold every entry of the model, and lacks {_some(missing)}")
        lacking = sorted(self._extra.difference(map(_plain, state_dict)))
        if lacking and len(lacking) < len(self._extra):  # a worker that is restarted would have the rest alone
            raise ValueError(f"state_dict must hold every extra state of the model or none, and lacks {_some(lacking)}")
        unknown = [name for name in map(_plain, state_dict) if name not in self._entries and name not in self._extra]
        if unknown:
            raise ValueError(f"state_dict must hold entries of the model only, not {_some(unknown)}")
        for name, entry in self._entries.items():
            x = given[name]
            if x.shape != entry.shape:
                raise ValueError(
                    f"state_dict[{name!r}] must have the model's shape {list(entry.shape)}, not {list(x.shape)}"
                )
            if not torch.can_cast(x.dtype, entry.dtype):
                raise ValueError(
                    f"state_dict[{name!r}] must have a dtype whose kind of number {entry.dtype} holds, not {x.dtype}"
                )
        return [given[name] for name in self._entries]

    def write(self, tensors: list[Tensor], version: int) -> None:
        """Copies what `check` returned into the buffer of a version; no worker may still be reading it."""
        if tensors:
            with torch.inference_mode():  # whoever asked first may have made the buffers in it
                torch._foreach_copy_(self._buffers[version % 2], [x.detach() for x in tensors])

    def apply(self, version: int, model: nn.Module) -> None:
        """Copies a version into a model, whatever device it is on; what it has made since it was sent stays as it is.

        Raises:
            RuntimeError: the model no longer has an entry, or has it in another shape.
        """
        state = tensor_state(model)
        changed = [
            name for name, entry in self._entries.items() if name not in state or state[name].shape != entry.shape
        ]
        if changed:
            raise RuntimeError(f"new weights have no place: the model itself has changed {_some(changed)}")
        if self._entries:
            with torch.inference_mode():  # a model may have made a buffer anew in it
                torch._foreach_copy_([state[name] for name in self._entries], self._buffers[version % 2])


def tensor_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a model's state, without what a compiling wrapper adds to their names."""
    return {_plain(name): x for name, x in model.state_dict().items() if _is_weight(name, x)}


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _is_weight(name: str, x: object) -> bool:
    return isinstance(x, Tensor) and not name.endswith(_EXTRA)


def extra_state(state_dict: Mapping[str, object]) -> dict[str, object]:
    """Returns what modules' `get_extra_state` put into a state, by its names there."""
    return {name: x for name, x in state_dict.items() if name.endswith(_EXTRA)}


def pack_extra_state(state_dict: Mapping[str, object]) -> bytes:
    """Returns what modules' `get_extra_state` put into a state, pickled; empty if there is none."""
    extra = {_plain(name): x for name, x in extra_state(state_dict).items()}
    data: bytes = cloudpickle.dumps(extra) if extra else b""
    return data


def apply_extra_state(model: nn.Module, path: Path) -> None:
    """Hands `pack_extra_state`'s bytes, in a file of the starter's, to the modules of a model."""
    for module, x in _owners(model, path):
        module.set_extra_state(x)


def try_extra_state(model: nn.Module, path: Path) -> None:
    """Hands them over as a test, and what the modules had before back to them; raises what `set_extra_state` does."""
    with ExitStack() as before:
        for module, x in _owners(model, path):
            had = copy.deepcopy(module.get_extra_state())  # it may be what the module goes on writing into
            before.callback(module.set_extra_state, had)
            module.set_extra_state(x)


def _owners(model: nn.Module, path: Path) -> list[tuple[nn.Module, Any]]:
    extra = pickle.loads(path.read_bytes())
    model = getattr(model, "_orig_mod", model)
    return [(model.get_submodule(name.removesuffix(_EXTRA).removesuffix(".")), x) for name, x in extra.items()]


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
