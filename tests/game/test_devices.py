"""Searches whose network lies on a device: the same moves, and one wait a simulation."""

import numpy as np
import pytest
import torch

import ai.model as m
from ai.examples.muzero.model import Model
from ai.game import CartPole, GameEnvironments, Gumbel, NetEvaluator, Puct, Rollouts, Search, TicTacToe
from ai.game.environments.evaluation import evaluate
from ai.game.search.device import fetched, sent
from tests.devices import TOLERANCES, assert_close, beside, lies_on
from tests.pretended_cuda import PretendedCuda


class Net(m.Model):
    def __init__(self):
        super().__init__()
        self.trunk = m.seq(m.conv(2, 4, norm="batch", actv="relu"), m.flatten())
        self.policy, self.value = m.fc(36, 9), m.fc(36, 1)

    def forward(self, x):
        x = self.trunk(x)
        return self.policy(x), self.value(x).tanh()


@pytest.fixture
def waits(device, monkeypatch):
    """How often the CPU has waited for the pretended device."""
    seen = []
    if PretendedCuda.active is not None:
        plain = PretendedCuda.active.waits
        monkeypatch.setattr(PretendedCuda.active, "waits", lambda why, *until: (seen.append(why), plain(why, *until)))
    return seen


@pytest.mark.parametrize("options", [{}, {"chunk": 2}, {"fold": True, "channels_last": True}])
def test_an_evaluator_says_the_same_on_every_device_and_waits_once_for_its_answer(options, device, waits):
    net = Net().init(seed=0)
    observation = torch.from_numpy(TicTacToe().observe(TicTacToe().init(4, 0)))
    expected = NetEvaluator(net)(observation)
    evaluator = NetEvaluator(net, **options)
    net.to(device)  # after the evaluator was made
    evaluator(observation)
    waits.clear()
    with evaluator.evaluating():
        waits.clear()  # a folded copy is compared with the model once a search
        answer = evaluator(observation)
    assert lies_on(answer, "cpu")
    assert_close(answer, expected)
    assert len(waits) in (0, 2 if "chunk" in options else 1)


@pytest.mark.parametrize("rule", [Puct(), Gumbel()])
def test_a_search_of_a_game_finds_the_same_on_every_device(rule, device):
    game, net = TicTacToe(), Net().init(seed=0)
    state = game.init(5, 0)
    expected = Search(game, net, simulations=12, rule=rule)(state)
    net.to(device)
    found = Search(game, net, simulations=12, rule=rule)(state)
    np.testing.assert_array_equal(found.action, expected.action)
    np.testing.assert_allclose(found.value, expected.value, *TOLERANCES[torch.float32])


@pytest.mark.parametrize("rule", [Puct(), Gumbel()])
def test_a_search_of_a_learned_model_finds_the_same_on_every_device_with_one_wait_a_simulation(rule, device, waits):
    game, model = TicTacToe(), Model(dim=16, dim_state=8).init(seed=0)
    observation = game.observe(game.init(5, 0))
    expected = Search.learned(model, 9, simulations=12, rule=rule)(observation)
    model.to(device)
    search = Search.learned(model, 9, simulations=12, rule=rule)
    waits.clear()
    with beside(device):
        found = search(observation)
    np.testing.assert_array_equal(found.action, expected.action)
    np.testing.assert_allclose(found.value, expected.value, *TOLERANCES[torch.float32])
    assert len(waits) in (0, 13)  # the root's answer, and one for each simulation


def test_trees_of_a_learned_model_are_kept_on_the_device(device):
    model = Model(dim=16, dim_state=8).init(seed=0).to(device)
    game = TicTacToe()
    state = game.init(3, 0)
    search = Search.learned(model, 9, simulations=12, rule=Puct())
    action = search(game.observe(state)).action
    search.advance(action)
    assert search(game.observe(game.step(state, action))).value.shape == (3,)


def test_answers_of_many_shapes_come_in_one_copy_as_exact_as_they_were(device, waits):
    answers = [torch.randn(3, 4).to(device), torch.randn(3).double().to(device), torch.randn(3, 1).half().to(device)]
    waits.clear()
    came = fetched(*answers)
    assert len(waits) <= 1
    assert lies_on(came, "cpu")
    for answer, arrived in zip(answers, came, strict=True):
        assert arrived.shape == answer.shape
        assert torch.equal(arrived.double(), answer.cpu().double())


def test_answers_of_unequal_rows_come_one_by_one(device):
    came = fetched(torch.ones(3, 4).to(device), torch.ones(2).to(device))
    assert [x.shape for x in came] == [(3, 4), (2,)]


def test_a_question_is_sent_without_waiting(device, no_sync):
    x = torch.randn(5)
    with no_sync():
        there = sent(x, torch.device(device))
        assert lies_on(sent(there, torch.device(device)), device)
    assert torch.equal(there.cpu(), x)


class Acts(m.Model):
    def __init__(self):
        super().__init__()
        self.policy, self.value = m.fc(4, 2), m.fc(4, 1)

    def forward(self, obs):
        return m.Categorical(self.policy(obs)), self.value(obs).squeeze(-1)


def test_rollouts_act_on_the_device_as_on_the_cpu(device):
    def rolled(device):
        model = Acts().init(seed=0).to(device)
        rollouts = Rollouts(GameEnvironments(CartPole(), 3), model, steps=6)
        rollouts.start(0, 0)
        return next(rollouts).columns

    ours, expected = rolled(device), rolled("cpu")
    assert ours.keys() == expected.keys()
    if device == "cpu" or PretendedCuda.active is not None:  # a GPU draws other actions
        for key, value in expected.items():
            np.testing.assert_allclose(ours[key], value, *TOLERANCES[torch.float32])


def test_an_evaluation_of_a_policy_acts_on_the_device(device):
    model = Acts().init(seed=0).to(device)
    returns = evaluate(GameEnvironments(CartPole(), 2), model, episodes=2)
    assert (returns > 0).all()
