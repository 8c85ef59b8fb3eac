"""Optimisers: torch's own, in their fastest form, with parameter groups by rule and clipping that travels with them."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from ai.model.arguments import check_instance, check_real
from ai.train.optimizers.clipping import check_limits, clip
from ai.train.optimizers.groups import Groups as Groups
from ai.train.optimizers.groups import layerwise_decay, no_decay
from ai.train.optimizers.kernel_muon import KernelMuon
from ai.train.optimizers.together import Together, together

__all__ = [
    "FACTORIES",
    "Together",
    "adafactor",
    "adagrad",
    "adam",
    "adamw",
    "build",
    "clip",
    "layerwise_decay",
    "muon",
    "nadam",
    "no_decay",
    "radam",
    "rmsprop",
    "sgd",
    "together",
]

Made = TypeVar("Made", bound=Optimizer)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:  # torch's classes, asked for by their names
        ours = name.lower()
        hint = f": what torch calls so is made by opt.{ours}(model)" if ours in FACTORIES else ""
        raise AttributeError(f"module 'ai.train.opt' has no attribute {name!r}{hint}")


def sgd(model: nn.Module, lr: float = 1e-2, **options: Any) -> torch.optim.SGD:
    """Stochastic gradient descent.

    Args:
        model: a module, or an iterable of parameters or groups.
        lr: learning rate.
        options: `momentum=0.0`, `weight_decay=0.0`, `nesterov=False` and whatever else `torch.optim.SGD` takes, and
            those common to all: `groups=` (such as `no_decay()` or `layerwise_decay(0.75)`), `clip_norm=` and
            `clip_value=`.

    >>> type(sgd(nn.Linear(2, 2), momentum=0.9)).__name__
    'SGD'
    """
    return _make(torch.optim.SGD, model, lr, options)


def adam(model: nn.Module, lr: float = 1e-3, **options: Any) -> torch.optim.Adam:
    """Adam (Kingma and Ba 2015).

    Args:
        model: a module, or an iterable of parameters or groups.
        lr: learning rate.
        options: `betas=(0.9, 0.999)`, `eps=1e-8` and whatever else `torch.optim.Adam` takes; `groups=`, `clip_norm=`
            and `clip_value=` as for `sgd`.

    >>> adam(nn.Linear(2, 2), betas=(0.5, 0.99)).defaults['betas']
    (0.5, 0.99)
    """
    return _make(torch.optim.Adam, model, lr, options)


def adamw(model: nn.Module, lr: float = 1e-3, weight_decay: float = 1e-2, **options: Any) -> torch.optim.AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); norms and biases are not decayed.

    Args:
        model: a module, or an iterable of parameters or groups.
        lr: learning rate.
        weight_decay: share of each decayed parameter taken off per step, times `lr`.
        options: as for `adam`; `groups=None` decays every parameter.

    >>> [group['weight_decay'] for group in adamw(nn.Linear(2, 2), weight_decay=0.1).param_groups]
    [0.1, 0.0]
    """
    if isinstance(model, nn.Module):
        options = {"groups": no_decay(), **options}
    return _make(torch.optim.AdamW, model, lr, {"weight_decay": weight_decay, **options})


def rmsprop(model: nn.Module, lr: float = 1e-3, **options: Any) -> torch.optim.RMSprop:
    """RMSprop; `options` as `torch.optim.RMSprop` takes them, and as for `sgd`.

    >>> rmsprop(nn.Linear(2, 2), alpha=0.9).defaults['alpha']
    0.9
    """
    return _make(torch.optim.RMSprop, model, lr, options)


def adagrad(model: nn.Module, lr: float = 1e-2, **options: Any) -> torch.optim.Adagrad:
    """Adagrad; `options` as `torch.optim.Adagrad` takes them, and as for `sgd`.

    >>> adagrad(nn.Linear(2, 2)).defaults['lr']
    0.01
    """
    return _make(torch.optim.Adagrad, model, lr, options)


def nadam(model: nn.Module, lr: float = 2e-3, **options: Any) -> torch.optim.NAdam:
    """Adam with Nesterov momentum; `options` as `torch.optim.NAdam` takes them, and as for `sgd`.

    >>> nadam(nn.Linear(2, 2)).defaults['lr']
    0.002
    """
    return _make(torch.optim.NAdam, model, lr, options)


def radam(model: nn.Module, lr: float = 1e-3, **options: Any) -> torch.optim.RAdam:
    """Rectified Adam; `options` as `torch.optim.RAdam` takes them, and as for `sgd`.

    >>> radam(nn.Linear(2, 2)).defaults['lr']
    0.001
    """
    return _make(torch.optim.RAdam, model, lr, options)


def adafactor(model: nn.Module, lr: float = 1e-2, **options: Any) -> torch.optim.Adafactor:
    """Adafactor, whose state is sublinear; `options` as `torch.optim.Adafactor` takes them, and as for `sgd`.

    >>> adafactor(nn.Linear(2, 2)).defaults['lr']
    0.01
    """
    return _make(torch.optim.Adafactor, model, lr, options)


