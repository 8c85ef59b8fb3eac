"""State dicts on disk: written atomically, read without running anything they contain, compared by name and shape."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn


def save_state(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Writes a state dict to a temporary file beside `path`, then renames it into place.

    Args:
        state: Names to tensors. Tied tensors are stored once a name.
        path: `.safetensors` for that format, any other ending for torch's own.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({key: value.detach().contiguous().clone() for key, value in state.items()}, temporary)
        else:
            torch.save({key: value.detach() for key, value in state.items()}, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads a state dict onto the CPU; pickles that hold anything but tensors are refused.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is not a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path ({path}) must be a file of parameters, and there is none")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"path ({path}) must hold a state dict of tensors only: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"path ({path}) must hold a state dict, a dict from names to tensors")
    return state


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True, source: str = "state") -> None:
    """Copies a state dict into a module after comparing all names and shapes.

    Raises:
        ValueError: With `strict`, something is missing, unexpected or misshapen; the module is unchanged.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    misshapen = [key for key in own if key in state and own[key].shape != state[key].shape]
    shapes = [f"{key} (file {tuple(state[key].shape)}, model {tuple(own[key].shape)})" for key in misshapen]
    faults = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", shapes))
        if names
    ]
    if faults and strict:
        raise ValueError(f"{source} does not fit {type(module).__name__}; {'; '.join(faults)}")
    if faults:
        print(f"{source} fits {type(module).__name__} in part; {'; '.join(faults)}")
    fitting = {key: state[key] for key in own if key in state and key not in misshapen}
    module.load_state_dict(fitting, strict=False)
