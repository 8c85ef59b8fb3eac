import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ai.examples.figures import grid, interpolate, save_animation, save_attention, save_grid


def images(n: int, channels: int = 3, side: int = 8) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_grid_places_images_row_by_row_and_scales_pixels():
    x = torch.stack([torch.full((1, 2, 3), value) for value in (-1.0, 0.0, 1.0)])
    page = grid(x, columns=2, scale=2)
    assert page.shape == (2 + 2 * (4 + 2), 2 + 2 * (6 + 2), 3)
    assert (page[2:6, 2:8] == 0).all()
    assert (page[2:6, 10:16] == 128).all()
    assert (page[8:12, 2:8] == 255).all()
    assert (page[:2] == 255).all()
    assert (page[:, 8:10] == 255).all()


def test_a_saved_grid_holds_the_pixels(tmp_path):
    save_grid(tmp_path / "page.png", images(5), columns=3)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "page.png")), grid(images(5), columns=3))


def test_values_outside_the_range_are_clamped_not_wrapped():
    page = grid(torch.tensor([-9.0, 9.0]).reshape(2, 1, 1, 1), value_range=(0, 1), columns=2)
    assert (page[2, 2] == 0).all()
    assert (page[2, 5] == 255).all()


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (images(2, 2), {}, r"images must be \(n, 1 or 3, height, width\) with n > 0, got shape \(2, 2, 8, 8\)"),
        (images(2)[:0], {}, "n > 0"),
        (images(2), {"columns": 0}, "columns and scale must be at least 1, got 0 and 1"),
    ],
)
def test_grid_refuses(x, options, message):
    with pytest.raises(ValueError, match=message):
        grid(x, **options)


def test_a_path_through_points_hits_each_and_closes():
    points = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 4.0]])
    path = interpolate(points, 4)
    assert torch.equal(path[::4], points)
    assert torch.equal(path[10], torch.tensor([1.0, 2.0]))  # half-way home
    assert torch.equal(interpolate(points, 4, closed=False)[-1], points[-1])


def test_spherical_paths_keep_the_length_and_the_pace():
    points = torch.randn(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = 8 * points / points.norm(dim=1, keepdim=True)
    path = interpolate(points, 10, spherical=True)
    assert torch.allclose(path.norm(dim=1), torch.tensor(8.0).double())
    steps = (path[1:11] - path[:10]).norm(dim=1)
    assert torch.allclose(steps, steps[0].expand(10))


def test_antiparallel_points_have_a_path_without_nan():
    assert interpolate(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 4, spherical=True).isfinite().all()


@pytest.mark.parametrize(("n", "between"), [(1, 3), (2, 0)])
def test_interpolate_refuses(n, between):
    with pytest.raises(ValueError, match=f"at least 2 points and n_between of at least 1, got {n} and {between}"):
        interpolate(torch.zeros(n, 2), between)


def frames() -> list[np.ndarray]:
    return [grid(x[None], scale=2) for x in images(6, side=9)]


def test_a_gif_holds_every_frame_and_loops(tmp_path):
    save_animation(tmp_path / "a.gif", frames(), fps=10)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (6, 0, 100)
        assert gif.size == (22, 22)


def test_an_mp4_holds_every_frame_with_even_sides(tmp_path):
    av = pytest.importorskip("av")
    odd = [frame[:-1, :-1] for frame in frames()]
    save_animation(tmp_path / "a.mp4", odd, fps=10)
    with av.open(str(tmp_path / "a.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in shown] == [(22, 22, 3)] * 6
    assert np.abs(shown[0][:21, :21].mean() - odd[0].mean()) < 5


@pytest.mark.parametrize(
    ("name", "pages", "fps", "message"),
    [
        ("a.avi", frames(), 10, r"path must end in \.gif or \.mp4, got .*a\.avi"),
        ("a.gif", [], 10, "at least 1 frame and 1 to 50 frames a second, got 0 and 10"),
        ("a.gif", frames(), 60, "got 6 and 60"),
    ],
)
def test_animations_refuse(tmp_path, name, pages, fps, message):
    with pytest.raises(ValueError, match=message):
        save_animation(tmp_path / name, pages, fps=fps)
    assert not list(tmp_path.iterdir())


def test_an_mp4_without_pyav_says_what_to_install(tmp_path, monkeypatch):
    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name == "av":
                raise ModuleNotFoundError("No module named 'av'", name="av")

    monkeypatch.delitem(sys.modules, "av", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Blocked(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match=r"MP4 needs PyAV: .*'examples\[video\]'"):
        save_animation(tmp_path / "a.mp4", frames())


def test_attention_maps_are_drawn_over_their_images(tmp_path):
    save_attention(tmp_path / "a.png", images(9, 1), torch.rand(9, 4, 4), [str(i) for i in range(9)], title="maps")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="must be equally many, at least one, got 9, 8, 9"):
        save_attention(tmp_path / "b.png", images(9, 1), torch.rand(8, 4, 4), ["a"] * 9)
