import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from ai.examples import augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, side: int = 16) -> torch.Tensor:
    return torch.rand(n, 2, side, side, generator=generator(9))


EVERY = {"affine": augment.affine(), "erase": augment.erase(0.9)}


@pytest.mark.parametrize("name", EVERY)
def test_the_generator_alone_decides(name):
    state = torch.random.get_rng_state()
    a, b, c = (EVERY[name](images(), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == images().shape
    assert torch.equal(torch.random.get_rng_state(), state), "drew from the global generator"


def test_a_quarter_turn_and_a_shift_are_exact(monkeypatch):
    draws = torch.tensor(
        [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    )  # turn the first, shift the second
    x = images(2)
    monkeypatch.setattr(torch, "rand", lambda *shape, **kw: (draws + 1) / 2)
    y = augment.affine(90, 2 / 16, 0)(x, generator())
    turned = torch.from_numpy(np.rot90(x[0].numpy(), axes=(1, 2)).copy())
    assert torch.allclose(y[0], turned, atol=1e-5)
    assert torch.allclose(y[1, :, :, :-2], x[1, :, :, 2:], atol=1e-5)


def test_an_affine_change_agrees_with_scipy(monkeypatch):
    draws = torch.tensor([[0.5], [0.7], [0.3], [-0.4], [0.6]])
    x = torch.from_numpy(scipy.ndimage.gaussian_filter(images(1)[0, 0].numpy(), 1.5))
    monkeypatch.setattr(torch, "rand", lambda *shape, **kw: (draws + 1) / 2)
    ours = augment.affine(10, 0.08, 0.1, 0.2)(x[None, None], generator())[0, 0]
    angle, size, side = math.radians(5), 1.07, 16
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])  # (row, column)
    matrix = turn @ np.array([[1, 0], [0.12, 1]]) / size
    centre = np.full(2, (side - 1) / 2)
    offset = centre - matrix @ centre + np.array([0.08 * -0.4, 0.08 * 0.3]) * side
    theirs = scipy.ndimage.affine_transform(x.numpy(), matrix, offset, order=1, mode="nearest")
    assert torch.allclose(ours, torch.from_numpy(theirs), atol=1e-4)


def test_erased_boxes_have_their_share_of_images_and_area(on_device):
    x = torch.zeros(2000, 3, 32, 32)
    erased = on_device(augment.erase())(x, generator())
    boxes = (erased != 0).any(1)
    share = boxes.float().mean((1, 2))
    assert (share > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert share.max() <= 1 / 3 + 0.05
    for box in boxes[share > 0][:50]:
        rows, columns = torch.nonzero(box, as_tuple=True)
        assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    noise = erased[:, :, :][boxes[:, None].expand_as(erased)]
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(on_device(augment.erase(0))(x, generator()), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: augment.affine(-1), "must be at least 0, and scale below 1, got -1, 0.08, 0.1, 0.0"),
        (lambda: augment.affine(scale=1), "got 10, 0.08, 1, 0.0"),
        (lambda: augment.erase(1.5), r"p must lie in \[0, 1\], got 1.5"),
    ],
)
def test_bad_amounts_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
