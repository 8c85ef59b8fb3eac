import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ai.data import Datagen, ReplayBuffer
from ai.data.workers.on_ray import actor as ray_actor
from ai.data.workers.on_ray import joining
from ai.data.workers.on_ray import worker as ray_worker
from ai.examples import sampled_muzero
from ai.examples.agents.point_mass import STEPS, PointMass, best_return, optimal
from ai.examples.muzero import Model, main, noise, run
from ai.examples.muzero.asked import Asked, Requests
from ai.examples.muzero.luck import LuckModel
from ai.examples.muzero.main import PRESETS, Judge, given_away, mean_return
from ai.examples.muzero.reanalyse import Reanalyse
from ai.game import CartPole, Hog, HogSolver, Play, Puct, Search, SelfPlay, StochasticModel, TicTacToe
from ai.train import MuZero
from tests.data.helpers_data import wait_until
from tests.data.workers.pretended_ray import PretendedRay
from tests.infer.pretended_inferencer import Pretended, pretend


@pytest.mark.slow
@pytest.mark.parametrize("game", ["tictactoe", "cartpole"])
def test_the_tiny_preset_trains_and_is_measured(game, tmp_path):
    found = run(replace(PRESETS["tiny"], game=game, trial=str(tmp_path / "trial")))
    assert {"seconds", "environment_steps", "wrong_32" if game == "tictactoe" else "return_32"} <= found.keys()


class Direct(Requests):
    """Answers as an inferencer would, in this process."""

    version = 0

    def __call__(self, *args):
        with torch.inference_mode():
            return super().__call__(*args)

    def update_params(self, state_dict, version):
        self.load_state_dict(state_dict)
        self.version = version


def test_a_model_that_is_asked_elsewhere_plays_as_one_that_is_here():
    play = Play(games=4, simulations=8)
    asked = SelfPlay(TicTacToe(), evaluator=Asked(Direct(Model().init(seed=0)).eval()), play=play)
    here = SelfPlay(TicTacToe(), Model().init(seed=0), play)
    for source in (asked, here):
        source.start(3, 0)
        source.update_params(Model().init(seed=1).state_dict(), 4)
    for _ in range(4):
        one, other = next(asked), next(here)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], name)
    assert one["version"] == 4


@pytest.mark.parametrize("inferencer", [False, True])
def test_games_come_from_a_cluster_with_the_parameters_that_they_are_told(monkeypatch, tmp_path, inferencer):
    monkeypatch.setitem(sys.modules, "ray", PretendedRay())
    monkeypatch.setattr(joining, "_user", None)
    monkeypatch.setattr(ray_worker, "_TURN_S", 0.01)
    monkeypatch.setattr(ray_actor, "_BEAT_S", 0.01)
    monkeypatch.setenv("AI_NODE", "one machine")
    pretend(monkeypatch, tmp_path)
    seen = []

    def learn(config, model, loader, loss, **measuring):
        with loader:
            seen.append(int(next(loader)["version"].max()))
            loader.update_params(model.state_dict())
            wait_until(lambda: next(loader)["version"].max() == 1)
            seen.append(len(Pretended.made))
        raise InterruptedError("nothing more is asked")

    monkeypatch.setattr(main, "learn", learn)
    config = replace(PRESETS["tiny"], engine="ray", inferencer=inferencer, workers=2, dim=8, dim_state=8, batch_size=4)
    with pytest.raises(InterruptedError):
        run(config)
    assert seen == [0, inferencer]  # one for both workers
    wait_until(lambda: all(actor.dead for actor in sys.modules["ray"].actors))


