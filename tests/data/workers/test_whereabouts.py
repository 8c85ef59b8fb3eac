"""What a worker tells of a piece of work that takes long."""

import linecache
import os
import queue
import threading

from ai.data.workers.whereabouts import Whereabouts

SOURCE = """
def deeper(n, event):
    return event.wait(100) if n == 0 else deeper(n - 1, event)
"""


def test_the_calls_of_a_piece_of_work_that_takes_long_are_told():
    module, said, go_on = {}, queue.SimpleQueue(), threading.Event()
    exec(compile(SOURCE, "/somewhere/source.py", "exec"), module)

    def send(message):
        if "…" in message[1]:  # else it had not come so far
            said.put(message)
            go_on.set()

    with Whereabouts(send, 0.001) as whereabouts, whereabouts.working():
        assert module["deeper"](9, go_on)
    kind, text = said.get(timeout=100)
    assert kind == "doing"
    outside, inside = text.split(" > … > ")
    assert outside == "deeper (source.py:3) > deeper (source.py:3)"
    assert "deeper (source.py:3)" in inside or inside.endswith(f"(threading.py:{inside.rpartition(':')[2]}")


def test_no_file_is_looked_at_as_it_may_be_the_disk_that_hangs(monkeypatch):
    looked, said, go_on = [], queue.SimpleQueue(), threading.Event()
    for module, name in ((os, "stat"), (linecache, "checkcache"), (linecache, "getline")):
        monkeypatch.setattr(module, name, lambda *arguments, **options: looked.append(arguments))

    def send(message):
        said.put(message)
        go_on.set()

    with Whereabouts(send, 0.001) as whereabouts, whereabouts.working():
        assert go_on.wait(100)
    monkeypatch.undo()
    assert "wait (threading.py:" in said.get(timeout=100)[1]
    assert looked == []


def test_nothing_is_told_between_two_pieces_of_work_or_without_a_limit():
    def telling():
        return {thread for thread in threading.enumerate() if thread.name == "ai.data.Whereabouts"}

    before = telling()
    with Whereabouts(print, 1e300) as whereabouts:  # longer than the system can wait
        assert len(telling() - before) == 1
        with whereabouts.working():
            assert whereabouts._since is not None
        assert whereabouts._since is None
    for thread in telling() - before:
        thread.join(100)
        assert not thread.is_alive()
    with Whereabouts(print, None):
        assert not telling() - before
