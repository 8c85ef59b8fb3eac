"""Every number that a public callable takes is looked at there: what is none, or not whole, is named."""

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import ai.train
from ai.data import Dataset
from ai.train import opt, schedule
from ai.train.ema import Ema

# What else a callable needs to be called; it is called with a wrong number alone, which must be found before anything.
_NEEDED: dict[str, dict[str, Any]] = {
    "Distill": {"teacher": nn.Linear(1, 1)},
    "Ema": {"model": nn.Linear(1, 1)},
    "Gan": {"n_latent": 2},
    "Snapshots": {"folder": "never-made"},
    "Support": {"size": 3},
    "cosine": {"steps": 10},
    "find_lr": {"env": print, "data": [], "model": nn.Linear(1, 1), "opt": None},
    "linear": {"steps": 10},
    "one_cycle": {"steps": 10},
    "plan": {"model": nn.Linear(1, 1), "parallel": "ddp", "world": 2},
    "profile": {"trainer": None, "model": nn.Linear(1, 1), "opt": None},
    "steps": {"milestones": [1]},
    "clip": {"optimizer": opt.sgd(nn.Linear(1, 1))},
    "warm_up": {"steps": 10, "then": schedule.constant()},
    "wsd": {"steps": 10, "warmup": 1, "decay": 1},
    **{name: {"model": nn.Sequential(nn.Linear(2, 2))} for name in opt.FACTORIES},
}
# Options are looked at as options, and what is logged may be NaN; the rest takes no numbers.
_PASSED_OVER = {"Run", "Trainer", "MultiTrainer", "RLTrainer", "TrainOptions", "NonFiniteError", "StopTraining", "log"}


def _public() -> Iterator[Callable[..., Any]]:
    for home, names in (
        (ai.train, ai.train.__all__),
        (opt, opt.__all__),
        (schedule, [name for name, found in vars(schedule).items() if inspect.isfunction(found)]),
    ):
        for name in names:
            found = getattr(home, name)
            ours = getattr(found, "__module__", "").startswith("ai.train")
            if ours and not name.startswith("_") and name not in _PASSED_OVER and not isinstance(found, dict):
                yield found
    yield Ema


def _wrong(hint: Any) -> list[Any]:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds:
        return ["3", math.nan]
    return [1.5, "3", True] if int in kinds and str not in kinds else []


_DOORS = {
    f"{door.__qualname__}({parameter.name})": (door, parameter.name, wrong)
    for door in _public()
    for parameter in inspect.signature(door).parameters.values()
    if (wrong := _wrong(parameter.annotation))
}


@pytest.mark.parametrize("case", _DOORS)
def test_what_is_no_number_is_named_at_the_door(case):
    door, name, wrong = _DOORS[case]
    for value in wrong:
        with pytest.raises(
            (TypeError, ValueError), match=rf"{name}.* must be a (whole )?number( or None)?, got {value!r}"
        ):
            door(**{**_NEEDED.get(door.__name__, {}), name: value})


def test_the_doors_are_many():
    assert len(_DOORS) > 60


class Net(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 3)


