"""The Ray engine, over actors that are threads of this process."""

import importlib.util
import pickle
import socket
import sys
import threading
import types
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch

from ai.data import Datagen, Ray, WorkerFailedError
from ai.data.workers import versions
from ai.data.workers.on_ray import actor as ray_actor
from ai.data.workers.on_ray import engine as ray_engine
from ai.data.workers.on_ray import joining, membership
from ai.data.workers.on_ray import worker as ray_worker
from ai.data.workers.on_ray.pieces import read
from ai.data.workers.pickle_by_value import ship
from ai.data.workers.worker import portable_error
from tests.data.helpers_data import Walk, wait_until
from tests.data.workers.pretended_ray import PretendedRay


@pytest.fixture
def cluster(monkeypatch):
    pretended = PretendedRay()
    monkeypatch.setitem(sys.modules, "ray", pretended)
    monkeypatch.setattr(ray_worker, "_TURN_S", 0.01)
    monkeypatch.setattr(membership, "_LOOK_S", 0.01)
    monkeypatch.setattr(membership, "_LEAVE_S", 100.0)
    monkeypatch.setattr(ray_actor, "_BEAT_S", 0.01)
    monkeypatch.setattr(joining, "_user", None)
    return pretended


class Heard:
    """What a worker says."""

    def __init__(self, function, engine=None):
        self.messages = []
        self.exits = []
        self.worker = (engine or Ray()).start(ship(function), self.messages.append, self.exits.append)


def echo(link):
    while True:
        link.send(link.inbox.get())


def reuse(link):
    """Sends one array again and again, written to in between."""
    array = np.zeros(3, np.int64)
    for i in range(20):
        array[:] = i
        link.send(array)
    link.wait_for_end()


def test_messages_go_both_ways_in_order_and_arrays_arrive_as_copies_that_may_be_written_to(cluster):
    heard = Heard(echo)
    array, tensor = np.arange(3), torch.arange(4, dtype=torch.bfloat16)
    for i in range(30):
        assert heard.worker.send(("item", i, array, tensor))
    wait_until(lambda: len(heard.messages) == 30)
    assert [message[1] for message in heard.messages] == list(range(30))
    _, _, came, bf16 = heard.messages[0]
    came += 1
    assert came.tolist() == [1, 2, 3]
    assert array.tolist() == [0, 1, 2]
    assert torch.equal(bf16, tensor)
    heard.worker.close()
    wait_until(lambda: heard.exits)


def test_an_array_that_its_worker_writes_to_again_arrives_as_it_was_sent(cluster):
    heard = Heard(reuse)
    wait_until(lambda: len(heard.messages) == 20)
    assert [message.tolist() for message in heard.messages] == [[i] * 3 for i in range(20)]
    heard.worker.close()


def test_what_is_shared_is_put_once_and_arrives_as_a_copy_at_each(cluster):
    engine = Ray()
    shared = engine.share({"w": torch.ones(3), "n": 5})
    workers = [Heard(echo, engine) for _ in range(3)]
    for heard in workers:
        heard.worker.send(("params", 1, shared))
    for heard in workers:
        wait_until(lambda heard=heard: heard.messages)
        kind, version, value = heard.messages[0]
        assert (kind, version, value["n"], value["w"].tolist()) == ("params", 1, 5, [1, 1, 1])
        value["w"] += 1  # its own
        heard.worker.close()
    assert cluster.n_puts == 1


def test_a_worker_tells_where_it_runs_and_how_it_ended_once(cluster):
    cluster.room, before = 1, set(threading.enumerate())
    heard, waiting = Heard(echo), Heard(echo)
    wait_until(lambda: heard.worker.where[1] > 0)
    assert waiting.worker.where == ("", 0)
    cluster.actors[0].kill("The actor is dead\nbecause its node has died.")
    heard.worker.close()
    waiting.worker.close()
    assert cluster.actors[0].dead.startswith("The actor is dead")  # of what it died of first, whoever asks when
    wait_until(lambda: heard.exits and waiting.exits)
    assert heard.exits[0].startswith("on the node ")
    assert heard.exits[0].endswith("died: The actor is dead because its node has died.")
    assert waiting.exits == ["that had not begun died: killed by ray.kill"]
    wait_until(lambda: not any(t.name == "ai.data.RayWorker" for t in set(threading.enumerate()) - before))
    assert len(heard.exits) == 1


