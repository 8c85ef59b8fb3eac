import json
import sys
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from ai.examples.metrics import (
    Features,
    Statistics,
    Task,
    accuracy_task,
    fid_task,
    frechet_distance,
    frechet_task,
    inception_features,
    kernel_distance,
    split_distance,
)


def normal(n: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def correlated(n: int, dim: int, seed: int) -> torch.Tensor:
    return normal(n, dim, seed) @ normal(dim, dim, seed + 100) + seed


def slow_frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """The formula as published, with the root of a general matrix."""
    mean_a, mean_b = a.mean(0).numpy(), b.mean(0).numpy()
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


@pytest.mark.parametrize(("dim", "seed"), [(2, 0), (16, 1), (64, 2)])
def test_frechet_distance_is_the_published_formula(dim, seed, any_device):
    a, b = correlated(500, dim, seed), correlated(300, dim, seed + 1)
    ours = frechet_distance(Statistics.of(a.to(any_device)), Statistics.of(b.to(any_device)))
    assert ours == pytest.approx(slow_frechet(a, b), rel=1e-9)


def test_frechet_distance_of_known_gaussians():
    a = Statistics(torch.zeros(3, dtype=torch.float64), torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()), 10)
    b = Statistics(torch.ones(3, dtype=torch.float64), torch.diag(torch.tensor([4.0, 4.0, 1.0]).double()), 10)
    assert frechet_distance(a, b) == pytest.approx(3 + (2 - 1) ** 2 + 0 + (3 - 1) ** 2)  # Σ (σ_a - σ_b)²


def test_frechet_distance_is_a_distance():
    a, b = Statistics.of(correlated(400, 8, 0)), Statistics.of(correlated(400, 8, 1))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) < 1e-9 < frechet_distance(a, b)


def test_fewer_samples_than_dimensions_stay_real_and_finite():
    a, b = normal(10, 50, 0), normal(10, 50, 1)
    assert frechet_distance(Statistics.of(a), Statistics.of(b)) == pytest.approx(slow_frechet(a, b), rel=1e-4)


def test_distances_agree_with_torch_fidelity(any_device):
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    a, b = correlated(300, 12, 3), correlated(300, 12, 4) * 0.5
    theirs = [{"mu": x.mean(0).numpy(), "sigma": np.cov(x.numpy(), rowvar=False)} for x in (a, b)]
    published = fid.fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    ours = a.to(any_device), b.to(any_device)
    assert frechet_distance(*map(Statistics.of, ours)) == pytest.approx(published, rel=1e-9)
    options = {"kid_subsets": 1, "kid_subset_size": 300, "verbose": False}  # one subset of all: no draw to differ in
    published = kid.kid_features_to_metric(a, b, **options)["kernel_inception_distance_mean"]
    assert kernel_distance(*ours, subset_size=300, n_subsets=1)[0] == pytest.approx(published, rel=1e-9)


def test_kernel_distance_is_unbiased():
    values = [kernel_distance(normal(60, 4, 2 * i), normal(60, 4, 2 * i + 1), n_subsets=1)[0] for i in range(200)]
    standard_error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * standard_error
    assert min(values) < 0 < max(values)


def test_split_distance_shrinks_with_the_number_of_samples():
    x = normal(4000, 8)
    assert split_distance(x) < split_distance(x[:400]) / 4
    assert split_distance(x, seed=1) == split_distance(x, seed=1) != split_distance(x, seed=2)


PIXELS = Features(lambda x: x.mean((2, 3)), "mean colour")


class Noise(nn.Module):
    """A generator of uniform noise around a mean colour."""

    def __init__(self, mean: float):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.seed = 0


def draw(model: Noise, n: int) -> torch.Tensor:
    model.seed += 1
    generator = torch.Generator().manual_seed(model.seed)
    return model.mean + torch.rand(n, 3, 4, 4, generator=generator).to(model.mean.device) - 0.5


def real_images(low: float = -1.0, high: float = 1.0, n: int = 600) -> torch.Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(9)) * (high - low) + low


