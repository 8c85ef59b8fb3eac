import pytest
import torch

from ai.train import Hook, HookInterface, Trainer, is_logging, log, opt

BATCHES = [torch.full((2, 1), float(n)) for n in range(7)]


def env(model, batch, step):
    log("mean", batch.mean())
    return model(batch).mean()


def rows_of(hook, *, of=env, log_interval=3, after=False, **options):
    rows = {}
    row_hook = Hook(log=lambda step, numbers: rows.setdefault(step, {}).update(numbers), log_interval=log_interval)
    model = torch.nn.Linear(1, 1)
    hooks = [row_hook, hook] if after else [hook, row_hook]
    Trainer(of, BATCHES).train(model, opt.sgd(model), hooks, **options)
    return rows


class LogsInStep(HookInterface):
    def __init__(self):
        self.computed = []

    def wants_log(self, step):
        return False

    def step(self, step):
        assert is_logging()
        log("square", torch.tensor(step**2))
        log("twice", lambda: self.computed.append(step) or 2 * step)


@pytest.mark.parametrize("after", [False, True])
def test_what_a_hook_logs_before_a_step_stands_in_the_row_of_this_step(after):
    hook = LogsInStep()
    rows = rows_of(hook, after=after)
    assert {step: (row["square"], row["twice"], row["mean"]) for step, row in rows.items()} == {
        0: (0, 0, 0), 3: (9, 6, 3), 6: (36, 12, 6)
    }  # fmt: skip
    assert hook.computed == [0, 3, 6]  # of the others nothing is computed, and nothing is carried on


def test_what_a_hook_logs_before_an_update_of_several_batches_is_not_weighed_as_they_are():
    model, rows = torch.nn.Linear(1, 1), []
    trainer = Trainer(lambda model, batch, step: (env(model, batch, step), 5.0), BATCHES[:6], accumulate=2)
    trainer.train(model, opt.sgd(model), [LogsInStep(), Hook(log=lambda _, numbers: rows.append(numbers))])
    assert [(row["square"], row["mean"]) for row in rows] == [(0, 0.5), (4, 4.5)]


@pytest.mark.parametrize("key", ["mean", "loss", "lr", "grad_norm"])
def test_a_key_of_the_step_itself_is_refused_to_a_hook(key):
    class Clashes(HookInterface):
        def step(self, step):
            log(key, step)

    with pytest.raises(ValueError, match=f"^'{key}' is logged in a hook's step and again within the step"):
        rows_of(Clashes())


@pytest.mark.parametrize("place", ["setup", "log", "done"])
def test_what_a_hook_logs_of_no_step_is_named(place):
    class Misplaced(HookInterface):
        pass

    setattr(Misplaced, place, lambda *_: log("here", 1))
    with pytest.warns(RuntimeWarning, match=rf"^log\('here'\) in a hook's {place} is kept nowhere") as warned:
        rows = rows_of(Misplaced(), log_interval=100, steplimit=1)
    assert warned[0].filename == __file__
    assert set(rows[0]) == {"loss", "mean", "grad_norm", "lr", "steps_per_s"} & set(rows[0]) >= {"loss", "mean"}


def test_a_run_within_a_hook_leaves_what_is_logged_around_it():
    class TrainsProbe(HookInterface):
        def step(self, step):
            probe = torch.nn.Linear(1, 1)
            inner = []
            hook = Hook(log=lambda _, numbers: inner.append(numbers["mean"]), log_interval=1)
            Trainer(env, [torch.full((2, 1), 10.0)] * 2).train(probe, opt.sgd(probe), hook)
            assert inner == [10, 10]
            log("probe", 100 + step)

        gradients = step

    class InStepAlone(TrainsProbe):
        gradients = HookInterface.gradients

    class InGradientsAlone(TrainsProbe):
        step = HookInterface.step

    for hook in (InStepAlone(), InGradientsAlone()):
        rows = rows_of(hook, log_interval=1, steplimit=3)
        assert [(row["probe"], row["mean"]) for row in rows.values()] == [(100, 0), (101, 1), (102, 2)]


def test_what_a_model_logs_in_a_task_or_a_sampler_is_not_of_the_step():
    class Logs(torch.nn.Linear):
        def forward(self, x):
            log("output", 1.0 if self.training else torch.nan)
            return super().forward(x)

    model, rows = Logs(1, 1), []
    call = lambda model, step: {"found": float(model(BATCHES[0]).mean() * 0 + step)}  # noqa: E731
    hook = Hook(
        log=lambda _, numbers: rows.append(numbers),
        log_interval=1,
        task=call,
        task_interval=1,
        sampler=call,
        sample=lambda step, found: None,
        sample_interval=1,
    )
    Trainer(env, BATCHES).train(model, opt.sgd(model), hook, steplimit=3)
    assert [row["output"] for row in rows if "output" in row] == [1, 1, 1]
    assert [row["found"] for row in rows if "found" in row] == [1, 2, 3]


def test_nothing_is_logged_after_a_run_that_failed():
    class Fails(HookInterface):
        def step(self, step):
            raise KeyError("a mistake")

    with pytest.raises(KeyError):
        rows_of(Fails())
    assert not is_logging()
