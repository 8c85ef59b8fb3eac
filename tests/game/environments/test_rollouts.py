"""Rollouts: cuts and ends, what is repeated between two of them, memories, returns, states."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch

import ai.model as m
from ai.data import Datagen, ReplayBuffer, lambda_returns
from ai.game import (
    ByActor,
    ByPolicy,
    CartPole,
    ConnectFour,
    Environments,
    EpsilonGreedy,
    GameEnvironments,
    GymnasiumEnvironments,
    Rollouts,
    evaluate,
)
from ai.train import PPO, Hook, RLTrainer, Snapshots, opt
from ai.train.snapshot import restore
from tests.game.environments.ticks import Ticks


def act(model, seen, generator, n_steps):
    return {"action": seen["obs"][:, 0].long(), "value": seen["obs"][:, 0] * 10}


def act_only(model, seen, generator, n_steps):
    return {"action": seen["obs"][:, 0].long()}


def started(*args, seed=0, **how):
    source = Rollouts(*args, **how)
    source.start(seed, 0)
    return source


def test_ticks_are_environments():
    assert isinstance(Ticks(), Environments)


def test_rollouts_know_the_value_beyond_a_cut_and_nothing_beyond_an_end():
    made = next(started(Ticks(), torch.nn.Identity(), act, 6))
    assert made.lengths.tolist() == [4, 3, 5, 2]
    assert made.columns["obs"][:, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4, 0, 1]
    one_step = lambda_returns(made.columns, made.lengths, 1.0, 0.0)
    assert one_step.tolist() == [11, 21, 1, 0, 11, 21, 20, 11, 21, 31, 41, 40, 11, 10]
    assert made.finished["episode_return"].tolist() == [3, 4]
    assert made.finished["episode_length"].tolist() == [3, 4]
    assert made.drawable is None


def test_rollouts_go_on_where_the_last_one_stopped_and_lose_no_step():
    source = started(Ticks((1000,)), torch.nn.Identity(), act, 5)
    assert [next(source).columns["obs"][:, 0].tolist() for _ in range(3)] == [
        list(range(6)), list(range(5, 11)), list(range(10, 16))
    ]  # fmt: skip
    source = started(Ticks((3, 7)), torch.nn.Identity(), act, 5)
    assert sum(next(source).n_steps for _ in range(9)) == source.n_steps == 2 * 45 - 11 - 5  # less what begins anew


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("lookahead", [0, 1, 4])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_every_step_can_be_drawn_once_with_all_that_it_looks_ahead_and_back_to(steps, lookahead, context):
    if context + lookahead == 0:
        return
    source = started(Ticks((5, 6)), torch.nn.Identity(), act_only, steps, context=context, lookahead=lookahead)
    drawn, total = [], 0
    while total < 60:
        made = next(source)
        total += made.n_steps
        for first, length in zip(np.cumsum(made.lengths) - made.lengths, made.lengths, strict=True):
            obs = made.columns["obs"][first : first + length, 0]
            over = obs[-1] in (5, 6) and (made.columns["discount"][first + length - 2] == 0 or obs[-1] == 6)
            for k in np.flatnonzero(made.drawable[first : first + length]):
                assert over or k + 1 + lookahead < length  # what follows is there
                assert k >= min(context, obs[k])  # and what was before
                drawn.append(obs[k])
    counts = np.bincount(np.array(drawn, int))
    assert counts[:5].max() - counts[:5].min() <= 2 * (lookahead + steps)
    assert source.n_steps - total <= 2 * (lookahead + 1)  # all but the last few, each once


def test_draws_of_joined_rollouts_are_those_of_whole_episodes():
    buffer = ReplayBuffer(1000, n_step=3, gamma=0.5)
    source = Rollouts(Ticks((5, 5)), torch.nn.Identity(), act_only, 2, lookahead=2)
    loader = Datagen(source).loader(64, n_workers=0, buffer=buffer, min_steps=100)
    batch = next(loader)
    assert batch["n_step_reward"].unique().tolist() == [1, 1.5, 1.75]
    assert (batch["n_step_reward"] == torch.tensor([1.75, 1.75, 1.75, 1.5, 1])[batch["obs"][:, 0].long()]).all()


def test_draws_from_an_overwritten_ring_are_steps_of_the_environment_itself():
    env = GymnasiumEnvironments("CartPole-v1", 4, max_episode_steps=15)
    source = Rollouts(env, torch.nn.Identity(), lambda *a: {"action": torch.randint(2, (4,), generator=a[2])}, 8)
    buffer = ReplayBuffer(150, n_step=1, gamma=0.5)
    loader = Datagen(source).loader(64, n_workers=0, buffer=buffer, replay_ratio=2, min_steps=140)
    alone = gym.make("CartPole-v1").unwrapped
    alone.reset(seed=0)
    seen_over = {"ended": 0, "cut": 0}
    for _ in range(3):
        batch = {key: value.numpy() for key, value in next(loader).items()}
        for k in range(64):
            alone.state, alone.steps_beyond_terminated = batch["obs"][k].astype(np.float64), None
            after, reward, ended, _, _ = alone.step(int(batch["action"][k]))
            np.testing.assert_allclose(batch["next_obs"][k], after, atol=1e-6)
            assert batch["n_step_reward"][k] == reward
            assert batch["next_discount"][k] == (0 if ended else 0.5)  # what is cut off goes on
            seen_over["ended"] += ended
            seen_over["cut"] += batch["truncated"][k]
    assert min(seen_over.values()) > 0


def test_a_memory_starts_at_zero_with_each_episode_and_is_stored_as_it_was_before():
    def count(model, seen, generator, n_steps):
        return {"action": seen["obs"][:, 0].long(), "memory": seen["memory"] + 1, "value": seen["memory"][:, 0]}

    source = started(Ticks((3, 4)), torch.nn.Identity(), count, 7, memory=(2,))
    for _ in range(4):
        made = next(source)
        assert (made.columns["memory"] == made.columns["obs"]).all()
        assert (made.columns["value"] == made.columns["obs"][:, 0]).all()


def test_only_the_newest_frame_is_kept_where_asked():
    class Frames(Ticks):
        def _seen(self):
            return (self.t[:, None, None, None] - np.arange(3, -1, -1)[:, None, None] + np.zeros((2, 2))).clip(0)

    source = started(Frames(), torch.nn.Identity(), lambda *a: {"action": torch.zeros(2)}, 4, newest_frame=True)
    made = next(source)
    assert made.columns["obs"].shape == (9, 2, 2)
    assert made.columns["obs"][:, 0, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]


def test_rows_that_wait_are_part_of_no_episode():
    class Waits(Ticks):
        def step(self, action):  # row 1 ends at once and waits for row 0
            seen, reward, ended, _ = super().step(action)
            begins = self.t[0] == 0
            return seen, np.where(begins, 0, reward), np.array([ended[0], not begins]), np.zeros(2, bool)

    source = started(Waits((3, 3)), torch.nn.Identity(), act_only, 12)
    made = next(source)
    assert made.lengths.tolist() == [4, 4, 4, 2, 2, 2]
    assert made.finished["episode_length"].tolist() == [1, 3, 1, 3, 1, 3]


def test_exploring_goes_on_where_an_earlier_source_stopped():
    told = []

    def note(model, seen, generator, n_steps):
        told.append(n_steps)
        return act_only(model, seen, generator, n_steps)

    source = Rollouts(Ticks((9, 9)), torch.nn.Identity(), note, 3)
    source.begin_at(100)
    source.start(0, 0)
    next(source)
    assert told == [100, 102, 104]


@pytest.mark.parametrize("key", ["action", "reward"])
def test_what_is_not_finite_is_named_before_anything_learns_from_it(key):
    class Broken(Ticks):
        def step(self, action):
            seen, reward, ended, cut = super().step(action)
            broken = (self.t == 2) & (np.arange(2) == 1)
            return seen, np.where(broken, np.nan if key == "reward" else 0, reward), ended, cut

    def broken_act(model, seen, generator, n_steps):
        at = seen["obs"][:, 0]
        return {"action": torch.where((at == 1) & (torch.arange(2) == 1) & (key == "action"), torch.inf, at)}

    source = started(Broken(), torch.nn.Identity(), broken_act, 4)
    with pytest.raises(ValueError, match=f"{key} must be finite, environment 1 of 2 had NaN or infinity"):
        next(source)


class Net(m.Model):
    def __init__(self, n=4, actions=2):
        super().__init__()
        self.policy, self.value = m.fc(n, actions), m.fc(n, 1)

    def forward(self, obs):
        flat = obs.flatten(1)
        return m.Categorical(self.policy(flat)), self.value(flat).squeeze(-1)


def assert_same(a, b):
    assert a.lengths.tolist() == b.lengths.tolist()
    assert a.columns.keys() == b.columns.keys()
    for key in a.columns:
        np.testing.assert_array_equal(a.columns[key], b.columns[key])


@pytest.mark.parametrize("how", [{}, {"context": 2, "lookahead": 3}])
def test_a_state_goes_on_exactly(how):
    net = Net().init(seed=0)
    make = lambda: started(GameEnvironments(CartPole(), 4), copy.deepcopy(net), steps=7, seed=5, **how)  # noqa: E731
    source, other = make(), make()
    for _ in range(9):
        next(source)
    state = copy.deepcopy(source.state_dict())
    next(other)
    other.load_state_dict(state)
    for _ in range(9):
        assert_same(next(source), next(other))
    assert source.n_steps == other.n_steps


def test_two_players_take_turns_and_see_what_is_legal():
    source = started(GameEnvironments(ConnectFour(), 3), Net(84, 7).init(seed=0), steps=60)
    columns, lengths = (made := next(source)).columns, made.lengths
    steps = made.is_step
    assert columns["legal"][np.flatnonzero(steps), columns["action"][steps]].all()
    assert set(columns["to_play"].tolist()) == {0, 1}
    assert set(columns["reward"].tolist()) == {0, 1}
    assert "episode_return" not in made.finished
    returns = lambda_returns(columns, lengths, 1.0, 1.0)
    first = np.flatnonzero(columns["reward"] == 1)[0]
    assert returns[first - 3 : first + 1].tolist() == [-1, 1, -1, 1]


def test_seeds_decide():
    make = lambda seed: next(started(GameEnvironments(CartPole(), 4), Net().init(seed=0), steps=9, seed=seed))  # noqa: E731
    assert_same(make(1), make(1))
    assert (make(1).columns["obs"][:3] != make(2).columns["obs"][:3]).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [({"steps": 0}, "steps must be at least 1, got 0"), ({"lookahead": -1}, "lookahead must be at least 0, got -1")],
)
def test_what_makes_no_sense_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        Rollouts(Ticks(), torch.nn.Identity(), act, **how)


def test_it_must_be_started():
    with pytest.raises(RuntimeError, match=r"start\(seed, worker\) must be called before the first rollout"):
        next(Rollouts(Ticks(), torch.nn.Identity(), act))


def test_what_is_shown_may_not_take_the_place_of_what_is_done():
    class Shows(Ticks):
        def step(self, action):
            obs, *rest = super().step(action)
            return {"obs": obs, "action": np.zeros(self.num)}, *rest

        def reset(self, seed):
            return {"obs": super().reset(seed), "action": np.zeros(self.num)}

    with pytest.raises(ValueError, match=r"what env shows may not have the keys \['action'\]"):
        next(started(Shows(), torch.nn.Identity(), act, 2))


def test_a_state_of_another_number_of_environments_is_refused_and_changes_nothing():
    net = Net()
    before = started(GameEnvironments(CartPole(), 8), net, steps=4)
    after, same = (started(GameEnvironments(CartPole(), 4), net, steps=4) for _ in range(2))
    with pytest.raises(ValueError, match="the state is of 8 environments, env has 4"):
        after.load_state_dict(before.state_dict())
    np.testing.assert_array_equal(next(after).columns["obs"], next(same).columns["obs"])


def test_a_model_of_half_precision_acts():
    def narrow(model, seen, generator, n_steps):
        return {"action": seen["obs"][:, 0].long(), "value": seen["obs"][:, 0].to(torch.bfloat16) * 10}

    made = next(started(Ticks(), torch.nn.Identity(), narrow, 6))
    assert made.columns["value"].dtype == np.float32
    assert made.columns["value"][3:5].tolist() == [30, 0]


def test_measuring_leaves_every_module_in_its_own_mode():
    model = Net()
    model.value.eval()
    evaluate(GameEnvironments(CartPole(max_steps=3), 2), model, episodes=2)
    assert (model.training, model.policy.training, model.value.training) == (True, True, False)


class Plain(Ticks):
    """Ticks as others write them: arrays that are written over, actions too, numbers for truths, a mask of bytes."""

    def reset(self, seed):
        self.shown = super().reset(seed)
        return {"obs": self.shown, "legal": np.array([[1, 0]] * self.num, np.int8)}

    def step(self, action):
        obs, reward, ended, cut = super().step(action)
        self.shown[:], action[:] = obs, 7
        legal = np.array([[0, 1]] * self.num, np.int8)
        return {"obs": self.shown, "legal": legal}, reward.astype(int), ended.astype(int), cut.astype(int)


def test_arrays_that_are_written_over_and_numbers_for_truths_change_nothing():
    made, wanted = (next(started(env(), torch.nn.Identity(), act, 6)) for env in (Plain, Ticks))
    assert made.lengths.tolist() == wanted.lengths.tolist()
    for key in wanted.columns:
        np.testing.assert_array_equal(made.columns[key], wanted.columns[key])
        assert made.columns[key].dtype == wanted.columns[key].dtype
    assert made.columns["legal"].dtype == bool
    source = started(Plain(), Net(1), steps=6)
    made = next(source)
    assert (made.columns["action"] == made.columns["legal"].argmax(1))[made.is_step].all()


def test_a_model_that_writes_over_what_it_is_shown_changes_nothing():
    class Scaling(Net):
        def forward(self, obs):
            obs -= 1
            return super().forward(obs)

    class Apart(Net):
        def forward(self, obs):
            return super().forward(obs - 1)

    sources = [started(Ticks(), net(1).init(seed=0), steps=3) for net in (Scaling, Apart)]
    for _ in range(3):
        made, wanted = (next(source) for source in sources)
        for key in ("obs", "log_prob", "value"):
            np.testing.assert_array_equal(made.columns[key], wanted.columns[key])


def test_an_act_that_writes_over_what_it_said_changes_nothing():
    said = {"action": torch.zeros(2, dtype=torch.long), "value": torch.zeros(2)}

    def into_the_same(model, seen, generator, n_steps):
        for key, value in act(model, seen, generator, n_steps).items():
            said[key].copy_(value)
        return said

    made, wanted = (next(started(Ticks(), torch.nn.Identity(), how, 6)) for how in (into_the_same, act))
    for key in ("action", "value"):
        np.testing.assert_array_equal(made.columns[key], wanted.columns[key])


def test_an_environment_that_writes_over_actions_leaves_those_of_the_model_alone():
    own = torch.zeros(2, dtype=torch.long)
    evaluate(Plain(), torch.nn.Identity(), lambda *_: {"action": own}, episodes=2)
    assert own.tolist() == [0, 0]


def test_a_reward_that_is_not_one_number_a_row_is_refused():
    class Wide(Ticks):
        def step(self, action):
            obs, reward, ended, cut = super().step(action)
            return obs, reward[:, None], ended, cut

    with pytest.raises(ValueError, match=r"env.step must give reward of shape \(2,\), got \(2, 1\)"):
        next(started(Wide(), torch.nn.Identity(), act, 6))


def test_the_very_model_that_is_trained_acts_in_evaluation_mode():
    modes, net = set(), Net().init(seed=0)

    def note(model, seen, generator, n_steps):
        modes.add(model.training)
        return ByPolicy()(model, seen, generator, n_steps)

    data = Datagen(Rollouts(GameEnvironments(CartPole(), 2), net, note, 4)).passes(1)
    RLTrainer(PPO(), data, push_interval=None).train(net, opt.adam(net), steplimit=3)
    assert modes == {False}
    assert net.training


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"action": torch.zeros(2), "reward": torch.ones(2)}, r"act returns may not have the keys \['reward'\]"),
        ({"x": torch.zeros(2)}, r"act must return \['action'\], got \['x'\]"),
        ({"action": torch.zeros(2), "value": torch.zeros(2, 1)}, r"value of shape \(2,\), got \(2, 1\)"),
        ({"action": torch.zeros(2), "x": torch.zeros(3, 5)}, r"x of shape \(2, 5\), got \(3, 5\)"),
    ],
)
def test_what_act_may_not_return_is_named(said, message):
    with pytest.raises(ValueError, match=message):
        next(started(Ticks(), torch.nn.Identity(), lambda *a: said, 2))


@pytest.mark.parametrize("kind", ["passes", "loader"])
@pytest.mark.parametrize("by", ["hook", "restore", "restore with the loader", "parts"])
def test_the_very_model_that_is_trained_goes_on_with_its_own_weights_not_with_those_last_sent(by, kind, tmp_path):
    def parts():
        net = Net().init(seed=0)
        data = Datagen(Rollouts(GameEnvironments(CartPole(), 2), net, steps=6))
        if kind == "passes":
            loader, how = data.passes(2, batches=2), None
            env = PPO()
        else:
            loader, how = data.loader(4, n_workers=0, buffer=ReplayBuffer(50), min_steps=8, replay_ratio=4), 3
            env = squared
        return net, opt.sgd(net, lr=0.1), loader, RLTrainer(env, loader, push_interval=how)

    def squared(model, batch, step):
        return model(batch["obs"])[1].square().mean() + batch["reward"].mean()

    def weights(net):
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    torch.manual_seed(0)
    net, optimiser, _, trainer = parts()
    trainer.train(net, optimiser, steplimit=11)
    wanted = weights(net)
    torch.manual_seed(0)
    net, optimiser, _, trainer = parts()
    trainer.train(net, optimiser, Hook(snapshots=Snapshots(tmp_path), save_interval=6), steplimit=6)
    saved = weights(net)
    torch.manual_seed(1)
    net, optimiser, loader, trainer = parts()
    if by == "hook":
        trainer.train(net, optimiser, Hook(snapshots=Snapshots(tmp_path), resume=True), steplimit=11)
    elif by == "parts":
        found = Snapshots(tmp_path)
        assert found.load({"model": net, "optimizer": optimiser, "data": loader}) == 6
        assert torch.equal(weights(net), saved)
        return
    else:
        step = restore(tmp_path, net, optimiser, *([loader] if "loader" in by else []))
        assert torch.equal(weights(net), saved)
        trainer.train(net, optimiser, step=step, steplimit=11)
    assert torch.equal(weights(net), wanted)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"lookahead": 2}, {"lookahead": 4}, r"of context and lookahead \(0, 2\), this source has \(0, 4\)"),
        ({}, {"memory": (3,)}, r"of memory None, this source has \(3,\)"),
    ],
)
def test_a_state_of_a_source_that_keeps_something_else_is_refused(before, after, message):
    state = started(Ticks(), torch.nn.Identity(), act_only, 2, **before).state_dict()
    other = started(Ticks(), torch.nn.Identity(), act_only, 2, **after)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    del state["kept"]  # as of before it was written
    started(Ticks(), torch.nn.Identity(), act_only, 2, **before).load_state_dict(state)


def test_two_players_returns_are_not_summed():
    with pytest.raises(ValueError, match="env must be of one player, got one with to_play"):
        evaluate(GameEnvironments(ConnectFour(), 2), Net(84, 7), episodes=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ByActor(random_steps=-1), "random_steps must be at least 0, got -1"),
        (lambda: EpsilonGreedy(steps=0), "steps must be at least 1, got 0"),
        (lambda: EpsilonGreedy(steps=5, last=float("nan")), "last must be a number, got nan"),
    ],
)
def test_ways_to_act_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_environments_that_were_measured_in_are_no_longer_acted_in():
    env = Ticks()
    source = started(env, torch.nn.Identity(), act, 4)
    next(source)
    evaluate(env, torch.nn.Identity(), act, episodes=2)
    for use in (source.state_dict, lambda: next(source)):
        with pytest.raises(RuntimeError, match="env was begun anew by another who acts in it"):
            use()
    source.start(0, 0)
    next(source)


def test_short_episodes_are_not_measured_more_often_than_long_ones():
    left = lambda *_: {"action": torch.zeros(2)}  # noqa: E731
    assert evaluate(Ticks((2, 8)), torch.nn.Identity(), left, episodes=5).tolist() == [2, 2, 2, 8, 8]


def test_what_is_learnt_first_is_scored_as_it_was_when_acted():
    class Remembers(m.Model):
        def __init__(self):
            super().__init__()
            self.cell, self.policy, self.value = torch.nn.GRU(1, 4, batch_first=True), m.fc(4, 3), m.fc(4, 1)

        def forward(self, obs, memory):
            hidden, last = self.cell(obs, memory[None].contiguous())
            return m.Categorical(self.policy(hidden)), self.value(hidden).squeeze(-1), last[0]

    class Masked(Ticks):
        def _seen(self):
            return {"obs": super()._seen(), "legal": np.arange(3) != self.t[:, None] % 3}

    net = Remembers().init(seed=0)
    source = Rollouts(Masked((3, 7, 40)), copy.deepcopy(net), steps=11, memory=(4,))
    data = Datagen(source).passes(1, sequence=4)
    for _ in range(4):
        batch = next(data)
        policy, value, _ = net(batch["obs"], batch["memory"][:, 0])
        log_prob = policy.among(batch["legal"]).log_prob(batch["action"])
        for now, then in ((log_prob, batch["log_prob"]), (value, batch["value"])):
            torch.testing.assert_close(now[batch["mask"]].detach(), then[batch["mask"]])
