"""Checks an environment that holds only some distributions: they work alone, and nothing else came along.

Usage: python check_single.py ai-model [ai-infer]
"""

import importlib
import re
import sys
from importlib.metadata import distribution, distributions, requires

OURS = {"ai-model", "ai-data", "ai-train", "ai-infer", "ai-game", "ai-lab"}


def canonical(name: str) -> str:
    """Normalises a distribution's name as PEP 503 says."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: list[str]) -> set[str]:
    """Collects everything that the named distributions need, themselves included, as far as it is installed."""
    installed = {canonical(found.metadata["Name"]) for found in distributions()}
    wanted, queue = set(), list(names)
    while queue:
        name = canonical(queue.pop())
        if name in wanted or name not in installed:
            continue
        wanted.add(name)
        # Markers such as platforms and extras only widen the set of names that may be there.
        queue += [re.match(r"[\w.-]+", need)[0] for need in requires(name) or [] if "extra ==" not in need]
    return wanted


def main(parts: list[str]) -> None:
    """Raises SystemExit with a sentence if the environment is not as it should be."""
    for part in parts:
        importlib.import_module(part.replace("-", "."))
    for absent in sorted(OURS - set(parts)):
        try:
            importlib.import_module(absent.replace("-", "."))
        except ModuleNotFoundError as error:
            if error.name != absent.replace("-", "."):
                sys.exit(f"importing {absent} failed for another reason: {error}")
        else:
            sys.exit(f"{absent} is importable, but was not installed")
    installed = {canonical(found.metadata["Name"]) for found in distributions()}
    extra = installed - closure(parts) - {"pip", "setuptools"}
    if extra:
        sys.exit(f"installed, but needed by none of {parts}: {sorted(extra)}")

    import torch

    import ai.model as m

    model = m.Model(m.seq(m.flatten(), m.fc(784, 10))).init(seed=0)
    x = torch.zeros(2, 1, 28, 28)
    assert model(x).shape == (2, 10)
    if "ai-infer" in parts:
        from ai.infer import Inferencer

        with torch.inference_mode(), Inferencer(model) as inferencer:
            assert torch.equal(inferencer(x[:1]), model.eval()(x[:1]))
    needs = sorted(f"{name} {distribution(name).version}" for name in closure(parts))
    print(f"{' + '.join(parts)}: works alone with {', '.join(needs)}")


if __name__ == "__main__":
    main(sys.argv[1:])
