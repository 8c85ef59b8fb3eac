"""Where in a model a call failed, and what the layer was given: torch's errors name neither."""

from types import TracebackType
from typing import Any

from torch import Tensor, nn

_HEAD, _GIVEN = "layer ", ", and was given "
_CALL = nn.Module.__call__.__code__  # of every layer's call; holds the layer, and what it was given, untouched


def note(error: Exception, model: nn.Module) -> None:
    """Adds a line to an error that has come out of a call of `model`; its own words and type stay.

    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> try:
    ...     model(Tensor([[1.0, 2.0]]))
    ... except RuntimeError as error:
    ...     note(error, model)
    ...     print(error.__notes__[0])
    layer 0 is Linear(in_features=4, out_features=2, bias=True), and was given float32 (1, 2)
    """
    found = _innermost(error.__traceback__)
    if found is None:
        return
    layer, given = found
    name = next((name for name, one in model.named_modules() if one is layer), "")
    if not name:
        return
    notes = getattr(error, "__notes__", [])
    if notes and notes[-1].startswith(_HEAD) and _GIVEN in notes[-1]:
        notes.pop()  # by a model within this one, whose names are shorter
    what = ", ".join(map(_described, given)) or "nothing"
    error.add_note(f"{_HEAD}{name} is {type(layer).__name__}({_options(layer)}){_GIVEN}{what}")


def _innermost(traceback: TracebackType | None) -> tuple[nn.Module, tuple[Any, ...]] | None:
    found = None
    while traceback is not None:
        if traceback.tb_frame.f_code is _CALL:
            held = traceback.tb_frame.f_locals
            found = held["self"], held["args"]
        traceback = traceback.tb_next
    return found


def _options(layer: nn.Module) -> str:
    try:
        return layer.extra_repr()
    except Exception:  # of a user's own layer: it must not take the place of what failed
        return "..."


def _described(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if kind == "ndarray":
        return f"a NumPy array of shape {value.shape} (torch.as_tensor(x) is a tensor of it)"
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"