def test_embeddings_are_normalised_and_every_part_learns(any_device):
    model = Model().init(seed=0).to(any_device)
    obs, action = torch.randn(6, 2, 3, 3).to(any_device), torch.arange(6).to(any_device)
    state, reward = model.dynamics(model.represent(obs), action)
    torch.testing.assert_close(state.detach().mean(1).cpu(), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(state.detach().square().mean(1).cpu(), torch.ones(6), atol=1e-3, rtol=0)
    logits, value = model.predict(state)
    (logits.square().mean() + value.square().mean() + reward.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_model_computes_where_it_is_and_takes_frames():
    model = Model((4, 4), 3).init(seed=0)
    frames = torch.randint(0, 255, (2, 4, 4), dtype=torch.uint8)
    assert all(torch.isfinite(x).all() for x in model.initial(frames))
    model = model.to("meta")  # no device's tensors can be mixed with this one's
    state, *_ = model.initial(torch.empty(2, 4, 4, device="meta"))
    for found in model.recurrent(state, np.array([0, 2])):
        assert found.device.type == "meta"


def test_a_game_of_ones_own_is_learnt_on_a_device(any_device, tmp_path):
    tiny = replace(PRESETS["tiny"], game="ai.game:SlidingTiles(size=2, max_steps=6)", device=any_device, steps=2)
    found = run(replace(tiny, reanalyse=None, trial=str(tmp_path / "trial")))
    assert 0 <= found["return_32"] <= 1


def test_the_action_changes_what_the_model_expects():
    model = Model().init(seed=0)
    state = model.represent(torch.randn(1, 2, 3, 3)).expand(9, -1)
    following, _ = model.dynamics(state, torch.arange(9))
    assert len(torch.unique(following.detach(), dim=0)) == 9


def test_the_search_sees_the_observation_and_the_legal_moves_only():
    game = TicTacToe()
    model = Model().init(seed=0).eval()
    state = game.step(game.init(4), np.array([0, 1, 2, 3]))
    found = Search.learned(model, 9, simulations=16)(game.observe(state), legal=game.legal(state))
    assert (found.visits[np.arange(4), np.arange(4)] == 0).all()
    assert (found.visits.sum(1) == 16).all()


def test_the_mean_return_counts_the_steps_of_cartpole():
    game = CartPole()
    always_left = lambda state: np.zeros(len(state), np.int64)  # noqa: E731
    assert 8 <= mean_return(game, always_left, 20) <= 11
    assert mean_return(CartPole(max_steps=3), Judge(game, Model((4,), 2).init(seed=0), 0), 5) == 3


def test_reanalysed_targets_are_those_of_a_search_with_the_newest_model(any_device):
    game, played, newest = TicTacToe(), Model().init(seed=0), Model().init(seed=1).to(any_device)
    source = SelfPlay(game, played, Play(games=4, simulations=4, rule=Puct()))
    buffer = ReplayBuffer(500, unroll=2, first_only=("obs",), n_step=5)
    with Datagen(source).loader(16, any_device, n_workers=0, buffer=buffer, min_steps=60) as loader:
        batch = next(iter(loader))
        loss = Reanalyse(MuZero(newest.support), loader, 9, interval=2, simulations=8, rule=Puct())
        before = buffer.column("policy").clone()
        assert torch.isfinite(loss(newest, batch, 1))
        assert torch.equal(buffer.column("policy"), before)  # not due
        loss(newest, batch, 2)
        assert loss.renewed == 16
        search = Search.learned(newest, 9, simulations=8, rule=Puct())
        index = batch["index"].cpu()
        found = search(batch["obs"], legal=batch["legal"][:, 0].bool().cpu().numpy())
        for name in ("policy", "value"):
            stored = buffer.column(name)[index]
            assert torch.allclose(stored, torch.from_numpy(getattr(found, name)).float())
        untouched = torch.ones(len(before), dtype=bool)
        untouched[index] = False
        assert torch.equal(buffer.column("policy")[untouched], before[untouched])


def test_an_interval_below_one_is_refused():
    with pytest.raises(ValueError, match="interval must be at least 1, got 0"):
        Reanalyse(MuZero(), None, 9, interval=0, simulations=1)


def test_what_is_best_for_a_mass_earns_what_the_equations_say():
    env = PointMass(200)
    seen = env.reset(0)
    most, total = best_return(seen[:, 0], seen[:, 1]), np.zeros(200)
    idle = np.zeros((200, 1))
    for t in range(STEPS):
        action = optimal(None, {"obs": torch.from_numpy(seen)}, None, 0)["action"].numpy()
        assert abs(action).max() < 1  # so that the bounds are nowhere felt
        seen, reward, ended, _ = env.step(action)
        total += reward
        assert ended.all() == (t == STEPS - 1)
    np.testing.assert_allclose(total, most, atol=1e-5)
    seen, reward, *_ = env.step(idle)  # begins anew
    assert (reward == 0).all()
    assert (seen[:, 1] == 0).all()
    # a little less or more of the best force earns less
    for share in (0.9, 1.1):
        env.reset(0)
        worse = np.zeros(200)
        seen = env._seen()
        for _ in range(STEPS):
            force = share * optimal(None, {"obs": torch.from_numpy(seen)}, None, 0)["action"].numpy()
            seen, reward, *_ = env.step(force)
            worse += reward
        assert (worse < most).all()


def test_masses_go_on_where_their_state_was_taken():
    env, other = PointMass(3), PointMass(3)
    env.reset(5)
    for _ in range(4):
        env.step(np.full((3, 1), 0.3))
    seen = other.load_state_dict(env.state_dict())
    np.testing.assert_array_equal(seen, env._seen())
    for _ in range(10):
        for one, two in zip(env.step(np.ones((3, 1))), other.step(np.ones((3, 1))), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_sampled_muzero_trains_on_masses_and_is_measured_beside_the_optimum(tmp_path):
    found = sampled_muzero.run(replace(sampled_muzero.main.PRESETS["tiny"], trial=str(tmp_path / "trial")))
    assert found["return"] < found["return_optimal"] < 0
    assert found["return_policy"] < found["return_optimal"]


def test_sampled_muzero_s_presets_find_their_environments():
    for preset in sampled_muzero.main.PRESETS.values():
        agent = sampled_muzero.main.learner(preset)
        assert agent.source.source.env.num == preset.num_envs
        assert isinstance(agent.source.source.env, PointMass) == (preset.env == "point-mass")


def test_sampled_muzero_names_an_environment_without_movements():
    config = replace(sampled_muzero.main.PRESETS["tiny"], env="CartPole-v1")
    with pytest.raises(ValueError, match="env must have continuous actions along one axis of numbers, CartPole-v1"):
        sampled_muzero.main.learner(config)


def test_every_part_of_a_model_of_movements_learns_from_its_loss():
    model = Model((3,), 2, continuous=True, dim=16, dim_state=8).init(seed=0)
    draw = {
        "obs": torch.randn(5, 3, 3), "action": torch.rand(5, 3, 2), "reward": torch.randn(5, 3),
        "target": torch.randn(5, 3), "mask": torch.ones(5, 3, dtype=torch.bool),
        "policy": torch.full((5, 3, 4), 0.25), "sampled": torch.rand(5, 3, 4, 2),
    }  # fmt: skip
    MuZero(model.support, obs_unrolled=True, consistency_weight=1.0)(model, draw, 0).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_picture_of_a_mass_shows_where_it_is():
    env = PointMass(1)
    env.load_state_dict({**env.state_dict(), "state": np.array([[-0.5, 0.0]])})
    blue = (env.render() == (40, 90, 200)).all(-1)
    assert np.nonzero(blue)[1].mean().round() == 128 - 40


def test_a_game_of_dice_is_learnt_with_its_luck_and_held_against_the_best_player(tmp_path):
    tiny = replace(PRESETS["tiny"], game="ai.game:Hog(goal=4, dice=2, faces=3)", codes=5, unroll=2, steps=2)
    found = run(replace(tiny, reanalyse=1, trial=str(tmp_path / "trial")))
    assert 0 <= found["points_32"] <= 0.5
    assert 0 <= found["given_away_0"] <= 1
    with pytest.raises(ValueError, match=r"codes \(5\) must be 0 with inferencer"):
        run(replace(tiny, inferencer=True, trial=str(tmp_path / "asked")))


def test_who_throws_best_gives_nothing_away():
    solver = HogSolver(Hog(goal=6, dice=2, faces=3))
    assert given_away(solver, lambda state: solver.best(state).argmax(1)) == 0
    assert given_away(solver, lambda state: np.zeros(len(state), int)) > 0.01


def test_every_part_of_a_model_of_luck_learns_from_its_loss():
    model = LuckModel((3,), 2, num_codes=4, dim=16, dim_state=8).init(seed=0)
    assert isinstance(model, StochasticModel)
    draw = {
        "obs": torch.randn(5, 3, 3), "action": torch.randint(2, (5, 3)), "reward": torch.randn(5, 3),
        "target": torch.randn(5, 3), "mask": torch.ones(5, 3, dtype=torch.bool),
        "policy": torch.full((5, 3, 2), 0.5),
    }  # fmt: skip
    MuZero(model.support, obs_unrolled=True, consistency_weight=1.0)(model, draw, 0).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_code_by_number_is_the_code_by_place(on_device):
    model = LuckModel((3,), 2, num_codes=4, dim=16, dim_state=8).init(seed=0)
    after = on_device(model.afterstate_dynamics)(torch.randn(2, 8), torch.tensor([0, 1]))
    ones = torch.eye(4)[torch.tensor([3, 1])]
    follow = on_device(model.dynamics)
    torch.testing.assert_close(follow(after, torch.tensor([3, 1])), follow(after, ones))


def test_values_without_noise_choose_the_best_dice_and_noise_costs_points():
    solver = HogSolver(Hog(goal=8, dice=3, faces=4))
    seen = solver.game.observe(solver.positions())

    def points(spread, simulations):
        moves = noise.chosen(noise.NoisyRules(solver, spread, seed=0), seen, simulations)
        return solver.points(lambda _: moves)

    assert points(0.0, 0) == pytest.approx(0.5)
    assert points(0.0, 100) > 0.499
    assert points(1.0, 0) < 0.48
    assert points(1.0, 100) > 0.499
