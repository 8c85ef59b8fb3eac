"""ai.util: what a person sees at a prompt."""

import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ai.util import print_info, save_img_grid, seed_all


def test_float_images_print_as_in_the_readme(capsys):
    x = torch.zeros(100, 1, 28, 28)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = -1, 1
    print_info(x)
    assert capsys.readouterr().out == "shape=[100,1,28,28] bounds=[-1.00,1.00] dtype=float32 device=cpu\n"


def test_integer_labels_print_integer_bounds(capsys):
    print_info(torch.arange(10, dtype=torch.uint8))
    assert capsys.readouterr().out == "shape=[10] bounds=[0,9] dtype=uint8 device=cpu\n"


def test_nested_batch_prints_one_line_an_entry(capsys):
    print_info({"x": torch.zeros(2), "aux": (np.ones((1, 2)), torch.tensor([True, False])), "path": ["a", "b"]})
    assert capsys.readouterr().out.splitlines() == [
        "x: shape=[2] bounds=[0.00,0.00] dtype=float32 device=cpu",
        "aux[0]: shape=[1,2] bounds=[1.00,1.00] dtype=float64 device=cpu",
        "aux[1]: shape=[2] bounds=[0,1] dtype=bool device=cpu",
        "path: ['a', 'b']",
    ]


def test_nan_and_infinity_are_counted_and_left_out_of_the_bounds(capsys):
    print_info(torch.tensor([1.0, float("nan"), float("inf"), -2.0, float("nan")]))
    assert capsys.readouterr().out == "shape=[5] bounds=[-2.00,1.00] dtype=float32 device=cpu nan=2 inf=1\n"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_print_their_bounds(capsys, dtype):
    print_info(torch.tensor([-0.5, 2.0], dtype=dtype))
    name = str(dtype).removeprefix("torch.")
    assert capsys.readouterr().out == f"shape=[2] bounds=[-0.50,2.00] dtype={name} device=cpu\n"


@pytest.mark.parametrize(
    ("x", "line"),
    [
        (torch.tensor([3, 40_000]).to(torch.uint16), "shape=[2] bounds=[3,40000] dtype=uint16 device=cpu"),
        (np.array([2**64 - 1], np.uint64), "shape=[1] bounds=[18446744073709551615,18446744073709551615] dtype=uint64"),
        (np.array([1, -2], ">i4"), "shape=[2] bounds=[-2,1] dtype=>i4"),
        (np.array([0.5], ">f4"), "shape=[1] bounds=[0.50,0.50] dtype=>f4"),
        (torch.eye(2).to_sparse(), "shape=[2,2] bounds=[0.00,1.00] dtype=float32"),
        (np.array(["a"]), "shape=[1] dtype=<U1"),
        (torch.tensor([3 + 4j]), "shape=[1] bounds=[5.00,5.00] dtype=complex64"),
    ],
)
def test_types_without_bounds_of_their_own_in_torch_print_too(capsys, x, line):
    print_info(x)
    assert capsys.readouterr().out.startswith(line)


def test_empty_tensor_prints_empty_bounds(capsys):
    print_info(torch.zeros(0, 3))
    assert capsys.readouterr().out == "shape=[0,3] bounds=[] dtype=float32 device=cpu\n"


def test_grid_places_images_row_by_row(tmp_path):
    images = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 1.0, 0.0)])
    save_img_grid(tmp_path / "new" / "grid.png", images, n_columns=2)
    pixels = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    assert pixels.shape == (4, 4)
    assert pixels[0].tolist() == [0, 0, 255, 255]
    assert pixels[2].tolist() == [128, 128, 0, 0]


def test_grid_keeps_bytes_and_colours(tmp_path):
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    save_img_grid(tmp_path / "grid.png", images, n_columns=2)
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert (pixels[:, :5] == images[0].permute(1, 2, 0).numpy()).all()
    assert (pixels[:, 5:] == images[1].permute(1, 2, 0).numpy()).all()
    mirrored = images.numpy()[..., ::-1]
    mirrored.flags.writeable = False
    save_img_grid(tmp_path / "mirrored.png", mirrored, n_columns=2)
    assert (np.asarray(Image.open(tmp_path / "mirrored.png"))[:, :5] == pixels[:, 4::-1]).all()


def test_grid_refuses_other_shapes(tmp_path):
    with pytest.raises(ValueError, match=r"images must have shape .* got \[2, 5, 4, 4\]"):
        save_img_grid(tmp_path / "grid.png", torch.zeros(2, 5, 4, 4))
    with pytest.raises(ValueError, match="n_columns must be at least 1, got 0"):
        save_img_grid(tmp_path / "grid.png", torch.zeros(2, 1, 4, 4), n_columns=0)


def test_seed_all_repeats_every_global_generator():
    draws = []
    for _ in range(2):
        seed_all(7)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


def test_importing_util_loads_nothing_heavy():
    code = "import ai.util, sys; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


def test_a_seed_of_numpy_is_the_number():
    seed_all(np.int64(7))
    drawn = random.random(), np.random.random(), torch.rand(1).item()
    seed_all(7)
    assert drawn == (random.random(), np.random.random(), torch.rand(1).item())


def test_what_is_no_path_or_no_seed_is_named():
    with pytest.raises(TypeError, match=r"^path must be text or a path of a file, got Tensor: the path comes first$"):
        save_img_grid(torch.zeros(2, 3, 4, 4), "x.png")
    before = random.getstate()
    for seed in ("0", 0.5, None, True, np.zeros(2)):
        with pytest.raises(TypeError, match=rf"^seed must be a whole number, got {re.escape(repr(seed))}$"):
            seed_all(seed)
    assert random.getstate() == before
