"""Weights on disk: written whole or not at all, read without running anybody's code."""

import io
import json
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch import Tensor, nn

from ai.model.arguments import as_path
from ai.model.weights.names import is_taken, matched, unwrapped

PathLike = str | os.PathLike[str]
_EXTRA = "extra_state"


def save_state(state: Mapping[str, Any], path: PathLike) -> None:
    """Writes named tensors to `path`, atomically: a reader sees the old file or the new one.

    Args:
        state: Tensors on any device. Tied tensors (two names, one memory) are stored once each name. What a module's
            `get_extra_state` gave may be anything that `torch.load(weights_only=True)` reads.
        path: safetensors format if it ends in `.safetensors`, else a torch file. Missing folders are made.

    >>> import tempfile, torch
    >>> import ai.model as m
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     m.save_state({"x": torch.ones(2)}, f"{folder}/x.safetensors")
    ...     m.load_state(f"{folder}/x.safetensors")
    {'x': tensor([1., 1.])}
    """
    path = as_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path ({path}) must be a file to write, and is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach() if isinstance(value, Tensor) else value for name, value in state.items()}
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        partial = Path(file.name)
    try:
        if path.suffix == ".safetensors":
            extra = [name for name, value in state.items() if not isinstance(value, Tensor)]
            tensors = {name: _packed(value) if name in extra else value for name, value in state.items()}
            write_tensors(partial, tensors, {_EXTRA: json.dumps(extra)} if extra else None)
        else:
            write_pt(partial, state)
            _as_other_files(partial)
        _sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        _sync(path.parent)  # makes the rename itself durable


def write_tensors(path: Path, tensors: Mapping[str, Tensor], extra: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file in place, straight from the tensors' memory; save_state does it atomically.

    Only what shares memory with another name, or is strided, is copied: the format stores each name as dense memory of
    its own. The file has the mode of the user's other files.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(_apart(tensors), path, {"format": "pt", **(extra or {})})  # as other readers expect it
    except SafetensorError as error:  # a full disk has no type of its own there
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error
    _as_other_files(path)


def write_pt(path: Path, value: Any) -> None:
    """Writes a torch file in place; what the system refuses, such as a full disk, is an `OSError` that says why.

    Raises:
        OSError: It cannot be written.
    """
    with saying_why(path), open(path, "wb") as file:  # opened here, since torch's own writer forgets the reason
        torch.save(value, file)


@contextmanager
def saying_why(path: Path) -> Iterator[None]:
    """Raises what the system refused to a writer as an `OSError` about `path`, where that writer has hidden it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        told: BaseException | None = error
        while told is not None:
            if isinstance(told, OSError) and told.errno:
                raise OSError(told.errno, os.strerror(told.errno), str(path)) from error
            told = told.__cause__ or told.__context__
        raise


def load_state(path: PathLike, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads the named tensors of a file that `save_state`, safetensors or `torch.save(state_dict)` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds something else than tensors by name, is damaged, or is a pickle that would run code;
            or the device is none of this machine's.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"x": torch.ones(2)}, f"{folder}/x.pt")
        ...     load_state(f"{folder}/x.pt")
        {'x': tensor([1., 1.])}
    """
    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path ({path}) must be a file of weights, and there is none")
    where = _there(device)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt", device="cpu" if where.type == "meta" else str(where)) as file:
                state = {name: file.get_tensor(name).to(where) for name in file.keys()}  # it is no dict
                extra = json.loads((file.metadata() or {}).get(_EXTRA, "[]"))
        except SafetensorError as error:
            raise ValueError(f"path ({path}) must be a whole safetensors file: {error}") from error
        return {**state, **{name: _unpacked(state[name], path) for name in extra}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders at foreign pickles before it refuses them
            state = torch.load(path, map_location=where, weights_only=True)
    except torch.OutOfMemoryError:  # of the device
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"path ({path}) must hold tensors by name and nothing that runs code: {reason}") from error
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) or str(name).endswith("_extra_state") for name, value in state.items()
    ):
        raise ValueError(f"path ({path}) must hold a dict of tensors by name, got {type(state).__name__}")
    return state


