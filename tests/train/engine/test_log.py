import pytest
import torch

from ai.data import Dataset
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


PLACES = {"step": "in a hook's step", "gradients": "in a hook's gradients"}


@pytest.mark.parametrize("key", ["mean", "loss", "lr", "grad_norm"])
@pytest.mark.parametrize("method", PLACES)
def test_a_key_of_the_step_itself_is_refused_to_a_hook(key, method):
    hook = type("Clashes", (HookInterface,), {method: lambda self, step: log(key, step)})()
    place, other = PLACES[method], "within the step" if key == "mean" else "by the trainer itself"
    first, second = (other, place) if method == "gradients" and key in ("mean", "grad_norm") else (place, other)
    with pytest.raises(ValueError, match=f"^'{key}' is logged {first} and again {second}: give one of them another"):
        rows_of(hook)


def test_a_key_that_a_hook_logs_in_both_its_places_is_refused():
    hook = type("Clashes", (HookInterface,), dict.fromkeys(PLACES, lambda self, step: log("norm", step)))()
    with pytest.raises(ValueError, match=r"^'norm' is logged in a hook's step and again in a hook's gradients"):
        rows_of(hook)


@pytest.mark.parametrize("key", ["lr", "grad_norm"])
def test_a_key_of_the_trainers_own_is_refused_to_an_environment(key):
    def logs(model, batch, step):
        log(key, 5.0)
        return env(model, batch, step)

    with pytest.raises(ValueError, match=f"^'{key}' is logged within the step and again by the trainer itself"):
        rows_of(HookInterface(), of=logs)


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


class Logs(torch.nn.Linear):
    """Logs what it sees, in whatever it is called."""

    def forward(self, x):
        log("output", x.mean() + (0 if self.training else 100))
        return super().forward(x)


def test_what_a_model_logs_in_a_task_or_a_sampler_stands_beside_what_it_logs_in_the_step():
    model, rows = Logs(1, 1), {}

    def called(model, step):
        for batch in BATCHES[1:4:2]:  # 1 and 3
            model(batch)
        return {"found": step}

    asked = []
    hook = Hook(
        log=lambda step, numbers: rows.setdefault(step, {}).update(numbers),
        log_interval=1,
        task=called,
        task_interval=2,
        sampler=called,
        sample=lambda step, found: None,
        sample_interval=3,
        stopper=lambda step, metrics: asked.append((step, sorted(metrics))),
    )
    Trainer(env, BATCHES).train(model, opt.sgd(model), hook, steplimit=4)
    assert [rows[step]["output"] for step in range(4)] == [0, 1, 2, 3]
    assert [(step, row["task_output"], row["found"]) for step, row in rows.items() if "task_output" in row] == [
        (2, 102, 2),
        (4, 102, 4),
    ]
    assert [(step, row["sample_output"]) for step, row in rows.items() if "sample_output" in row] == [
        (3, 102),
        (4, 102),  # at the end
    ]
    assert asked == [(2, ["found", "task_output"]), (4, ["found", "task_output"])]  # about samples nobody asks it


def test_a_task_that_returns_what_it_logs_is_refused():
    def task(model, step):
        log("score", 1.0)
        return {"task_score": 2.0}

    with pytest.raises(ValueError, match=r"^the task returns 'task_score', as which it also logs 'score': rename one"):
        rows_of(Hook(task=task, task_interval=1))


def test_what_the_data_log_stands_in_the_row_of_the_step_that_takes_them():
    class Data:
        def __iter__(self):
            for n, batch in enumerate(BATCHES):
                log("mean", lambda n=n: seen.append(n) or 10.0 * n)  # the environment's own key: they stay apart
                yield batch

    seen, rows = [], {}
    hook = Hook(log=lambda step, numbers: rows.setdefault(step, {}).update(numbers), log_interval=3)
    model = torch.nn.Linear(1, 1)
    Trainer(env, Data()).train(model, opt.sgd(model), hook)
    assert {step: (row["data_mean"], row["mean"]) for step, row in rows.items()} == {0: (0, 0), 3: (30, 3), 6: (60, 6)}
    assert seen == [0, 3, 6]


def test_what_a_schedule_logs_stands_in_the_row_of_its_step():
    def schedule(step):
        log("factor", step / 2)
        return 1.0

    rows = rows_of(HookInterface(), schedule=schedule)
    assert {step: row["factor"] for step, row in rows.items()} == {0: 0, 3: 1.5, 6: 3}


def logging_preprocess(x):
    with pytest.warns(RuntimeWarning, match=r"^log\('x'\) in a loader's worker is kept nowhere"):
        log("x", 1.0)
    return torch.tensor([x])


def test_a_loaders_worker_says_that_what_it_logs_is_kept_nowhere(monkeypatch):
    loader = Dataset([3, 4], preprocess=logging_preprocess).loader(2, worker="thread", n_workers=1)
    assert [batch.flatten().tolist() for batch in loader] == [[3, 4]]
    with monkeypatch.context() as patch:
        patch.setattr("torch.utils.data._utils.worker._worker_info", object())  # as in a worker of torch's
        logging_preprocess(0)
    with monkeypatch.context() as patch:
        patch.setattr("ai.train.engine.log._IS_WORKER", True)  # as in a process of ours
        logging_preprocess(0)


def test_nothing_is_logged_after_a_run_that_failed():
    class Fails(HookInterface):
        def step(self, step):
            raise KeyError("a mistake")

    with pytest.raises(KeyError):
        rows_of(Fails())
    assert not is_logging()
