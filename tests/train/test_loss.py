import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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


def test_ssim_equals_the_formula_with_scipys_filter(on_device):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 24, 20))
    found = on_device(loss.ssim)(torch.tensor(a)[None, None], torch.tensor(b)[None, None])
    assert found.item() == pytest.approx(reference_ssim(a, b, 2.0), abs=1e-12)


def test_ssim_treats_channels_and_images_alike(on_device):
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    each = [loss.ssim(a[i : i + 1, c : c + 1], b[i : i + 1, c : c + 1]) for i in range(2) for c in range(3)]
    assert on_device(loss.ssim)(a, b).item() == pytest.approx(torch.stack(each).mean().item(), abs=1e-6)


def test_perceptual_is_the_distance_of_features_and_trains_the_output_only(on_device):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    perceptual = loss.Perceptual(features)
    output, target = torch.randn(2, 1, 8, 8, requires_grad=True), torch.randn(2, 1, 8, 8)
    found = on_device(perceptual)(output, target)
    assert found.item() == pytest.approx((features(output) - features(target)).square().mean().item())
    found.backward()
    assert output.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in features.parameters())


def test_perceptual_weights_several_maps(on_device):
    class Two(nn.Module):
        def forward(self, x):
            return [x, 2 * x]

    one, zero = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert on_device(loss.Perceptual(Two()))(one, zero).item() == 5.0
    assert on_device(loss.Perceptual(Two(), weights=[1.0, 0.5]))(one, zero).item() == 3.0
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


def test_perceptual_by_default_sees_greys_as_vgg_does(monkeypatch, on_device):
    from torchvision.models import VGG16_Weights, vgg

    torch.manual_seed(0)
    features = vgg.make_layers(vgg.cfgs["D"])
    state = {f"features.{key}": value for key, value in features.state_dict().items()}
    monkeypatch.setattr(VGG16_Weights, "get_state_dict", lambda weights, **how: state)
    output, target = torch.rand(2, 1, 1, 32, 32) * 2 - 1
    maps = []
    for image in (output, target):
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        x = ((image.expand(1, 3, 32, 32) + 1) / 2 - mean) / std
        maps.append([features[:end](x) for end in (4, 9, 16, 23)])
    wanted = sum((a - b).square().mean().item() for a, b in zip(*maps, strict=True))
    assert on_device(loss.Perceptual())(output, target).item() == pytest.approx(wanted, rel=1e-4)


@pytest.fixture
def squeezenet(monkeypatch, tmp_path):
    """The weights of a trunk where torch keeps those that it has fetched."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(weights=None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return network.features.eval()


def test_lpips_is_the_papers_formula_and_trains_the_output_only(squeezenet, on_device):
    pytest.importorskip("torchmetrics")
    measure = loss.Lpips("squeeze")
    output, target = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    output.requires_grad_()
    found = on_device(measure)(output, target)
    network = measure._network
    linear = [p.cpu() for name, p in network.named_parameters() if name.startswith("lin")]
    assert all((weight != 0).any() for weight in linear[:7])  # those that the package brings
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    wanted = torch.zeros(2)
    for end, weight in zip((2, 5, 8, 10, 11, 12, 13), linear, strict=False):
        a, b = (F.normalize(squeezenet[:end]((image - mean) / std), dim=1, eps=1e-8) for image in (output, target))
        wanted += ((a - b).square() * weight).sum(1).mean((1, 2))
    assert found.item() == pytest.approx(wanted.mean().item(), rel=1e-4)
    found.backward()
    assert output.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in measure.parameters())
    grey = output.detach()[:, :1]
    assert measure(grey, target[:, :1]).item() == pytest.approx(
        measure(grey.repeat(1, 3, 1, 1), target[:, :1].repeat(1, 3, 1, 1)).item()
    )
    assert measure.train()(grey, grey).item() == 0


def test_lpips_waits_for_nothing_once_its_network_is_there(squeezenet, device, no_sync):
    pytest.importorskip("torchmetrics")
    measure, images = loss.Lpips("squeeze"), torch.rand(2, 2, 3, 32, 32).to(device)
    output, target = images[0].requires_grad_(), images[1]
    measure(output, target)
    with no_sync():
        measure(output, target).backward()
    assert output.grad.abs().sum().item() > 0


def test_lpips_says_what_is_missing(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise URLError("no route to host")

    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"net \('resnet'\) must be one of alex, vgg, squeeze"):
        loss.Lpips("resnet")
    with pytest.raises(ValueError, match=r"output must be \(B, 3, H, W\) or \(B, 1, H, W\), got \(3, 32, 32\)"):
        loss.Lpips()(image[0], image[0])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torchmetrics.image.lpip", None)
        with pytest.raises(ImportError, match=r"Lpips needs torchmetrics: pip install 'ai-train\[metrics\]'"):
            loss.Lpips()(image, image)
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(RuntimeError, match=r"Lpips\('alex'\) needs .*alexnet.*no route to host.*hub/checkpoints"):
        loss.Lpips()(image, image)


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
