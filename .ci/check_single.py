"""Checks an environment that holds only some distributions: they work alone, and nothing else came along.

Usage: python check_single.py [--beside-others] ai-model [ai-infer]

With --beside-others the environment may hold other packages than ours: only our own are looked at.
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


def main(parts: list[str], beside_others: bool = False) -> None:
    """Raises SystemExit with a sentence if the environment is not as it should be."""
    for part in parts:
        module = importlib.import_module(part.replace("-", "."))
        for name in module.__all__:  # some are imported on first use
            getattr(module, name)
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
    if extra and not beside_others:
        sys.exit(f"installed, but needed by none of {parts}: {sorted(extra)}")

    if "ai-model" in parts:
        check_model(parts)
    needs = sorted(f"{name} {distribution(name).version}" for name in ([] if beside_others else closure(parts)))
    print(f"{' + '.join(parts)}: works alone{' with ' + ', '.join(needs) if needs else ''}")


def check_model(parts: list[str]) -> None:
    """Runs a model, and a worker where there is one."""
    import torch

    import ai.model as m

    model = m.Model(m.seq(m.flatten(), m.fc(784, 10))).init(seed=0)
    x = torch.zeros(2, 1, 28, 28)
    assert model(x).shape == (2, 10)
    if "ai-infer" in parts:
        from ai.infer import Inferencer

        with torch.inference_mode(), Inferencer(model) as inferencer:
            assert torch.equal(inferencer(x[:1]), model.eval()(x[:1]))


if __name__ == "__main__":
    main([part for part in sys.argv[1:] if part != "--beside-others"], "--beside-others" in sys.argv[1:])
