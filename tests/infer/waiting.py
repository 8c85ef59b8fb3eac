"""How the tests of ai.infer wait for what happens in another process."""

import threading
import time

_PAUSE_S = 0.005


def wait_until(condition, timeout_s=100.0):
    """Looks now and then until a condition is true, and leaves the core to those who make it so."""
    deadline = time.monotonic() + timeout_s
    nothing = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        nothing.wait(_PAUSE_S)
