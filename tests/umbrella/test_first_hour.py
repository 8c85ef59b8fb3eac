"""The slips of the first hour get one sentence with argument, rule and value, before anything is changed."""

import copy
import functools
import inspect
import pickle
import re

import numpy as np
import pytest
import torch

import ai
import ai.model as m
from ai.game import CartPole, GameEnvironments, Rollouts
from ai.infer import Inferencer, NodeInferencer


def dataset():
    return ai.data.Dataset({"x": torch.zeros(8, 4), "y": torch.zeros(8, dtype=torch.uint8)})


def model():
    return m.fc(4, 2)


class Lab:
    """Stands for a trial, which makes a hook."""

    def hook(self):
        """Returns nothing."""


def train(opt=None, **how):
    net = model()
    trainer = ai.Trainer(ai.train.Classify(), dataset().loader(4, train=True))
    return trainer.train(net, opt or ai.opt.sgd(net), **{"steplimit": 1, **how})


SLIPS = [
    (lambda: train(steplimit="10"), r"steplimit must be a whole number or None, got '10'"),
    (lambda: train(steplimit=2.5), r"steplimit must be a whole number or None, got 2.5"),
    (lambda: train(steplimit=True), r"steplimit must be a whole number or None, got True"),
    (lambda: train(timelimit="1"), r"timelimit must be a number or None, got '1'"),
    (lambda: train(hook=ai.train.Hook), r"hook must be an instance: Hook\(...\), not the class Hook"),
    (lambda: ai.Trainer(ai.train.Classify(), [], accumulate="2"), r"accumulate must be a whole number, got '2'"),
    (lambda: ai.Trainer(ai.train.Classify, []), r"env must be an instance: Classify\(\), not the class Classify"),
    (lambda: ai.opt.sgd(model(), lr="1e-3"), r"lr must be a number, got '1e-3'"),
    (lambda: ai.opt.adamw(model(), weight_decay="0.1"), r"weight_decay must be a number, got '0.1'"),
    (lambda: ai.opt.sgd(model(), clip_norm="1"), r"clip_norm must be a number or None, got '1'"),
    (lambda: dataset().loader(4.0), r"batch_size must be a whole number, got 4.0"),
    (lambda: dataset().loader("4"), r"batch_size must be a whole number, got '4'"),
    (lambda: dataset().length("4"), r"batch_size must be a whole number, got '4'"),
    (lambda: dataset().loader(4, n_workers="2"), r"n_workers must be a whole number or None, got '2'"),
    (lambda: dataset().loader(4, timeout_s="5"), r"timeout_s must be a number or None, got '5'"),
    (lambda: Inferencer(model(), 64), r"device must be a device or several, got 64: batch_size comes after it"),
    (lambda: NodeInferencer(model(), 64), r"device must be a device or several, got 64: batch_size comes after it"),
    (lambda: ai.opt.adam(model(), betas=0.9), r"betas must be a tuple of numbers, such as \(0.9, 0.999\), got 0.9"),
    (lambda: ai.opt.adam(model(), betas=(0.9, "1")), r"betas\[1\] must be a number, got '1'"),
    (lambda: Rollouts(GameEnvironments(CartPole(), 2), None), r"model must be callable with observations, .* got None"),
    (lambda: m.fc("4", 2), r"n1 must be a whole number, got '4'"),
    (lambda: m.fc(4, 2.0), r"n2 must be a whole number, got 2.0"),
    (lambda: m.conv(3, 8, 3.0), r"k must be a whole number, got 3.0"),
    (lambda: m.seq([m.flatten(), m.fc(4, 2)]), r"seq takes modules one by one, m.seq\(a, b\), not a list of them"),
    (lambda: train(step=None), r"step must be a whole number, got None"),
    (lambda: ai.opt.sgd(model(), lr=None), r"lr must be a number, got None"),
    (
        lambda: ai.Trainer(model(), []),
        r"env must be .* and Linear takes \(input\): the model goes to train\(model, opt\)",
    ),
    (
        lambda: dataset().loader(4, shuffle=True),
        r"a loader has no option 'shuffle'; what torch calls so is train, which",
    ),
    (
        lambda: dataset().loader(4, num_workers=2),
        r"no option 'num_workers'; what torch calls so is n_workers; its options",
    ),
    (
        lambda: ai.Trainer(ai.train.Classify(), [], callbacks=[]),
        r"no option 'callbacks'; what others call so is a hook,",
    ),
    (
        lambda: ai.Trainer(ai.train.Classify(), [], max_epochs=3),
        r"no option 'max_epochs'; .* train\(model, opt, epochs=3",
    ),
    (
        lambda: ai.Trainer(ai.train.Classify(), [], wrong=1),
        r"Trainer has no option 'wrong'; its options are accumulate,",
    ),
    (
        lambda: ai.opt.adam(model(), learning_rate=0.1),
        r"^opt.adam has no option 'learning_rate'; what others call so is lr; its options are lr, betas, .*clip_value$",
    ),
    (lambda: ai.opt.sgd(model(), momentm=0.9), r"^opt.sgd has no option 'momentm'; its options are lr, momentum, "),
    (
        lambda: ai.data.Dataset(torch.zeros(8, 4), torch.zeros(8)),
        r"Dataset takes all columns as its first argument, Dataset\(\{'x': X, 'y': Y\}\), not one by one",
    ),
    (lambda: train(hook=Lab().hook), r"hook must have setup, .*, and a method lacks setup: call it, hook\(\)"),
    (lambda: train(opt=ai.opt.adam), r"optimizer of 'model' must be .*, not the function adam: call it with the model"),
    (lambda: train(opt="adam"), r"optimizer of 'model' must be a torch.optim.Optimizer, not str"),
    (
        lambda: m.seq(m.flatten, m.fc(4, 2)),
        r"modules\[0\] must be a module, and flatten is a function that makes one: fl",
    ),
    (lambda: m.seq(torch.nn.ReLU, m.fc(4, 2)), r"modules\[0\] must be an instance: ReLU\(...\), not the class ReLU"),
    (lambda: ai.Trainer(m.Model(model()), []), r"env must be .* and Model takes \(input\): the model goes to train"),
    (lambda: ai.Trainer(lambda batch: 0, []), r"env must be callable as env\(model, batch, step\), and <lambda> takes"),
    (lambda: m.linear(4, 2), r"^ai.model.linear is a module, not a layer: what others call so is m.fc\(n1, n2\)$"),
    (lambda: m.attention(64), r"^ai.model.attention is a module, not a layer: in it are m.attn, m.sa$"),
    (lambda: m.container(), r"^ai.model.container is a module, not a layer: in it are m.duel, m.gru, "),
    (lambda: m.saved(), r"^ai.model.saved is a module, not a layer$"),
    (lambda: m.fc(4, 2, activation="relu"), r"^fc has no argument 'activation'; what others call so is actv; its arg"),
    (lambda: m.conv(3, 8, kernel_size=3), r"^conv has no argument 'kernel_size'; .* so is k; its arguments are nc1, "),
    (lambda: m.attn(64, num_heads=4), r"^attn has no argument 'num_heads'; .* is n_heads; its arguments are dim, n_"),
    (lambda: dataset().split(test_size=0.2), r"^Dataset.split has no argument 'test_size'; .* split\(0.8, 0.2\); its"),
    (lambda: ai.data.Dataset([1], transform=abs), r"^Dataset has no argument 'transform'; .* preprocess=\{'x': funct"),
    (lambda: ai.data.ImgDataset("a", 32, size=9), r"^ImgDataset has no argument 'size'; .* so is imsize; its argum"),
    (
        lambda: train(hooks=[]),
        r"^Trainer.train has no argument 'hooks'; perhaps hook is meant; its arguments are model, o",
    ),
    (lambda: train(max_steps=3), r"^Trainer.train has no argument 'max_steps'; what others call so is steplimit; its "),
    (
        lambda: train(nothing=3),
        r"^Trainer.train has no argument 'nothing'; its arguments are model, opt, hook, .*schedule$",
    ),
    (
        lambda: ai.MultiTrainer(lambda k, m, b, s: 0, []).train({}, {}, optimizers={}),
        r"^MultiTrainer.train has no argument 'optimizers'; what others call so is opts; its arguments are models, ",
    ),
    (
        lambda: ai.RLTrainer.train(None, model(), None, max_epochs=3),
        r"^RLTrainer.train has no argument 'max_epochs'; what others call so is steplimit, in updates; its arguments",
    ),
    (
        lambda: Inferencer(model(), batchsize=3),
        r"^Inferencer has no argument 'batchsize'; perhaps batch_size is meant;",
    ),
    (lambda: ai.MultiTrainer(lambda m, b, s: 0, []), r"env must be callable as env\(key, models, batch, step\), and"),
]


