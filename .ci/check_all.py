"""Checks an environment made by `pip install 'ai[all]'`: every name resolves, to our own distributions."""

import sys
from importlib.metadata import distribution

import ai

OURS = ["ai", "ai-model", "ai-data", "ai-train", "ai-infer", "ai-game", "ai-lab", "ai-examples"]

for name in OURS:
    found = distribution(name)
    if found.version != ai.__version__ or "Private :: Do Not Upload" not in found.metadata.get_all("Classifier", []):
        sys.exit(f"{name} {found.version} is not ours (ours is {ai.__version__})")
for name in ai.__all__:
    getattr(ai, name)
print(f"ai[all] {ai.__version__}: {len(OURS)} distributions, {len(ai.__all__)} names")
