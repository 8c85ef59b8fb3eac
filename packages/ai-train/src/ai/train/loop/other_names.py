"""What other libraries call a trainer's methods and arguments, so that whoever comes from there is told ours."""

from typing import TYPE_CHECKING, Any

_OURS = {
    "fit": "train(model, opt)",
    "evaluate": "validate(model, data)",
    "test": "validate(model, data)",
    "predict": "the model itself, called on a batch",
}
TRAIN_ARGUMENTS = {
    "callbacks": "hook",
    "max_epochs": "epochs",
    "max_steps": "steplimit",
    "max_time": "timelimit",
    "scheduler": "schedule",
    "steps": "steplimit",
}
"""What others call an argument of `train` -> ours."""


class OtherNames:
    """A trainer, of which a method is asked by another library's name; there are no such methods.

    >>> hasattr(OtherNames(), "fit")
    False
    """

    if not TYPE_CHECKING:  # a type checker sees the methods that there are

        def __getattr__(self, name: str) -> Any:
            kind = type(self).__name__
            hint = f": what others call so is {_OURS[name]}" if name in _OURS else ""
            raise AttributeError(f"{kind!r} object has no attribute {name!r}{hint}", name=name, obj=self)
