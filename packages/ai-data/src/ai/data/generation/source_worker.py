"""What a generating worker does; importable without torch."""

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ai.data.episodes.packing import n_packed_bytes, n_steps_of, owned, packed
from ai.data.generation.source import Source, begin
from ai.data.workers.whereabouts import Whereabouts

if TYPE_CHECKING:
    from ai.data.workers.worker import Link

# Small episodes travel together: up to so long or so many steps, but at least one. Where a message is dear whatever it
# holds, the engine says how many bytes it should hold instead of steps.
_CHUNK_S = 0.02
_CHUNK_STEPS = 2048
# No piece of work that is shorter is told of, however short the limit.
_TELL_S = 0.1


def serve_source(
    source: Source,
    seed: int,
    worker: int,
    n_steps: int,
    training: str,
    stall_timeout_s: float | None,
    message_bytes: int | None,
    link: "Link",
) -> None:
    """Runs in a worker process: makes a chunk of episodes for each credit, taking new parameters between chunks.

    `training` tells the workers of one loader from those of another, in the variable `AI_TRAINING`: who keeps one of
    something for all of a machine must not answer one training with another's parameters. `stall_timeout_s` is when the
    other side ends this worker; before, it is told where the source is. `message_bytes` is that of the engine.

    Messages in: `("credit", n)`, `("params", version, state_dict)`. Out: `("episodes", Packed)`, `("taken", version)`,
    `("ended",)`, `("failed", error)`, `("doing", where)`.
    """
    from ai.data.workers.worker import portable_error

    os.environ["AI_TRAINING"] = training
    try:
        every_s = None if stall_timeout_s is None else max(stall_timeout_s / 3, _TELL_S)
        with Whereabouts(link.send, every_s) as whereabouts:
            with whereabouts.working():
                begin(source, seed, worker, n_steps)
            _serve(source, message_bytes, link, whereabouts)
    except Exception as error:
        link.send(("failed", portable_error(error)))
    link.wait_for_end()


def _serve(source: Source, message_bytes: int | None, link: "Link", whereabouts: Whereabouts) -> None:
    n_credits = 0
    version = 0
    params: tuple[int, Mapping[str, Any]] | None = None
    while True:
        while n_credits == 0 or not link.inbox.empty():
            kind, *content = link.inbox.get()
            if kind == "credit":
                n_credits += content[0]
            else:
                params = content[0], content[1]
        if params is not None:
            version, state_dict = params
            with whereabouts.working():
                source.update_params(state_dict, version)
            link.send(("taken", version))
            params = None
        with whereabouts.working():
            episodes, ended = _chunk(source, message_bytes)
        if episodes:
            link.send(("episodes", packed(episodes, version)))
            n_credits -= 1
        if ended:
            link.send(("ended",))
            return


def _chunk(source: Source, message_bytes: int | None) -> tuple[list[Any], bool]:
    """Returns the next episodes, and whether the source has ended."""
    episodes: list[Any] = []
    n_steps = n_bytes = 0
    deadline = time.monotonic() + _CHUNK_S
    while not episodes or (_has_room(len(episodes), n_steps, n_bytes, message_bytes) and time.monotonic() < deadline):
        if episodes:  # the source may write to its arrays again
            episodes[-1] = owned(episodes[-1])
        try:
            episode = next(source)
        except StopIteration:
            return episodes, True
        episodes.append(episode)
        if message_bytes is None:
            n_steps += n_steps_of(episode)
        else:
            n_bytes += n_packed_bytes(episode)
    return episodes, False


def _has_room(n: int, n_steps: int, n_bytes: int, message_bytes: int | None) -> bool:
    """Returns whether a message of `n` episodes takes one more; of bytes, one as large as these."""
    return n_steps < _CHUNK_STEPS if message_bytes is None else n_bytes * (n + 1) <= message_bytes * n
