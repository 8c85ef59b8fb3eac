"""The top of a network: what the rest of `ai` trains, saves and serves."""

import fnmatch
import inspect
import warnings
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from ai.model import hub
from ai.model.arguments import check_module
from ai.model.failed_call import note
from ai.model.init import init_module
from ai.model.state import PathLike, differences, load_into, load_state, refuse, save_state
from ai.model.summary import summarize
from ai.model.tokens.cache import KVCache
from ai.model.weights.memory import Marks, give_memory, mark, unwritten


class _SignatureOfInit:
    """What help and editors show of a class: its `__init__`, though there is a `__new__` that takes anything."""

    def __get__(self, model: object, kind: type) -> inspect.Signature:
        if model is not None:
            raise AttributeError("__signature__")  # a model is called as its forward has it
        made = inspect.signature(kind.__init__)  # type: ignore[misc]
        return made.replace(parameters=list(made.parameters.values())[1:])


class Model(nn.Module):
    """A network with `.init`, `.save` and what one asks about it; wrap a module, or subclass and write `forward`.

    Args:
        net: The network. None for a subclass that defines `forward` itself.

    >>> import torch
    >>> import ai.model as m
    >>> model = m.Model(m.seq(m.flatten(), m.fc(784, 10))).init(seed=0)
    >>> model(torch.zeros(2, 1, 28, 28)).shape, model.n_params
    (torch.Size([2, 10]), 7850)
    """

    init_args: tuple[Any, ...] | None
    init_kwargs: dict[str, Any] | None
    __signature__ = _SignatureOfInit()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Notes what the model is made with where a file can say it, so that a snapshot tells how to build it again."""
        model = super().__new__(cls)
        plain = _is_plain(args) and _is_plain(kwargs)
        vars(model).update(init_args=args if plain else None, init_kwargs=kwargs if plain else None)
        return model

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        if net is not None:
            check_module(net=net)
            self.net = net

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls `forward`, all of whose uses of a `KVCache` are one forward of it; an error says in which layer."""
        if torch.compiler.is_compiling():
            return self._called(*args, **kwargs)
        try:
            return self._called(*args, **kwargs)
        except Exception as error:
            note(error, self)
            raise

    def _called(self, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, KVCache):
                with value.forward():
                    return super().__call__(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    if TYPE_CHECKING:  # a subclass may take and return what it likes

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """Calls the wrapped network."""

    else:  # torch.export and torch.fx ask for a first argument by name

        def forward(self, x=..., *args, **kwargs):
            """Calls the wrapped network."""
            net = self._modules.get("net")
            if net is None:
                raise NotImplementedError(f"{type(self).__name__} must be given a net or define forward")
            if x is ...:
                return net(**kwargs)
            # torch.fx puts one unknown in the place of all further arguments, and is shown a network of one input.
            return net(x, *args, **kwargs) if isinstance(args, tuple) else net(x)

    def init(self, path: PathLike | None = None, *, seed: int | None = None, strict: bool = True) -> Self:
        """Draws all parameters, or loads them; returns the model.

        Without a path, each block draws its parameters by its own rule, with the same result on every device. A model
        on the meta device is given memory on the CPU first.

        Args:
            path: A `.safetensors` file, or a torch file of a state dict.
            seed: Of a generator of this call's own; None takes it from torch's global one, so that
                `torch.manual_seed` decides. Not with `path`.
            strict: Off: loads what fits, and warns of what did not.

        Raises:
            FileNotFoundError: `path` does not exist.
            ValueError: `path` holds no plain tensors by name, or not this model's (all differences are listed); or a
                parameter or buffer of a model on the meta device has nobody who draws it (all are named).

        Example:
            >>> import ai.model as m
            >>> first, second = (m.Model(m.fc(2, 2)).init(seed=0) for _ in range(2))
            >>> bool((first.net.weight == second.net.weight).all())
            True
        """
        if path is not None and seed is not None:
            raise ValueError(f"seed ({seed}) must be None with a path: nothing is drawn")
        state = None if path is None else load_state(path)
        if state is not None and strict:
            refuse(differences(self, state), f"path ({path})")  # before anything is drawn
        marks: Marks = {}
        on_meta = any(tensor.is_meta for tensor in [*self.parameters(), *self.buffers()])
        if on_meta:
            give_memory(self)
            marks = mark(self)
        if state is None or on_meta:
            init_module(self, seed=0 if state is not None else seed)
        problems = [] if state is None else load_into(self, state, strict=strict, source=f"path ({path})")
        undrawn = unwritten(self, marks) if on_meta else []
        if undrawn:
            raise ValueError(
                f"{', '.join(undrawn)} must be drawn by somebody, since the meta device kept no numbers: give the "
                "module a method init_params(rng), or its class a rule (m.init_rule)"
            )
        if problems:
            warnings.warn(f"path ({path}) did not fit whole; {'; '.join(problems)}", stacklevel=2)
        return self

    def save(self, path: PathLike) -> None:
        """Writes the parameters and buffers to `path`, atomically: safetensors or torch format by its ending.

        Example:
            >>> import tempfile
            >>> import ai.model as m
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     m.Model(m.fc(2, 2)).init().save(f"{folder}/model.safetensors")
            ...     m.Model(m.fc(2, 2)).init(f"{folder}/model.safetensors").n_params
            6
        """
        save_state(self.state_dict(), path)

    def save_pretrained(self, folder: PathLike) -> None:
        """Writes `model.safetensors`, and what the class was called with as `config.json`, into a folder.

        Raises:
            ValueError: The model was made with something that JSON cannot hold, such as modules.

        Example:
            >>> import tempfile
            >>> class Classifier(Model):
            ...     def __init__(self, dim, n_classes):
            ...         super().__init__(nn.Linear(dim, n_classes))
            >>> model = Classifier(4, n_classes=3).init(seed=0)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save_pretrained(folder)
            ...     again = Classifier.from_pretrained(folder)
            >>> bool((again.net.weight == model.net.weight).all())
            True
        """
        hub.write(folder, type(self), self.init_args, self.init_kwargs, self.state_dict())

    @classmethod
    def from_pretrained(cls, source: PathLike, *, revision: str | None = None, token: str | None = None) -> Self:
        """Returns a model of this class from a folder, or from a repository of the Hugging Face Hub, on the CPU.

        Nothing that the folder names is imported or run: the class is this one, and the weights are plain tensors.

        Args:
            source: A folder of `save_pretrained`, or the name of a repository, `owner/name`.
            revision: Branch, tag or commit of the repository; None for its main branch.
            token: For private repositories; None for the one that `hf auth login` has stored.

        Raises:
            ValueError: It holds no model, one of another class, or weights that do not fit.
            ImportError: A repository needs the extra `hub`.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Model().save_pretrained(folder)
            ...     Model.from_pretrained(folder).n_params
            0
        """
        folder = hub.fetched(source, revision, token)
        args, kwargs = hub.arguments(folder, cls)
        return cls(*args, **kwargs).init(folder / hub.WEIGHTS)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        message: str = "Upload the model",
        revision: str | None = None,
        token: str | None = None,
    ) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face Hub, and returns the address of the commit.

        Args:
            repo: `owner/name`; it is made if there is none.
            private: Of a repository that is made; None for the owner's default.
            message: Of the commit.
            revision: The branch, made if there is none; None for the main one.
            token: None for the one that `hf auth login` has stored.

        Raises:
            ValueError: As of `save_pretrained`, before anything is sent.
            ImportError: It needs the extra `hub`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.push(folder, repo, private, message, revision, token)

    @property
    def n_params(self) -> int:
        """The number of parameters; a shared one counts once.

        Example:
            >>> Model(nn.Linear(784, 10)).n_params
            7850
        """
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the first parameter or buffer lies; the CPU if there is none.

        Example:
            >>> Model(nn.Linear(2, 2)).device
            device(type='cpu')
        """
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def set_req_grad(self, req_grad: bool, pattern: str = "*") -> Self:
        """Freezes (False) or frees (True) the parameters whose names match a shell pattern; returns the model.

        >>> import ai.model as m
        >>> model = m.Model(m.seq(m.fc(2, 2), m.fc(2, 2))).set_req_grad(False, "net.0.*")
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['net.1.weight', 'net.1.bias']
        """
        names = [name for name, _ in self.named_parameters() if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            known = ", ".join(name for name, _ in self.named_parameters())
            raise ValueError(f"pattern ({pattern!r}) must match the name of a parameter; there are: {known}")
        for name in names:
            self.get_parameter(name).requires_grad_(req_grad)
        return self

    def summary(self, *inputs: Tensor) -> str:
        """Returns a table of layers, their output shapes and parameter counts; shapes only if inputs are given.

        Args:
            inputs: What `forward` takes. It runs once, in evaluation mode, without gradients.

        Example:
            >>> print(Model(nn.Linear(2, 3)).summary(torch.zeros(5, 2)))
            layer  kind    output  parameters
            net    linear  (5, 3)  9
            total                  9
        """
        return summarize(self, *inputs)


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold a value: numbers, strings, None, and lists and dicts of them."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)
