import copy

import pytest
import torch
from torch import nn

from ai.train import Hook, MultiTrainer, Snapshots, Trainer, opt, snapshot
from ai.train.state.between_runs import fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.uint8])
def test_fingerprint_sees_a_changed_bit_and_a_changed_order(dtype):
    values = (torch.arange(300) % 100 + 1).to(dtype)
    module = nn.ParameterList([nn.Parameter(values.clone(), requires_grad=False)])
    before = fingerprint(module)
    assert fingerprint(copy.deepcopy(module)) == before
    module[0].data[:2] = values[:2].flip(0)
    swapped = fingerprint(module)
    module[0].data.copy_(values)
    assert fingerprint(module) == before != swapped
    module[0].data[7:8].view(torch.uint8)[0] += 1
    assert fingerprint(module) != before


def test_weights_that_were_written_by_way_of_data_are_validated_as_they_are():
    model = nn.Linear(1, 1, bias=False)
    trainer = Trainer(lambda m, b, s: (m(b) - 1).square().sum(), [torch.ones(1, 1)] * 20, ema=0.9)
    trainer.train(model, opt.sgd(model, lr=0.3))
    for param in model.parameters():
        param.data = torch.full_like(param, 4.0)
    assert trainer.validate(model, [torch.ones(1, 1)]) == 9.0
    with pytest.raises(ValueError, match="there is no moving average of these weights"):
        trainer.averaged(model).__enter__()


def test_a_restored_model_is_validated_with_its_average(net, batches, tmp_path):
    def env(model, batch, step):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    seen, model = {}, net()
    hook = Hook(val_data=batches(2), log=lambda step, found: seen.update(found), snapshots=Snapshots(tmp_path))
    Trainer(env, batches(8), ema=0.9).train(model, opt.sgd(model, lr=0.5), hook)
    model = net()
    snapshot.restore(tmp_path, model, opt.sgd(model))
    assert Trainer(env, [], ema=0.9).validate(model, batches(2)) == seen["val_loss"]
    model.load_state_dict(net().state_dict())
    assert Trainer(env, [], ema=0.9).validate(model, batches(2)) == Trainer(env, []).validate(net(), batches(2))


def test_validation_asks_for_the_trained_models_alone():
    models = {"student": nn.Linear(1, 1), "teacher": nn.Linear(1, 1)}
    asked = []

    def env(key, models, batch, step):
        asked.append(key)
        return (models["student"](batch) - models["teacher"](batch)).square().mean()

    trainer = MultiTrainer(env, [torch.ones(1, 1)])
    assert sorted(trainer.validate(models, [torch.ones(1, 1)])) == ["student", "teacher"]  # nobody knows yet
    trainer.train(models, {"student": opt.sgd(models["student"])})
    asked.clear()
    assert list(trainer.validate(models, [torch.ones(1, 1)])) == ["student"]
    assert asked == ["student"]
