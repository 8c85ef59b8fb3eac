"""An optimiser's state put back into one that computes in another way."""

import pytest
import torch

from ai.train.state.optimizer_state import load_optimizer


@pytest.mark.parametrize("settings", ["snapshot", "script"])
@pytest.mark.parametrize("of_script", [False, True])
@pytest.mark.parametrize("of_snapshot", [False, True])
def test_a_learning_rate_is_a_tensor_where_the_scripts_is(of_snapshot, of_script, settings):
    def made(lr, is_tensor):
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=torch.tensor(lr) if is_tensor else lr, foreach=not is_tensor
        )
        model(torch.ones(1, 2)).sum().backward()
        return model, optimizer

    _, saved = made(0.25, of_snapshot)
    saved.step()
    model, optimizer = made(0.5, of_script)
    load_optimizer("model", optimizer, saved.state_dict(), "Adam", settings)
    lr = optimizer.param_groups[0]["lr"]
    assert isinstance(lr, torch.Tensor) == of_script
    assert lr == (0.25 if settings == "snapshot" else 0.5)
    if of_script:
        lr.fill_(0.125)  # as a schedule does
        assert saved.param_groups[0]["lr"] == 0.25
    before = model.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(before - model.weight, torch.full((1, 2), 0.125 if of_script else float(lr)))
