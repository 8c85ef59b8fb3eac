import pytest
import torch

import ai.model as m
from ai.train import RL, MuZero
from ai.train.rl.uncounted import policy_cross_entropy, where_counts

NONE, INF = torch.nan, torch.inf


class Model(m.Model):
    """A small learned model; its policy is what `policy` makes of logits."""

    def __init__(self, policy):
        super().__init__()
        self.policy, self.out = policy, m.fc(2, 3)
        self.seen, self.moved, self.worth = m.fc(2, 2), m.fc(2, 2), m.fc(2, 1)

    def represent(self, obs):
        return self.seen(obs)

    def dynamics(self, state, action):
        return self.moved(state), self.worth(state).flatten()

    def predict(self, state):
        return self.policy(self.out(state)), self.worth(state).flatten()


def graded(loss, model, batch, on_device):
    """The loss, and the gradients of all parameters as one row."""
    model.zero_grad()
    value = on_device(loss)(model, batch, 0)
    value.backward()
    return torch.cat([value.detach().view(1), *(p.grad.flatten() for p in model.parameters() if p.grad is not None)])


@pytest.mark.parametrize("padding", [NONE, INF, -INF])
@pytest.mark.parametrize("policy", ["logits", "gaussian"])
def test_what_stands_past_an_episodes_end_reaches_neither_a_searchs_loss_nor_its_gradients(policy, padding, on_device):
    generator = torch.Generator().manual_seed(0)
    model = Model((lambda x: x) if policy == "logits" else lambda x: m.Gaussian(x[:, :1], x[:, 1:2])).init(seed=0)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    batch = {
        "obs": torch.randn(2, 3, 2, generator=generator),
        "action": torch.zeros(2, 3),
        "reward": torch.zeros(2, 3),
        "target": torch.randn(2, 3, generator=generator),
        "policy": torch.rand(2, 3, 3, generator=generator).softmax(-1),
        "sampled": torch.randn(2, 3, 3, 1, generator=generator),
        "mask": mask,
    }
    loss = MuZero(obs_unrolled=True, consistency_weight=0.5, entropy_weight=0.1)
    want = graded(loss, model, batch, on_device)
    # what is seen at the moment after the last step is still learnt from, and what comes later is not
    soiled = {key: batch[key].clone() for key in ("policy", "sampled", "obs")}
    soiled["policy"][~mask] = soiled["sampled"][~mask] = padding
    soiled["obs"][1, 2] = padding
    torch.testing.assert_close(graded(loss, model, {**batch, **soiled}, on_device), want, rtol=0, atol=0)
    assert want.isfinite().all()


def test_a_move_that_is_impossible_and_not_wanted_costs_nothing_in_any_precision(on_device):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits = torch.tensor([[1.0, -INF, 200.0]], dtype=dtype, requires_grad=True)
        wanted = torch.tensor([[0.5, 0.0, 0.5]])
        loss = on_device(policy_cross_entropy)(logits, wanted)
        loss.sum().backward()
        assert loss.item() == pytest.approx(99.5, rel=0.01)  # log-probabilities of -199 and 0
        torch.testing.assert_close(logits.grad.float(), torch.tensor([[-0.5, 0.0, 0.5]]))


@pytest.mark.parametrize("told", [-INF, NONE, INF])
def test_a_row_of_which_nothing_is_wanted_is_not_counted_whatever_its_logits(told, on_device):
    logits = torch.tensor([[0.0, 0.0], [told, told]], requires_grad=True)
    loss = on_device(policy_cross_entropy)(logits, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    loss.sum().backward()
    assert loss.tolist() == [pytest.approx(0.693147), 0]
    assert logits.grad.tolist() == [[-0.5, 0.5], [0, 0]]


def test_a_move_that_is_wanted_and_impossible_and_a_policy_of_nan_are_not_passed_over(on_device):
    logits = torch.tensor([[1.0, -INF, 2.0]] * 2)
    wanted = torch.tensor([[0.5, 0.5, 0.0], [0.5, NONE, 0.5]])
    assert on_device(policy_cross_entropy)(logits, wanted).tolist() == [INF, pytest.approx(NONE, nan_ok=True)]


@pytest.mark.parametrize("loss", [RL(), RL(entropy=0.1), MuZero(), MuZero(entropy_weight=0.1)])
def test_a_policy_that_bars_illegal_moves_by_minus_infinity_is_learnt_as_one_without_them(loss, on_device):
    def barred(x, floor):
        return torch.cat([x[:, :2], torch.full_like(x[:, 2:], floor)], 1)

    found = []
    for floor in (-INF, -1e4):
        model = Model(lambda x, floor=floor: barred(x, floor)).init(seed=1)
        obs = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
        policy = torch.tensor([[0.3, 0.7, 0.0]] * 4)
        if isinstance(loss, RL):
            made = {"obs": obs, "policy": policy, "target": torch.ones(4)}
            asked = lambda model, made: loss(lambda seen: model.predict(model.represent(seen)), made, 0)  # noqa: E731
            value = on_device(asked)(model, made)
        else:
            zeros = torch.zeros(4, 2)
            made = {"obs": obs, "action": zeros, "reward": zeros, "target": zeros, "mask": zeros == 0}
            value = on_device(loss)(model, {**made, "policy": policy[:, None].expand(4, 2, 3)}, 0)
        value.backward()
        found.append(
            torch.cat([value.detach().view(1), *(p.grad.flatten() for p in model.parameters() if p.grad is not None)])
        )
    torch.testing.assert_close(*found)
    assert found[0].isfinite().all()


def test_a_mask_reaches_over_all_later_axes(on_device):
    x = torch.full((2, 2, 3), NONE)
    x[0, 1] = 1.0
    mask = torch.tensor([[0, 1], [0, 0]])
    assert on_device(where_counts)(mask, x).sum() == 3