@pytest.mark.parametrize("joins_again", [False, True])
def test_after_a_shutdown_nothing_is_asked_of_ray_and_a_new_engine_is_wanted(cluster, joins_again):
    engine = Ray()
    heard = Heard(echo, engine)
    wait_until(lambda: heard.worker.where[1] > 0)
    cluster.initialized, cluster.job = joins_again, "02"
    wait_until(lambda: heard.exits)
    assert heard.exits[0].endswith("was left: this process has left the cluster")
    n_actors = len(cluster.actors)
    for ask in (lambda: engine.share(1), lambda: Heard(echo, engine)):
        with pytest.raises(ConnectionError, match=r"this process has left the Ray cluster .*: make a new ai.data.Ray"):
            ask()
    assert not heard.worker.send("too late")
    heard.worker.close()
    assert not cluster.actors[0].dead  # by us: Ray ends a process that kills an actor of another session
    assert (len(cluster.actors), cluster.n_puts) == (n_actors, 0)


def raises(link):
    raise RuntimeError("at once")


class UntellableError(BaseException):
    def __str__(self):
        return f"code {self.missing}"


def raises_what_cannot_be_told(link):
    raise UntellableError


def test_an_error_that_cannot_be_told_ends_its_worker_by_its_name(cluster):
    heard = Heard(raises_what_cannot_be_told)
    wait_until(lambda: heard.exits)
    assert heard.exits[0].endswith("raised UntellableError, which cannot be told")
    copied = portable_error(UntellableError())
    assert (type(copied), str(copied)) == (RuntimeError, "UntellableError, which cannot be told")
    assert "Traceback in the worker" in copied.__notes__[0]


def test_a_function_that_raises_ends_its_worker(cluster):
    heard = Heard(raises)
    wait_until(lambda: heard.exits)
    assert heard.exits[0].endswith("raised RuntimeError: at once")
    assert cluster.actors[0].dead  # the process does not stay
    heard = Heard(print)
    wait_until(lambda: heard.exits)
    assert heard.exits[0].endswith("returned")


def test_no_room_is_one_sentence_within_the_limit(cluster):
    cluster.room = 0
    engine = Ray(num_gpus=0.5, resources={"big": 1}, start_timeout_s=0.05)
    heard = Heard(echo, engine)
    wait_until(lambda: heard.exits)
    with pytest.raises(
        TimeoutError,
        match=r"no machine of the Ray cluster has had room for a worker \(num_cpus=1, num_gpus=0.5, big=1\) for "
        r"0.05 s; the cluster has in all: CPU 3$",
    ):
        raise heard.messages[0][1]
    patient = Heard(echo, Ray(start_timeout_s=None))
    patient.worker.close()
    wait_until(lambda: patient.exits)
    assert patient.messages == []


def test_no_room_for_one_more_is_no_error_while_others_run(cluster, monkeypatch):
    said, none_waits = [], threading.Event()
    monkeypatch.setattr(ray_worker.warnings, "warn", lambda text, stacklevel: (said.append(text), none_waits.set()))
    engine = Ray()
    running = Heard(echo, engine)
    wait_until(lambda: running.worker.where[1] > 0)
    cluster.room, engine.start_timeout_s = 1, 0.05
    waiting = Heard(echo, engine)
    assert none_waits.wait(30)
    assert said[0].endswith(
        "had room for a worker (num_cpus=1) for 0.05 s; the cluster has in all: CPU 3; 1 others run"
    )
    assert not waiting.exits
    running.worker.close()  # now nobody runs
    wait_until(lambda: waiting.exits)
    assert isinstance(waiting.messages[0][1], TimeoutError)


def test_a_head_that_is_gone_is_said_before_ray_ends_this_process(cluster, monkeypatch):
    answers = threading.Event()
    answers.set()

    def reach(address):
        if not answers.is_set():
            raise ConnectionError("nothing answers there")

    monkeypatch.setattr(membership, "reach", reach)
    monkeypatch.setattr(membership, "_HEAD_S", 0.05)
    engine = Ray()
    both = [Heard(echo, engine), Heard(echo, engine)]
    wait_until(lambda: engine._membership.n_running == 2)
    answers.clear()
    wait_until(lambda: all(heard.exits for heard in both))
    for heard in both:
        with pytest.raises(ConnectionError, match=r"the head of the Ray cluster has not answered for 0.05 s, and Ray"):
            raise heard.messages[-1][1]
    assert not any(actor.dead for actor in cluster.actors)  # who would end them is gone


