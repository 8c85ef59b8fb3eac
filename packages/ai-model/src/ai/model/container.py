"""Modules made of modules: sequences, repetitions, residual sums."""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ai.model.activation import actv
from ai.model.arguments import check_at_least, check_instance, check_module, check_real, check_whole
from ai.model.init import init_module, mark_small, rule_of

Recurrent = TypeVar("Recurrent", bound=nn.RNNBase)


def seq(*modules: nn.Module | Callable[[Tensor], Tensor] | None) -> nn.Sequential:
    """Returns the modules, or plain functions of a tensor, in sequence; None is left out.

    Example:
        >>> import torch, ai.model as m
        >>> m.seq(m.flatten(), None, m.fc(8, 2))(torch.zeros(3, 2, 4)).shape
        torch.Size([3, 2])
    """
    for one in modules:
        if isinstance(one, (list, tuple)):
            raise TypeError("seq takes modules one by one, m.seq(a, b), not a list of them: m.seq(*modules)")
    for index, one in enumerate(modules):
        check_instance(**{f"modules[{index}]": one})
        made = getattr(one, "__annotations__", {}).get("return") if inspect.isfunction(one) else None
        if isinstance(made, type) and issubclass(made, nn.Module):
            name = getattr(one, "__name__", "it")
            raise TypeError(f"modules[{index}] must be a module, and {name} is a function that makes one: {name}(…)")
    return nn.Sequential(*(made for made in map(actv, modules) if made is not None))


def repeat(n: int, block: nn.Module | Callable[..., nn.Module]) -> nn.Sequential:
    """Returns `n` blocks in sequence, none sharing parameters with another.

    Args:
        n: How many.
        block: A module, copied and drawn anew for each; or a function that makes one, given the index if it takes an
            argument without a default.

    Raises:
        ValueError: The copies of a module would stay twins, since nothing says how its parameters are drawn.

    Example:
        >>> import ai.model as m
        >>> net = m.repeat(2, m.fc(4, 4))
        >>> bool((net[0].weight == net[1].weight).any())
        False
    """
    check_whole(n=n)
    if n < 0:
        raise ValueError(f"n ({n}) must be at least 0")
    if isinstance(block, nn.Module):
        if n > 1:
            _check_drawn(block)
        return nn.Sequential(*(init_module(copy.deepcopy(block)) for _ in range(n)))
    parameters = inspect.signature(block).parameters.values()
    takes_index = any(parameter.default is parameter.empty for parameter in parameters)
    return nn.Sequential(*(block(i) if takes_index else block() for i in range(n)))


def _check_drawn(block: nn.Module) -> None:
    """Raises for a module that holds other than constant numbers, and has no rule by which copies get others."""
    for name, module in block.named_modules():
        if rule_of(module) is None:
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta or (parameter != parameter.flatten()[:1]).any():
                    where = f"{name}.{key}" if name else key
                    raise ValueError(
                        f"block must say how {where} is drawn, or its copies are twins: give {type(module).__name__} a "
                        "method init_params(rng), or give a function that makes the block"
                    )


class _Residual(nn.Module):
    def __init__(self, main: nn.Module, shortcut: nn.Module | None, gain: float):
        super().__init__()
        self.main = main
        self.shortcut = shortcut
        self.gain = gain

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        out: Tensor = skip + self.main(x, *args)
        return out if self.gain == 1 else out * self.gain

    def mark_small(self, scale: float) -> bool:
        return False  # it passes its input on, so it cannot be the small end of a branch


def res(
    main: nn.Module, shortcut: nn.Module | None = None, *, gain: float = 1.0, init_gain: float | None = None
) -> nn.Module:
    """Returns `(shortcut(x) + main(x)) * gain`; without a shortcut, x itself is added.

    Args:
        main: The branch; further arguments of a call go to it.
        shortcut: None for the identity.
        gain: Multiplies the sum, such as √½ to keep the variance.
        init_gain: `Model.init` draws the last layer of the branch this much smaller; 1 leaves it alone. None is 0.2,
            where there is a layer that decides the size.

    Raises:
        ValueError: `init_gain` is given, and no layer at the end of the branch decides its size.

    Example:
        >>> import torch, ai.model as m
        >>> m.res(m.gain(2.0))(torch.ones(1))
        tensor([3.])
    """
    check_module(main=main, **({} if shortcut is None else {"shortcut": shortcut}))
    check_real(gain=gain)
    check_real(or_none=True, init_gain=init_gain)
    marked = init_gain == 1 or mark_small(main, 0.2 if init_gain is None else init_gain)
    if not marked and init_gain is not None:
        raise ValueError(f"init_gain ({init_gain}) must be 1 where the branch ends in no layer that decides its size")
    return _Residual(main, shortcut, gain)


class _Duel(nn.Module):
    def __init__(self, value: nn.Module, advantage: nn.Module):
        super().__init__()
        self.value = value
        self.advantage = advantage

    def forward(self, x: Tensor) -> Tensor:
        advantage = self.advantage(x)
        out: Tensor = self.value(x) + advantage - advantage.mean(1, keepdim=True)
        return out