def muon(
    model: nn.Module,
    lr: float = 2e-2,
    *,
    adamw_lr: float = 1e-3,
    kernel_lr: float | None = None,
    skip: Callable[[str, nn.Parameter], bool] | None = None,
    weight_decay: float = 0.0,
    **options: Any,
) -> Optimizer:
    """Muon for the matrices of a model and AdamW for the rest, as one optimiser.

    Args:
        model: a module. Matrices are the parameters of two axes, but for those of embeddings.
        lr: of Muon.
        adamw_lr: of AdamW.
        kernel_lr: of Muon for the kernels of convolutions, each as a matrix of as many rows as there are channels out
            (of all groups), in updates as large as AdamW's: about five times its rate. Parameters of three axes or more
            are kernels where their module calls them `weight`, as torch's and ours do, and not those of positions,
            tokens or experts. None leaves them to AdamW.
        skip: (name, parameter) -> whether a matrix or kernel is left to AdamW, too: best for the first and the last
            layer.
        weight_decay: of both; norms and biases are not decayed.
        options: `momentum=0.95` and whatever else `torch.optim.Muon` takes, for matrices and kernels alike, but for
            `adjust_lr_fn`, which is for matrices; `clip_norm=` and `clip_value=` for both.

    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.

    >>> together = muon(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)), skip=lambda name, param: name == '1.weight')
    >>> [(type(one).__name__, sum(len(g['params']) for g in one.param_groups)) for one in together.optimizers]
    [('Muon', 1), ('AdamW', 3)]
    """
    check_instance(model=model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"muon needs the module itself, not {type(model).__name__}")
    check_real(adamw_lr=adamw_lr, weight_decay=weight_decay)
    check_real(or_none=True, kernel_lr=kernel_lr)
    clip_norm, clip_value = options.pop("clip_norm", None), options.pop("clip_value", None)
    tables = {id(p) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for p in m.parameters()}
    turned = {id(p) for m in model.modules() if isinstance(m, _TRANSPOSED) for p in m.parameters()}
    matrices: list[nn.Parameter] = []
    kernels: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, param in model.named_parameters():
        skipped = param.ndim < 2 or id(param) in tables or (skip is not None and skip(name, param))
        if param.ndim == 2 and not skipped:
            matrices.append(param)
        elif param.ndim > 2 and kernel_lr is not None and not skipped and _KERNEL.search(name):
            kernels.append(param)
        else:
            (decayed if param.ndim > 1 else exempt).append(param)
    if hasattr(torch.optim, "Muon"):  # also where there are kernels alone
        _check_options(torch.optim.Muon, {name: value for name, value in options.items() if name != "groups"})
    if not matrices and not kernels:
        raise ValueError(f"{type(model).__name__} has no matrices for muon: use adamw")
    parts: list[Optimizer] = []
    if matrices:
        kind = getattr(torch.optim, "Muon", _without_muon)
        parts.append(_make(kind, matrices, lr, {"weight_decay": weight_decay, **options}))
    if kernels and kernel_lr is not None:
        sorts = [([p for p in kernels if (id(p) in turned) == way], way) for way in (False, True)]
        sides: Any = [{"params": params, "transposed": way} for params, way in sorts if params]
        how = {name: value for name, value in options.items() if name != "adjust_lr_fn"}
        parts.append(_make(KernelMuon, sides, kernel_lr, {"weight_decay": weight_decay, **how}))
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    rest = [group for group in groups if group["params"]]
    if rest:
        parts.append(_make(torch.optim.AdamW, rest, adamw_lr, {}))
    whole = Together(*parts) if len(parts) > 1 else parts[0]
    return whole if clip_norm is None and clip_value is None else clip(whole, clip_norm, value=clip_value)


_KERNEL = re.compile(r"(^|\.)weight(_v|_orig|\.original1?)?$")  # the names that torch's parametrisations give, too
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _without_muon(*_: Any, **__: Any) -> Optimizer:
    raise NotImplementedError(f"muon needs torch 2.9 or newer, not {torch.__version__}: use adamw")


