"""Weights on disk: written whole or not at all, read without running anybody's code."""

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor, nn

PathLike = str | os.PathLike[str]


def save_state(state: Mapping[str, Tensor], path: PathLike) -> None:
    """Writes named tensors to `path`, atomically: a reader sees the old file or the new one.

    Args:
        state: Tensors on any device. Tied tensors (two names, one memory) are stored once each name.
        path: safetensors format if it ends in `.safetensors`, else a torch file. Missing folders are made.

    >>> import tempfile, torch
    >>> import ai.model as m
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     m.save_state({"x": torch.ones(2)}, f"{folder}/x.safetensors")
    ...     m.load_state(f"{folder}/x.safetensors")
    {'x': tensor([1., 1.])}
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach() for name, tensor in state.items()}
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import save

                file.write(save(_apart(state)))
            else:
                torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o666 & ~_umask())  # temporary files are private; weights are as the user's other files
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    _sync_folder(path.parent)


def load_state(path: PathLike, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Reads the named tensors of a file that `save_state`, safetensors or `torch.save(state_dict)` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds something else than tensors by name, is damaged, or is a pickle that would run code.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"x": torch.ones(2)}, f"{folder}/x.pt")
        ...     load_state(f"{folder}/x.pt")
        {'x': tensor([1., 1.])}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path ({path}) must be a file of weights, and there is none")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path, device=str(device))
        except SafetensorError as error:
            raise ValueError(f"path ({path}) must be a whole safetensors file: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders at foreign pickles before it refuses them
            state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"path ({path}) must hold tensors by name and nothing that runs code: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"path ({path}) must hold a dict of tensors by name, got {type(state).__name__}")
    return state


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True, source: str = "state"
) -> list[str]:
    """Copies named tensors into a module, and lists what did not fit.

    Args:
        module: Changed only if everything fits, or if `strict` is off.
        state: Tensors by name. The prefixes that torch.compile and DDP put in front of names are taken off.
        strict: Off: load what fits and return the rest.
        source: What to call the tensors' origin in the error.

    Returns:
        One line for each name that is missing, unexpected or of another shape; empty if all fit.

    Raises:
        ValueError: `strict`, and something does not fit. The message lists all names.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> load_into(layer, {"weight": torch.ones(1, 2), "gain": torch.ones(1)}, strict=False)
        ['missing: bias', 'unexpected: gain']
    """
    state = {_plain_name(name): tensor for name, tensor in state.items()}
    own = {_plain_name(name): (name, tensor) for name, tensor in module.state_dict(keep_vars=True).items()}
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    misshapen = [
        f"{name} (model {tuple(own[name][1].shape)}, file {tuple(tensor.shape)})"
        for name, tensor in state.items()
        if name in own and own[name][1].shape != tensor.shape
    ]
    named = [("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)]
    problems = [f"{kind}: {', '.join(names)}" for kind, names in named if names]
    if problems and strict:
        raise ValueError(
            f"{source} must hold the model's parameters (strict=False loads what fits); {'; '.join(problems)}"
        )
    fitting = {
        own[name][0]: tensor for name, tensor in state.items() if name in own and own[name][1].shape == tensor.shape
    }
    module.load_state_dict(fitting, strict=False)
    return problems


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors that share memory or are strided: safetensors stores each name as dense memory of its own."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in state.items():
        address = tensor.untyped_storage().data_ptr()
        shares = address in seen or tensor.untyped_storage().nbytes() != tensor.nbytes
        apart[name] = tensor.clone(memory_format=torch.contiguous_format) if shares else tensor.contiguous()
        seen.add(address)
    return apart


def _plain_name(name: str) -> str:
    name = name.replace("_orig_mod.", "")
    return name.removeprefix("module.")


def _umask() -> int:
    try:  # setting it to read it would open files that other threads make at that moment
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("Umask:")[1].split()[0], 8)
    except (OSError, IndexError):
        return 0o022


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
