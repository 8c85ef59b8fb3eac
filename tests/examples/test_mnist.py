import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ai.examples.mnist import Config, ConvNet, Model, run
from ai.examples.mnist.figures import confusion_matrix, save_predictions
from tests import warm_python

STEPS, SAVE_INTERVAL = 30, 10

# Runs the demo in a process that kills itself as step `dies_at` computes its loss.
SCRIPT = (
    f"STEPS, SAVE_INTERVAL = {STEPS}, {SAVE_INTERVAL}\n"
    + """import os, signal, sys
from ai.examples.mnist import Config, run
from ai.train import Classify

dies_at, resume, trial = int(sys.argv[1]), sys.argv[2] == "resume", sys.argv[3]
compute = Classify.__call__

def compute_or_die(self, model, batch, step):
    if step == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(self, model, batch, step)

Classify.__call__ = compute_or_die
run(Config(dataset="digits", trial=trial, resume=resume, steps=STEPS, save_interval=SAVE_INTERVAL, batch_size=32))
"""
)


def start(dies_at: int, resume: bool, trial: Path) -> int:
    script = trial.parent / "main.py"
    script.write_text(SCRIPT)
    done = warm_python.run(script, dies_at, "resume" if resume else "anew", trial, folder=trial.parent)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def final_weights(trial: Path) -> dict[str, torch.Tensor]:
    return load_file(trial / "snapshots" / f"{STEPS:09d}" / "model.safetensors")


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path):
    assert start(-1, False, tmp_path / "whole") == 0
    expected = final_weights(tmp_path / "whole")
    dies_at, trial = SAVE_INTERVAL + 7, tmp_path / "killed"
    assert start(dies_at, False, trial) == -signal.SIGKILL
    assert start(-1, True, trial) == 0
    resumed = final_weights(trial)
    assert resumed.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(resumed[key], value), f"{key} differs after a kill at step {dies_at}"


@pytest.mark.slow
def test_the_demo_leaves_a_whole_trial(tmp_path, capsys):
    result = run(Config(dataset="digits", trial=str(tmp_path / "trial"), steps=150, save_interval=50))
    names = {path.name for path in (tmp_path / "trial").iterdir()}
    assert {"meta.json", "config.yaml", "metrics.jsonl", "snapshots", "samples", "confusion.png"} <= names
    assert "predictions.png" in names
    for picture in ("confusion.png", "predictions.png"):
        assert (tmp_path / "trial" / picture).read_bytes().startswith(b"\x89PNG")
    assert result["accuracy"] > 0.8  # 150 steps are a beginning; the whole run's figure is in the results
    assert f"{result['accuracy']:.2%}" in capsys.readouterr().out


def test_without_mnist_the_demo_says_what_it_takes(tmp_path, monkeypatch, capsys):
    from ai.examples.mnist import main

    def unreachable(path="mnist"):
        raise FileNotFoundError("no network")

    monkeypatch.setattr(main, "mnist_dataset", unreachable)
    dataset, name = main.load("auto")
    assert (name, len(dataset)) == ("digits", 1797)
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(FileNotFoundError, match="no network"):
        main.load("mnist")


@pytest.mark.parametrize("network", [Model, ConvNet])
def test_every_parameter_gets_a_gradient(network, on_device):
    model = network().init(seed=0)
    x = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0), requires_grad=True)
    on_device(model)(x).logsumexp(1).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert (x.grad.abs().sum((1, 2, 3)) > 0).all()


def test_confusion_matrix_counts_truth_in_rows():
    counts = confusion_matrix(np.array([2, 2, 0, 1]), np.array([2, 1, 0, 1]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


def test_predictions_page_takes_fewer_images_than_a_row(tmp_path):
    save_predictions(tmp_path / "page.png", np.zeros((3, 8, 8)), [1, 2, 3], [1, 2, 4], [0.9, 0.8, 0.7], "three")
    assert (tmp_path / "page.png").stat().st_size > 1000