def test_frechet_task_measures_what_the_distances_measure(any_device):
    task = frechet_task(
        PIXELS, real_images().to(any_device), draw, n=300, batch_size=100, reference="uniform noise", n_subsets=3
    )
    numbers = task(Noise(0.1).to(any_device), step=7)
    model = Noise(0.1)
    samples = torch.cat([draw(model, 100) for _ in range(3)]).detach().clamp(-1, 1).mean((2, 3))
    statistics = Statistics.of(samples), Statistics.of(real_images().mean((2, 3)))
    assert numbers["frechet"] == pytest.approx(frechet_distance(*statistics), rel=1e-5)
    assert numbers["frechet_kernel"] > 0
    assert task.protocol["n"] == 300
    assert task.protocol["n_reference"] == 600
    assert task.protocol["range"] == [-1.0, 1.0]
    assert task.protocol["reference"] == "uniform noise"
    assert task.protocol["real_vs_real"] == pytest.approx(split_distance(real_images().mean((2, 3))))


def test_frechet_task_orders_generators_by_how_wrong_they_are():
    task = frechet_task(PIXELS, real_images(), draw, n=300, reference="uniform noise", n_subsets=3)
    distances = [task(Noise(mean), 0)["frechet"] for mean in (0.0, 0.2, 0.4)]
    assert distances == sorted(distances)
    assert distances[2] > 3 * 0.3**2


def test_the_range_is_that_of_the_images_not_of_the_network():
    seen = []
    features = Features(lambda x: seen.append((x.min(), x.max())) or x.mean((2, 3)), "spy")
    frechet_task(
        features, real_images(0, 255), lambda m, n: real_images(0, 255)[:n], reference="", value_range=(0, 255)
    )
    assert seen[0] == (pytest.approx(-1, abs=1e-2), pytest.approx(1, abs=1e-2))


def test_loaders_batches_are_taken_as_they_come():
    batches = [{"x": part} for part in real_images().chunk(7)]
    a, b = (frechet_task(PIXELS, real, draw, n=50, reference="") for real in (batches, real_images()))
    assert a.protocol == b.protocol


@pytest.mark.parametrize(
    ("images", "value_range", "message"),
    [
        (real_images(0, 1), (-1.0, 1.0), None),  # half of the range is just enough
        (
            real_images(0, 0.9),
            (-1.0, 1.0),
            r"real images must fill value_range \[-1, 1\], theirs is \[\S+, 0\.8\d+\]",
        ),
        (real_images(0, 255), (-1.0, 1.0), r"real images must fill value_range \[-1, 1\], theirs is \[.*, 25\d"),
        (real_images(), (0.0, 255.0), r"real images must fill value_range \[0, 255\]"),
    ],
)
def test_a_reference_in_another_range_is_refused(images, value_range, message):
    if message is None:
        images = torch.cat([images, torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)])
        frechet_task(PIXELS, images, draw, reference="", value_range=value_range)
        return
    with pytest.raises(ValueError, match=message):
        frechet_task(PIXELS, images, draw, reference="", value_range=value_range)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (lambda m, n: real_images(0, 255, n), r"samples must lie in value_range \[-1, 1\].* with \d+% outside"),
        (lambda m, n: torch.full((n, 3, 4, 4), torch.nan), "samples must lie in value_range"),
        (lambda m, n: real_images(n=n + 1), "sample must return the 20 images asked for, it returned 21"),
    ],
)
def test_bad_samples_are_refused(samples, message):
    task = frechet_task(PIXELS, real_images(), samples, n=20, reference="")
    with pytest.raises(ValueError, match=message):
        task(nn.Identity(), 0)


def test_a_slight_overshoot_is_clamped():
    over = real_images() * 1.05
    assert ((over.abs() > 1).float().mean() > 0.01).item()
    task = frechet_task(PIXELS, real_images(), lambda m, n: over[:n], n=600, batch_size=600, reference="")
    assert task(nn.Identity(), 0)["frechet"] < 1e-3


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="n must be at least 2 and batch_size at least 1, got 1 and 250"):
        frechet_task(PIXELS, real_images(), draw, n=1, reference="")
    with pytest.raises(ValueError, match=r"features must be \(n, dim\) with n of at least 2, got shape \(1, 3\)"):
        Statistics.of(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="features must be finite"):
        Statistics.of(torch.full((4, 3), torch.nan))
    with pytest.raises(ValueError, match="both statistics must have one dimension, got 3 and 4"):
        frechet_distance(Statistics.of(normal(9, 3)), Statistics.of(normal(9, 4)))
    with pytest.raises(ValueError, match=r"of one dim, got shapes \(9, 3\) and \(9, 4\)"):
        kernel_distance(normal(9, 3), normal(9, 4))
    with pytest.raises(ValueError, match="subsets of at least 2 samples, and at least 1, got 100 of 1"):
        kernel_distance(normal(1, 3), normal(9, 3))


