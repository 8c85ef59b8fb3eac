import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ai.data.workers.on_ray import actor as ray_actor
from ai.data.workers.on_ray import worker as ray_worker
from ai.examples.alphazero import MLP, ResNet, connect4, run
from ai.examples.alphazero.ladder import Ladder
from ai.examples.alphazero.loss import AlphaZero
from ai.examples.alphazero.main import PRESETS, Config, loss, network, reproduce_connect4, self_play
from ai.examples.alphazero.truth import Judge, lost_lines, wrong_moves
from ai.examples.selflearn import learn, make_game, make_optimiser, make_schedule
from ai.game import Augment, ConnectFour, NetEvaluator, TicTacToe, fast, solve
from ai.train import Snapshots, snapshot
from tests import warm_python
from tests.data.helpers_data import wait_until
from tests.data.workers.pretended_ray import PretendedRay
from tests.infer.pretended_inferencer import Pretended, pretend


@pytest.fixture(scope="module")
def solution():
    return solve(TicTacToe())


@pytest.mark.slow
def test_the_tiny_preset_trains_and_is_measured(tmp_path):
    found = run(replace(PRESETS["tiny"], trial=str(tmp_path / "trial")))
    assert {"wrong_0", "lost_0", "wrong_32", "lost_32", "seconds"} <= found.keys()
    assert (tmp_path / "trial" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_resumed_run_ends_as_one_never_stopped(tmp_path):
    config = replace(PRESETS["tiny"], steps=6, save_interval=3)
    whole = run(replace(config, trial=str(tmp_path / "whole")))
    parts = replace(config, trial=str(tmp_path / "parts"))
    # a copy of the snapshot at 3 stands for a run that was killed there
    run(parts)
    snapshots = sorted((tmp_path / "parts" / "snapshots").iterdir())
    shutil.rmtree(snapshots[-1])
    again = run(replace(parts, resume=True))
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}


@pytest.mark.slow
def test_a_game_of_ones_own_is_learnt_and_rated(any_device, tmp_path):
    config = replace(PRESETS["tiny"], game="ai.game:TicTacToe()", device=any_device, steps=2, task_interval=1)
    with pytest.raises(ValueError, match="strong_games must be at least 0, got -1"):
        run(replace(config, strong_games=-1))
    found = run(replace(config, strong_games=2, trial=str(tmp_path / "trial")))
    assert {"elo", "points", "seconds"} <= found.keys()
    assert found["points_1000"] in (0, 0.25, 0.5, 0.75, 1)


def test_what_is_no_game_is_refused():
    with pytest.raises(ValueError, match=r"game must be one of tictactoe, connect4.*got 'chess'"):
        make_game("chess")
    with pytest.raises(ValueError, match=r"must have the members of ai.game.Game, 'ai.game:Play\(\)' is Play"):
        make_game("ai.game:Play()")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"workers": 0}, r"workers \(0\) must be at least 1 with engine 'ray'"),
        ({"workers": 1, "gpus": 0.5}, r"gpus \(0.5\) must be 0 without engine 'ray' and inferencer"),
    ],
)
def test_what_does_not_play_on_a_cluster_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        self_play(TicTacToe(), replace(PRESETS["tiny"], engine="ray", **how), None)


@pytest.mark.parametrize("inferencer", [False, True])
def test_games_come_from_a_cluster_with_the_parameters_that_they_are_told(monkeypatch, tmp_path, inferencer):
    monkeypatch.setitem(sys.modules, "ray", PretendedRay())
    monkeypatch.setattr(ray_worker, "_TURN_S", 0.01)
    monkeypatch.setattr(ray_actor, "_BEAT_S", 0.01)
    monkeypatch.setenv("AI_NODE", "one machine")
    pretend(monkeypatch, tmp_path)
    config = replace(PRESETS["tiny"], engine="ray", inferencer=inferencer, workers=2)
    with self_play(TicTacToe(), config, None) as loader:
        assert (next(loader)["version"] == 0).all()
        loader.update_params(network(config).init(seed=1).state_dict())
        wait_until(lambda: next(loader)["version"].max() == 1)
        assert len(Pretended.made) == inferencer  # for both workers
    wait_until(lambda: all(actor.dead for actor in sys.modules["ray"].actors))


