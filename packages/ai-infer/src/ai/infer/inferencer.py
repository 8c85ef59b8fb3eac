"""`Inferencer`: a worker process that runs a model for everyone on this machine who asks."""

import operator
import os
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ai.infer.arguments import check_functions, check_seconds, check_switches, whole
from ai.infer.client import InferencerClient
from ai.infer.connection.handshake import Transport
from ai.infer.errors import InferError
from ai.infer.launcher import Launcher
from ai.infer.stats import Stats
from ai.infer.transport.shared_weights import pack_extra_state
from ai.infer.transport.trees import Tree
from ai.infer.worker.engine import Precision
from ai.infer.worker.options import WorkerOptions
from ai.infer.worker.rows.batch_axes import Axes
from ai.infer.worker.rows.sharing import Share
from ai.infer.worker.switches import read_switches
from ai.model.arguments import check_module, check_whole, elsewhere, told


class Inferencer:
    """Runs a model in a worker process of its own, and looks like the model.

    Requests of all callers that come while the worker is busy are run as one batch, where that was found to change
    nothing (see `share`); a lone request is run at once,
    and its output equals the model's own bit for bit (same device, no `precision`, no `compile`). The worker stops
    when the inferencer is closed, deleted or collected, and when this process ends, however it ends.

    Args:
        model: copied to the worker, where it is in evaluation mode; it may be defined in the script itself.
        device: where the worker runs it; for several replicas a list with a device for each is possible.
        batch_size: the most rows in one call of the model (fewer if fewer wait); a larger request is run in pieces
            where rows are known to be independent, else whole. "auto" lets the worker find the size from which on
            more rows gain nothing.
        replicas: how many workers share the work.
        restart: whether a worker that dies is started again. Requests that it had are lost either way.
        max_delay_s: how long a request may wait for company; 0 (an idle worker starts at once) is nearly always best.
        precision: "model" computes as the model is; "bf16" and "fp16" use autocast, as in a `Trainer` ("bfloat16" and
            "float16" mean the same); "tf32" for CUDA.
        compile: True runs the model under `torch.compile`; a name chooses the backend.
        graph_rows: batch sizes for which CUDA graphs are captured; batches are padded up to the next one.
        pad: applied in the worker to each input tensor before requests are grouped by shape, so that requests of
            nearly equal shapes can share a batch. It sees one request at a time: a reply depends on no neighbour.
        share: whether requests may share a call of the model. "auto": once the model's own separate answers to requests
            of that form were found to be what it says to all of them together, but for rounding; sequences, states,
            constants and text are answered one request a call. True: always, the rows of the model are independent.
            False: never.
        in_axes: which axis of the inputs counts rows, in the manner of `torch.vmap`: one for all positional arguments
            or one for each; None: that argument has no rows. Keyword arguments have theirs first.
        out_axes: likewise of the outputs: one for all, or one for each item of a tuple, list or dict.
        build: called in the worker to make the model, into which the state of `model` is loaded; for modules that
            cannot be pickled, such as parametrised ones (`weight_norm`). None: `model` itself is sent.
        timeout_s: how long a call may take before it raises `TimeoutError`; None: until the worker answers, dies or
            hangs.
        start_timeout_s: how long a worker may take until it is ready; one that takes longer is killed.
        stall_timeout_s: how long one call of the model may take until its worker counts as hanging: `ready` says that
            it is not, and whoever waits for it gets a `TimeoutError`, also without a `timeout_s`. It is not ended, and
            counts as ready again when it moves. None: it may take any time, and a call without `timeout_s` waits as
            long.
        transport: see `InferencerClient`.

    Raises:
        TypeError: `model` is no module, or an option is of another kind.
        ValueError: an option is out of range, or the device is not there.
        InferError: a worker could not load the model, and the message carries its traceback; or was not ready in time.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> x = torch.randn(1, 3)
    >>> with Inferencer(model) as inferencer:
    ...     print(torch.equal(inferencer(x), model(x)))
    True
    """

    @elsewhere(
        batch_wait_timeout_s="max_delay_s",
        max_batch_size="batch_size",
        max_queue_delay="max_delay_s",
        num_replicas="replicas",
        num_workers="replicas",
    )
    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device | Sequence[str | torch.device] = "cpu",
        batch_size: int | str = 64,
        *,
        replicas: int | None = None,
        restart: bool = False,
        max_delay_s: float = 0.0,
        precision: Precision = "model",
        compile: bool | str = False,
        graph_rows: Sequence[int] = (),
        pad: Callable[[Tensor], Tensor] | None = None,
        share: Share = "auto",
        in_axes: Axes = 0,
        out_axes: Axes = 0,
        build: Callable[[], nn.Module] | None = None,
        timeout_s: float | None = None,
        start_timeout_s: float = 600.0,
        stall_timeout_s: float | None = 600.0,
        transport: Transport = "auto",
    ) -> None:
        check_module(model=model)
        devices = _devices(device, replicas)
        max_rows = rows_at_most(batch_size)
        check_seconds(max_delay_s=max_delay_s, zero=True, none=False, endless=False)
        check_seconds(start_timeout_s=start_timeout_s, none=False, endless=False)
        check_seconds(stall_timeout_s=stall_timeout_s)
        check_switches(restart=restart)
        check_functions(pad=pad, build=build)
        if not isinstance(compile, (bool, str)):
            raise TypeError(f"compile must be True, False or the name of a backend, not {compile!r}")
        if precision not in get_args(Precision):
            raise ValueError(f"precision must be 'model', 'bf16', 'fp16' or 'tf32', not {precision!r}")
        if not isinstance(graph_rows, (list, tuple, range)) or any(whole(rows) is None for rows in graph_rows):
            raise TypeError(f"graph_rows must be a list of numbers of rows, not {graph_rows!r}")
        if any(rows < 1 for rows in graph_rows):
            raise ValueError(f"graph_rows must hold numbers of rows from 1, not {list(graph_rows)}")
        if graph_rows and any(each.type != "cuda" for each in devices):
            raise ValueError(f"graph_rows ({list(graph_rows)}) needs a CUDA device, not {devices[0]}")
        if not isinstance(share, bool) and share != "auto":  # 1 is not True to whoever asks what `share` is
            raise ValueError(f"share must be True, False or 'auto', not {share!r}")
        for name, axes in (("in_axes", in_axes), ("out_axes", out_axes)):
            _check_axes(name, axes)
        model = getattr(model, "_orig_mod", model)  # compiled code stays here; the worker compiles for itself
        options = [
            WorkerOptions(
                device=str(each),
                batch_size=max_rows,
                max_delay_s=float(max_delay_s),
                precision=precision,
                compile=compile,
                graph_rows=tuple(map(operator.index, graph_rows)),
                pad=pad,
                share=share,
                in_axes=in_axes,
                out_axes=out_axes,
                torch_state=read_switches(),
            )
            for each in devices
        ]
        # Checks the client's options before a process is started.
        probe = InferencerClient("", timeout_s=timeout_s, transport=transport)
        stall_timeout_s = None if stall_timeout_s is None else float(stall_timeout_s)
        self._launcher = Launcher(model, options, restart, float(start_timeout_s), stall_timeout_s, build)
        self._stop = weakref.finalize(self, self._launcher.stop)
        self.client = InferencerClient(self._launcher.folder, timeout_s=probe.timeout_s, transport=transport)
        """The client through which the inferencer itself asks."""

    # Asking, as a client does -----------------------------------------------------------------------------------

    def __call__(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Returns what the model returns for these arguments; see `InferencerClient.__call__`."""
        return self.client(*args, **kwargs)

    def infer_async(self, *args: Tree, **kwargs: Tree) -> int:
        """Sends a request and returns its id; see `InferencerClient.infer_async`."""
        return self.client.infer_async(*args, **kwargs)

    def wait_for_resp(self, request_id: int, timeout: float | None = None) -> Tree:
        """Waits for the reply to a request; see `InferencerClient.wait_for_resp`."""
        return self.client.wait_for_resp(request_id, timeout)

    def is_ready(self, request_id: int) -> bool:
        """Returns whether `wait_for_resp` would return, or raise, at once."""
        return self.client.is_ready(request_id)

    def cancel(self, request_id: int) -> None:
        """Drops a request; see `InferencerClient.cancel`."""
        self.client.cancel(request_id)

    def multi_infer(self, inputs: Sequence[Tree]) -> list[Tree]:
        """Returns the model's output for each of several inputs; see `InferencerClient.multi_infer`."""
        return self.client.multi_infer(inputs)

    def stream(self, *args: Tree, **kwargs: Tree) -> Iterator[Tree]:
        """Yields the model's reply part by part; see `InferencerClient.stream`."""
        return self.client.stream(*args, **kwargs)

    def astream(self, *args: Tree, **kwargs: Tree) -> AsyncIterator[Tree]:
        """Like `stream`, without holding up the event loop."""
        return self.client.astream(*args, **kwargs)

    async def ainfer(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Like calling the inferencer, without holding up the event loop."""
        return await self.client.ainfer(*args, **kwargs)

    async def await_resp(self, request_id: int, timeout: float | None = None) -> Tree:
        """Like `wait_for_resp`, without holding up the event loop."""
        return await self.client.await_resp(request_id, timeout)

    def ping(self, timeout: float | None = None) -> float:
        """Returns how long the workers take to answer, in seconds; see `InferencerClient.ping`."""
        return self.client.ping(timeout)

    def stats(self, timeout: float | None = None) -> Stats:
        """Returns the workers' counters, added up; see `InferencerClient.stats`."""
        return self.client.stats(timeout)

    @property
    def version(self) -> int:
        """The newest version of the weights that any reply to this inferencer was made with."""
        return self.client.version

    # What only the owner of the workers can do ------------------------------------------------------------------

    def create_client(
        self, *, timeout_s: float | None = None, transport: Transport = "auto", slot_bytes: int = 1 << 20
    ) -> InferencerClient:
        """Returns a client for another thread or process; it can be pickled. Arguments: see `InferencerClient`."""
        return InferencerClient(self._launcher.folder, timeout_s=timeout_s, transport=transport, slot_bytes=slot_bytes)

    def update_params(self, state_dict: Mapping[str, Tensor]) -> int:
        """Hands new weights to the workers and returns their version: 1, then 2, and so on.

        The call returns once the weights are copied to shared memory. Every request sent later, by anyone, is
        answered with at least this version; no request waits longer for it than a copy of the weights takes.

        Args:
            state_dict: all entries of the model's `state_dict()`, on any device; rounded to the model's dtypes. What
                `get_extra_state` put there travels as well; where it is not that of the push before, the call waits
                until each worker's model has taken it for a test.

        Raises:
            ValueError: an entry is missing, unknown, misshapen, or of a kind of number that the model's dtype has not
                (complex for real, real for whole); or a module's `set_extra_state` raises. The old weights still serve.
            WorkerDiedError: no worker is left.
        """
        if os.getpid() != self._launcher.pid:
            raise InferError("update_params must be called in the process that made the inferencer, not a fork of it")
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict of tensors by name, not {type(state_dict).__name__}")
        return self._launcher.update(self._launcher.check(dict(state_dict)), pack_extra_state(state_dict))

    @property
    def pids(self) -> list[int]:
        """The process ids of the living workers."""
        return self._launcher.pids

    @property
    def ready(self) -> bool:
        """Whether a worker can answer now; not while the last is being restarted or hangs (`stall_timeout_s`)."""
        return self._launcher.ready

    @property
    def vitals(self) -> Stats:
        """The workers' counters as they last showed them, a moment ago or before the batch that runs.

        Unlike `stats` it asks nobody, and so waits for nothing, whatever the workers do.
        """
        return self._launcher.vitals

    def close(self) -> None:
        """Stops the workers after their current batch. Calling it twice is fine."""
        self.client.close()
        self._stop()

    def __enter__(self) -> "Inferencer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an Inferencer holds worker processes and cannot be copied or pickled; send create_client()")


def _check_axes(name: str, axes: Axes) -> None:
    """Raises ValueError if these are no axes of a batch."""
    entries = list(axes) if isinstance(axes, (list, tuple)) else [axes]
    if not all(axis is None or whole(axis) is not None for axis in entries):
        raise ValueError(f"{name} must be a whole number, or hold whole numbers and None, not {axes!r}")
    if name == "in_axes" and all(axis is None for axis in entries):
        raise ValueError(f"in_axes must name the batch axis of at least one argument, not {axes!r}")


def rows_at_most(batch_size: int | str) -> int | None:
    """Returns the most rows in one call of the model; None for `'auto'`.

    Raises:
        ValueError: it is neither.
    """
    rows = None if batch_size == "auto" else whole(batch_size)
    if rows is not None and abs(rows) > sys.maxsize:
        raise ValueError(f"batch_size must be a number of rows from 1 to {sys.maxsize}, not {told(rows)}")
    if batch_size != "auto" and (rows is None or rows < 1):
        raise ValueError(f"batch_size must be a number of rows from 1, or 'auto', not {batch_size!r}")
    return rows


def check_device(device: Any) -> None:
    """Raises an error for what cannot name a device that answers, here or on another machine.

    Raises:
        TypeError: it names none.
        ValueError: it is torch's device of shapes without values.
    """
    if not isinstance(device, (str, torch.device, Sequence)):
        raise TypeError(f"device must be a device or several, got {device!r}: batch_size comes after it, or by name")
    for each in [device] if isinstance(device, (str, torch.device)) else device:
        if str(each).partition(":")[0] == "meta":
            raise ValueError(f"device must hold values, and {str(each)!r} holds shapes alone")


def _devices(device: str | torch.device | Sequence[str | torch.device], replicas: int | None) -> list[torch.device]:
    """Returns the device of each replica."""
    check_device(device)
    check_whole(or_none=True, replicas=replicas)
    names = [device] if isinstance(device, (str, torch.device)) else list(device)
    if replicas is not None and (replicas < 1 or len(names) not in (1, replicas)):
        raise ValueError(f"replicas must be 1 or more, and as many as the devices ({len(names)}), not {replicas}")
    if not names:
        raise ValueError("device must name at least one device, not an empty list")
    devices = []
    for name in names:
        try:
            each = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"device must be one that torch knows, not {name!r}: {error}") from None
        except TypeError:  # whose text lists what torch.device takes
            raise ValueError(f"device must be one that torch knows, not {name!r}") from None
        if each.type == "cuda" and (each.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device ({name}) must be there, and this machine has {torch.cuda.device_count()} of CUDA")
        if each.type == "mps" and not torch.backends.mps.is_available():
            raise ValueError(f"device ({name}) must be there, and this machine has no MPS")
        devices.append(each)
    return devices * (replicas or 1) if len(devices) == 1 else devices
