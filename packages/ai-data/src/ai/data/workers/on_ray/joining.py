"""How this process comes into a Ray cluster."""

import os
import socket
import threading
from importlib import import_module
from typing import Any

# So long `reach` waits.
REACH_S = 10.0
# So long Ray may take for its first answer, in a process that has joined before.
_ANSWER_S = 60.0
# The process that uses Ray here: in a forked copy of it Ray's threads are gone, and whoever asks waits for ever.
_user: int | None = None

# Said there.
COPY = (
    "this process is a forked copy of one that uses Ray ({}), in which Ray answers nothing: start it anew, as by "
    'multiprocessing.get_context("spawn"), or make ai.data.Ray() in none but the copy'
)


def joined(address: str | None) -> Any:
    """Returns the module `ray`, joined to a cluster."""
    global _user
    if _user not in (None, os.getpid()):
        raise RuntimeError(COPY.format(f"process {_user}"))
    ray = _joined(address)
    _user = os.getpid()
    return ray


_TOKEN = (
    "something listens there: if the head asks for a token, as newer versions of Ray do, set RAY_AUTH_MODE=token here "
    "and copy its ~/.ray/auth_token"
)


def _joined(address: str | None) -> Any:
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ImportError(
            "Ray needs the package ray, the extra `ray`: from the checkout, pip install 'packages/ai-data[ray]'"
        ) from error
    if address not in (None, "auto") and not address.rpartition(":")[2].isdigit():
        raise ValueError(f"address must be such as '10.0.0.1:6379', 'auto' or None, got {address!r}")
    if not ray.is_initialized():
        wanted, hint = address, ""
        try:
            if wanted in (None, "auto"):
                wanted = _found(ray)
            if wanted is not None and "://" not in wanted:
                reach(wanted)  # Ray itself takes minutes to say so
                hint = f"; {_TOKEN}"
            ray.init(address=wanted or "auto")
        except (ConnectionError, TimeoutError) as error:
            raise ConnectionError(
                f"address ({wanted}) must be that of a Ray cluster that runs, or None where one runs on this machine: "
                f"`ray start --head` starts one ({head(error)}{hint})"
            ) from error
        return ray
    there = _answered(ray)
    if address not in (None, "auto", there):
        raise ValueError(f"address ({address}) must be {there}, the Ray cluster that this process has joined already")
    return ray


def _answered(ray: Any) -> Any:
    """Returns where the cluster is that the program has joined, once Ray has answered anything.

    Raises:
        RuntimeError: it does not, as in a forked copy of the program.
    """
    there, answered = ray.get_runtime_context().gcs_address, threading.Event()

    def ask() -> None:
        try:
            ray.cluster_resources()
        finally:  # an error of Ray's comes again where it is asked for something
            answered.set()

    threading.Thread(target=ask, name="ai.data.Ray", daemon=True).start()
    if not answered.wait(_ANSWER_S):
        raise RuntimeError(
            f"Ray, which this program has joined by ray.init, has answered nothing for {_ANSWER_S:g} s: its head is "
            "gone, or " + COPY.format("the one that called ray.init")
        )
    return there


def session(ray: Any) -> str:
    """Returns what tells one `ray.init` from the next."""
    return str(ray.get_runtime_context().get_job_id())


def _found(ray: Any) -> str | None:
    """Returns where the cluster is, or was, that Ray joins by itself; None if this version of Ray does not tell."""
    services = getattr(getattr(ray, "_private", None), "services", None)
    find = getattr(services, "get_ray_address_from_environment", None)
    found = None if find is None else str(find("auto", None))
    if found is not None and not found.rpartition(":")[2].isdigit():
        raise ValueError(f"RAY_ADDRESS must be such as '10.0.0.1:6379' or 'auto', got {found!r}")
    return found


def reach(address: str) -> None:
    """Returns when something listens at an address.

    Raises:
        ConnectionError: nothing does.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers there: {error}") from error


def head(error: BaseException) -> str:
    """Returns the beginning of Ray's long messages; of a traceback its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = lines[-1:] if any(line.startswith('File "') for line in lines) else lines[:2]
    return " ".join(kept)[:400]