def duel(value: nn.Module, advantage: nn.Module) -> nn.Module:
    """Returns `value(x) + advantage(x)`, less the advantages' mean over axis 1: the values of actions, duelling.

    Args:
        value: To `(batch, 1)`, or `(batch, 1, …)` such as quantiles.
        advantage: To `(batch, actions)`, or `(batch, actions, …)`.

    Source: Wang et al., 2016, Dueling network architectures for deep reinforcement learning, equation 9.

    Example:
        >>> import torch, ai.model as m
        >>> m.duel(m.fc(8, 1), m.fc(8, 3))(torch.zeros(2, 8)).shape
        torch.Size([2, 3])
    """
    check_module(value=value, advantage=advantage)
    return _Duel(value, advantage)


def modules(items: Iterable[nn.Module]) -> nn.ModuleList:
    """Returns a list of modules whose parameters belong to the model that holds it.

    Example:
        >>> [type(layer).__name__ for layer in modules([null(), null()])]
        ['Identity', 'Identity']
    """
    return nn.ModuleList(items)


def module_dict(items: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Returns a dict of modules whose parameters belong to the model that holds it.

    Example:
        >>> list(module_dict({"encode": null(), "decode": null()}))
        ['encode', 'decode']
    """
    return nn.ModuleDict(dict(items))


def null() -> nn.Module:
    """Returns the module that hands its input on.

    Example:
        >>> null()(3)
        3
    """
    return nn.Identity()


def _lacking() -> frozenset[torch.dtype]:
    """Returns the short types of floats that the processor has no instructions for."""
    try:
        has = {
            torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
            torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
        }
    except (AttributeError, RuntimeError):  # a build of torch without it
        return frozenset()
    return frozenset(dtype for dtype, known in has.items() if not known)


_LACKING = _lacking()


@contextmanager
def _with_gradients(layer: nn.RNNBase, x: Any) -> Iterator[None]:
    """Within, gradients reach a layer in eval mode on CUDA, which cuDNN gives in training mode alone."""
    packed = x.data if isinstance(x, PackedSequence) else x
    cudnn = torch.backends.cudnn
    if layer.training or not packed.is_cuda or not torch.is_grad_enabled() or not cudnn.enabled:
        yield
        return
    cudnn.enabled = False
    try:
        yield
    finally:
        cudnn.enabled = True


class _GRU(nn.GRU):
    """Gives gradients in eval mode too."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        with _with_gradients(self, input):
            return super().forward(input, hx)


class _LSTM(nn.LSTM):
    """Gives gradients in eval mode, and computes in types that autocast asks for and the processor does not have."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        with _with_gradients(self, input):
            return self._computed(input, hx)

    def _computed(self, input: Any, hx: Any) -> Any:
        short = torch.get_autocast_dtype("cpu")
        if short not in _LACKING or not torch.is_autocast_enabled("cpu"):
            return super().forward(input, hx)
        weight: Any = self.weight_ih_l0
        if weight.device.type != "cpu":
            return super().forward(input, hx)
        dtype = weight.dtype
        with torch.autocast("cpu", enabled=False):
            state = None if hx is None else (hx[0].to(dtype), hx[1].to(dtype))
            out, (hidden, cell) = super().forward(input.to(dtype), state)
        return out.to(short), (hidden.to(short), cell.to(short))


def lstm(n1: int, n2: int, n_layers: int = 1, *, dropout: float = 0.0, bidirectional: bool = False) -> nn.LSTM:
    """Returns an LSTM on `(batch, time, n1)`: called as `(x, state=None)`, it gives `(batch, time, n2)` and its state.

    The forget gates start open. With `bidirectional` the output is `2 · n2` wide. Under autocast on a
    processor without instructions for its type, where torch's own LSTM fails, it computes in float32.

    Example:
        >>> import torch, ai.model as m
        >>> out, (hidden, cell) = m.lstm(3, 4)(torch.zeros(2, 5, 3))
        >>> out.shape, hidden.shape
        (torch.Size([2, 5, 4]), torch.Size([1, 2, 4]))
    """
    return _recurrent(_LSTM, n1, n2, n_layers, dropout, bidirectional)


def gru(n1: int, n2: int, n_layers: int = 1, *, dropout: float = 0.0, bidirectional: bool = False) -> nn.GRU:
    """Returns a GRU on `(batch, time, n1)`: called as `(x, state=None)`, it gives `(batch, time, n2)` and its state.

    With `bidirectional` the output is `2 · n2` wide.

    Source: Cho et al., 2014, Learning Phrase Representations using RNN Encoder-Decoder.

    Example:
        >>> import torch, ai.model as m
        >>> out, hidden = m.gru(3, 4)(torch.zeros(2, 5, 3))
        >>> out.shape, hidden.shape
        (torch.Size([2, 5, 4]), torch.Size([1, 2, 4]))
    """
    return _recurrent(_GRU, n1, n2, n_layers, dropout, bidirectional)


def _recurrent(
    kind: Callable[..., Recurrent], n1: int, n2: int, n_layers: int, dropout: float, bidirectional: bool
) -> Recurrent:
    check_at_least(1, n1=n1, n2=n2, n_layers=n_layers)
    check_real(dropout=dropout)
    if dropout and n_layers == 1:
        raise ValueError(f"dropout ({dropout}) must be 0 with one layer: it lies between layers")
    return init_module(
        kind(int(n1), int(n2), int(n_layers), batch_first=True, dropout=dropout, bidirectional=bidirectional)
    )
