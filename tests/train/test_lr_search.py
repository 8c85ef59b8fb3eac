import pytest

from ai.train.lr_search import LrCurve


def test_plot_shows_the_fall_and_marks_the_suggestion_however_far_the_loss_diverges(tmp_path):
    curve = LrCurve([1e-3, 1e-2, 1e-1, 1.0, 10.0], [2.0, 1.8, 1.0, 1.4, 500.0], 0.03)
    (axes,) = curve.plot(str(tmp_path / "curve.png")).axes
    line, mark = axes.get_lines()
    assert list(line.get_ydata()) == curve.losses
    assert set(mark.get_xdata()) == {0.03}
    assert axes.get_xscale() == "log"
    assert axes.get_ylim() == pytest.approx((0.9, 2.4))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
