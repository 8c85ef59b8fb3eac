"""Numbers that a toy set or an augmentation is made with are looked at there: what is none, or not whole, is named."""

import math

import numpy as np
import pytest

from ai.data import augment, toy

TOYS = [
    toy.moons_dataset,
    toy.circles_dataset,
    toy.swiss_roll_dataset,
    toy.gaussians_dataset,
    toy.checkerboard_dataset,
]
WRONG = {
    "n": [1.5, "3", True, math.nan],
    "seed": [1.5, "3", True, math.nan],
    "mult": ["3", math.nan],
    "noise": ["3", math.nan],
}


@pytest.mark.parametrize("make", TOYS)
def test_a_toy_set_names_what_is_no_number(make):
    for name, values in WRONG.items():
        for value in values:
            with pytest.raises((TypeError, ValueError), match=rf"^{name} must be a (whole )?number, got {value!r}"):
                make(**{"n": 8, name: value})
    assert len(make(np.int64(8), noise=np.float32(0.1), seed=np.uint8(3))) == 8


def test_modes_are_counted():
    with pytest.raises(TypeError, match=r"n_modes must be a whole number, got 1\.5"):
        toy.gaussians_dataset(8, n_modes=1.5)


@pytest.mark.parametrize(("make", "name"), [(augment.crop, "padding"), (augment.cutout, "size")])
def test_pixels_are_whole(make, name):
    for value in (1.5, "3", True, math.nan):
        with pytest.raises(TypeError, match=rf"{name} must be a whole number, got {value!r}"):
            make(value)
    make(np.int64(2))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_change_by_numbers(name):
    with pytest.raises(TypeError, match=rf"{name} must be a number, got '3'"):
        augment.color(**{name: "3"})
