import copy

import numpy as np
import pytest
import torch
from torch import nn

import ai.model as m
from ai.data import Datagen, ReplayBuffer
from ai.game import (
    Augment,
    CachedEvaluator,
    CartPole,
    ConnectFour,
    Gumbel,
    NetEvaluator,
    Play,
    Puct,
    RolloutEvaluator,
    Search,
    SelfPlay,
    SlidingTiles,
    TicTacToe,
    draws,
)
from ai.game.play import arena, openings
from ai.game.play.history import greedy_return
from ai.train import opt
from tests import warm_python
from tests.data.helpers_data import wait_until


class Net(nn.Module):
    def __init__(self, game, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        size = int(np.prod(game.observation_shape))
        self.weight = nn.Parameter(torch.randn(size, game.num_actions + 1, generator=generator) * 0.3)

    def forward(self, x):
        out = x.flatten(1) @ self.weight
        return out[:, :-1], torch.tanh(out[:, -1])


def source(game=None, seed=0, **play):
    game = game or TicTacToe()
    made = SelfPlay(game, Net(game), Play(**{"games": 8, "simulations": 8, "rule": Puct(), **play}))
    made.start(seed, 0)
    return made


@pytest.mark.parametrize("game", [TicTacToe(), ConnectFour(), SlidingTiles(), CartPole(max_steps=30)])
def test_an_episode_replays_to_its_own_observations_and_rewards(game):
    play = source(game)
    for _ in range(6):
        episode = next(play)
        length = len(episode["action"])
        assert len(episode["obs"]) == length + 1 == len(episode["to_play"])
        assert episode["discount"][-1] == episode["truncated"] * np.float32(game.discount)
        assert (episode["discount"][:-1] == np.float32(game.discount)).all()
        np.testing.assert_allclose(episode["policy"].sum(1), 1, atol=1e-5)
        assert episode["legal"][np.arange(length), episode["action"]].all()
        assert (episode["policy"][~episode["legal"]] == 0).all()
        if game.num_players == 2:
            assert (episode["reward"][:-1] == 0).all()
            assert episode["to_play"].tolist() == [k % 2 for k in range(length + 1)]
        if isinstance(game, TicTacToe):
            state = game.init(1)
            for t, action in enumerate(episode["action"]):
                np.testing.assert_array_equal(game.observe(state)[0], episode["obs"][t])
                state = game.step(state, np.array([action]))
                assert game.reward(state)[0] == episode["reward"][t]
            assert game.terminal(state)[0]


@pytest.mark.parametrize(("short", "long"), [(CartPole(max_steps=5), CartPole()), (SlidingTiles(max_steps=2), None)])
def test_a_limit_of_moves_cuts_an_episode_off_and_does_not_end_it(short, long):
    episode = next(source(short))
    assert episode["truncated"]
    assert episode["discount"][-1] == np.float32(short.discount)
    if long is not None:  # a pole falls in the end, which is one
        ended = next(source(long))
        assert not ended["truncated"]
        assert ended["discount"][-1] == 0


def test_the_same_seed_plays_the_same_games_and_another_does_not():
    one, same, other = source(), source(), source(seed=1)
    different = False
    for _ in range(12):
        a, b, c = next(one), next(same), next(other)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
        different |= not np.array_equal(a["action"], c["action"])
    assert different


def test_a_restored_source_goes_on_exactly():
    play = source(full_share=0.5, fast_simulations=3, opening_share=0.5, opening_moves=4)
    for _ in range(5):
        next(play)
    state = copy.deepcopy(play.state_dict())
    expected = [next(play) for _ in range(12)]
    again = source(seed=99, full_share=0.5, fast_simulations=3, opening_share=0.5, opening_moves=4)
    again.load_state_dict(state)
    for episode in expected:
        for key, value in next(again).items():
            np.testing.assert_array_equal(value, episode[key], err_msg=key)
    for later in ("best", "explored"):  # which version 0.1 did not record at first
        del state["history"][later]
    again.load_state_dict(state)
    np.testing.assert_array_equal(next(again)["action"], expected[0]["action"])


def test_new_parameters_change_play_and_are_named():
    play = source(cache=1 << 10)
    assert next(play)["version"] == 0
    for _ in range(20):
        play.update_params(Net(play.game, seed=1).state_dict(), 7)
        episode = next(play)
    assert episode["version"] == 7
    assert torch.equal(play.model.weight, Net(play.game, seed=1).weight)


def test_parameters_go_to_the_evaluator_or_are_refused_and_episodes_tell_what_played():
    game = TicTacToe()

    class Shared:
        version = 3

        def __call__(self, observation):
            return torch.zeros(len(observation), 9), torch.zeros(len(observation))

        def update_params(self, state_dict):
            self.version += state_dict["step"]

    shared = Shared()
    play = SelfPlay(game, evaluator=shared, play=Play(games=4, simulations=2))
    play.start(0, 0)
    assert next(play)["version"] == 3
    play.update_params({"step": 2}, 1)
    assert max(next(play)["version"] for _ in range(10)) == 5
    alone = SelfPlay(game, evaluator=shared.__call__, play=Play(games=4, simulations=2))
    alone.start(0, 0)
    with pytest.raises(TypeError, match="evaluator must have update_params to take parameters, method has none"):
        alone.update_params({}, 1)
    with pytest.raises(ValueError, match="cache must be 0 with an evaluator whose parameters others renew, got 8"):
        SelfPlay(game, evaluator=shared, play=Play(cache=8))


class Versioned:
    """Values every position by its version, and is told that by whoever hands it parameters."""

    version = 0

    def __call__(self, obs):
        self.asked = getattr(self, "asked", 0) + len(obs)
        return torch.zeros(len(obs), 9), torch.full((len(obs),), self.version / 10)

    def update_params(self, state_dict, version):
        self.version = version


def test_what_is_remembered_is_forgotten_when_newer_parameters_have_answered():
    evaluator = Versioned()
    play = SelfPlay(TicTacToe(), evaluator=evaluator, play=Play(games=4, simulations=2, cache=1024))
    play.start(0, 0)
    next(play)
    play.update_params({}, 7)
    assert evaluator.version == 7
    evaluator.version = 8  # as an inferencer that took newer ones while this one played
    evaluator.asked = 0
    assert max(next(play)["version"] for _ in range(10)) == 8
    assert evaluator.asked > 20
    with pytest.raises(ValueError, match="cache must be 0 with a LearnedModel, which sees no positions but the first"):
        SelfPlay(TicTacToe(), Learned(), play=Play(cache=8))


class Learned:
    """A learned model of nothing, that is no module."""

    def initial(self, observation):
        return observation, torch.tanh(observation.flatten(1)[:, :9]), observation.flatten(1).mean(1)

    def recurrent(self, embedding, action):
        value = embedding.flatten(1).mean(1) + torch.as_tensor(action) / 20
        minus = torch.full_like(value, -1.0)
        return embedding.roll(1, 1), 0 * value, minus, torch.tanh(embedding.flatten(1)[:, :9]), value


def test_a_learned_model_may_be_asked_elsewhere():
    given = SelfPlay(TicTacToe(), Learned(), play=Play(games=4, simulations=8))
    asked = SelfPlay(TicTacToe(), evaluator=Learned(), play=Play(games=4, simulations=8))
    for source in (given, asked):
        source.start(3, 0)
    for _ in range(5):
        one, other = next(given), next(asked)
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_share_of_moves_is_searched_in_full():
    play = source(full_share=0.25, fast_simulations=2)
    full = np.concatenate([next(play)["full"] for _ in range(150)])
    assert 0.2 < full.mean() < 0.3


def test_games_given_up_are_lost_by_who_gave_up_and_some_are_checked():
    game = ConnectFour()
    play = source(game, games=32, resign_below=-0.3, resign_check=0.3)
    given_up = 0
    for _ in range(80):
        episode = next(play)
        state = game.init(1)
        for action in episode["action"]:
            state = game.step(state, np.array([action]))
        if not game.terminal(state)[0]:
            given_up += 1
            assert episode["reward"][-1] == 1  # to the one whose move made the other give up
    assert 0 < given_up <= play.stats["resigned"]
    assert play.stats["resign_checked"] > 0
    assert 0 <= play.stats["resign_wrong"] <= play.stats["resign_checked"]


def test_a_share_of_moves_is_drawn_from_all_legal_ones():
    def played(**options):
        play, policy = source(ConnectFour(), temperature=0.0, late_temperature=0.0, temperature_moves=0, **options), []
        for _ in range(40):
            episode = next(play)
            length = len(episode["action"])
            policy.append(episode["policy"].argmax(axis=1) == episode["action"])
            assert episode["legal"][np.arange(length), episode["action"]].all()
        return np.concatenate(policy).mean()

    always = played()
    assert 0.15 < always - played(random_share=0.3) < 0.35  # one of seven draws is the search's own move


def test_openings_start_some_games_elsewhere():
    play = source(opening_share=0.5, opening_moves=5)
    started = [bool(next(play)["obs"][0].any()) for _ in range(100)]
    # drawn lengths of 0 to 4 moves: four in five of the half that draws
    assert 20 < sum(started) < 60


@pytest.mark.parametrize(
    "begin",
    [
        lambda game, seeds: arena._opened(game, seeds, 3),
        lambda game, seeds: openings.opened(
            game,
            Play(opening_share=1.0, opening_moves=4),
            lambda rows, attempt: draws.fold_in(seeds[rows], attempt),
            np.arange(len(seeds)),
            lambda state, rows: state,
        ),
    ],
    ids=["match", "self-play"],
)
def test_openings_draw_nothing_that_a_start_draws(monkeypatch, begin):
    drawn = {"start": set(), "opening": set()}
    uniform, init, where = draws.uniform, SlidingTiles.init, ["opening"]

    def draw(seeds, count):
        drawn[where[-1]] |= set(np.asarray(seeds).tolist())
        return uniform(seeds, count)

    def start(*how):
        where.append("start")
        try:
            return init(*how)
        finally:
            where.pop()

    monkeypatch.setattr(draws, "uniform", draw)
    monkeypatch.setattr(SlidingTiles, "init", start)
    begin(SlidingTiles(), draws.row_seeds(0, 20))
    assert min(map(len, drawn.values())) > 20
    assert not drawn["start"] & drawn["opening"]


def test_at_an_infinite_temperature_all_that_a_search_tried_is_as_likely():
    play = source(games=300, simulations=4, temperature=float("inf"), max_moves=2)
    games = [next(play) for _ in range(300)]
    policy = np.concatenate([game["policy"] for game in games])
    chosen = np.concatenate([game["action"] for game in games])
    assert (policy[np.arange(len(chosen)), chosen] > 0).all()
    tried = (policy > 0).sum(axis=1)
    most = policy.argmax(axis=1) == chosen
    assert abs(most.mean() - (1 / tried).mean()) < 0.08


def test_a_cached_search_finds_what_an_uncached_one_finds():
    game = ConnectFour()
    net = NetEvaluator(Net(game), chunk=1)  # one row at a time, so that batching changes no bit
    state = game.positions(["33", "012", "3344", "00110"])
    plain = Search(game, net, simulations=40, rule=Puct())(state)
    cached = CachedEvaluator(net)
    again = Search(game, cached, simulations=40, rule=Puct())
    first, hits = again(state), cached.hits
    second = again(state)
    np.testing.assert_array_equal(first.visits, plain.visits)
    np.testing.assert_array_equal(second.visits, plain.visits)
    assert cached.hits > hits
    misses = cached.misses
    again(state)
    assert cached.misses == misses
    cached.clear()
    again(state)
    assert cached.misses > misses


def test_batches_turn_boards_and_policies_together():
    game = TicTacToe()
    loader = Datagen(source(), postprocess=Augment(game)).loader(
        64, n_workers=0, buffer=ReplayBuffer(2000, n_step=float("inf")), replay_ratio=2.0
    )
    batch = next(iter(loader))
    occupied = batch["obs"].sum(1).flatten(1) > 0
    assert torch.equal(~occupied, batch["legal"].bool())
    assert (batch["policy"][~batch["legal"].bool()] == 0).all()
    assert set(batch["target"].unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_play_in_the_trainers_process_leaves_torch_its_threads():
    game, threads, seen = TicTacToe(), torch.get_num_threads(), set()

    def evaluator(observation):
        seen.add(torch.get_num_threads())
        return torch.zeros(len(observation), 9), torch.zeros(len(observation))

    torch.set_num_threads(3)
    try:
        source = SelfPlay(game, evaluator=evaluator, play=Play(games=2, simulations=2))
        with Datagen(source).loader(4, n_workers=0) as loader:
            next(iter(loader))
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert seen == {1}


@pytest.mark.slow
@pytest.mark.usefixtures("data_workers_start_warm")
def test_workers_share_an_inferencer_whose_owner_renews_it(monkeypatch):
    warm_python.start_inferencers_warm(monkeypatch)
    from ai.examples.alphazero import MLP  # a class that the worker can import
    from ai.infer import Inferencer

    game = TicTacToe()
    with Inferencer(MLP().init(seed=0)) as inferencer:
        client = inferencer.create_client()
        for seed in (0, 1):
            inferencer.update_params(MLP().init(seed=seed).state_dict())
            own = Search(game, MLP().init(seed=seed), simulations=8, rule=Puct())(game.init(3))
            shared = Search(game, client, simulations=8, rule=Puct())(game.init(3))
            np.testing.assert_array_equal(shared.visits, own.visits)
            np.testing.assert_allclose(shared.prior, own.prior, atol=1e-6)
        play = SelfPlay(game, evaluator=client, play=Play(games=4, simulations=4))
        with Datagen(play).loader(16, n_workers=1, replay_ratio=1.0) as loader:
            assert next(iter(loader))["policy"].shape == (16, 9)


@pytest.mark.slow
@pytest.mark.usefixtures("data_workers_start_warm")
def test_workers_play_and_take_parameters():
    game = TicTacToe()
    made = SelfPlay(game, Net(game), Play(games=8, simulations=4, rule=Gumbel()))
    with Datagen(made).loader(32, n_workers=1, replay_ratio=1.0) as loader:
        batches = iter(loader)
        next(batches)
        version = loader.update_params(Net(game, seed=1).state_dict())
        wait_until(lambda: (next(batches)["version"] == version).any())


def test_an_evaluator_is_measured_and_gives_the_networks_own_answers(any_device):
    game = ConnectFour()
    net = Net(game)
    x = torch.from_numpy(game.observe(game.positions(["3"] * 40)))
    expected = [out.detach() for out in net(x)]
    tuned = NetEvaluator.tuned(net.to(any_device), x, seconds=0.001)
    torch.testing.assert_close(list(tuned(x)), expected)


@pytest.mark.parametrize("norm", ["batch", "group", None])
def test_a_folded_network_follows_the_weights_it_was_made_from(norm):
    game = ConnectFour()
    net = nn.Sequential(m.conv(2, 4, norm=norm, actv="relu"), m.flatten(), Net(game))
    net[2].weight.data = torch.randn(4 * 42, 8, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(game.observe(game.positions(["3", "33"])))
    tuned = NetEvaluator.tuned(net, x, seconds=0.001)
    assert tuned.fold
    optimiser = opt.adamw(net, lr=0.1)  # fused: it changes tensors without a trace
    for _ in range(3):
        net.train()(x)[0].square().mean().backward()
        optimiser.step()
        logits, value = tuned(x)
        assert net.training
        with torch.no_grad():
            expected = net.eval()(x)
        torch.testing.assert_close(logits, expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(value, expected[1], atol=1e-5, rtol=1e-5)
    net[2].weight.data.fill_(0.5)
    with torch.no_grad():
        torch.testing.assert_close(tuned(x)[0], net(x)[0], atol=1e-4, rtol=1e-5)
    net.load_state_dict({name: tensor + 1 for name, tensor in net.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(tuned(x)[0], net(x)[0], atol=1e-4, rtol=1e-5)


def test_a_network_that_cannot_be_copied_runs_itself():
    game = ConnectFour()
    conv = torch.nn.utils.spectral_norm(nn.Conv2d(2, 4, 3, padding=1))
    net = nn.Sequential(conv, nn.Flatten(), Net(game)).train()
    net[2].weight.data = torch.randn(4 * 42, 8, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(game.observe(game.positions(["3", "33"])))
    net(x)[0].sum().backward()
    tuned = NetEvaluator.tuned(net, x, seconds=0.001)
    assert not tuned.fold
    torch.testing.assert_close(tuned(x)[0], net.eval()(x)[0].detach(), atol=1e-5, rtol=1e-5)
    net.train()
    forced = NetEvaluator(net, fold=True)
    with pytest.raises(RuntimeError, match="deepcopy"):
        forced(x)
    assert net.training


def test_another_network_may_take_its_place(any_device):
    game = ConnectFour()
    x = torch.from_numpy(game.observe(game.positions(["3"])))
    evaluator, other = NetEvaluator(Net(game)), Net(game, seed=1)
    expected = other(x)[0].detach()
    evaluator.model = other.to(any_device)
    torch.testing.assert_close(evaluator(x)[0], expected)


def test_a_return_is_cut_where_a_move_explored():
    reward = np.array([0, 0, 0, 0, 1], np.float32)  # the first player wins with the fifth move
    discount = np.array([1, 1, 1, 1, 0], np.float32)
    to_play = np.array([0, 1, 0, 1, 0, 1])
    best = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    kept = greedy_return(reward, discount, to_play, best, np.zeros(5, bool))
    assert kept.tolist() == [1, -1, 1, -1, 1]
    # the other player's slip at move 3 gave the win away; move 2 explored, and what came of it was better than thought
    explored = np.array([False, False, True, True, False])
    cut = greedy_return(reward, discount, to_play, best, explored)
    np.testing.assert_allclose(cut, [0.3, -0.3, 0.3, 0.4, 1])
    explored[3] = False
    np.testing.assert_allclose(greedy_return(reward, discount, to_play, best, explored), [1, -1, 1, -1, 1])
    # cut off, an episode goes on with the value of the position where it was
    flat = np.zeros(2, np.float32), np.ones(2, np.float32), np.zeros(3, int)
    open_end = greedy_return(*flat, best[:2], explored[:2], beyond=0.2)
    np.testing.assert_allclose(open_end, [0.2, 0.2])


def test_a_tolerance_wider_than_all_values_cuts_no_return():
    game = ConnectFour()
    play = source(game, games=16, tolerance=0.0, temperature=2.0)
    slack = source(game, games=16, tolerance=2.0, temperature=2.0)
    differ = 0
    for _ in range(20):
        strict, loose = next(play), next(slack)
        signs = np.where(loose["to_play"][:-1] == loose["to_play"][len(loose["action"]) - 1], 1, -1)
        tried = loose["policy"][np.arange(len(loose["action"])), loose["action"]] > 0
        assert tried.all()
        np.testing.assert_array_equal(loose["greedy_return"], signs * loose["reward"][-1])
        differ += not np.array_equal(strict["greedy_return"], loose["greedy_return"])
    assert differ >= 5
    assert "greedy_return" not in next(source(game))


def test_bad_input_is_refused():
    game = TicTacToe()
    with pytest.raises(TypeError, match="model must be a module, got function: give functions and clients as eval"):
        SelfPlay(TicTacToe(), lambda obs: (obs, obs))
    with pytest.raises(ValueError, match="exactly one of model and evaluator"):
        SelfPlay(game)
    with pytest.raises(ValueError, match="resign_below needs a game of two players"):
        SelfPlay(CartPole(), Net(CartPole()), Play(resign_below=-0.9))
    with pytest.raises(ValueError, match="games must be at least 1, got 0"):
        Play(games=0)
    with pytest.raises(ValueError, match=r"full_share must be in \[0, 1\], got 2"):
        Play(full_share=2)
    with pytest.raises(ValueError, match=r"random_share must be in \[0, 1\], got -1"):
        Play(random_share=-1)
    with pytest.raises(ValueError, match=r"tolerance must be at least 0, got -0\.1"):
        Play(tolerance=-0.1)
    with pytest.raises(ValueError, match=r"fast_simulations \(8\) must not exceed simulations \(4\)"):
        Play(simulations=4, full_share=0.5)
    with pytest.raises(TypeError, match="CartPole has not"):
        Augment(CartPole())
    with pytest.raises(RuntimeError, match="start"):
        next(SelfPlay(game, Net(game)))
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        CachedEvaluator(Net(game), capacity=0)


def test_polled_games_are_those_that_next_gives():
    def source():
        made = SelfPlay(
            TicTacToe(),
            evaluator=lambda x: (torch.zeros(len(x), 9), torch.zeros(len(x))),
            play=Play(games=3, simulations=4),
        )
        made.start(0, 0)
        return made

    polled, whole = source(), source()
    assert polled.poll() is None  # no game ends with its first move
    for _ in range(4):
        while (game := polled.poll()) is None:
            pass
        np.testing.assert_array_equal(game["action"], next(whole)["action"])


def test_a_state_of_other_play_is_refused():
    def source(game, games):
        return SelfPlay(game, evaluator=RolloutEvaluator(game), play=Play(games=games, simulations=2))

    state, waiting = source(TicTacToe(), 4), source(TicTacToe(), 4)
    state.start(0, 0)
    with pytest.raises(RuntimeError, match=r"start.* must be called"):
        waiting.load_state_dict(state.state_dict())
    with pytest.raises(RuntimeError, match=r"start.* must be called"):
        waiting.state_dict()
    for game, games, match in (
        (TicTacToe(), 8, "state must be of 8 games, as play has them, got 4"),
        (ConnectFour(), 4, "state must be of ConnectFour, with .* 7 actions, got .* 9"),
    ):
        other = source(game, games)
        other.start(0, 0)
        with pytest.raises(ValueError, match=match):
            other.load_state_dict(state.state_dict())