@pytest.mark.parametrize(("slip", "sentence"), SLIPS, ids=[sentence[:30] for _, sentence in SLIPS])
def test_a_slip_is_named(slip, sentence):
    with pytest.raises(TypeError, match=sentence):
        slip()


def test_a_slip_in_a_value_is_named():
    for betas in ((0.9,), (0.9, 0.99, 0.5)):  # of three torch takes the first two
        with pytest.raises(ValueError, match=r"betas must be two numbers, such as \(0.9, 0.999\), got \(0.9,"):
            ai.opt.adamw(model(), betas=betas)
    with pytest.raises(ValueError, match=r"^batch_size must be a number of rows from 1, or 'auto', not '4'$"):
        NodeInferencer(model(), "cpu", "4")
    data = ai.data.Datagen(Rollouts(GameEnvironments(CartPole(), 2), model(), steps=2)).passes(1, batches=1)
    with pytest.raises(ValueError, match=r"^push_interval must look like '30s', '5m', '1h' or '1 epoch', not '5'$"):
        ai.RLTrainer(ai.train.PPO(), data, push_interval="5")


def test_an_environment_takes_what_a_trainer_calls_it_with():
    for env, name in ((len, "len"), (torch.nn.Bilinear(1, 1, 1), "Bilinear")):
        with pytest.raises(
            TypeError, match=rf"^env must be callable as env\(model, batch, step\), and {name} takes \("
        ):
            ai.Trainer(env, [])
    for env in (lambda *given: 0, functools.partial(lambda a, b, c, d: 0, 1), lambda model, batch, step, weight=1: 0):
        ai.Trainer(env, [])


