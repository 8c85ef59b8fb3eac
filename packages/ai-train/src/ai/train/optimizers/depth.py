"""How deep in a model a parameter lies, counted in blocks."""

from collections import Counter

from torch import nn


def by_block(model: nn.Module) -> dict[str, int]:
    """The layer of each parameter: 0 before the first block, then one a block, then one for what follows the last.

    A block is one of several modules of the same class in a `Sequential` or `ModuleList`, the outermost ones. Without
    any, each module that owns parameters is a layer, in the order of registration.

    >>> block = lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.LayerNorm(2))
    >>> list(by_block(nn.Sequential(nn.Embedding(9, 2), nn.Sequential(block(), block()), nn.Linear(2, 9))).values())
    [0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    """
    names = [name for name, _ in model.named_parameters()]
    blocks = _blocks(model)
    if not blocks:
        owners = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
        return {name: owners.index(name.rpartition(".")[0]) for name in names}
    found = {
        name: next((i for i, block in enumerate(blocks, 1) if name.startswith(f"{block}.")), None) for name in names
    }
    layers, reached = {}, 0
    for name in names:
        own = found[name]
        reached = max(reached, own or 0)
        # What lies between two stacks counts to the block before it.
        layers[name] = own if own is not None else reached if reached < len(blocks) else len(blocks) + 1
    return layers


def _blocks(model: nn.Module) -> list[str]:
    found: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Sequential, nn.ModuleList)) or any(
            name == b or name.startswith(f"{b}.") for b in found
        ):
            continue
        children = [
            (key, child) for key, child in module.named_children() if next(child.parameters(), None) is not None
        ]
        counts = Counter(type(child) for _, child in children)
        prefix = f"{name}." if name else ""
        found += [f"{prefix}{key}" for key, child in children if counts[type(child)] > 1]
    return found