def test_a_worker_that_hangs_counts_as_dead(cluster, monkeypatch):
    monkeypatch.setattr(ray_worker, "_SILENT_S", 0.05)
    monkeypatch.setattr(ray_actor, "_BEAT_S", 0.001)
    heard = Heard(echo)
    wait_until(lambda: heard.worker.where[1] > 0)
    cluster.actors[0].hangs = True
    wait_until(lambda: heard.exits)
    assert heard.exits[0].endswith("said nothing for 0.05 s")
    assert cluster.actors[0].dead


def test_a_worker_that_takes_no_more_messages_is_ended(cluster):
    heard = Heard(echo)
    wait_until(lambda: heard.worker.where[1] > 0)
    cluster.actors[0].full = True
    assert not heard.worker.send("one too many")
    wait_until(lambda: heard.exits)


def test_a_worker_that_cannot_even_be_asked_for_more_is_gone_and_no_error_of_the_run(cluster):
    heard = Heard(reuse)
    wait_until(lambda: len(heard.messages) == 20)
    cluster.actors[0].full = True  # the next beat comes, and after it nothing can be asked
    wait_until(lambda: heard.exits)
    assert heard.exits[0].endswith("took none of the many messages that are under way to it")
    assert len(heard.messages) == 20
    assert cluster.actors[0].dead


def test_a_node_without_the_library_is_named_as_such(cluster):
    cluster.trouble = (
        "an error in its creation task, ray::Actor.__init__() (pid=5, ip=10.0.0.7, …): No module named 'ai'"
    )
    heard = Heard(echo)
    wait_until(lambda: heard.exits)
    with pytest.raises(
        ImportError, match=r"^the node 10.0.0.7 of the Ray cluster has no ai.data: install ai-data .* on every node$"
    ):
        raise heard.messages[0][1]


def test_a_node_with_another_version_is_named_and_runs_nothing(cluster, monkeypatch):
    theirs = {**versions.installed(), "ai-data": "0.0.1"}
    monkeypatch.setattr(ray_actor, "installed", lambda: theirs)
    heard = Heard(raises)
    wait_until(lambda: heard.messages)
    heard.worker.close()
    node, _ = heard.worker.where
    with pytest.raises(
        RuntimeError, match=rf"^on the node {node}, ai-data is 0.0.1 but .* where the trainer runs: ins"
    ):
        raise heard.messages[0][1]
    assert versions.mismatch({"Python": "3.12"}, {"Python": "3.11"}) == (
        "Python is 3.12 but 3.11 where the trainer runs: install the same version"
    )
    assert versions.mismatch({"Python": "3.11", "ai-game": "2"}, {"Python": "3.11", "ai-data": "1"}) is None


def test_another_commit_of_the_same_version_is_told_by_its_code_and_works(cluster, monkeypatch):
    ours, said = versions.installed(), []
    monkeypatch.setattr(ray_worker.warnings, "warn", lambda text, stacklevel: said.append(text))
    monkeypatch.setattr(ray_actor, "installed", lambda: {**ours, "code of ai-data": "0123456789"})
    heard = Heard(echo)
    heard.worker.send("works")
    wait_until(lambda: heard.messages == ["works"])
    heard.worker.close()
    assert said == [
        f"on the node {socket.gethostname()}, the code of ai-data is another one than where the trainer runs, though "
        "the version is the same: it was edited since that began, or is of another commit"
    ]
    of_before = {name: version for name, version in ours.items() if not name.startswith("code of ")}
    assert versions.other_code(ours, of_before) is versions.other_code(of_before, ours) is None
    edited = {name: f"{told}x" if name.startswith("code of ") else told for name, told in ours.items()}
    assert versions.mismatch(edited, ours) is None
    assert versions.other_code(edited, ours).startswith("the code of ai-model, ai-data, ai-train, ai-infer, ")


def test_a_node_whose_versions_cannot_be_read_says_so(cluster, monkeypatch):
    def installed():
        raise PermissionError("no right to read it")

    monkeypatch.setattr(ray_actor, "installed", installed)
    heard = Heard(raises)
    wait_until(lambda: heard.messages)
    heard.worker.close()
    with pytest.raises(PermissionError, match="no right to read it") as caught:
        raise heard.messages[0][1]
    assert "while a worker was started on the node" in "".join(caught.value.__notes__)


