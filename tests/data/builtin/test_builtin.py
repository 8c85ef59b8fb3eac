"""Digits and toys against scikit-learn and geometry."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_moons

from ai.data import digits_dataset, toy


def test_digits_are_scikit_learns_in_order():
    ds = digits_dataset()
    raw = load_digits()
    x = next(iter(ds.loader(len(ds))))
    assert x["x"].shape == (1797, 1, 8, 8)
    assert np.abs((x["x"][:, 0].numpy() + 1) * 8 - raw.images).max() < 0.04  # rounded to bytes
    assert (x["y"].numpy() == raw.target).all()
    assert x["y"].dtype == torch.uint8
    train, test = ds.split()
    assert (len(train), len(test)) == (1437, 360)
    assert torch.equal(test.data["x"], ds.data["x"][1437:])


def test_digits_resize_and_refuse_nonsense():
    big = digits_dataset(28)
    assert big[0]["x"].shape == (1, 28, 28)
    assert abs(float(big.data["x"].double().mean() - digits_dataset().data["x"].double().mean())) < 2
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        digits_dataset(0)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"needs scikit-learn, the extra `toy`.*packages/ai-data\[toy\]"):
        digits_dataset()


@pytest.mark.parametrize("n", [10, 11])
def test_moons_equal_scikit_learns(n):
    x, y = make_moons(n, shuffle=False)
    ours = toy.moons_dataset(n, noise=0, mult=2.0)
    rows = np.concatenate([ours.data["x"].numpy() / 2, ours.data["y"].numpy()[:, None]], 1)
    expected = np.concatenate([x, y[:, None]], 1)
    assert np.allclose(rows[np.lexsort(rows.round(6).T)], expected[np.lexsort(expected.round(6).T)], atol=1e-6)


def on_circles(x, y):
    return np.abs(np.linalg.norm(x, axis=1) - np.where(y == 0, 1, 0.5))


def on_roll(x, y):
    radius = np.linalg.norm(x, axis=1)
    angle = radius * 4.5 * np.pi
    return np.linalg.norm(x - np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), axis=1)


def on_modes(x, y):
    return np.linalg.norm(x - np.stack([np.cos(np.pi * y / 4), np.sin(np.pi * y / 4)], 1), axis=1)


def on_board(x, y):
    column, row = np.floor((x + 1) * 2).astype(int).T
    return np.where((column + row) % 2 == 0, 0.0, 1.0) + (np.abs(x).max(1) > 1) + (row != y // 2)


@pytest.mark.parametrize(
    ("make", "distance"),
    [
        (toy.circles_dataset, on_circles),
        (toy.swiss_roll_dataset, on_roll),
        (toy.gaussians_dataset, on_modes),
        (toy.checkerboard_dataset, on_board),
    ],
)
def test_toys_lie_where_their_formula_says(make, distance):
    ds = make(400, noise=0.0)
    x, y = ds.data["x"].numpy().astype(float), ds.data["y"].numpy().astype(int)
    assert distance(x, y).max() < 1e-5
    assert np.bincount(y).min() > 0.8 * len(y) / (y.max() + 1)
    noisy = make(4000, noise=0.1)
    clean = make(4000, noise=0.0)
    assert float((noisy.data["x"] - clean.data["x"]).std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("make", [getattr(toy, name) for name in dir(toy) if name.endswith("_dataset")])
def test_toys_are_seeded_scaled_and_may_go_unlabelled(make):
    a, b, c = make(50), make(50), make(50, seed=1)
    assert torch.equal(a.data["x"], b.data["x"])
    assert not torch.equal(a.data["x"], c.data["x"])
    assert torch.allclose(make(50, mult=3.0).data["x"], a.data["x"] * 3)
    assert set(make(50, include_labels=False).data) == {"x"}
    assert a.data["x"].dtype == torch.float32
    assert a.data["y"].dtype == torch.uint8
    with pytest.raises(ValueError, match="noise must be at least 0 and finite, got -1"):
        make(50, noise=-1)


def test_bad_toys_are_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        toy.moons_dataset(0)
    with pytest.raises(ValueError, match=r"n_modes must lie in \[1, 256\], got 0"):
        toy.gaussians_dataset(n_modes=0)
