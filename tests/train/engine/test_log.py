import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from threading import Thread

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from ai.data import Dataset
from ai.train import Hook, HookInterface, MultiTrainer, Trainer, is_logging, log, opt
from ai.train.engine.log import Record, recording

BATCHES = [torch.full((2, 1), float(n)) for n in range(7)]


def env(model, batch, step):
    log("mean", batch.mean())
    return model(batch).mean()


def rows_of(hook, *, of=env, log_interval=3, after=False, model=None, **options):
    rows = {}
    row_hook = Hook(log=lambda step, numbers: rows.setdefault(step, {}).update(numbers), log_interval=log_interval)
    model = torch.nn.Linear(1, 1) if model is None else model
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


@pytest.mark.parametrize("method", PLACES)
def test_a_key_of_the_environment_is_refused_to_a_hook(method):
    hook = type("Clashes", (HookInterface,), {method: lambda self, step: log("mean", step)})()
    places = [PLACES[method], "within the step"]
    first, second = places if method == "step" else reversed(places)
    with pytest.raises(ValueError, match=f"^'mean' is logged {first} and again {second}: give one of them another"):
        rows_of(hook)


def test_a_key_that_a_hook_logs_in_both_its_places_is_refused():
    hook = type("Clashes", (HookInterface,), dict.fromkeys(PLACES, lambda self, step: log("norm", step)))()
    with pytest.raises(ValueError, match=r"^'norm' is logged in a hook's step and again in a hook's gradients"):
        rows_of(hook)


@pytest.mark.parametrize("key", ["loss", "lr", "grad_norm", "skipped", "steps_per_s"])
@pytest.mark.parametrize("place", ["within the step", *PLACES.values()])
def test_a_key_of_the_trainers_own_is_refused_before_the_first_update(key, place):
    def logs(model, batch, step):
        log(key, 5.0)
        return env(model, batch, step)

    hook, of = HookInterface(), logs
    if place != "within the step":
        method = next(method for method, name in PLACES.items() if name == place)
        hook, of = type("Clashes", (HookInterface,), {method: lambda self, step: log(key, step)})(), env
    model = torch.nn.Linear(1, 1)
    before = model.bias.item()
    message = f"^'{key}' is logged by the trainer itself, and again {place}: leave out the latter, or give it another"
    with pytest.raises(ValueError, match=message) as raised:
        Trainer(of, BATCHES).train(model, opt.sgd(model), [hook, Hook(log=lambda step, numbers: None)])
    assert model.bias.item() == before
    if of is logs:  # where it is to be left out
        assert any(entry.path.name == "test_log.py" and entry.name == "logs" for entry in raised.traceback)


def test_of_several_models_the_trainers_own_keys_carry_their_names():
    def of(key, models, batch, step):
        log(wanted, 7.0)
        return models[key](batch).mean()

    models, rows = {key: torch.nn.Linear(1, 1) for key in "gd"}, {}
    opts = {key: opt.sgd(model) for key, model in models.items()}
    hook = Hook(log=lambda step, numbers: rows.setdefault(step, {}).update(numbers))
    for wanted in ("loss_d", "lr_g", "grad_norm_d"):
        with pytest.raises(ValueError, match=f"^'{wanted}' is logged by the trainer itself, and again within the step"):
            MultiTrainer(of, BATCHES).train(models, opts, hook)
    wanted = "loss"
    MultiTrainer(of, BATCHES).train(models, opts, hook, steplimit=1)
    assert rows[0]["loss"] == 7
    assert {"loss_g", "loss_d"} < rows[0].keys()


class LogsRate(torch.optim.SGD):
    key = "rate"

    def step(self, closure=None):
        log(self.key, lambda: 2 * self.param_groups[0]["lr"])
        return super().step(closure)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"on_nan": "skip"}])
def test_what_an_optimizer_logs_in_its_step_stands_in_the_row_of_the_step(options):
    model, rows = torch.nn.Linear(1, 1), {}
    optimizer = LogsRate(model.parameters(), lr=0.25)
    optimizer.register_step_post_hook(lambda optimizer, *_: log("after", 3.0))
    hook = Hook(log=lambda step, numbers: rows.setdefault(step, {}).update(numbers), log_interval=2)
    trainer = Trainer(lambda *a: (env(*a), 5.0), BATCHES[:6], **options)
    trainer.train(model, optimizer, hook, schedule=lambda step: 1 / (step + 1))
    assert {step: (row["rate"], row["after"]) for step, row in rows.items()} == {
        step: (0.5 / (step + 1), 3) for step in (0, 2, *([] if options.get("accumulate") else [4, 5]))
    }
    optimizer.key = "mean"
    with pytest.raises(ValueError, match=r"^'mean' is logged within the step and again in the optimizer's step"):
        trainer.train(model, optimizer, hook)


