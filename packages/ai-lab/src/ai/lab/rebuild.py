"""A model rebuilt from a snapshot alone."""

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def rebuild(snapshot: Path) -> "nn.Module":
    """Returns the (only, or first) model of a snapshot, built as its manifest says, in evaluation mode.

    Raises:
        ValueError: the manifest does not say how to build it.
    """
    from ai.train.snapshot import load_model_state

    models = json.loads((snapshot / "manifest.json").read_bytes())["models"]
    key, described = next(iter(models.items()))
    build = described["build"]
    if build["class"] is None or build["arguments"] is None:
        why = "its class cannot be imported" if build["class"] is None else "its arguments were not recorded"
        raise ValueError(
            f"snapshot {snapshot} does not say how to build its model ({why}): build it yourself and fill it with "
            "model.init(trial.model_path())"
        )
    module, _, name = build["class"].partition(":")
    kind: object = importlib.import_module(module)
    for part in name.split("."):
        kind = getattr(kind, part)
    model: nn.Module = kind(*build["arguments"]["args"], **build["arguments"]["kwargs"])  # type: ignore[operator]
    model.load_state_dict(load_model_state(snapshot, key=key))
    return model.eval()