def test_networks_have_the_shapes_of_their_games():
    nets = ((ResNet(nc=8, n_blocks=1, places=places), (2, 6, 7), 7) for places in (False, True))
    for model, shape, actions in ((MLP(), (2, 3, 3), 9), *nets):
        logits, value = model.init(seed=0)(torch.randn(5, *shape))
        assert logits.shape == (5, actions)
        assert value.shape == (5,)
        assert value.abs().max() <= 1


def test_a_network_with_places_tells_where_on_an_empty_board_it_is():
    model = ResNet(nc=8, n_blocks=1, places=True).init(seed=0).eval()
    empty = torch.zeros(1, 2, 6, 7)
    inner = lambda: model.body[:2](empty)[0, 0, 2:4, 2:5]  # far from the edge, which convolutions tell by its zeros  # noqa: E731
    assert (inner() == inner()[0, 0]).all()
    with torch.no_grad():
        model.body[1].main.value[0, 3, 4] = 1.0
    assert (inner() - inner()[0, 0]).tolist() == [[0, 0, 0], [0, 0, 1]]


def test_muon_takes_the_kernels_of_inner_convolutions_and_adamw_the_rest():
    model = ResNet(nc=8, n_blocks=1, places=True)
    made = make_optimiser(Config(kernel_rate=0.01, learning_rate=0.002, weight_decay=0.1), model)
    shapes = [sorted(tuple(p.shape) for g in one.param_groups for p in g["params"]) for one in made.optimizers]
    assert shapes[0] == [(8, 8, 3, 3), (8, 8, 3, 3), (16, 8, 1, 1)]
    assert {(8, 2, 3, 3), (8, 6, 7), (7, 672), (8, 672)} < set(shapes[1])
    assert [group["lr"] for group in made.param_groups] == [0.01, 0.002, 0.002]
    assert type(make_optimiser(Config(), model)) is torch.optim.AdamW


def batch(n=4):
    generator = torch.Generator().manual_seed(0)
    legal = torch.rand(n, 9, generator=generator) < 0.6
    legal[:, 0] = True
    policy = torch.rand(n, 9, generator=generator) * legal
    return {
        "obs": torch.randn(n, 2, 3, 3, generator=generator),
        "legal": legal,
        "policy": policy / policy.sum(1, keepdim=True),
        "target": torch.tensor([1.0, -1.0, 0.0, 1.0]),
        "value": torch.tensor([0.5, 0.5, -0.5, 0.0]),
        "full": torch.tensor([1.0, 0.0, 1.0, 0.0]),
    }


def test_the_loss_is_the_published_one_over_legal_moves(on_device):
    data = batch()
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    value = torch.tensor([0.1, 0.2, 0.3, 0.4])
    model = lambda x: (logits.to(x.device), value.to(x.device))  # noqa: E731
    found = on_device(AlphaZero(value_weight=2.0, search_share=0.25, fast_weight=0.5))(model, data, 0)
    policy_loss = weights = 0.0
    for row in range(4):
        legal = data["legal"][row]
        log_p = logits[row][legal].double().log_softmax(0)
        weight = 1.0 if data["full"][row] else 0.5
        policy_loss -= weight * float((data["policy"][row][legal] * log_p).sum())
        weights += weight
    target = 0.75 * data["target"] + 0.25 * data["value"]
    expected = policy_loss / weights + 2.0 * float(((value - target) ** 2).mean())
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_a_value_at_the_wrong_end_goes_on_learning_by_the_chance_that_it_tells():
    # of rows that differ in the value alone, the policy's part of the loss is the same
    data, end = batch(), torch.tensor([-1.0, 1.0, 0.5, 0.0], requires_grad=True)
    model = lambda x: (torch.zeros(4, 9), end)  # noqa: E731
    loss = AlphaZero(value_error="entropy", search_share=0.5)(model, data, 0)
    policy_part = AlphaZero(value_weight=0.0)(model, data, 0)
    chance = (1 + end.detach().double()).clamp(2e-4, 2 - 2e-4) / 2
    wanted = (1 + (data["target"] + data["value"]).double() / 2) / 2
    expected = -(wanted * chance.log() + (1 - wanted) * (1 - chance).log()).mean()
    assert float((loss - policy_part).detach()) == pytest.approx(float(expected), rel=1e-5)
    # through a tanh the gradient is the difference from what is wanted, however far off that is
    z = torch.tensor([-3.0, 3.0, 0.5, 0.0], requires_grad=True)
    AlphaZero(value_error="entropy", search_share=0.5)(lambda x: (torch.zeros(4, 9), z.tanh()), data, 0).backward()
    np.testing.assert_allclose(z.grad, (torch.tanh(z.detach()) - 2 * wanted + 1) / 4, rtol=1e-4)
    # also beyond the chances that it computes by, of 1e-4 to 1 - 1e-4
    z = torch.tensor([5.0, -5.0, 5.0, 0.0], requires_grad=True)
    AlphaZero(value_error="entropy", search_share=0.5)(lambda x: (torch.zeros(4, 9), z.tanh()), data, 0).backward()
    far = (torch.tanh(z.detach()) - 2 * wanted + 1) / 4
    assert (z.grad / far > 0.1)[far.abs() > 0.1].all()
    with pytest.raises(ValueError, match="value_error must be 'squared' or 'entropy', got 'mean'"):
        AlphaZero(value_error="mean")


