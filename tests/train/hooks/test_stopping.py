import json

import pytest
import torch
from torch import nn

from ai.train import EarlyStopping, Hook, Snapshots, Trainer, opt, snapshot

STEPS = [5, 10, 15, 20, 25, 30, 35]  # the score stands from 20 on


def run(stopper, **how):
    """The step that is reached, and the weight there."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    hook = Hook(
        task=lambda model, step: {"score": float(min(step, 20))}, task_interval=5, stopper=stopper, resume=True, **how
    )
    data = [torch.full((1, 1), float(i % 3)) for i in range(100)]
    trainer = Trainer(lambda model, batch, step: model(batch).mean(), data)
    return trainer.train(model, opt.sgd(model, lr=0.01), hook), model.weight.item()


@pytest.mark.parametrize("save_interval", [5, 1000])
def test_run_that_its_stopper_had_ended_has_nothing_to_train_until_the_stopper_is_another(
    save_interval, tmp_path, capfd
):
    def train(stopper):
        return run(
            stopper,
            log=lambda step, numbers: rows.append(step) if "score" in numbers else None,
            snapshots=Snapshots(tmp_path),
            save_interval=save_interval,
        )

    def patient(patience):
        return EarlyStopping("score", patience=patience)

    rows = []
    ended = train(patient(2))
    assert ended[0] == 35
    assert rows == STEPS
    assert "nothing to train" not in capfd.readouterr().err
    manifest = tmp_path / "000000035" / "manifest.json"
    assert json.loads(manifest.read_text())["metrics"] == {"score": 20.0}
    for _ in range(2):
        assert train(patient(2)) == ended
        told = capfd.readouterr().err
        assert "nothing to train: at step 35 the stopper (EarlyStopping) ends the run; to go on change it" in told
    rows.clear()
    more = train(patient(4))
    assert more[0] == 45  # of its measurements without improvement it has borne three
    assert [step for step in rows if step > 35] == [40, 45]
    assert "nothing to train" not in capfd.readouterr().err
    rows.clear()
    assert train(None)[0] == 100


def test_training_on_in_the_same_script_asks_at_the_next_measurement(tmp_path):
    model = nn.Linear(1, 1)
    optimizer = opt.sgd(model)
    seen = []
    hook = Hook(
        task=lambda model, step: {"score": 0.0},
        task_interval=2,
        stopper=lambda step, metrics: bool(seen.append(step)) or step >= 4,
        snapshots=Snapshots(tmp_path),
    )
    data = [torch.ones(1, 1)] * 10
    trainer = Trainer(lambda model, batch, step: model(batch).mean(), data)
    assert trainer.train(model, optimizer, hook) == 4
    assert trainer.train(model, optimizer, hook, step=4) == 6
    assert seen == [2, 4, 6]
    assert snapshot.load_model_state(tmp_path / "000000006")["weight"].equal(model.weight.detach())
