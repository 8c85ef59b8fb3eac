"""Policies against torch.distributions and against counts."""

import pytest
import torch
from torch import distributions as D

import ai.model as m


def made(seed=0, rows=(6,), axes=3):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(*rows, axes, generator=rng, dtype=torch.float64) for _ in range(2)]


def scores(make):
    """What a policy of these numbers says of an action."""

    def of(action, *numbers):
        policy = make(*numbers)
        return policy.log_prob(action), policy.entropy(), policy.mode()

    return of


@pytest.mark.parametrize("rows", [(6,), (2, 3)])
def test_categorical_scores_as_torch_does(rows, on_device):
    logits, _ = made(rows=rows)
    ours, theirs = m.Categorical(logits), D.Categorical(logits=logits)
    action = ours.sample(torch.Generator().manual_seed(1))
    assert action.shape == rows
    assert action.dtype == torch.int64
    found = on_device(scores(m.Categorical))(action, logits)
    torch.testing.assert_close(found, (theirs.log_prob(action), theirs.entropy(), theirs.probs.argmax(-1)))


def test_categorical_samples_in_proportion(on_device):
    chance = torch.tensor([0.1, 0.0, 0.3, 0.6])
    draw = on_device(lambda logits, generator: m.Categorical(logits).sample(generator))
    drawn = draw(chance.log().expand(40_000, 4), torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=4) / 40_000
    assert share[1] == 0
    torch.testing.assert_close(share, chance, atol=0.01, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_illegal_actions_are_never_drawn_and_cost_no_nan(dtype, on_device):
    logits = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    legal = torch.tensor([True, False, True, False, False])

    def used(logits, legal, action):
        policy = m.Categorical(logits).among(legal)
        return policy.sample(), policy.entropy(), policy.log_prob(action)

    drawn, entropy, log_prob = on_device(used)(logits, legal, torch.full((1000,), 2))
    assert set(drawn.tolist()) == {0, 2}
    (entropy.sum() + log_prob.sum()).backward()
    assert entropy.max() <= torch.log(torch.tensor(2.0)) + 1e-6
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, ~legal] == 0).all()


def test_a_draw_of_zero_lets_no_illegal_action_win(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, generator=None: self.zero_().neg_())
    legal = torch.tensor([[False, True, False]])
    assert m.Categorical(torch.zeros(1, 3)).among(legal).sample().tolist() == [1]


def test_where_nothing_is_legal_the_policy_is_uniform(on_device):
    entropy = on_device(lambda logits, legal: m.Categorical(logits).among(legal).entropy())
    torch.testing.assert_close(
        entropy(torch.randn(1, 4), torch.zeros(1, 4, dtype=torch.bool)), torch.tensor([4.0]).log()
    )


def test_entropy_of_an_impossible_action_given_as_minus_infinity_is_finite(on_device):
    logits = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    entropy = on_device(lambda logits: m.Categorical(logits).entropy())(logits)
    entropy.sum().backward()
    assert entropy.item() == 0
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("shared", [False, True])
def test_gaussian_scores_as_torch_does(shared, on_device):
    mean, log_std = made()
    log_std = log_std[0] if shared else log_std
    ours, theirs = m.Gaussian(mean, log_std), D.Independent(D.Normal(mean, log_std.exp()), 1)
    action = ours.sample(torch.Generator().manual_seed(1))
    found = on_device(scores(m.Gaussian))(action, mean, log_std)
    torch.testing.assert_close(found, (theirs.log_prob(action), theirs.entropy(), mean))


