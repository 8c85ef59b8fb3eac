"""Metrics over a whole validation: those of all rows together, whatever the batches and the ranks."""

import pickle

import pytest
import torch
from torch import nn
from torchmetrics import (
    AUROC,
    Accuracy,
    ClasswiseWrapper,
    ConfusionMatrix,
    F1Score,
    MaxMetric,
    MetricCollection,
    MultitaskWrapper,
)

from ai.train import Classify, Hook, Trainer, measure, opt
from ai.train.engine.evaluate import evaluate
from ai.train.engine.ranks import Ranks


def rows(n=40):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def metrics():
    return {
        "auroc": AUROC("multiclass", num_classes=3),
        "f1": F1Score("multiclass", num_classes=3, average=None),
        "confusion": ConfusionMatrix("multiclass", num_classes=3),
    }


def by_hand(x, y):
    """F1 of each class and the counts, written out; AUROC of each class as the share of pairs in the right order."""
    said = x.argmax(1)
    counts = {f"confusion_{i}_{j}": float(((y == i) & (said == j)).sum()) for i in range(3) for j in range(3)}
    f1 = {}
    for i in range(3):
        true = counts[f"confusion_{i}_{i}"]
        f1[f"f1_{i}"] = 2 * true / float((said == i).sum() + (y == i).sum())
    areas = []
    for i in range(3):
        score = x.softmax(1)[:, i]
        areas.append((score[y == i][:, None] > score[y != i][None]).float().mean())
    return counts | f1 | {"auroc": float(torch.stack(areas).mean())}


@pytest.mark.parametrize("cuts", [[40], [1, 39], [7, 20, 13]])
def test_metrics_are_those_of_all_rows_together(cuts):
    x, y = rows()
    given = metrics()
    seen = {}
    hook = Hook(val_data=list(zip(x.split(cuts), y.split(cuts), strict=True)), log=lambda _, found: seen.update(found))
    model = nn.Linear(1, 1)
    env = Classify(metrics=given)
    data = [(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))]
    Trainer(lambda m, batch, step: env(nn.Identity(), batch, step) + 0 * m.weight.sum(), data).train(
        model, opt.sgd(model), hook
    )
    wanted = {f"val_{key}": pytest.approx(value, abs=1e-6) for key, value in by_hand(x, y).items()}
    assert {key: seen[key] for key in wanted} == wanted
    assert not given["f1"].update_called  # the user's own is left as it was
    assert not any(key.startswith(("auroc", "f1")) for key in seen)  # nothing of the kind in training


class Exchange(Ranks):
    """One of two ranks, whose exchanges are handed over by the test."""

    world = 2

    def __init__(self, rank, others):
        super().__init__()
        self.rank, self.others = rank, others

    def gather(self, value):
        return [value, *self.others] if self.rank == 0 else [*self.others, value]


def evaluated(x, y, cuts, ranks):
    env = Classify(metrics=metrics())
    batches = list(zip(x.split(cuts), y.split(cuts), strict=True))
    losses = {"loss": lambda batch: env(nn.Identity(), batch, 0)}
    return evaluate(losses, batches, device=torch.device("cpu"), ranks=ranks)


def test_ranks_measure_what_one_process_does_also_where_one_has_no_batch():
    x, y = rows()
    sent = []

    class Sends(Exchange):
        def gather(self, value):
            sent.append(value)
            return [value]

    evaluated(x[25:], y[25:], [15], Sends(1, []))
    found = evaluated(x[:25], y[:25], [20, 5], Exchange(0, sent))
    assert {key: found[key] for key in by_hand(x, y)} == pytest.approx(by_hand(x, y), abs=1e-6)
    alone = evaluated(x, y, [40], Exchange(1, [{}]))
    assert {key: alone[key] for key in by_hand(x, y)} == pytest.approx(by_hand(x, y), abs=1e-6)


def f1():
    return F1Score("multiclass", num_classes=3, average="macro")


def accuracy(**how):
    return Accuracy("multiclass", num_classes=3, **how)


@pytest.mark.parametrize(
    ("make", "form"),
    [
        (lambda: MetricCollection([f1(), accuracy(), ConfusionMatrix("multiclass", num_classes=3)]), None),
        (lambda: MetricCollection({"a": f1(), "b": MetricCollection([accuracy()])}, compute_groups=False), None),
        (lambda: f1() + accuracy(), None),
        (lambda: ClasswiseWrapper(accuracy(average=None)), None),
        (lambda: MultitaskWrapper({"one": f1(), "two": accuracy()}), lambda v: {"one": v, "two": v}),
    ],
    ids=["collection", "nested", "sum", "by class", "by task"],
)
def test_a_metric_that_is_made_of_others_is_that_of_all_ranks_rows(make, form):
    x, y = rows()
    form = form or (lambda v: v)

    def found(rows, cuts, ranks):
        def loss(batch):
            measure("made", make(), form(batch[0]), form(batch[1]))
            return torch.zeros(())

        data = list(zip(x[rows].split(cuts), y[rows].split(cuts), strict=True))
        return evaluate({"loss": loss}, data, device=torch.device("cpu"), ranks=ranks)

    sent = []

    class Sends(Exchange):
        def gather(self, value):
            sent.append(pickle.loads(pickle.dumps(value)))
            return [value]

    found(slice(25, 40), 15, Sends(1, []))
    wanted = found(slice(0, 40), 40, Ranks())
    assert len(wanted) > 1
    assert found(slice(0, 25), 20, Exchange(0, sent)) == pytest.approx(wanted, abs=1e-6)


def test_a_metric_whose_states_do_not_add_up_over_ranks_is_named():
    ranks = Exchange(0, [{"most": MaxMetric()}])
    with pytest.raises(TypeError, match=r"^the metric 'most' \(MaxMetric\) cannot be measured over several ranks"):
        evaluate(
            {"loss": lambda x: (measure("most", MaxMetric(), x), x.mean())[1]},
            [torch.ones(2)],
            device=torch.device("cpu"),
            ranks=ranks,
        )


def test_one_key_is_one_metric():
    x, y = rows()
    trainer, net = Trainer(Classify(metrics={"accuracy": f1()}), []), nn.Identity()
    with pytest.raises(ValueError, match=r"^'accuracy' is logged, and a metric is measured as 'accuracy'"):
        trainer.validate(net, [(x, y)])
    with pytest.raises(ValueError, match=r"^'loss' is logged"):
        Trainer(Classify(metrics={"loss": f1()}), []).validate(net, [(x, y)])

    def env(model, batch, step):
        for metric in (f1(), accuracy()):
            measure("one", metric, *batch)
        return batch[0].mean()

    with pytest.raises(ValueError, match=r"^two metrics are measured as 'one', MulticlassF1Score and Multiclass"):
        Trainer(env, []).validate(net, [(x, y)])


def test_a_metric_that_cannot_be_merged_is_named_where_there_are_ranks():
    class Lone:
        def reset(self):
            self.n = 0

        def update(self, x):
            self.n += len(x)

        def compute(self):
            return self.n

    def loss(x):
        measure("rows", Lone(), x)
        return x.mean()

    data, device = [torch.ones(2), torch.ones(3)], torch.device("cpu")
    assert evaluate({"loss": loss}, data, device=device, ranks=Ranks())["rows"] == 5
    other = Lone()
    other.reset()
    with pytest.raises(TypeError, match=r"the metric 'rows' \(Lone\) needs merge_state\(other\)"):
        evaluate({"loss": loss}, data, device=device, ranks=Exchange(0, [{"rows": other}]))
