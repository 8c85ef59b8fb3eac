"""The picture of a language model's training: its bits per character, and those of the compressor."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


def save_curve(path: Path, steps: NDArray[np.integer], bits: NDArray[np.floating], result: Mapping[str, float]) -> None:
    """Draws bits per character over the steps as a PNG.

    Args:
        path: The file to write.
        steps: `(n,)`, when the model was validated.
        bits: `(n,)`, what it needed, windows that do not overlap.
        result: The final measures: `bits_per_character` (overlapping windows), `xz` and `xz_given_train`.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, bits, color="tab:blue", label="model, windows that do not overlap")
    final = result["bits_per_character"]
    axes.plot(steps[-1], final, "o", color="tab:blue", label=f"model, whole held-out text: {final:.3f}")
    axes.axhline(result["xz"], color="tab:red", label=f"xz -9: {result['xz']:.3f}")
    given = result["xz_given_train"]
    axes.axhline(given, color="tab:red", linestyle="--", label=f"xz -9 after the training text: {given:.3f}")
    axes.set(xlabel="step", ylabel="bits per character", ylim=(min(given, final) - 0.2, max(result["xz"], final) + 1.5))
    axes.legend()
    figure.savefig(path, dpi=120)
