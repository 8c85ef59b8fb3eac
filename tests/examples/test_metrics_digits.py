import pytest
import torch

from ai.data import digits_dataset
from ai.examples.metrics import accuracy_task, frechet_task
from ai.examples.metrics.digits import DigitsClassifier, digits_classifier, digits_features


@pytest.mark.slow
def test_the_classifier_is_trained_once_and_kept(tmp_path):
    path = tmp_path / "kept" / "classifier.safetensors"
    model = digits_classifier(8, steps=60, path=path)
    assert not model.training
    _, held_out = digits_dataset(8).split()
    accuracy = accuracy_task(held_out.loader(360), reference="digits, held out")(model, 0)["accuracy"]
    assert accuracy > 0.6  # 60 steps are a beginning
    again = digits_classifier(8, steps=60, path=path)
    x = held_out.sample(5)["x"]
    assert torch.equal(model(x), again(x))
    path.unlink()
    assert torch.equal(digits_classifier(8, steps=60, path=path)(x), model(x))  # the same seed, the same weights


def test_features_are_what_the_last_layer_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("AI_DATASETS_PATH", str(tmp_path))
    model = DigitsClassifier().init(seed=0).eval()
    (tmp_path / "digits-classifier").mkdir()
    model.save(tmp_path / "digits-classifier" / "size16-seed3-steps1500.safetensors")
    features = digits_features(16, seed=3)
    x, _ = digits_dataset(16).split()
    images = x.sample(40)["x"]
    assert torch.allclose(model.head(features.network(images)), model(images))
    assert features.network(images).shape == (40, 128)
    assert "16 pixels, seed 3" in features.name
    task = frechet_task(features, images, lambda m, n: images[:n], n=40, reference="digits", n_subsets=1)
    assert task(model, 0)["frechet"] < 1e-4 < task.protocol["real_vs_real"]


def test_too_small_digits_are_refused():
    with pytest.raises(ValueError, match="size must be at least 8 pixels, the digits' own, got 4"):
        digits_classifier(4)