def test_the_digest_of_code_is_that_of_names_and_contents(tmp_path, monkeypatch):
    package = tmp_path / "digested"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for name, text in (("a.py", "x = 1"), ("a.py", "x = 2"), ("b.py", "x = 2")):
        for old in package.iterdir():
            old.unlink()
        (package / name).write_text(text)
        found.append(versions._digest("digested"))
    assert len(set(found)) == 3
    (package / "notes.txt").write_text("no code")
    (package / ".#b.py").symlink_to("someone@somewhere.1234")  # of Emacs, while b.py is being edited
    (package / ".ipynb_checkpoints").mkdir()
    (package / ".ipynb_checkpoints/b-checkpoint.py").write_text("x = 1")
    assert versions._digest("digested") == found[-1]
    (package / "gone.py").symlink_to("nowhere")
    assert versions._digest("digested") is None  # told to be no other code than anyone's
    assert versions._digest("there_is_no_such_package") is None


def test_a_function_that_a_node_cannot_read_is_reported_with_the_node(cluster):
    messages = []
    worker = Ray().start(pickle.dumps(print).replace(b"print", b"prunt"), messages.append, print)
    wait_until(lambda: messages)
    worker.close()
    with pytest.raises(AttributeError, match="prunt") as caught:
        raise messages[0][1]
    assert f"on the node {worker.where[0]}" in "".join(caught.value.__notes__)


class OnlyHere:
    """Can be sent, and cannot be read."""

    def __reduce__(self):
        return int, ("no number",)


def test_a_message_that_a_node_cannot_read_is_reported_with_the_node(cluster):
    engine = Ray()
    for message in (("params", 1, OnlyHere()), ("params", 1, engine.share(OnlyHere()))):
        heard = Heard(echo, engine)
        heard.worker.send(message)
        wait_until(lambda heard=heard: heard.messages)
        with pytest.raises(ValueError, match="invalid literal") as caught:
            raise heard.messages[0][1]
        assert "while a message was read on the node" in "".join(caught.value.__notes__)
        heard.worker.close()


def test_generated_data_come_from_the_cluster_with_one_put_for_each_version(cluster):
    with Datagen(Walk()).loader(8, n_workers=3, engine=Ray(), seed=1) as loader:
        for k in range(1, 4):
            version = loader.update_params({"w": torch.tensor(float(k))})
            wait_until(lambda version=version: (next(loader)["version"] == version).any())
        with loader.locked():
            assert torch.equal(loader.buffer.column("w"), loader.buffer.column("version").double())
        wait_until(lambda: len(loader.pids) == 3)
        assert cluster.n_puts == 3
        cluster.actors[1].kill("gone")
        wait_until(lambda: len(cluster.actors) == 4)
        wait_until(lambda: next(loader) is not None and loader.stats()["worker_deaths"] == 1)
        assert cluster.n_puts == 3
    wait_until(lambda: all(actor.dead for actor in cluster.actors))


def test_nothing_is_restarted_by_ray_itself(cluster):
    Ray(num_cpus=2, num_gpus=0.25, resources={"big": 1})
    asked = {"max_restarts": 0, "max_task_retries": 0, "num_cpus": 2, "num_gpus": 0.25, "resources": {"big": 1}}
    assert asked.items() <= cluster.options.items()


@pytest.mark.parametrize(("options", "n"), [({}, 5), ({"max_deaths": 0}, 2)])
def test_actors_that_always_die_are_given_up(cluster, options, n):
    cluster.trouble = "killed for memory"
    loader = Datagen(Walk()).loader(8, n_workers=1, engine=Ray(**options))
    said = rf"died {n} times in a row, the last that had not .* for memory"
    with loader, pytest.raises(WorkerFailedError, match=said):
        next(loader)