def _there(device: Any) -> torch.device:
    """Returns the device, where this machine has it: what fails later is said to be the file."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except TypeError:
        raise ValueError(f"device must be one that torch knows, such as 'cpu' or 'cuda:1', not {device!r}") from None
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"device must be one that is there, not {device!r}: {str(error).splitlines()[0]}") from None
    return torch.device("cpu") if found.type == "cpu" else found  # loaders know no 'cpu:0', which a tensor may be on


def load_into(module: nn.Module, state: Mapping[str, Any], *, strict: bool = True, source: str = "state") -> list[str]:
    """Copies named tensors into a module, and lists what did not fit.

    Args:
        module: Changed only if everything fits, or if `strict` is off.
        state: Tensors by name. Names that do not fit as they are may be those of a module that `torch.compile` or data
            parallel had wrapped, or of an earlier form that the module's own hooks know.
        strict: Off: load what fits and return the rest.
        source: What to call the tensors' origin in the error.

    Returns:
        One line for each kind of difference, with all names that are missing, unexpected or of another shape; empty if
        all fit.

    Raises:
        ValueError: `strict`, and something does not fit. The message lists all names.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> load_into(layer, {"weight": torch.ones(1, 2), "gain": torch.ones(1)}, strict=False)
        ['missing: bias', 'unexpected: gain']
    """
    module = unwrapped(module)
    fitting, problems = matched(module, state)
    if strict:
        refuse(problems, source)
    module.load_state_dict(fitting, strict=False)
    return problems


def refuse(problems: list[str], source: str) -> None:
    """Raises if there are differences between a module and what it is to load."""
    if problems:
        raise ValueError(
            f"{source} must hold the model's parameters (strict=False loads what fits); {'; '.join(problems)}"
        )


def check_fits(module: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Raises `ValueError` where `module.load_state_dict(state)` would fail, with all that differs; changes nothing.

    >>> check_fits(nn.Linear(2, 1), nn.Linear(3, 1).state_dict(), "the file")
    Traceback (most recent call last):
    ValueError: the file must hold this model's parameters; misshapen: weight (model (1, 2), file (1, 3))
    """
    own = module.state_dict(keep_vars=True)
    if own.keys() == state.keys() and all(_shape(own[name]) == _shape(value) for name, value in state.items()):
        return
    if not is_taken(module, state) and (problems := differences(module, state)):
        raise ValueError(f"{source} must hold this model's parameters; {'; '.join(problems)}")


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else None


def differences(module: nn.Module, state: Mapping[str, Any]) -> list[str]:
    """Returns what `load_into` would list, and changes nothing."""
    return matched(unwrapped(module), state)[1]


def _packed(value: Any) -> Tensor:
    """Returns what a module keeps beside its tensors as bytes, which a safetensors file can hold."""
    file = io.BytesIO()
    torch.save(value, file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _unpacked(tensor: Tensor, path: Path) -> Any:
    try:
        return torch.load(io.BytesIO(tensor.cpu().numpy().tobytes()), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"path ({path}) must hold nothing that runs code: {error}") from error


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors that are strided, or whose memory another one has, too."""
    apart = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    end: dict[torch.device, int] = {}  # of the memory looked at so far, on each device
    for name, tensor in sorted(apart.items(), key=lambda item: item[1].data_ptr()):
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if first < end.get(tensor.device, 0) and tensor.nbytes:
            apart[name] = tensor.clone()
        end[tensor.device] = max(last, end.get(tensor.device, 0))
    return apart


def _as_other_files(path: Path) -> None:
    """Temporary files and those of safetensors are private; weights are as the user's other files."""
    os.chmod(path, 0o666 & ~_umask())


def _umask() -> int:
    try:  # setting it to read it would open files that other threads make at that moment
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("Umask:")[1].split()[0], 8)
    except (OSError, IndexError):
        return 0o022


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