def test_a_task_leaves_every_module_in_its_mode_and_takes_no_gradient():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[1].eval()
    seen = []
    task = Task(lambda m: seen.append((m.training, m[0].training, torch.is_grad_enabled())) or {}, {})
    task(model, 0)
    assert seen == [(False, False, False)]
    assert (model.training, model[0].training, model[1].training) == (True, True, False)

    def fail(model):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        Task(fail, {})(model, 0)
    assert (model.training, model[1].training) == (True, False)


def test_a_protocol_is_written_as_json(tmp_path):
    task = frechet_task(PIXELS, real_images(), draw, n=20, reference="uniform noise")
    task.write(tmp_path / "frechet.json")
    assert json.loads((tmp_path / "frechet.json").read_text()) == task.protocol


def test_accuracy_counts_over_uneven_batches(any_device):
    logits = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [2, 3, 1], [3, 1, 2]])
    labels = torch.tensor([0, 1, 0, 0, 2], dtype=torch.uint8)
    logits = logits.to(any_device)
    data = [{"x": logits[:3], "y": labels[:3]}, {"x": logits[3:], "y": labels[3:].to(any_device)}]
    task = accuracy_task(data, reference="five rows", top=(1, 2))
    assert task(nn.Identity(), 0) == {"accuracy": 2 / 5, "accuracy_top2": 4 / 5}


@pytest.mark.parametrize(
    ("data", "top", "message"),
    [
        ([], (1,), "data must give at least one batch"),
        ([{"x": torch.zeros(2, 3), "y": torch.zeros(2)}], (5,), r"top \(5\) must not exceed the model's 3 classes"),
    ],
)
def test_accuracy_refuses(data, top, message):
    with pytest.raises(ValueError, match=message):
        accuracy_task(data, reference="", top=top)(nn.Identity(), 0)
    with pytest.raises(ValueError, match=r"top must hold numbers of at least 1, got \(0,\)"):
        accuracy_task(data, reference="", top=(0,))


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """Random weights in the form of the published file, which no test fetches."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(extractor.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = extractor.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
def test_fid_feeds_the_network_bytes_of_the_full_range(inception_weights):
    features = inception_features(inception_weights)
    images = real_images(n=2)
    images[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    (network,) = (
        cell.cell_contents for cell in features.network.__closure__ if isinstance(cell.cell_contents, nn.Module)
    )
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    assert features.network(images).shape == (2, 2048)
    assert seen[0].dtype == torch.uint8
    assert (seen[0].min(), seen[0].max()) == (0, 255)
    assert torch.equal(seen[0], ((images + 1) / 2 * 255).round().to(torch.uint8))
    assert features.network(images[:, :1]).shape == (2, 2048)  # grey


@pytest.mark.slow
def test_fid_task_reports_its_numbers(inception_weights, monkeypatch):
    whole = inception_features(inception_weights)
    few = replace(whole, network=lambda x: whole.network(x)[:, :16])  # the distance of 2,048 takes seconds
    monkeypatch.setattr("ai.examples.metrics.inception.inception_features", lambda weights, device: few)
    task = fid_task(real_images(n=6), draw, n=4, reference="noise", weights=inception_weights)
    numbers = task(Noise(0.0), 0)
    assert set(numbers) == {"fid", "fid_kernel", "fid_kernel_std"}
    assert all(np.isfinite(value) for value in numbers.values())
    assert "299" in task.protocol["resize"]


def test_fid_offline_says_what_to_fetch(monkeypatch, tmp_path):
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    def unreachable(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(extractor, "load_state_dict_from_url", unreachable)
    with pytest.raises(FileNotFoundError, match=r"cannot be fetched \(.*no network.*get https://.* path as weights"):
        inception_features()
    with pytest.raises(FileNotFoundError, match=r"weights \(.*nowhere.pth\) must be a file"):
        inception_features(tmp_path / "nowhere.pth")


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch_fidelity":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_fid_without_torch_fidelity_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Blocked(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match=r"FID and KID need torch-fidelity: .*'examples\[fid\]'"):
        inception_features()