_NET = Net()
_TRAINER = ai.train.Trainer(ai.train.Classify(), [])
_MULTI = ai.train.MultiTrainer(print, [])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: opt.adamw(Net), "model"),
        (lambda: opt.clip(torch.optim.SGD, 1.0), "optimizer"),
        (lambda: ai.train.Trainer(ai.train.Classify, []), "env"),
        (lambda: ai.train.Trainer(ai.train.Classify(), Dataset), "data"),
        (lambda: _TRAINER.train(Net, opt.sgd(_NET)), "'model'"),
        (lambda: _TRAINER.train(_NET, torch.optim.SGD), "the optimizer of 'model'"),
        (lambda: _TRAINER.train(_NET, opt.sgd(_NET), ai.train.Hook), "hook"),
        (lambda: _TRAINER.train(_NET, opt.sgd(_NET), [ai.train.Hook]), "hook"),
        (lambda: _TRAINER.validate(Net, []), "'model'"),
        (lambda: _TRAINER.validate(_NET, Dataset), "the data to validate on"),
        (lambda: _TRAINER.averaged(Net).__enter__(), "'model'"),
        (lambda: _MULTI.validate({"a": Net}, []), "'a'"),
        (lambda: _MULTI.train({"a": _NET}, {"a": torch.optim.SGD}), "the optimizer of 'a'"),
        (lambda: ai.train.plan(Net, "ddp", 2), "model"),
        (lambda: ai.train.find_lr(print, [], Net, opt.sgd(_NET)), "'model'"),
        (lambda: Ema(Net), "model"),
        (lambda: ai.train.Hook(val_data=Dataset), "val_data"),
        (lambda: ai.train.Hook(snapshots=ai.train.Snapshots), "snapshots"),
        (lambda: ai.train.Hook(stopper=ai.train.EarlyStopping, val_data=[1]), "stopper"),
        (lambda: ai.train.Hook(stateful=[Dataset]), r"stateful\[0\]"),
        (lambda: ai.train.Hook(task=Dataset), "task"),
        (lambda: ai.train.Hook(log=Dataset), "log"),
        (lambda: ai.train.Hook(sampler=Dataset, sample=print), "sampler"),
        (lambda: ai.train.Hook(sampler=print, sample=Dataset), "sample"),
        (lambda: opt.muon(Net), "model"),
        (lambda: opt.together(torch.optim.SGD), r"optimizers\[0\]"),
        (lambda: ai.train.profile(ai.train.Trainer, _NET, opt.sgd(_NET)), "trainer"),
        (lambda: ai.train.profile(_TRAINER, Net, opt.sgd(_NET)), "'model'"),
        (lambda: ai.train.profile(_TRAINER, _NET, torch.optim.SGD), "the optimizer of 'model'"),
        (lambda: ai.train.Classify(metrics={"f1": Dataset}), r"metrics\['f1'\]"),
        (lambda: _TRAINER.train(_NET, opt.sgd(_NET), schedule=torch.optim.lr_scheduler.StepLR), "schedule"),
    ],
)
def test_a_class_in_place_of_its_instance_is_named(call, named):
    with pytest.raises(TypeError, match=rf"^{named} must be an instance: (\w+)\(.*\), not the class \1$"):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _MULTI.train(_NET, {}), "models must be a dict by name, not Net"),
        (lambda: _MULTI.train({"a": _NET}, opt.sgd(_NET)), "opts must be a dict by name, not SGD"),
        (lambda: _MULTI.validate(_NET, []), "models must be a dict by name, not Net"),
        (lambda: _MULTI.averaged(_NET), "models must be a dict by name, not Net"),
        (lambda: _TRAINER.validate("net", []), "'model' must be a torch.nn.Module, not str"),
        (lambda: ai.train.Hook(snapshots="runs"), r"snapshots must be a Snapshots, such as .*, not str"),
        (lambda: ai.train.Hook(task=3), "task must be callable, not int"),
        (lambda: ai.train.profile(_NET, _NET, opt.sgd(_NET)), "trainer must be a Trainer, not Net"),
        (lambda: ai.train.Classify(metrics=[1]), "metrics must be a dict by name, not list"),
        (
            lambda: ai.train.Classify(metrics={"f1": 3}),
            r"metrics\['f1'\] must have reset, update and compute, and a int lacks reset",
        ),
        (
            lambda: _TRAINER.train(_NET, opt.sgd(_NET), schedule=0.5),
            r"schedule must be a function of the step, such as schedule.cosine\(1000\), not float",
        ),
        (
            lambda: _MULTI.train({"a": _NET}, {"a": opt.sgd(_NET)}, schedule=schedule.cosine),
            r"schedule must be what schedule.cosine\(...\) returns, not schedule.cosine itself",
        ),
        (lambda: schedule.warm_up(9, schedule.constant), r"then must be what schedule.constant\(...\) returns, .*"),
        (lambda: schedule.sequence((9, schedule.linear)), "schedule 0 of sequence must be what schedule.linear.*"),
        (lambda: opt.sgd(_NET, groups=opt.no_decay), "groups must be a rule .*, not no_decay itself"),
        (lambda: opt.sgd(_NET, groups=[]), "groups must be a rule .*, not list"),
        *(
            (lambda given=given: opt.adam(given), f"model must be .* or an iterable of parameters, not {name}")
            for given, name in [(None, "NoneType"), (1e-2, "float"), ("net", "str"), (_TRAINER, "Trainer")]
        ),
        (lambda: opt.sgd(Dataset({"x": [1]})), "model must be .* or an iterable of parameters, not Dataset"),
        (lambda: opt.sgd([1.0]), "model must be .* or an iterable of parameters, not list of float"),
        (lambda: opt.adam(Dataset({"x": [1]}).loader(1)), "model must be .* of parameters, not DataLoader of dict"),
        (lambda: opt.sgd(_NET.weight), "model must be .* or an iterable of parameters, not Parameter"),
        (lambda: opt.build(_NET, "sgd"), "config must be an optimizer's name or a dict with it, not Net"),
        (lambda: ai.train.MultiTrainer(print, [], repeats=2), "repeats must be a dict by model name, not int"),
        (lambda: ai.train.Classify(top_k=5), r"top_k must be a sequence of whole numbers, such as \(5,\), not 5"),
        (lambda: ai.train.Classify(top_k=["5"]), r"top_k\[0\] must be a whole number, got '5'"),
        (lambda: ai.train.EarlyStopping(5), "key must be a metric's name, not 5"),
        (
            lambda: ai.train.snapshot.restore("nowhere", opt.sgd(_NET), _NET),
            r"'model' is given an optimizer \(SGD\) for its model: the model comes first",
        ),
    ],
)
def test_another_kind_of_thing_is_named(call, message):
    with pytest.raises(TypeError, match=rf"^{message}$"):
        call()


@pytest.mark.parametrize("make", [opt.adam, opt.sgd])
def test_groups_of_generators_and_named_parameters_keep_all_their_parameters(make):
    groups = [{"params": _NET.parameters(), "lr": 0.5}, {"params": iter([*torch.nn.Linear(1, 1).parameters()])}]
    made = make(iter(groups), lr=0.25).param_groups
    assert [(len(group["params"]), group["lr"]) for group in made] == [(len([*_NET.parameters()]), 0.5), (2, 0.25)]
    assert [len(group["params"]) for group in make(_NET.named_parameters()).param_groups] == [len([*_NET.parameters()])]


def test_what_is_out_of_bounds_is_named():
    with pytest.raises(ValueError, match=r"^timelimit \(-5\) must not be negative$"):
        _TRAINER.train(_NET, opt.sgd(_NET), timelimit=-5)
    with pytest.raises(ValueError, match=r"^top_k\[1\] \(0\) must be at least 1$"):
        ai.train.Classify(top_k=(5, 0))
