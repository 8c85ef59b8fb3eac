from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from ai.train import HookInterface, Reconstruct, Trainer, loss, opt


def reference_ssim(a, b, span):
    """The formula with scipy's filter, over the pixels that the window fits around."""
    smooth = lambda x: gaussian_filter(x, 1.5, radius=5)  # noqa: E731
    ma, mb = smooth(a), smooth(b)
    va, vb, cov = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    full = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return full[5:-5, 5:-5].mean()


def test_ssim_equals_the_formula_with_scipys_filter():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 24, 20))
    found = loss.ssim(torch.tensor(a)[None, None], torch.tensor(b)[None, None])
    assert found.item() == pytest.approx(reference_ssim(a, b, 2.0), abs=1e-12)


def test_ssim_treats_channels_and_images_alike():
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    each = [loss.ssim(a[i : i + 1, c : c + 1], b[i : i + 1, c : c + 1]) for i in range(2) for c in range(3)]
    assert loss.ssim(a, b).item() == pytest.approx(torch.stack(each).mean().item(), abs=1e-6)


def test_perceptual_is_the_distance_of_features_and_trains_the_output_only():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    perceptual = loss.Perceptual(features)
    output, target = torch.randn(2, 1, 8, 8, requires_grad=True), torch.randn(2, 1, 8, 8)
    found = perceptual(output, target)
    assert found.item() == pytest.approx((features(output) - features(target)).square().mean().item())
    found.backward()
    assert output.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in features.parameters())


def test_perceptual_weights_several_maps():
    class Two(nn.Module):
        def forward(self, x):
            return [x, 2 * x]

    one, zero = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert loss.Perceptual(Two())(one, zero).item() == 5.0
    assert loss.Perceptual(Two(), weights=[1.0, 0.5])(one, zero).item() == 3.0
    with pytest.raises(ValueError, match=r"weights \(1\) must be as many as the feature maps"):
        loss.Perceptual(Two(), weights=[1.0])(one, zero)


def test_perceptual_without_its_weights_says_where_they_belong(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    image = torch.zeros(1, 1, 32, 32)
    with pytest.raises(
        RuntimeError, match=r"weights https.*vgg16.*no route to host.*hub/checkpoints, or give a network"
    ):
        loss.Perceptual()(image, image)


def test_perceptual_by_default_sees_greys_as_vgg_does(monkeypatch):
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.vgg16(weights=None)
    monkeypatch.setattr("torchvision.models.vgg16", lambda weights: network)
    output, target = torch.rand(2, 1, 1, 32, 32) * 2 - 1
    maps = []
    for image in (output, target):
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        x = ((image.expand(1, 3, 32, 32) + 1) / 2 - mean) / std
        maps.append([network.features[:end](x) for end in (4, 9, 16, 23)])
    wanted = sum((a - b).square().mean().item() for a, b in zip(*maps, strict=True))
    assert loss.Perceptual()(output, target).item() == pytest.approx(wanted, rel=1e-4)


def test_combo_logs_its_parts_on_logged_steps():
    class Lines(HookInterface):
        log_interval = 1
        seen: dict[str, float] = {}  # noqa: RUF012

        def log(self, key, value):
            self.seen[key] = value

    model = nn.Linear(2, 2)
    env = Reconstruct(loss.ComboLoss({"pixel": loss.mse, "edges": (0.5, loss.mae)}))
    hook = Lines()
    Trainer(env, [torch.randn(4, 2)]).train(model, opt.sgd(model), hook)
    assert hook.seen["loss"] == pytest.approx(hook.seen["pixel"] + 0.5 * hook.seen["edges"], rel=1e-5)


def test_shapes_that_would_broadcast_are_refused():
    for function in (loss.mse, loss.mae, loss.huber, loss.ssim):
        with pytest.raises(ValueError, match=r"output \(4, 1\) and target \(4,\) must agree in shape"):
            function(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match=r"window \(11\) must be odd and at most the image's size \(8, 8\)"):
        loss.ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="ComboLoss needs at least one part"):
        loss.ComboLoss({})
