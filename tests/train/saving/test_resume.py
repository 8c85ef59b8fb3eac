import signal

import pytest
import torch
from torch import nn

from ai.data import Dataset
from ai.train import Classify, Hook, Snapshots, Trainer, opt, snapshot


def digest_of(result):
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.split()[-1]


@pytest.mark.slow
def test_killed_run_ends_in_the_same_bits(job, tmp_path):
    whole = digest_of(job("resumable", tmp_path / "whole", "fp16", "--steps", 16))
    killed = job("resumable", tmp_path / "cut", "fp16", "--steps", 16, "--at", 9)
    assert killed.returncode == -signal.SIGKILL
    assert digest_of(job("resumable", tmp_path / "cut", "fp16", "--steps", 16)) == whole


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_status_0_and_the_run_goes_on_bit_for_bit(job, tmp_path):
    whole = digest_of(job("resumable", tmp_path / "whole", "bf16", "--steps", 16))
    stopped = job("resumable", tmp_path / "cut", "bf16", "--steps", 16, "--at", 7, "--signal", "TERM")
    assert stopped.returncode == 0
    assert "saved in" in stopped.stderr
    assert (tmp_path / "cut" / "000000008").is_dir()  # not a multiple of the interval: saved by the signal
    assert digest_of(job("resumable", tmp_path / "cut", "bf16", "--steps", 16)) == whole


@pytest.mark.slow
def test_second_interrupt_exits_at_once(job, tmp_path):
    result = job("interrupted")
    assert result.returncode == 130, result.stderr
    assert "press Ctrl-C again" in result.stderr


@pytest.mark.slow
def test_stops_in_every_way_end_in_the_same_bits(job):
    # The other cases have tests of their own; with all of them this is a soak.
    result = job("random_kills", "--kills", 3, "--steps", 12, "--cases", "workers", "multi", "rl")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "3 kills survived bit for bit" in result.stdout


@pytest.mark.parametrize("cut", [1, 5, 8, 10])
@pytest.mark.parametrize("how", [{}, {"accumulate": 2}, {"ema": 0.9}, {"precision": "bf16"}, {"on_nan": "skip"}])
def test_restore_before_train_continues_bit_for_bit(how, cut, net, batches, tmp_path):
    def setup():
        model = net()
        return model, opt.adamw(model, lr=0.01)

    data = batches(30)
    whole, optimizer = setup()
    Trainer(Classify(), data, **how).train(whole, optimizer, steplimit=12)
    model, optimizer = setup()
    Trainer(Classify(), data, **how).train(model, optimizer, Hook(snapshots=Snapshots(tmp_path)), steplimit=cut)
    model, optimizer = setup()
    torch.manual_seed(77)
    step = snapshot.restore(tmp_path, model, optimizer)
    torch.rand(3)  # what a script draws between restoring and training must not matter
    assert step == cut
    assert Trainer(Classify(), data, **how).train(model, optimizer, step=step, steplimit=12) == 12
    for a, b in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resume_at_an_epochs_end_and_in_its_middle_sees_the_data_once(net, tmp_path):
    from ai.data import Dataset

    def loader():
        generator = torch.Generator().manual_seed(0)
        data = {"x": torch.randn(20, 6, generator=generator), "y": torch.arange(20) % 3}
        return Dataset(data).loader(4, train=True)

    def seen_by(trained):
        seen = []

        def env(model, batch, step):
            seen.append(batch["x"][:, 0].tolist())
            return Classify()(model, batch, step)

        trained(env)
        return seen

    def straight(env):
        model = net()
        Trainer(env, loader()).train(model, opt.sgd(model), steplimit=14)

    def cut(env):
        for limit in (5, 8, 14):  # an epoch has five batches
            model = net()
            hook = Hook(snapshots=Snapshots(tmp_path), resume=True)
            Trainer(env, loader()).train(model, opt.sgd(model), hook, steplimit=limit)

    assert seen_by(straight) == seen_by(cut)


@pytest.mark.parametrize("cut", [7, 9])  # 9 is itself a logged step
def test_resumed_run_logs_what_it_would_have_logged(cut, net, batches, tmp_path):
    def logged(limits, folder):
        lines = {}

        def log(step, numbers):
            assert step not in lines or step == cut - 1
            lines[step] = {key: value for key, value in numbers.items() if key != "steps_per_s"}

        for limit in limits:
            model = net()
            hook = Hook(log=log, log_interval=3, snapshots=Snapshots(tmp_path / folder), resume=True)
            Trainer(Classify(), batches(14)).train(model, opt.sgd(model), hook, steplimit=limit)
        return lines

    whole, found = logged([14], "whole"), logged([cut, 14], "cut")
    assert found.pop(cut - 1, None)  # the last step of a run is always logged
    whole.pop(cut - 1, None)
    assert whole == found


def test_training_at_another_step_than_the_restored_is_refused(net, batches, tmp_path):
    model = net()
    optimizer = opt.sgd(model)
    Trainer(Classify(), batches(5)).train(model, optimizer, Hook(snapshots=Snapshots(tmp_path)))
    snapshot.restore(tmp_path, model, optimizer)
    with pytest.raises(ValueError, match=r"step \(0\) must be the restored step 5"):
        Trainer(Classify(), batches(5)).train(model, optimizer)


def test_finished_run_says_so(net, batches, tmp_path, capsys):
    for _ in range(2):
        model = net()
        hook = Hook(snapshots=Snapshots(tmp_path), resume=True)
        assert Trainer(Classify(), batches(9)).train(model, opt.sgd(model), hook, steplimit=4) == 4
    assert "nothing to train: step (4) has reached steplimit (4)" in capsys.readouterr().err


def test_what_follows_a_run_that_had_ended_is_drawn_as_at_its_end(tmp_path):
    def noisy(model, batch, step):
        return model(batch + torch.randn(batch.shape)).square().mean()

    def script(folder, limits):
        torch.manual_seed(3)
        model, loader = nn.Linear(2, 1), Dataset(torch.ones(20, 2)).loader(4, train=True)
        optimizer, hook = opt.sgd(model), Hook(snapshots=Snapshots(tmp_path / folder), resume=True)
        step, drawn = 0, []
        for limit in limits:
            step = Trainer(noisy, loader).train(model, optimizer, hook, step=step, steplimit=limit)
            drawn.append(torch.rand(1).item())
        return drawn, model.weight.tolist()

    whole, weights = script("whole", [4, 7])
    assert script("cut", [4])[0] == whole[:1]
    assert script("cut", [4, 7]) == (whole, weights)
    again, same = script("cut", [4, 7])  # the first of them had ended earlier, at draws that no snapshot holds
    assert (again[1], same) == (whole[1], weights)


def test_stateful_objects_travel_with_the_run(net, batches, tmp_path):
    class Counter:
        n = 0

        def state_dict(self):
            return {"n": self.n}

        def load_state_dict(self, state):
            self.n = state["n"]

    model, counter = net(), Counter()
    counter.n = 41
    optimizer = opt.sgd(model)
    Trainer(Classify(), batches(3)).train(model, optimizer, Hook(snapshots=Snapshots(tmp_path), stateful=[counter]))
    fresh = Counter()
    assert snapshot.restore(tmp_path, model, optimizer, fresh) == 3
    assert fresh.n == 41
    with pytest.raises(ValueError, match=r"no state for stateful\[1\] \(Counter\); its hook held 1 as stateful: give"):
        snapshot.restore(tmp_path, model, optimizer, fresh, Counter())