FACTORIES: Mapping[str, Callable[..., Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "nadam": nadam,
    "radam": radam,
    "adafactor": adafactor,
    "muon": muon,
}


def build(config: Mapping[str, Any] | str, model: nn.Module) -> Optimizer:
    """The optimiser that a config names: `{'name': 'adamw', 'lr': 3e-4, ...}`, or just a name.

    Raises:
        ValueError: no name, or one that is not known.

    >>> build({'name': 'sgd', 'lr': 0.5}, nn.Linear(2, 2)).defaults['lr']
    0.5
    """
    if not isinstance(config, (str, Mapping)):
        raise TypeError(f"config must be an optimizer's name or a dict with it, not {type(config).__name__}")
    options = {"name": config} if isinstance(config, str) else dict(config)
    name = str(options.pop("name", None))
    if name not in FACTORIES:
        raise ValueError(f"the optimizer's name must be one of {', '.join(FACTORIES)}, not {name!r}")
    return FACTORIES[name](model, **options)


def _make(kind: Callable[..., Made], model: nn.Module | Iterable[Any], lr: float, options: dict[str, Any]) -> Made:
    check_instance(model=model)
    parameters = model.parameters() if isinstance(model, nn.Module) else _parameters(model)
    options = dict(options)
    rule: Groups | None = options.pop("groups", None)
    clip_norm, clip_value = options.pop("clip_norm", None), options.pop("clip_value", None)
    check_real(lr=lr, **{key: options[key] for key in ("weight_decay", "momentum", "eps") if key in options})
    if not lr >= 0:
        raise ValueError(f"lr ({lr}) must not be negative")
    if "betas" in options:
        _check_betas(options["betas"])
    check_limits(clip_norm, clip_value)
    makers: tuple[Any, ...] = (no_decay, layerwise_decay)
    if rule is not None and (rule in makers or not callable(rule)):
        given = f"{rule.__name__} itself" if callable(rule) else type(rule).__name__
        raise TypeError(f"groups must be a rule for groups, such as no_decay() or layerwise_decay(0.75), not {given}")
    _check_options(kind, options)
    if rule is not None and not isinstance(model, nn.Module):
        raise TypeError(f"groups= needs the module itself, not {type(model).__name__}")
    groups: list[Any]
    if rule is not None:
        groups = rule(model)  # type: ignore[arg-type]
    else:
        groups = list(parameters)
    for group in groups:
        if isinstance(group, dict) and "lr_factor" in group:
            group["lr"] = lr * group.pop("lr_factor")
    if "fused" not in options and "foreach" not in options and _can_fuse(kind, groups, options):
        options["fused"] = True
    optimizer = kind(groups, lr=lr, **options)
    return optimizer if clip_norm is None and clip_value is None else clip(optimizer, clip_norm, value=clip_value)


_ELSEWHERE = {
    "clipnorm": "clip_norm",
    "clipvalue": "clip_value",
    "global_clipnorm": "clip_norm",
    "gradient_clip_val": "clip_norm",
    "learning_rate": "lr",
    "max_grad_norm": "clip_norm",
}
"""What others call an option -> ours."""


def _check_options(kind: Any, options: dict[str, Any]) -> None:
    takes = inspect.signature(kind).parameters
    if any(one.kind is one.VAR_KEYWORD for one in takes.values()):
        return
    for name in options:
        if name not in takes:
            ours = f"what others call so is {_ELSEWHERE[name]}; " if name in _ELSEWHERE else ""
            known = ", ".join([*list(takes)[1:], "groups", "clip_norm", "clip_value"])
            raise TypeError(f"opt.{kind.__name__.lower()} has no option {name!r}; {ours}its options are {known}")


def _check_betas(betas: Any) -> None:
    if not isinstance(betas, tuple | list):
        raise TypeError(f"betas must be a tuple of numbers, such as (0.9, 0.999), got {betas!r}")
    if len(betas) != 2:  # of three torch takes the first two in silence
        raise ValueError(f"betas must be two numbers, such as (0.9, 0.999), got {betas!r}")
    check_real(**{f"betas[{place}]": beta for place, beta in enumerate(betas)})


def _parameters(given: Any) -> list[Any]:
    """Returns parameters, groups of them or pairs with their names, as torch takes them; raises for what is none."""
    must = f"model must be a torch.nn.Module or an iterable of parameters, not {type(given).__name__}"
    if isinstance(given, (str, Mapping, torch.Tensor)) or not isinstance(given, Iterable):
        raise TypeError(must)
    parameters = []
    for one in given:  # of a data set the first row is refused, before the others are read
        named = isinstance(one, tuple) and len(one) == 2 and isinstance(one[1], torch.Tensor)
        if isinstance(one, Mapping) and "params" in one:
            params = one["params"]  # may be a generator, and is read more than once
            one = {**one, "params": [params] if isinstance(params, torch.Tensor) else list(params)}
        elif not (named or isinstance(one, torch.Tensor)):
            raise TypeError(f"{must} of {type(one).__name__}")
        parameters.append(one)
    return parameters


def _can_fuse(kind: Any, groups: list[Any], options: dict[str, Any]) -> bool:
    # On the CPU fused Adam is faster than the plain loop, fused SGD slower (benchmarks/train_loop.py).
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        devices: tuple[str, ...] = ("cpu", "cuda")
    elif kind is torch.optim.SGD:
        devices = ("cuda",)
    else:
        return False
    given = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
    params = [p[1] if isinstance(p, tuple) else p for p in given]  # without its name
    return not options.get("differentiable") and all(p.is_floating_point() and p.device.type in devices for p in params)
