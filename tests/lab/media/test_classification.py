import numpy as np
import pytest
import torch

from ai.lab import Confusion, PrecisionRecall, Trial

metrics = pytest.importorskip("sklearn.metrics")


def test_a_confusion_matrix_is_scikit_learns():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    told = Confusion(torch.from_numpy(truth), predicted.tolist(), names=list("abcd")).to_json()
    assert told["counts"] == metrics.confusion_matrix(truth, predicted).tolist()
    assert told["names"] == list("abcd")


def test_a_class_that_never_came_has_a_row_of_zeros():
    assert Confusion([0, 2], [2, 2]).to_json()["counts"] == [[0, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert Confusion([], []).to_json()["counts"] == []


@pytest.mark.parametrize("decimals", [1, 8])  # scores that tie, and scores that do not
def test_precision_and_recall_are_scikit_learns(decimals):
    rng = np.random.default_rng(1)
    truth, scores = rng.integers(0, 2, 300), rng.random(300).round(decimals)
    (curve,) = PrecisionRecall(truth, torch.tensor(scores)).to_json()["curves"]
    precision, recall, _ = metrics.precision_recall_curve(truth, scores)
    assert curve["area"] == pytest.approx(metrics.average_precision_score(truth, scores), abs=1e-12)
    np.testing.assert_allclose(curve["x"], recall[::-1])
    np.testing.assert_allclose(curve["y"], precision[::-1])


def test_scores_of_half_precision_are_those_of_their_values():
    scores = torch.tensor([0.5, 0.25], dtype=torch.bfloat16, requires_grad=True)
    assert PrecisionRecall(np.array([True, False]), scores).to_json()["curves"][0]["area"] == 1.0


def test_each_class_has_a_curve_and_a_long_one_is_thinned_not_its_area():
    rng = np.random.default_rng(2)
    truth, scores = rng.integers(0, 3, 5000), rng.random((5000, 4))
    told = PrecisionRecall(truth, scores).to_json()
    assert [curve["name"] for curve in told["curves"]] == ["0", "1", "2", "3"]
    for k, curve in enumerate(told["curves"][:3]):
        assert len(curve["x"]) <= 501
        assert curve["x"][-1] == 1
        assert curve["area"] == pytest.approx(metrics.average_precision_score(truth == k, scores[:, k]))
    assert told["curves"][3] == {"name": "3", "x": [], "y": [], "area": None}  # no example is of it


@pytest.mark.parametrize(("make", "kind", "said"), [
    (lambda: Confusion([0], [0, 1]), ValueError, "must have one length, got 1 and 2"),
    (lambda: Confusion([0.5], [0]), TypeError, "truth must be whole numbers, got float64"),
    (lambda: Confusion([-1], [0]), ValueError, "truth must be at least 0, got -1"),
    (lambda: Confusion([0], [3], names=["a", "b"]), ValueError, "classes must be below 2, got 3"),
    (lambda: Confusion([10**9], [0]), ValueError, "classes must be below 200, got 1000000000"),
    (lambda: PrecisionRecall([1, 0], [0.5]), ValueError, r"scores must be \(2,\) or \(2, classes\)"),
    (lambda: PrecisionRecall([1], [np.nan]), ValueError, "scores must be finite"),
    (lambda: PrecisionRecall([2], [0.5]), ValueError, "truth must be below 2"),
    (lambda: PrecisionRecall([0], [[0.5, 0.5]], names=["a"]), ValueError, "names must be 2, got 1"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_and_nothing_is_kept(tmp_path, make, kind, said):
    with Trial(tmp_path / "t", system_interval_s=None, capture=False) as trial:
        with pytest.raises(kind, match=said):
            trial.keep(1, "x", make())
    assert trial.record.media() == {}