def test_after_the_cluster_was_left_nothing_is_asked_of_it(cluster):
    heard = Heard(echo)
    cluster.initialized = False
    cluster.actors[0].hangs = True
    wait_until(lambda: heard.exits)
    assert heard.exits[0].endswith("was left: this process has left the cluster")
    assert not cluster.actors[0].dead


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_cpus": -1}, "num_cpus must be a finite number of at least 0, got -1"),
        ({"num_gpus": float("nan")}, "num_gpus must be a number, got nan"),
        ({"num_gpus": float("inf")}, "num_gpus must be a finite number of at least 0, got inf"),
        ({"max_deaths": -1}, "max_deaths must be at least 0, got -1"),
        ({"num_cpus": 10**5000}, r"num_cpus must be a number that a float holds, got about 2\*\*16609"),
        ({"num_cpus": 1e-5}, "num_cpus must be 0 or at least 0.0001, Ray's unit, got 1e-05"),
        ({"num_gpus": 1.5}, "num_gpus must be at most 1 or a whole number, got 1.5"),
        ({"max_deaths": -(10**5000)}, r"max_deaths must be a number of 64 bits, got about -2\*\*16609"),
        ({"resources": {"big": -2}}, "big must be a finite number of at least 0, got -2"),
        ({"resources": {"GPU": 1}}, "resources must be others than 'GPU', of which num_gpus says how many"),
        ({"resources": {"num_cpus": 1}}, "resources must be others than 'num_cpus', of which num_cpus says how many"),
        ({"resources": {"memory": 1e9}}, "resources must be of the cluster's own, by name, and 'memory' is no such"),
        ({"resources": {7: 1}}, "resources must be of the cluster's own, by name, and 7 is no such name"),
        ({"start_timeout_s": 0}, "start_timeout_s must be positive or None, got 0"),
    ],
)
def test_amounts_out_of_range_are_refused(cluster, arguments, message):
    with pytest.raises(ValueError, match=message):
        Ray(**arguments)
    assert not cluster.initialized


def test_amounts_reach_ray_as_its_own_kind_of_number(cluster):
    Ray(num_cpus=np.int64(2), num_gpus=Fraction(1, 2), resources={"big": np.float32(3)})
    given = [cluster.options["num_cpus"], cluster.options["num_gpus"], cluster.options["resources"]["big"]]
    assert given == [2, 0.5, 3]
    assert {type(amount) for amount in given} == {float}


def test_the_cluster_joined_already_is_used_and_no_other(cluster):
    Ray()
    Ray("head:6379")
    Ray("auto")
    with pytest.raises(ValueError, match=r"address \(other:1\) must be head:6379, the Ray cluster that this process"):
        Ray("other:1")


def test_no_cluster_is_said(cluster, monkeypatch):
    monkeypatch.setattr(cluster, "init", cluster.init_without_any)
    with pytest.raises(ConnectionError, match=r"address \(None\) must be that of .* starts one \(Could not find any"):
        Ray()


def test_what_ray_remembers_of_a_cluster_that_is_gone_is_said_at_once(cluster, monkeypatch):
    # a dead head's address in RAY_ADDRESS, or in the file that a killed cluster leaves
    found = iter(["127.0.0.1:1", "local"])
    services = types.SimpleNamespace(get_ray_address_from_environment=lambda address, folder: next(found))
    monkeypatch.setattr(cluster, "_private", types.SimpleNamespace(services=services), raising=False)
    monkeypatch.setattr(cluster, "init", lambda address: pytest.fail("Ray waits for minutes"))
    with pytest.raises(ConnectionError, match=r"address \(127.0.0.1:1\) must be that of .* \(nothing answers there"):
        Ray()
    with pytest.raises(ValueError, match=r"RAY_ADDRESS must be such as '10.0.0.1:6379' or 'auto', got 'local'"):
        Ray()


def test_an_address_where_nobody_listens_is_said_at_once(cluster, monkeypatch):
    with pytest.raises(ValueError, match=r"address must be such as '10.0.0.1:6379', 'auto' or None, got 'local'"):
        Ray("local")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # the port is ours, and refuses whoever comes until we listen
        address = f"127.0.0.1:{server.getsockname()[1]}"
        said = rf"address \({address}\) must be that of a Ray .*nothing answers there"
        with pytest.raises(ConnectionError, match=said):
            Ray(address)
        assert not cluster.initialized
        server.listen()
        with monkeypatch.context() as refused:
            refused.setattr(cluster, "init", cluster.init_without_any)  # as Ray says it to who has no token
            with pytest.raises(ConnectionError, match=r"something listens there: .* RAY_AUTH_MODE=token here and copy"):
                Ray(address)
        Ray(address)
    assert cluster.initialized


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="Ray needs the package ray, the extra `ray`: from the checkout, pip install"):
        Ray()


def test_a_shutdown_waits_until_no_thread_asks_anything_of_ray(cluster, monkeypatch):
    alive = []
    monkeypatch.setattr(cluster, "shutdown", lambda: alive.append(heard.worker._receiving.is_alive()))
    heard, engine = Heard(echo), Ray()
    wait_until(lambda: heard.worker.where[1] > 0)
    cluster.shutdown()
    assert alive == [False]
    assert heard.exits[0].endswith("was left: this process has left the cluster")
    with pytest.raises(ConnectionError, match="this process has left the Ray cluster"):
        engine.share(1)
    assert not heard.worker.send("too late")