@pytest.mark.parametrize("net", [MLP(), ResNet((2, 3, 3), 9, nc=4, n_blocks=1)])
def test_a_value_that_is_wrong_at_an_end_goes_on_learning_in_half_precision(net):
    last = net.value if isinstance(net, MLP) else net.value[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, 6.0)  # its tanh is 1 in half precision
    data = batch() | {"obs": torch.ones(4, 2, 3, 3), "target": torch.full((4,), -1.0)}
    with torch.autocast("cpu", torch.bfloat16):
        loss = AlphaZero(value_error="entropy")(net, data, 0)
    loss.backward()
    assert float(last.bias.grad) > 0.1
    assert net(data["obs"])[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"least_rate": 2.0}, r"least_rate must be in \[0, 1\], got 2"),
        ({"least_rate": -1.0}, r"least_rate must be in \[0, 1\], got -1"),
        ({"minutes": 0.0}, "minutes must be positive, got 0"),
        ({"places": True}, "places and kernel_rate are of convolutions, which the network of tictactoe has not"),
        ({"kernel_rate": 0.02}, "places and kernel_rate are of convolutions"),
    ],
)
def test_a_run_that_would_not_do_what_it_was_told_is_refused(how, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(replace(PRESETS["tiny"], trial=str(tmp_path / "run"), **how))
    assert not (tmp_path / "run").exists()


def test_shares_outside_their_range_are_refused():
    with pytest.raises(ValueError, match=r"search_share must be in \[0, 1\], got 2"):
        AlphaZero(search_share=2)


class Oracle(torch.nn.Module):
    """Knows the truth, or its opposite."""

    def __init__(self, solution, sign):
        super().__init__()
        self.table = {}
        observed = solution.game.observe(solution.states)
        for key, score in zip(observed, solution.scores, strict=True):
            self.table[key.tobytes()] = np.where(score > -9, sign * score, -9)

    def forward(self, x):
        scores = np.array([self.table[row.numpy().tobytes()] for row in x])
        return torch.from_numpy(scores * 50), torch.from_numpy(scores.max(1))


def test_the_truth_finds_no_fault_with_perfect_play_and_many_with_the_worst(solution):
    game = TicTacToe()
    perfect = Judge(game, Oracle(solution, 1.0), 0)
    assert wrong_moves(solution, perfect) == 0
    assert lost_lines(game, perfect) == 0
    worst = Judge(game, Oracle(solution, -1.0), 0)
    assert wrong_moves(solution, worst) > 2000
    assert lost_lines(game, worst) > 10


needs_numba = pytest.mark.skipif(not fast.available(), reason="numba is not installed")


@pytest.fixture(scope="module")
def solved():
    return connect4.solved_positions(24, (24, 25), seed=3)


class FourOracle(torch.nn.Module):
    """Knows the outcome of each move of some positions, or its opposite."""

    def __init__(self, solved, sign):
        super().__init__()
        seen = ConnectFour().observe(solved.states)
        self.table = dict(zip((row.tobytes() for row in seen), solved.scores, strict=True))
        self.sign = sign

    def forward(self, x):
        scores = np.array([self.table.get(row.numpy().tobytes(), np.zeros(7)) for row in x])
        logits = np.where(scores > -9, 50 * self.sign * scores, -9)
        return torch.from_numpy(logits).float(), torch.from_numpy(scores.max(1)).float()


@needs_numba
def test_solved_positions_tell_right_moves_from_wrong_ones(solved):
    assert connect4.Solved(solved.states, solved.scores).right(NetEvaluator(FourOracle(solved, 1)), 0) == 1
    assert solved.right(NetEvaluator(FourOracle(solved, -1)), 0) == 0
    knows_nothing = NetEvaluator(FourOracle(replace(solved, scores=0 * solved.scores), 1))
    assert solved.right(knows_nothing, 300) > solved.right(knows_nothing, 0)
    values = solved.values(NetEvaluator(FourOracle(solved, 1)))
    assert all(
        values[name] == outcome for name, outcome in (("wins", 1), ("draws", 0), ("losses", -1)) if name in values
    )


@needs_numba
def test_training_never_sees_the_solved_positions_nor_their_mirror_images(solved):
    game = ConnectFour()
    seen = torch.from_numpy(game.observe(solved.states))
    other = torch.from_numpy(game.observe(game.positions(["33", "0123"])))
    batch = {"obs": torch.cat([other, seen[:3], seen[3:5].flip(3)]), "index": torch.arange(7)}
    kept = solved.withheld(batch)
    assert kept["index"].tolist() == [0, 1]
    assert torch.equal(kept["obs"], other)


def test_moves_are_put_in_an_order_that_leads_to_the_position():
    game, rng = ConnectFour(), np.random.default_rng(0)
    for plies in (0, 1, 7, 16, 24):
        state = game.init(1)
        for _ in range(plies):
            after = game.step(state, rng.choice(np.flatnonzero(game.legal(state)[0]), 1))
            state = state if game.terminal(after)[0] else after
        again = game.positions(["".join(map(str, connect4.move_order(state)))])
        for name in ("own", "stones", "player"):
            assert again[name] == state[name]


def test_a_position_out_of_reach_has_no_order():
    state = ConnectFour().init(1)
    state["stones"], state["own"] = 0b11, 0b11  # two stones of one side
    with pytest.raises(ValueError, match="no order of moves leads to this one"):
        connect4.move_order(state)


def test_matches_against_a_missing_peer_name_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspiel", None)
    with pytest.raises(ImportError, match="matches against MCTSBot need OpenSpiel"):
        reproduce_connect4()  # before the hour of training


class FourPlayer(torch.nn.Module):
    """Likes the middle, and what it sees most of itself there."""

    def forward(self, x):
        middle = torch.tensor([0.0, 1, 2, 3, 2, 1, 0])
        return middle.expand(len(x), 7), torch.tanh(((x[:, 0] - x[:, 1]) * middle).sum((1, 2)) / 10)


@needs_numba
@pytest.mark.slow
def test_connect_four_is_learnt_measured_and_rated(tmp_path):
    config = replace(PRESETS["tiny"], game="connect4", trial=str(tmp_path / "trial"), keep_snapshots=None)
    found = run(config)
    assert {"right_0", "right_100", "right_400", "seconds"} <= found.keys()
    ladder = Ladder(tmp_path / "trial", ConnectFour(), lambda: network(config), NetEvaluator, connect4.RULE, games=4)
    lines = (tmp_path / "trial" / "metrics.jsonl").read_text().splitlines()
    logged = {record["step"]: record["elo"] for record in map(json.loads, lines) if "elo" in record}
    assert logged[2] == 0
    assert np.isfinite(logged[4])
    assert [row[:2] for row in json.loads((tmp_path / "trial" / "ladder.json").read_text())] == [[4, 2]]
    # who plays better than the last snapshots is rated above them
    assert ladder(FourPlayer(), 6) > logged[4]
    assert [row[:2] for row in json.loads((tmp_path / "trial" / "ladder.json").read_text())] == [[4, 2], [6, 2], [6, 4]]
    rated = connect4.matches(config.trial, lambda: network(config), NetEvaluator, {}, elo_games=2)
    assert np.isfinite(rated["elo_gain"])
    assert len(json.loads((tmp_path / "trial" / "elo.json").read_text())) == 2
    assert (tmp_path / "trial" / "elo.png").stat().st_size > 1000


def test_the_rate_falls_to_its_end_by_the_steps_or_before_the_minutes_end(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("ai.examples.selflearn.time", clock)
    by_steps = make_schedule(replace(PRESETS["tiny"], steps=100, least_rate=0.1), 0)
    both = make_schedule(replace(PRESETS["tiny"], steps=100, least_rate=0.1, minutes=10), 0)
    goes_on = make_schedule(replace(PRESETS["tiny"], steps=100, least_rate=0.1, minutes=10), 40)
    assert [both(step) for step in (0, 40, 100)] == [by_steps(step) for step in (0, 40, 100)]
    assert goes_on(40) == by_steps(40)
    clock.now += 300  # half of the minutes
    assert both(20) == by_steps(50) == pytest.approx(0.55)
    assert both(80) == by_steps(80)
    assert goes_on(41) == by_steps(70)
    clock.now += 300
    assert both(60) == goes_on(60) == pytest.approx(0.1)


@pytest.mark.parametrize(("faults", "best"), [({2: 1, 4: 0, 6: 2}, 4), ({2: 1, 4: 1, 6: 2}, 4)])
def test_the_best_snapshot_is_what_remains_and_of_equals_the_later(faults, best, tmp_path):
    config = replace(PRESETS["tiny"], steps=6, save_interval=2, task_interval=2, trial=str(tmp_path / "trial"))
    game, model, seen = TicTacToe(), network(config).init(seed=0), {}

    def task(model, step):
        seen[step] = model.policy.weight.detach().clone()
        return {"fault": faults.get(step, 9)}  # before the first step it is tried once

    with self_play(game, config, Augment(game)) as loader:
        learn(config, model, loader, loss(config), task=task, best_by="fault", mode="min")
    # the task saw the average of each step, and the model ends as that of the best
    folder = tmp_path / "trial" / "snapshots" / f"{best:09d}"
    averaged, raw = (snapshot.load_model_state(folder, ema=ema)["policy.weight"] for ema in (True, False))
    assert torch.equal(model.policy.weight, averaged)
    assert torch.equal(seen[best], averaged)
    assert not torch.equal(raw, averaged)
    assert not torch.equal(seen[best], seen[6])


@pytest.mark.slow
@pytest.mark.usefixtures("data_workers_start_warm")
def test_training_outlives_a_killed_self_play_worker(tmp_path):
    config = replace(PRESETS["tiny"], steps=40, workers=1, task_interval=10, trial=str(tmp_path / "trial"))
    game, model, deaths = TicTacToe(), network(config).init(seed=0), {}

    with self_play(game, config, Augment(game)) as loader:

        def task(model, step):
            if step == 10:
                os.kill(loader.pids[0], signal.SIGKILL)
            deaths[step] = loader.stats()["worker_deaths"]
            return {"fault": 0.0}

        learn(config, model, loader, loss(config), task=task, best_by="fault", mode="min")
        wait_until(lambda: loader.stats()["worker_deaths"] == 1)
    assert list(deaths) == [0, 10, 20, 30, 40]  # tried once before the first step


# The task of step 30 kills the process, whose last snapshot is that of step 20.
KILLED = """
import os, signal, sys
from dataclasses import replace
from ai.examples.alphazero.main import PRESETS, loss, network, reproduce_connect4, self_play
from ai.examples.selflearn import learn
from ai.game import Augment, TicTacToe

config = replace(PRESETS["tiny"], workers=1, steps=1000, save_interval=20, task_interval=10, trial=sys.argv[1])
game = TicTacToe()

def task(model, step):
    if step == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"fault": 0.0}

loader = self_play(game, config, Augment(game))
learn(config, network(config).init(seed=0), loader, loss(config), task=task, best_by="fault", mode="min")
"""


@pytest.mark.slow
@pytest.mark.usefixtures("data_workers_start_warm")
def test_a_killed_trainer_goes_on_with_the_buffer_and_versions_that_were_recorded(tmp_path):
    trial = tmp_path / "trial"
    (tmp_path / "killed.py").write_text(KILLED)
    killed = warm_python.run(tmp_path / "killed.py", trial, folder=tmp_path, nested=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    snapshots = Snapshots(trial / "snapshots")
    step, saved = int(snapshots.latest().name), snapshot.read(snapshots.latest())["data"]
    assert step == 20
    assert saved["version"] >= 1
    assert len(saved["buffer"]["end"]) > 0
    config = replace(PRESETS["tiny"], workers=1, steps=step + 5, resume=True, trial=str(trial))
    game, model = TicTacToe(), network(config).init(seed=0)
    with self_play(game, config, Augment(game)) as loader:
        loader.load_state_dict(saved)
        with loader.locked():
            again = loader.state_dict()
        assert again["version"] == saved["version"]
        old = len(saved["buffer"]["end"])
        for key, rows in saved["buffer"]["columns"].items():
            assert torch.equal(again["buffer"]["columns"][key][:old], rows), key
        reached = []
        learn(
            config,
            model,
            loader,
            loss(config),
            task=lambda model, step: reached.append(step) or {"fault": 0.0},
            best_by="fault",
            mode="min",
        )
    assert reached[-1] == step + 5
