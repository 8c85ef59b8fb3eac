"""PPO, DQN and SAC as examples: tiny runs of each kind, resuming, and what they note and film."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from ai.data import Packed
from ai.examples import dqn, ppo, sac
from ai.examples.agents import curves
from ai.examples.agents.film import frames, strip
from ai.examples.agents.learner import Learner
from ai.examples.agents.noted import Noted
from ai.examples.agents.training import train
from ai.examples.agents.worlds import world
from ai.game import ByPolicy
from ai.lab import Record

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pygame

KINDS = {
    "ppo continuous": (ppo, {"env": "Pendulum-v1", "normalize": True, "task_interval": 8}),
    "ppo recurrent": (ppo, {"env": "hidden:CartPole-v1", "sequence": 8, "task_interval": 8}),
    "ppo masked": (ppo, {"env": "masked:Taxi-v4", "task_interval": 8}),
    "dqn with everything": (
        dqn,
        {
            "env": "masked:Taxi-v4",
            "total_steps": 420,
            "duelling": True,
            "quantiles": 5,
            "alpha": 0.6,
            "n_step": 3,
            "task_interval": 200,
        },
    ),
    "sac n-step": (sac, {"n_step": 3, "task_interval": 50}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_tiny_preset_trains_and_is_measured(kind, tmp_path):
    example, how = KINDS[kind]
    config = replace(example.main.PRESETS["tiny"], trial=str(tmp_path / "trial"), goal=0, **how)
    found = example.run(config)
    assert {"return", "return_sem", "steps", "episodes", "seconds", "steps_per_s", "solved_at"} <= found.keys()
    assert abs(found["steps"] - config.total_steps) <= config.num_envs * getattr(config, "steps", 1) + 30
    noted = np.loadtxt(tmp_path / "trial/episodes.csv", delimiter=",", skiprows=1)
    assert len(noted) == found["episodes"]
    if config.env.startswith("masked:"):
        assert found["return"] >= -200  # each step costs 1, what may not be done 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo recurrent", "sac n-step"])
def test_a_run_stopped_anywhere_resumes_bit_for_bit(kind, tmp_path, monkeypatch):
    example, how = KINDS[kind]
    tiny = replace(example.main.PRESETS["tiny"], **{**how, "task_interval": 1000, "total_steps": 256})
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    example.run(replace(tiny, trial=whole))

    import ai.examples.agents.training as training

    class Stops(training.RLTrainer):
        def train(self, *args, steplimit, **how):
            return super().train(*args, steplimit=steplimit // 2 + 1, **how)

    with monkeypatch.context() as patch:
        patch.setattr(training, "RLTrainer", Stops)
        example.run(replace(tiny, trial=parts))
    example.run(replace(tiny, trial=parts, resume=True))
    ends = [max((tmp_path / name / "snapshots").glob("[0-9]*")) for name in ("whole", "parts")]
    first, second = (torch.load(end / "state.pt", weights_only=True) for end in ends)
    from safetensors.torch import load_file

    a, b = (load_file(end / "model.safetensors") for end in ends)
    assert ends[0].name == ends[1].name
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert torch.equal(first["data"]["source"]["source"]["generator"], second["data"]["source"]["source"]["generator"])
    csv = [(tmp_path / name / "episodes.csv").read_text() for name in ("whole", "parts")]
    assert csv[0] == csv[1]


def test_the_hidden_world_shows_every_other_number():
    shown, hidden = world("CartPole-v1", 3), world("hidden:CartPole-v1", 3)
    assert hidden.observation_shape == (2,)
    np.testing.assert_array_equal(shown.reset(0)[:, ::2], hidden.reset(0))
    actions = np.array([0, 1, 1])
    np.testing.assert_array_equal(shown.step(actions)[0][:, ::2], hidden.step(actions)[0])


def test_the_masked_world_shows_what_may_be_done_and_states_as_rows():
    env = world("masked:Taxi-v4", 2)
    bare = gym.make("Taxi-v4").unwrapped
    seen = env.reset(0)
    assert (env.observation_shape, env.num_actions) == ((500,), 6)
    for _ in range(5):
        assert seen["obs"].sum(1).tolist() == [1, 1]
        told = [bare.action_mask(int(state)).tolist() for state in seen["obs"].argmax(1)]
        assert seen["legal"].tolist() == told
        seen, *_ = env.step(seen["legal"].argmax(1))


def test_a_held_action_is_taken_several_times_and_counts_once():
    plain, held = world("Pendulum-v1", 2), world("held-3:Pendulum-v1", 2)
    plain.reset(0), held.reset(0)
    action = np.array([[0.5], [-0.5]], np.float32)
    steps = [plain.step(action) for _ in range(3)]
    seen, reward, ended, cut = held.step(action)
    np.testing.assert_array_equal(seen, steps[-1][0])
    np.testing.assert_allclose(reward, sum(step[1] for step in steps), rtol=1e-6)
    assert not (ended | cut).any()
    for _ in range(66):  # of 200 steps 66 are held three times, and the last one twice
        cut = held.step(action)[3]
    assert cut.all()
    assert world("held-2:hidden:CartPole-v1", 1).observation_shape == (2,)


@pytest.mark.filterwarnings("ignore:.*render_mode:UserWarning")
def test_what_cannot_be_filmed_says_so_before_it_trains(tmp_path, monkeypatch):
    class Blind(gym.Env):
        observation_space, action_space = gym.spaces.Box(0, 1, (1,), np.float32), gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def render(self):
            return None

    monkeypatch.setitem(
        gym.registry, "Blind-v0", gym.envs.registration.EnvSpec("Blind-v0", lambda render_mode=None: Blind())
    )
    config = replace(ppo.main.PRESETS["tiny"], env="Blind-v0", film=True, trial=str(tmp_path / "trial"))
    learner = Learner(torch.nn.Identity(), None, None, None, None, updates=10, greedy=ByPolicy())
    with pytest.raises(ValueError, match=r"env must render pictures, .*: Blind-v0 gives none"):
        train(config, learner)
    assert not (tmp_path / "trial").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("held-0:NAME", r"how often an action is taken, such as held-4:NAME, got held-0:NAME"),
        ("held-4:hidden:ALE/Pong-v5", r"no prefix before ALE/…, .* got held-4:hidden:ALE/Pong-v5"),
        ("hidden:point-mass", "no prefix before point-mass, .* got hidden:point-mass"),
        ("held-2:masked:Taxi-v4", "masked: once, before all other prefixes, got held-2:masked:Taxi-v4"),
        ("hidden:FrozenLake-v1", r"a row of numbers to be hidden:, got Discrete\(16\)"),
    ],
)
def test_worlds_that_cannot_be_made_so_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        world(name, 1)


def test_solved_is_told_by_the_first_window_that_reaches_the_goal():
    class Source:
        n_steps = 0

        def __next__(self):
            self.n_steps += 10
            columns = {"action": np.zeros(2), "reward": np.zeros(2)}
            return Packed(columns, np.array([2]), finished={"episode_return": np.array([self.n_steps, 0.0])})

    noted = Noted(Source())
    for _ in range(6):
        next(noted)
    assert noted.episodes.tolist()[:3] == [[10, 10], [10, 0], [20, 20]]
    assert noted.solved_at(20, window=4) == 50  # 20, 0, 30, 0, 40 and 0 fall short; 0, 40, 0, 50 do not
    assert np.isnan(noted.solved_at(1000, window=4))


def test_curves_of_seeds_are_drawn_and_those_that_ran_are_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path))
    ran = []

    def again(*, seed):
        ran.append(seed)
        folder = tmp_path / f"reproduce/cartpole-dqn-{seed}"
        folder.mkdir(parents=True)
        (folder / "episodes.csv").write_text("steps,return\n10,20\n30,40\n")
        solved = float("nan") if seed == 6 else 30.0 + seed  # longer than any
        return {"return": 400.0 + seed, "solved_at": solved, "steps_per_s": 9.0}

    monkeypatch.setattr(dqn.main, "reproduce", again)
    half = curves.reproduce(kind="cartpole-dqn", seeds=2, seed=5)
    assert half == {"return_min": 405, "return_mean": 405.5, "solved": 1, "steps_per_s_median": 9}  # and no median
    found = curves.reproduce(kind="cartpole-dqn", seeds=3, seed=5)
    assert ran == [5, 6, 7]
    assert found == {
        "return_min": 405, "return_mean": 406, "solved": 2, "solved_at_median": 37, "steps_per_s_median": 9,
    }  # fmt: skip
    assert (tmp_path / "reproduce/cartpole-dqn.png").stat().st_size > 5000


def test_recurrent_models_carry_what_they_saw():
    model = ppo.Recurrent((2,), 3, dim=8).init(seed=0).eval()
    obs = torch.randn(4, 5, 2)
    policy, value, memory = model(obs, torch.zeros(4, 2, 8))
    held = torch.zeros(4, 2, 8)
    for t in range(5):
        step, step_value, held = model(obs[:, t : t + 1], held)
        torch.testing.assert_close(step.logits[:, 0], policy.logits[:, t])
        torch.testing.assert_close(step_value[:, 0], value[:, t])
    torch.testing.assert_close(held, memory)


def test_frames_go_through_the_network_of_the_paper():
    model = ppo.Atari(6).init(seed=0)
    policy, value = model(torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8))
    assert policy.logits.shape == (2, 6)
    assert value.shape == (2,)
    assert sum(p.numel() for p in model.body.parameters()) == 1_684_128  # 8,224 + 32,832 + 36,928 + 1,606,144


@pytest.mark.parametrize("how", [{"quantiles": 7}, {"atoms": 7, "support": (2.0, 3.0)}])
def test_a_duelling_network_of_quantiles_or_chances_has_values(how, on_device):
    model = dqn.Model((4,), 3, dim=16, duelling=True, **how).init(seed=0)
    obs = torch.randn(5, 4)
    assert on_device(model.q)(obs).shape == (5, 3, 7)
    values = on_device(model)(obs)
    assert values.shape == (5, 3)
    assert "atoms" not in how or bool(((values > 2) & (values < 3)).all())
    torch.testing.assert_close(model.q.net[1].advantage(model.q.net[0](obs)).shape, (5, 3, 7))


def test_a_film_is_one_episode():
    pytest.importorskip("pygame")
    model = ppo.Perceptrons().init(seed=0)
    pictures = frames("CartPole-v1", model, ByPolicy(greedy=True))
    assert 5 < len(pictures) < 200
    assert pictures[0].shape == (400, 600, 3)
    assert strip(pictures, 4).shape == (4, 3, 400, 600)
    assert model.training


@pytest.mark.parametrize(
    ("example", "how", "message"),
    [
        (dqn, {"env": "Pendulum-v1"}, "env must have discrete actions, Pendulum-v1 has not"),
        (sac, {"env": "CartPole-v1"}, "env must have continuous actions and show a few numbers, CartPole-v1 has not"),
    ],
)
def test_an_environment_of_another_kind_is_refused(example, how, message):
    with pytest.raises(ValueError, match=message):
        example.run(replace(example.main.PRESETS["tiny"], **how))


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        ppo.Config(num_envs=0)


def test_a_run_ends_when_its_time_is_up_with_what_it_has(tmp_path):
    tiny = replace(ppo.main.PRESETS["tiny"], total_steps=10**8, timelimit=1e-3, trial=str(tmp_path / "trial"), seed=1)
    assert 0 < ppo.run(tiny)["steps"] < 1000
    with pytest.raises(ValueError, match="timelimit must be positive or None, got 0"):
        replace(tiny, timelimit=0)


def test_the_film_of_a_run_is_kept_once(tmp_path, monkeypatch):
    picture = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr("ai.examples.agents.training.frames", lambda *args, **how: [picture] * 4)
    one = replace(ppo.main.PRESETS["tiny"], total_steps=64, passes=1, film=True, trial=str(tmp_path / "trial"))
    for resume in (False, True):  # the second finds nothing left to do
        ppo.run(replace(one, resume=resume))
    assert [path.suffix for path in Record(one.trial).media()["agent"].values()] == [".webp"]
    assert (tmp_path / "trial/agent.gif").exists()


@pytest.mark.parametrize(("env", "shape"), [("hidden:CartPole-v1", (400, 600, 3)), ("ALE/Pong-v5", (84, 84, 3))])
def test_what_hides_or_shows_frames_is_filmed_too(env, shape):
    pytest.importorskip("ale_py" if env.startswith("ALE") else "pygame")
    left = lambda model, seen, generator, n_steps: {"action": torch.zeros(1, dtype=torch.long)}  # noqa: E731
    pictures = frames(env, torch.nn.Identity(), left, most=3)
    assert [picture.shape for picture in pictures] == [shape] * 3
    assert pictures[0].max() > pictures[0].min()