def test_a_shutdown_waits_for_what_is_being_put(cluster, monkeypatch):
    begun, go_on, order = threading.Event(), threading.Event(), []

    def put(value):
        begun.set()
        go_on.wait(60)
        order.append("put")

    monkeypatch.setattr(cluster, "put", put)
    monkeypatch.setattr(cluster, "shutdown", lambda: order.append("shutdown"))
    engine = Ray()
    threads = [threading.Thread(target=engine.share, args=(1,)), threading.Thread(target=lambda: cluster.shutdown())]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    wait_until(lambda: not engine._membership.is_joined)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert order == ["put", "shutdown"]


def test_a_forked_copy_waits_for_nothing(cluster, monkeypatch):
    engine = Ray()
    engine._membership._n_asking = 1  # of the process that it was copied from
    monkeypatch.setattr(membership.os, "getpid", lambda: -1)
    monkeypatch.setattr(joining, "_user", None)  # as if the copy might join
    own = Ray()
    cluster.shutdown()
    assert not engine._membership._left
    assert own._membership._left  # what the copy asks itself is waited for
    engine._membership._n_asking = 0


def test_a_forked_copy_makes_no_engine_of_its_own(cluster, monkeypatch):
    of_the_program = Ray()
    monkeypatch.setattr(joining.os, "getpid", lambda: -1)
    cluster.initialized = False
    said = r"this process is a forked copy of one that uses Ray \(process \d+\), in which Ray answers nothing.*spawn"
    with of_the_program._membership._asked:  # by a thread that was not copied
        for ask in (Ray, lambda: of_the_program.share(1), lambda: Heard(echo, of_the_program)):
            with pytest.raises(RuntimeError, match=said):
                ask()
    assert not cluster.initialized


def test_a_program_that_has_joined_and_whose_ray_answers_nothing_is_told_so(cluster, monkeypatch):
    monkeypatch.setattr(joining, "_ANSWER_S", 0.01)
    answer = threading.Event()
    monkeypatch.setattr(cluster, "cluster_resources", lambda: answer.wait(60))
    cluster.initialized = True
    with pytest.raises(RuntimeError, match=r"has joined by ray.init, has answered nothing for 0.01 s: its .*spawn"):
        Ray()
    answer.set()


def test_engines_are_left_all_at_once_within_one_limit(cluster, monkeypatch):
    both, seen = [Ray(), Ray()], []
    monkeypatch.setattr(
        membership.Membership,
        "wait_left",
        lambda self, until: seen.append((until, [each._membership._left for each in both])),
    )
    cluster.shutdown()
    assert [left for _, left in seen] == [[True, True]] * 2
    assert seen[0][0] == seen[1][0]


def test_a_module_that_is_loaded_twice_wraps_once_and_leaves_the_engines_of_both(cluster, monkeypatch):
    first, wrapped = Ray(), cluster.shutdown
    spec = importlib.util.find_spec(membership.__name__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    monkeypatch.setattr(ray_engine, "Membership", again.Membership)
    second = Ray()
    assert cluster.shutdown is wrapped
    cluster.shutdown()
    assert first._membership._left
    assert second._membership._left


def test_what_was_received_is_not_kept_until_something_else_comes(cluster):
    arrays = []
    worker = Ray().start(ship(echo), lambda message: arrays.append(weakref.ref(message[1])), [].append)
    worker.send(("large", np.zeros(100)))
    wait_until(lambda: arrays and arrays[0]() is None)
    worker.close()


def test_a_reply_holds_as_much_as_ray_carries_within_it_and_one_message_of_any_size(cluster):
    actor = ray_actor.Actor(ship(ray_actor.Actor.wait_for_end), versions.installed())

    def reply():
        sizes, *parts = actor.get(64)
        return [m[0] for m in read(sizes, parts)], max(memoryview(p).nbytes for p in parts if p is not None) < 100 << 10

    assert reply() == ([ray_actor.RUNNING], True)
    for name, megabytes in {"a": 2, "b": 2, "c": 2, "d": 0, "e": 7, "f": 0}.items():
        actor.send((name, np.zeros(megabytes << 20, np.uint8)))
    assert [reply() for _ in range(4)] == [(["a", "b"], True), (["c", "d"], True), (["e"], False), (["f"], True)]
