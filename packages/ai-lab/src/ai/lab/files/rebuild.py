"""A model rebuilt from a snapshot alone."""

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def rebuild(snapshot: Path) -> "nn.Module":
    """Returns the (only, or first) model of a snapshot, built as its manifest says, in evaluation mode.

    Runs code that the snapshot names: a constructor, or what `structure.pkl` holds.

    Raises:
        ValueError: the manifest does not say how to build it.
        SnapshotError: the snapshot is damaged.
    """
    from ai.train.saving.structure import load_structure
    from ai.train.snapshot import load_model_state

    models = json.loads((snapshot / "manifest.json").read_bytes())["models"]
    key, described = next(iter(models.items()))
    build = described["build"]
    state = load_model_state(snapshot, key=key)  # compares every checksum first
    if build["class"] is not None and build["arguments"] is not None:
        model = _construct(build["class"], build["arguments"])
    elif build.get("structure"):
        model = load_structure(snapshot, key)
    else:
        why = "its class cannot be imported" if build["class"] is None else "its arguments were not recorded"
        raise ValueError(
            f"snapshot {snapshot} does not say how to build its model ({why}): build it yourself and fill it with "
            "model.init(trial.model_path())"
        )
    model.load_state_dict(state)
    return model.eval()


def _construct(path: str, arguments: dict[str, Any]) -> "nn.Module":
    module, _, name = path.partition(":")
    kind: Any = importlib.import_module(module)
    for part in name.split("."):
        kind = getattr(kind, part)
    model: nn.Module = kind(*arguments["args"], **arguments["kwargs"])
    return model
