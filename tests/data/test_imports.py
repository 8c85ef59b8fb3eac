"""What importing costs, and what a worker without torch can do."""

import subprocess
import sys

import ai.data

HEAVY = ("torch", "torchvision", "sklearn", "PIL", "cloudpickle")


def loaded_by(code):
    script = f"import sys\n{code}\nprint(*[m for m in {HEAVY} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import ai.data") == []


def test_datasets_and_loaders_load_torch_alone():
    names = "Dataset, DataLoader, Datagen, ReplayBuffer, ImgDataset, mnist_dataset, digits_dataset, cifar_dataset"
    assert loaded_by(f"from ai.data import {names}, toy, util, augment; toy.moons_dataset()") == ["torch"]


def test_the_worker_starts_without_torch():
    assert (
        loaded_by("import ai.data.workers.worker, ai.data.generation.source_worker, ai.data.loading.preprocess") == []
    )


def test_every_public_name_resolves():
    for name in ai.data.__all__:
        assert getattr(ai.data, name) is not None
    assert set(ai.data.__all__) <= set(dir(ai.data))
