"""A study of losses: one autoencoder trained on each, all judged by the same measures."""

from dataclasses import replace
from typing import get_args

import torch

from ai.data import digits_dataset
from ai.examples.autoencoder.losses import LossName
from ai.examples.autoencoder.main import PRESETS, Config, build, run
from ai.examples.metrics import accuracy_task
from ai.examples.metrics.digits import digits_classifier
from ai.examples.run_config import keep_earlier
from ai.lab import Study


def reproduce(*, seed: int = 0, steps: int | None = None, preset: str = "laptop") -> dict[str, float]:
    """Trains the digits autoencoder on each loss; draws the study's table, curves and samples.

    Args:
        seed: Of weights and data order, the same for all.
        steps: Number of updates; None takes the preset's.
        preset: Which configuration to vary.

    Returns:
        For each loss `LOSS mse`, `LOSS ssim`, and `LOSS recognised`: the share of reconstructed held-out digits that
        the digits classifier, which saw originals only, takes for what they are.
    """
    config = PRESETS[preset]
    return compare(replace(config, seed=seed, steps=steps or config.steps, trial="reproduce/autoencoder-losses"))


def compare(config: Config) -> dict[str, float]:
    """Runs a configuration of digits with each loss as trials of the study `config.trial`; see `reproduce`.

    An earlier study of that name is kept beside it, unless `config.clean` says otherwise.
    """
    if config.dataset != "digits" or config.data:
        raise ValueError(f"dataset must be 'digits', which the classifier knows, got {config.data or config.dataset!r}")
    if not config.clean:
        keep_earlier(config.trial, "study")
    study = Study(config.trial, clean=True)
    classifier = digits_classifier(config.imsize)
    _, held_out = digits_dataset(config.imsize).split()
    batches = list(held_out.loader(360))
    result: dict[str, float] = {}
    names = [name for name in get_args(LossName) if config.imsize >= 11 or "ssim" not in name]
    for name in names:
        numbers = run(replace(config, loss=name, trial=str(study.path / name)))
        model = build(config, 1).init(study.trial(name).model_path()).eval()
        with torch.no_grad():
            rebuilt = [{"x": model(batch["x"]), "y": batch["y"]} for batch in batches]
        judged = accuracy_task(rebuilt, reference="reconstructions of held-out digits")(classifier, 0)
        numbers["recognised"] = judged["accuracy"]
        with study.trial(name) as trial:
            trial.note(**numbers)
        result |= {f"{name} {key}": numbers[key] for key in ("mse", "ssim", "recognised") if key in numbers}
    originals = accuracy_task(batches, reference="held-out digits")(classifier, 0)
    result["originals recognised"] = originals["accuracy"]
    metrics = ["mse", "ssim"] if config.imsize >= 11 else ["mse"]
    comparison = study.compare(metrics=metrics)
    comparison.plot()
    comparison.plot_samples()
    study.note(f"{comparison}\n\nrecognised: " + ", ".join(f"{k} {v:.3f}" for k, v in result.items() if "recog" in k))
    print(study.notes)
    return result
