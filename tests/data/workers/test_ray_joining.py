"""What is told of Ray's long messages."""

from ai.data.workers.on_ray.joining import head


def test_of_a_traceback_of_ray_what_was_raised_is_told():
    traceback = (
        'ray::Actor.get() (pid=7)\n  File "actor.py", line 3, in get\n    x\n    ^\nTypeError: one argument too many'
    )
    assert head(Exception(traceback)) == "TypeError: one argument too many"
    assert head(Exception("The actor died.\nIts node has died.\nid: 7")) == "The actor died. Its node has died."