def test_what_other_libraries_call_a_method_is_told_ours():
    trainer = ai.Trainer(ai.train.Classify(), [])
    for ask, ours in (("fit", r"train\(model, opt\)"), ("evaluate", r"validate\(model, data\)")):
        with pytest.raises(AttributeError, match=rf"'Trainer' object has no attribute '{ask}': what others .* {ours}$"):
            getattr(trainer, ask)
    with pytest.raises(AttributeError, match=r"^'Trainer' object has no attribute 'nothing'$"):
        _ = trainer.nothing
    assert not hasattr(trainer, "fit")
    copy.deepcopy(trainer)


OTHERS = [
    (ai, "Dataset", "ai.data.Dataset"),
    (ai, "LightningModule", r"a function env\(model, batch, step\) that returns the loss"),
    (ai, "optim", "ai.opt"),
    (ai.model, "Linear", r"m.fc\(n1, n2\)"),
    (ai.model, "Dense", r"m.fc\(n1, n2\)"),
    (ai.model, "Sequential", r"m.seq\(a, b\)"),
    (ai.data, "ImageFolder", r"ai.data.ImgDataset\(folder, imsize, labels='folder'\)"),
    (ai.data, "MNIST", r"ai.data.mnist_dataset\(\)"),
    (ai.train, "ModelCheckpoint", r"ai.Trial\(path, save_snapshots=True\)"),
    (ai.train, "Callback", "ai.train.HookInterface"),
]


@pytest.mark.parametrize(("module", "name", "ours"), OTHERS, ids=[name for _, name, _ in OTHERS])
def test_what_other_libraries_call_a_thing_is_told_ours(module, name, ours):
    with pytest.raises(AttributeError, match=rf"^module '{module.__name__}' has no attribute '{name}': .* is {ours}$"):
        getattr(module, name)
    with pytest.raises(AttributeError, match=rf"^module '{module.__name__}' has no attribute 'nothing'$"):
        _ = module.nothing


def test_an_optimiser_by_the_name_of_torchs_class_is_told_its_function():
    with pytest.raises(AttributeError, match=r"'Adam': what torch calls so is made by opt.adam\(model\)$"):
        _ = ai.opt.Adam
    with pytest.raises(AttributeError, match=r"^module 'ai.train.opt' has no attribute 'nothing'$"):
        _ = ai.opt.nothing


def test_what_every_name_of_another_library_leads_to_is_there():
    for module in (ai, ai.model, ai.data, ai.train):
        for name, ours in module._ELSEWHERE.items():
            assert name not in module.__all__, name
            for path in re.findall(r"\b(?:ai|m|torch)(?:\.\w+)+", ours):
                functools.reduce(getattr, path.split(".")[1:], {"ai": ai, "m": m, "torch": torch}[path.split(".")[0]])


def test_what_is_taken_is_read_from_the_signature_and_stands_in_help():
    doors = [m.fc, m.conv, m.attn, ai.Trainer.train, ai.MultiTrainer.train, ai.RLTrainer.train, Inferencer.__init__]
    for door in [*doors, ai.data.Dataset.__init__, ai.data.Dataset.split, ai.data.ImgDataset.__init__]:
        assert "given" not in inspect.signature(door).parameters
        assert pickle.loads(pickle.dumps(door)) is door
    assert "kernel_size" not in str(inspect.signature(m.conv))
    assert m.fc.__doc__.startswith("Returns a fully-connected layer")


def test_a_module_that_says_which_layers_it_has_is_one_by_reference():
    assert pickle.loads(pickle.dumps(m.linear)) is m.linear
    assert inspect.ismodule(m.linear)


def test_numbers_of_numpy_and_torch_are_numbers():
    assert train(steplimit=np.int64(2), timelimit=np.float32(60)) == 2
    assert ai.opt.adam(model(), lr=np.float64(0.1)).param_groups[0]["lr"] == 0.1
    assert m.fc(np.int64(4), torch.tensor(2)).weight.shape == (2, 4)
    assert len(dataset().loader(np.int32(4))) == 2
