import pytest
import torch
from torch import nn

from ai.data import Dataset
from ai.train import RL, Classify, Hook, MultiTrainer, RLTrainer, Trainer, find_lr, opt


class Generator:
    def __iter__(self):
        return iter([])

    def update_params(self, state_dict):
        pass


class Trial:
    def hook(self):
        return Hook()

    def log(self, key, value):
        pass


def test_trial_in_place_of_its_hook_is_named(net, batches):
    model = net().eval()
    message = r"hook must have setup, step, wants_log, log and done, and a Trial lacks setup: pass what Trial.hook\(\)"
    with pytest.raises(TypeError, match=message):
        Trainer(Classify(), batches(1)).train(model, opt.sgd(model), Trial())
    models = {"model": model}
    with pytest.raises(TypeError, match=message):
        MultiTrainer(lambda key, models, batch, step: 0, batches(1)).train(models, {"model": opt.sgd(model)}, Trial())
    with pytest.raises(TypeError, match=message):
        RLTrainer(RL(), Generator()).train(model, opt.sgd(model), Trial())
    with pytest.raises(TypeError, match=r"a function lacks setup, as ai.train.HookInterface has"):
        Trainer(Classify(), batches(1)).train(model, opt.sgd(model), lambda step: None)
    assert not model.training


def test_model_and_optimizer_in_each_others_place_are_named(net, batches):
    model = net()
    trainer = Trainer(Classify(), batches(1))
    with pytest.raises(TypeError, match=r"'model' is given an optimizer \(SGD\) for its model: the model comes first"):
        trainer.train(opt.sgd(model), model)
    with pytest.raises(TypeError, match=r"'model' must be a torch.nn.Module, not function"):
        trainer.train(lambda x: x, opt.sgd(model))
    with pytest.raises(TypeError, match=r"the optimizer of 'model' must be a torch.optim.Optimizer, not float"):
        trainer.train(model, 0.1)


def test_dataset_in_place_of_its_loader_is_named(net):
    model = net()
    dataset = Dataset({"x": torch.randn(4, 6), "y": torch.zeros(4, dtype=torch.uint8)})
    message = r"must yield batches, and a Dataset does not: pass what its loader\(batch_size\) returns"
    for make, env in ((Trainer, Classify()), (MultiTrainer, lambda key, models, batch, step: 0)):
        with pytest.raises(TypeError, match=f"data {message}"):
            make(env, dataset)
    with pytest.raises(TypeError, match=f"the data to validate on {message}"):
        Trainer(Classify(), []).validate(model, dataset)
    with pytest.raises(TypeError, match=f"the data to validate on {message}"):
        Hook(val_data=dataset)
    with pytest.raises(TypeError, match=f"data {message}"):
        find_lr(Classify(), dataset, model, opt.sgd(model))
    with pytest.raises(
        TypeError, match=r"the data to validate on must be .* batches, not a dict: put a single batch into"
    ):
        Trainer(Classify(), []).validate(model, {"x": torch.randn(4, 6)})
    with pytest.raises(TypeError, match="data must be an iterable of batches, not Linear"):
        Trainer(Classify(), nn.Linear(1, 1))
