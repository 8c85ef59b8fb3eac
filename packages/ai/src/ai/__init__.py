"""One namespace for building, training, recording and serving PyTorch models.

`import ai` loads nothing heavy: every name below is imported on first use from the distribution that ships it.
"""

from importlib import import_module
from pkgutil import extend_path

# The other distributions are PEP 420 portions that may lie in other directories (editable checkouts, user installs).
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0+ws"

TYPE_CHECKING = False  # type checkers take it for True; importing typing would double the cost of `import ai`

if TYPE_CHECKING:
    from ai import data as data
    from ai import examples as examples
    from ai import game as game
    from ai import infer as infer
    from ai import lab as lab
    from ai import model as model
    from ai import train as train
    from ai import util as util
    from ai.lab import Config as Config
    from ai.lab import Experiment as Experiment
    from ai.lab import Study as Study
    from ai.lab import Trial as Trial
    from ai.model import Model as Model
    from ai.train import MultiTrainer as MultiTrainer
    from ai.train import RLTrainer as RLTrainer
    from ai.train import Trainer as Trainer
    from ai.train import loss as loss
    from ai.train import opt as opt

# Subpackage -> the distribution that ships it.
_DISTRIBUTIONS = {
    "data": "ai-data",
    "examples": "ai-examples",
    "game": "ai-game",
    "infer": "ai-infer",
    "lab": "ai-lab",
    "model": "ai-model",
    "train": "ai-train",
    "util": "ai",
}
# Shortcut -> the subpackage that defines it.
_SHORTCUTS = {
    "Config": "lab",
    "Experiment": "lab",
    "Model": "model",
    "MultiTrainer": "train",
    "RLTrainer": "train",
    "Study": "lab",
    "Trainer": "train",
    "Trial": "lab",
    "loss": "train",
    "opt": "train",
}

# What torch, Lightning and Keras call a thing -> ours, for whoever asks by their name.
_ELSEWHERE = {
    "Callback": "ai.train.HookInterface",
    "DataLoader": "what ai.data.Dataset.loader(batch_size) returns",
    "Dataset": "ai.data.Dataset",
    "LightningModule": "a function env(model, batch, step) that returns the loss",
    "Module": "ai.Model",
    "Sequential": "ai.model.seq(a, b)",
    "fit": "ai.Trainer(env, data).train(model, opt)",
    "layers": "ai.model",
    "nn": "ai.model",
    "optim": "ai.opt",
}


# A type checker goes by the imports above: `__getattr__` would type every misspelling as Any, and a computed `__all__`
# leaves nothing to `import *`.
if not TYPE_CHECKING:
    __all__ = [*_DISTRIBUTIONS, *_SHORTCUTS]

    def __getattr__(name: str) -> object:
        owner = _SHORTCUTS.get(name, name)
        if owner not in _DISTRIBUTIONS:
            hint = f": what others call so is {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
            raise AttributeError(f"module 'ai' has no attribute {name!r}{hint}")
        module_name = f"ai.{owner}"
        try:
            module = import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name != module_name:  # the part is there, and something that it needs is not
                raise
            distribution = _DISTRIBUTIONS[owner]
            raise AttributeError(
                f"ai.{name} needs the distribution {distribution!r}, which is not installed; install it beside its "
                f"siblings from a checkout (pip install packages/*) or from your folder of wheels "
                f"(pip install --find-links FOLDER 'ai[{owner}]=={__version__}')"
            ) from error
        value = module if name == owner else getattr(module, name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