def test_what_a_closure_asks_again_is_not_logged_again():
    def of(model, batch, step):
        log("call", lambda: calls.append(step) or float(len(calls)))
        return (model(batch) - 1).square().mean()

    calls, rows, model = [], {}, torch.nn.Linear(1, 1)
    hook = Hook(log=lambda step, numbers: rows.setdefault(step, {}).update(numbers), log_interval=1)
    Trainer(of, BATCHES[1:4]).train(model, torch.optim.LBFGS(model.parameters(), max_iter=4), hook)
    assert calls == [0, 1, 2]
    assert [row["call"] for row in rows.values()] == [1, 2, 3]


def test_a_model_that_logs_is_compiled_whole():
    torch.compiler.reset()
    compiled = torch.compile(Logs(1, 1), backend="eager", fullgraph=True)
    assert compiled(BATCHES[1]).shape == (2, 1)  # where nothing is logged
    rows = []
    hook = Hook(log=lambda _, numbers: rows.append(numbers["output"]), log_interval=2)
    Trainer(lambda model, batch, step: model(batch).mean(), BATCHES[:3]).train(compiled, opt.sgd(compiled), hook)
    assert rows == [0, 2]
    torch.compiler.reset()


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


NUMBERS = itertools.count()


def logging_preprocess(x):
    key = f"x{next(NUMBERS)}"
    with pytest.warns(RuntimeWarning, match=rf"^log\('{key}'\) in a loader's worker is kept nowhere"):
        log(key, 1.0)
    with warnings.catch_warnings(action="error"):  # which has Python forget what it has said
        log(key, 2.0)
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


def logging_collate(samples):
    logging_preprocess(0)
    return torch.tensor(samples).reshape(-1, 1)


def test_a_forked_worker_that_begins_at_a_logged_step_says_so_too():
    loader = DataLoader([3.0, 4.0], 2, num_workers=1, collate_fn=logging_collate, multiprocessing_context="fork")
    model, rows = torch.nn.Linear(1, 1), []
    hook = Hook(log=lambda _, numbers: rows.append(numbers), log_interval=1)
    Trainer(env, loader).train(model, opt.sgd(model), hook, epochs=2)  # the second pass begins within a step
    assert [row["mean"] for row in rows] == [3.5, 3.5]


def test_a_thread_of_its_own_says_that_what_it_logs_is_kept_nowhere_and_one_in_the_steps_context_logs():
    def run_in_thread(function, *args):
        thread = Thread(target=function, args=args)
        thread.start()
        thread.join()

    def with_threads(model, batch, step):
        run_in_thread(copy_context().run, log, "known", float(step))
        says = pytest.warns(RuntimeWarning, match=r"^log\('x'\) in a thread.*copy_context.*that serves")
        with nullcontext() if step % 3 else says:
            run_in_thread(log, "x", 1.0)
        return env(model, batch, step)

    run_in_thread(log, "x", 1.0)  # outside of training
    rows = rows_of(HookInterface(), of=with_threads)
    assert {step: (row["known"], "x" in row) for step, row in rows.items()} == {
        0: (0, False), 3: (3, False), 6: (6, False)
    }  # fmt: skip


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_forward_pass_that_is_computed_again_is_logged_once(use_reentrant):
    class Block(torch.nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            log("calls", self.calls)
            return super().forward(x)

    class Checkpointed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block = torch.nn.Linear(1, 1), Block(1, 1)

        def forward(self, x):
            x = self.first(x)
            x.register_hook(lambda grad: log("in_backward", 7.0))
            return checkpoint(self.block, x, use_reentrant=use_reentrant)

    model = Checkpointed()
    rows = rows_of(HookInterface(), model=model)
    assert model.block.calls == 14
    assert [(row["calls"], row["in_backward"]) for row in rows.values()] == [(1, 7), (7, 7), (13, 7)]


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("of_torch", [False, True])  # on a GPU a thread of torch's computes the backward pass
def test_what_is_computed_to_be_logged_is_computed_again_where_its_block_is(of_torch, guarded):
    def block(x):
        y = x.tanh()
        if not guarded:
            log("y", lambda: y.exp().mean())  # saves a tensor, which checkpointing counts
        elif is_logging():
            log("y", y.exp().mean())
        return y.exp()

    x, record = torch.ones(2, requires_grad=True), Record()
    with recording(record):
        loss = checkpoint(block, x, use_reentrant=False).sum()
        with record.backward():
            if of_torch:
                with ThreadPoolExecutor(1) as executor:
                    executor.submit(loss.backward).result()
            else:
                loss.backward()
    one = torch.ones((), dtype=torch.float64)
    assert record.totals() == {"y": (pytest.approx(float(one.tanh().exp())), 1)}
    np.testing.assert_allclose(x.grad, [float(one.tanh().exp() * (1 - one.tanh() ** 2))] * 2, rtol=1e-6)
    assert not is_logging()


def test_nothing_is_logged_after_a_run_that_failed():
    class Fails(HookInterface):
        def step(self, step):
            raise KeyError("a mistake")

    with pytest.raises(KeyError):
        rows_of(Fails())
    assert not is_logging()
