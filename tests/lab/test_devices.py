"""What lies on a device is recorded as it would be from the CPU."""

import json

import pytest
import torch

import ai.lab


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path))


def test_numbers_of_a_device_are_logged(device):
    trial = ai.lab.Trial("run")
    trial.log(0, {"loss": torch.tensor(1.5, device=device), "mean": torch.ones(2, 2, device=device).mean()})
    trial.close()
    row = json.loads((trial.path / "metrics.jsonl").read_text().splitlines()[0])
    assert (row["loss"], row["mean"]) == (1.5, 1.0)


def test_pictures_and_curves_of_a_device_are_kept_as_those_of_the_cpu(device):
    torch.manual_seed(0)
    x, truth = torch.rand(4, 3, 8, 8), torch.rand(10) > 0.5
    trial = ai.lab.Trial("run")
    files = []
    for where in ("cpu", device):
        put = lambda tensor, where=where: tensor.to(where)  # noqa: E731
        kept = {
            "picture": put(x[0]),
            "pictures": put(x),
            "histogram": ai.lab.Histogram(put(x)),
            "curve": ai.lab.PrecisionRecall(put(truth), put(x.flatten()[:10])),
            "confusion": ai.lab.Confusion(put(truth.long()), put(1 - truth.long())),
            "sound": ai.lab.Audio(put(x[0, 0].flatten()), 8000),
            "film": ai.lab.Video(put(x), 2),
        }
        files.append([trial.keep(len(files), name, value).read_bytes() for name, value in kept.items()])
        files[-1].append(trial.save_sample(len(files), put(x)).read_bytes())
    trial.close()
    assert files[0] == files[1]