def test_gaussian_samples_have_its_moments_and_carry_gradients(on_device):
    mean, log_std = torch.tensor([2.0], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    draw = on_device(lambda mean, log_std, generator: m.Gaussian(mean, log_std).sample(generator))
    drawn = draw(mean.expand(20_000, 1), log_std, torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(2, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.3679, abs=0.01)
    drawn.sum().backward()
    assert mean.grad.item() == 20_000
    assert log_std.grad.abs() > 0


def test_squashed_gaussian_scores_as_the_transformed_distribution(on_device):
    mean, log_std = made()
    ours = m.SquashedGaussian(mean, log_std - 1)

    def squashed(action, *numbers):
        policy = m.SquashedGaussian(*numbers)
        return policy.log_prob(action), policy.mode()

    theirs = D.Independent(D.TransformedDistribution(D.Normal(mean, (log_std - 1).exp()), [D.TanhTransform()]), 1)
    action, log_prob = ours.sample_with_log_prob(torch.Generator().manual_seed(1))
    torch.testing.assert_close(log_prob, theirs.log_prob(action), atol=1e-5, rtol=1e-5)
    found = on_device(squashed)(action, mean, log_std - 1)
    torch.testing.assert_close(found, (log_prob, mean.tanh()), atol=1e-5, rtol=1e-5)


def test_squashed_gaussian_stays_finite_at_the_ends():
    policy = m.SquashedGaussian(torch.tensor([[50.0, -50.0]], requires_grad=True), torch.zeros(1, 2))
    action, log_prob = policy.sample_with_log_prob()
    assert action.tolist() == [[1, -1]]
    assert log_prob.isfinite().all()
    assert policy.log_prob(action).isfinite().all()
    log_prob.sum().backward()
    assert policy.mean.grad.isfinite().all()


def test_squashed_entropy_is_right_on_average():
    policy = m.SquashedGaussian(torch.zeros(200_000, 1), torch.zeros(200_000, 1))
    grid = torch.linspace(-1 + 1e-4, 1 - 1e-4, 20_001, dtype=torch.float64)[:, None]
    log_p = m.SquashedGaussian(torch.zeros_like(grid), torch.zeros_like(grid)).log_prob(grid)
    want = -torch.trapezoid(log_p.exp() * log_p, grid[:, 0])
    torch.manual_seed(0)
    assert policy.entropy().mean().item() == pytest.approx(want.item(), abs=0.01)


def test_mixed_is_the_sum_of_its_parts(on_device):
    logits, (mean, log_std) = torch.randn(4, 3), (torch.randn(4, 2), torch.randn(2))
    parts = m.Categorical(logits), m.Gaussian(mean, log_std)
    both = m.Mixed(parts)
    action = both.sample(torch.Generator().manual_seed(0))
    assert action.shape == (4, 3)
    assert action.dtype == torch.float32
    want = parts[0].log_prob(action[:, 0].long()) + parts[1].log_prob(action[:, 1:])
    mixed = scores(lambda logits, *gaussian: m.Mixed((m.Categorical(logits), m.Gaussian(*gaussian))))
    mode = torch.cat([logits.argmax(1, keepdim=True), mean], 1)
    found = on_device(mixed)(action, logits, mean, log_std)
    torch.testing.assert_close(found, (want, parts[0].entropy() + parts[1].entropy(), mode))


def test_mixed_choices_stay_integers():
    both = m.Mixed((m.Categorical(torch.randn(4, 3)), m.Categorical(torch.randn(4, 7))))
    assert both.sample().dtype == torch.int64
    assert both.log_prob(both.mode()).shape == (4,)


@pytest.mark.parametrize("policy", ["Categorical", "Gaussian", "SquashedGaussian"])
def test_a_generator_decides_and_the_global_one_is_left_alone(policy):
    mean, log_std = made()
    made_policy = m.Categorical(mean) if policy == "Categorical" else getattr(m, policy)(mean, log_std)
    before = torch.get_rng_state()
    draws = [made_policy.sample(torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_policies_pass_through_compile_whole():
    def score(logits, action):
        return m.Categorical(logits).among(logits > -1), m.Categorical(logits).log_prob(action)

    logits, action = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    policy, log_prob = torch.compile(score, backend="eager", fullgraph=True)(logits, action)
    assert isinstance(policy, m.Categorical)
    torch.testing.assert_close(log_prob, score(logits, action)[1])


def test_a_legal_action_of_logit_minus_infinity_is_taken_before_an_illegal_one():
    policy = m.Categorical(torch.tensor([[-torch.inf, 0.0, -torch.inf]])).among(torch.tensor([[True, False, False]]))
    assert policy.mode().item() == policy.sample().item() == 0
    assert policy.log_prob(torch.tensor([0])).item() == 0


@pytest.mark.parametrize(
    ("policy", "action", "message"),
    [
        (m.Gaussian(torch.zeros(4, 1), torch.zeros(1)), torch.zeros(4), r"shape \(4, 1\), got \(4,\)"),
        (m.SquashedGaussian(torch.zeros(4, 1), torch.zeros(1)), torch.zeros(4), r"shape \(4, 1\), got \(4,\)"),
        (m.Gaussian(torch.zeros(4, 2), torch.zeros(2)), torch.zeros(4, 1), r"shape \(4, 2\), got \(4, 1\)"),
        (m.Categorical(torch.zeros(4, 3)), torch.zeros(1), r"one entry a row, shape \(4,\), got \(1,\)"),
    ],
)
def test_actions_that_would_spread_over_all_rows_are_refused(policy, action, message):
    with pytest.raises(ValueError, match=message):
        policy.log_prob(action)


def test_many_actions_of_one_state_are_scored_at_once():
    actions = torch.randn(5, 2)
    one = m.Gaussian(torch.ones(1, 2), torch.zeros(2))
    want = D.Normal(torch.ones(2), torch.ones(2)).log_prob(actions).sum(-1)
    torch.testing.assert_close(one.log_prob(actions), want)


def test_a_mask_of_other_axes_is_refused():
    with pytest.raises(ValueError, match=r"legal must have shape \(3, 3, 3\) or \(3,\), got \(3, 3\)"):
        m.Categorical(torch.zeros(3, 3, 3)).among(torch.ones(3, 3, dtype=torch.bool))


def test_one_action_is_not_spread_over_all_rows_nor_cut_among_parts():
    wide = m.Gaussian(torch.zeros(5, 2), torch.zeros(2))
    for policy in (wide, m.SquashedGaussian(*torch.zeros(2, 5, 2))):
        with pytest.raises(ValueError, match=r"^action must have shape \(5, 2\), got \(1, 2\)$"):
            policy.log_prob(torch.zeros(1, 2))
        assert policy.log_prob(torch.zeros(7, 5, 2)).shape == (7, 5)
    with pytest.raises(ValueError, match=r"^action must have 3 entries on its last axis, got shape \(5, 2\)$"):
        m.Mixed((m.Categorical(torch.zeros(5, 3)), wide)).log_prob(torch.zeros(5, 2))


@pytest.mark.parametrize(
    "policy",
    [
        m.Categorical(torch.randn(6, 4)),
        m.Gaussian(torch.randn(6, 2), torch.randn(2)),
        m.SquashedGaussian(torch.randn(6, 2), torch.randn(6, 2)),
        m.Mixed((m.Categorical(torch.randn(6, 3)), m.Gaussian(torch.randn(6, 2), torch.zeros(2)))),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_actions_at_uniform_numbers_are_of_the_policy_and_scored_together(policy):
    uniform = torch.rand(20_000, 6, policy.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    actions, drawn = policy.at(uniform), torch.stack([policy.sample() for _ in range(3)])
    assert actions.shape[1:] == drawn.shape[1:]
    assert actions.dtype == drawn.dtype
    scores = policy.log_prob(actions[:3])
    torch.testing.assert_close(scores, torch.stack([policy.log_prob(each) for each in actions[:3]]))
    # the mean of -log p is the entropy, exactly so of the two whose formula is known
    if isinstance(policy, m.Categorical | m.Gaussian):
        torch.testing.assert_close(-policy.log_prob(actions).mean(0), policy.entropy(), atol=0.03, rtol=0)
    torch.testing.assert_close(policy.at(uniform[:5]), actions[:5])  # of its own numbers alone


def test_a_choice_at_a_uniform_number_is_never_an_impossible_one():
    policy = m.Categorical(torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]))
    uniform = torch.tensor([0.0, 0.25, 0.49, 0.51, 0.99, 1.0])[:, None, None]
    assert policy.at(uniform).flatten().tolist() == [1, 1, 1, 2, 2, 2]
    assert m.Gaussian(torch.zeros(1, 1), torch.zeros(1)).at(uniform).isfinite().all()


def test_uniform_numbers_of_other_rows_are_refused():
    with pytest.raises(ValueError, match=r"uniform must have shape \(K, 2, 3\), got \(5, 2, 1\)"):
        m.Gaussian(torch.zeros(2, 3), torch.zeros(3)).at(torch.rand(5, 2, 1))
    with pytest.raises(ValueError, match=r"uniform must have shape \(K, 2, 1\), got \(2, 1\)"):
        m.Categorical(torch.zeros(2, 3)).at(torch.rand(2, 1))
