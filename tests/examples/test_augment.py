import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch

from ai.examples import augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, side: int = 16) -> torch.Tensor:
    return torch.rand(n, 2, side, side, generator=generator(9))


EVERY = {
    "affine": lambda x, g: augment.random_affine(x, g),
    "crop and flip": lambda x, g: augment.random_crop_flip(x, g),
    "erase": lambda x, g: augment.random_erase(x, g, probability=0.9),
    "mixup": lambda x, g: augment.mixup(x, torch.eye(len(x)), g)[0],
    "cutmix": lambda x, g: augment.cutmix(x, torch.eye(len(x)), g)[0],
}


@pytest.mark.parametrize("name", EVERY)
def test_the_generator_alone_decides(name):
    state = torch.random.get_rng_state()
    a, b, c = (EVERY[name](images(), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == images().shape
    assert torch.equal(torch.random.get_rng_state(), state), "drew from the global generator"


def test_a_quarter_turn_and_a_shift_are_exact(monkeypatch):
    draws = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])  # turn the first, shift the second
    x = images(2)
    monkeypatch.setattr(torch, "rand", lambda *shape, **kw: (draws + 1) / 2)
    y = augment.random_affine(x, generator(), degrees=90, shift=2 / 16, scale=0)
    turned = torch.from_numpy(np.rot90(x[0].numpy(), axes=(1, 2)).copy())
    assert torch.allclose(y[0], turned, atol=1e-5)
    assert torch.allclose(y[1, :, :, :-2], x[1, :, :, 2:], atol=1e-5)


def test_an_affine_change_agrees_with_scipy(monkeypatch):
    draws = torch.tensor([[0.5], [0.7], [0.3], [-0.4]])
    x = torch.from_numpy(scipy.ndimage.gaussian_filter(images(1)[0, 0].numpy(), 1.5))
    monkeypatch.setattr(torch, "rand", lambda *shape, **kw: (draws + 1) / 2)
    ours = augment.random_affine(x[None, None], generator(), degrees=10, shift=0.08, scale=0.1)[0, 0]
    angle, size, side = math.radians(5), 1.07, 16
    matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / size  # (row, column)
    centre = np.full(2, (side - 1) / 2)
    offset = centre - matrix @ centre + np.array([0.08 * -0.4, 0.08 * 0.3]) * side
    theirs = scipy.ndimage.affine_transform(x.numpy(), matrix, offset, order=1, mode="nearest")
    assert torch.allclose(ours, torch.from_numpy(theirs), atol=1e-4)


def test_crops_are_windows_of_the_padded_image_half_of_them_mirrored():
    x = images(200, 8)
    y = augment.random_crop_flip(x, generator(), padding=2)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    mirrored, places = 0, set()
    for image, whole in zip(y, padded, strict=True):
        found = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if torch.equal(
                whole[:, top : top + 8, left : left + 8].flip(-1) if flip else whole[:, top : top + 8, left : left + 8],
                image,
            )
        ]
        assert len(found) == 1
        mirrored += found[0][2]
        places.add(found[0][:2])
    assert 70 < mirrored < 130
    assert len(places) == 25


def test_erased_boxes_have_their_share_of_images_and_area():
    x = torch.zeros(2000, 3, 32, 32)
    erased = augment.random_erase(x, generator())
    boxes = (erased != 0).any(1)
    share = boxes.float().mean((1, 2))
    assert (share > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert share.max() <= 1 / 3 + 0.05
    for box in boxes[share > 0][:50]:
        rows, columns = torch.nonzero(box, as_tuple=True)
        assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    noise = erased[:, :, :][boxes[:, None].expand_as(erased)]
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(augment.random_erase(x, generator(), probability=0), x)


def test_mixup_mixes_images_and_labels_in_one_ratio():
    x, y = images(), torch.eye(6)
    mixed, labels = augment.mixup(x, y, generator(3))
    ratio = labels[0, 0]
    assert 0 < ratio < 1
    assert torch.allclose(mixed, ratio * x + (1 - ratio) * x.flip(0))
    assert torch.allclose(labels.sum(1), torch.ones(6))


def test_cutmix_labels_follow_the_area_that_was_replaced():
    x = torch.arange(6.0)[:, None, None, None].expand(6, 1, 16, 16)
    shares = []
    for seed in range(50):
        mixed, labels = augment.cutmix(x, torch.eye(6), generator(seed))
        replaced = (mixed[0] == 5).float().mean()
        assert torch.isclose(labels[0, 5], replaced)
        assert torch.isclose(labels[0, 0], 1 - replaced)
        rows, columns = torch.nonzero(mixed[0, 0] == 5, as_tuple=True)
        if len(rows):  # what is replaced is one whole box
            assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        shares.append(replaced.item())
    assert max(shares) > 0.5
    assert min(shares) < 0.1


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_ratios_follow_the_beta_distribution(alpha):
    g = generator(1)
    draws = [augment._beta(alpha, g, torch.device("cpu")).item() for _ in range(1000)]
    assert scipy.stats.kstest(draws, scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.01
