import pytest
import torch
from torch import nn

from ai.train import Trainer, find_lr, opt
from ai.train.lr_search import LrCurve


def test_rates_are_swept_as_told_after_a_run_with_a_schedule(net, batches):
    def env(model, batch, step):
        seen.append(max(group["lr"] for group in optimizer.param_groups))
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    seen, model = [], net()
    optimizer = opt.sgd(model, lr=0.1)
    Trainer(env, batches(3)).train(model, optimizer, schedule=lambda step: 0.01)
    assert seen == pytest.approx([0.001] * 3)
    before = [{**group} for group in optimizer.param_groups]
    seen.clear()
    curve = find_lr(env, batches(4), model, optimizer, start=1e-4, end=1e-2, steps=10)
    assert seen == pytest.approx([float(rate) for rate in torch.logspace(-4, -2, 10)])
    assert seen == pytest.approx(curve.lrs)
    assert optimizer.param_groups == before
    fresh = opt.sgd(model, lr=0.1)
    find_lr(env, batches(4), model, fresh, steps=10)
    assert all("initial_lr" not in group for group in fresh.param_groups)  # a rate set by hand must count


def test_plot_shows_the_fall_and_marks_the_suggestion_however_far_the_loss_diverges(tmp_path):
    curve = LrCurve([1e-3, 1e-2, 1e-1, 1.0, 10.0], [2.0, 1.8, 1.0, 1.4, 500.0], 0.03)
    (axes,) = curve.plot(str(tmp_path / "curve.png")).axes
    line, mark = axes.get_lines()
    assert list(line.get_ydata()) == curve.losses
    assert set(mark.get_xdata()) == {0.03}
    assert axes.get_xscale() == "log"
    assert axes.get_ylim() == pytest.approx((0.9, 2.4))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
