"""`NodeInferencer`: one `Inferencer` a machine, whichever of the processes there happens to run it."""

import copy
import hashlib
import inspect
import json
import os
import secrets
import struct
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ai.infer.arguments import check_seconds, whole
from ai.infer.client import InferencerClient
from ai.infer.errors import InferError, WorkerDiedError
from ai.infer.inferencer import Inferencer, check_device, rows_at_most
from ai.infer.transport.shared_weights import extra_state
from ai.infer.transport.socket_folder import VERSIONS_FILE, locked, seat_path, sweep
from ai.infer.transport.trees import Tree
from ai.model.arguments import told

_MAX_DEATHS = 3  # a request that ends so many inferencers is not sent again
_LOOK_S = 0.05
_NUMBER = struct.Struct("<q")
_OF_THIS_PROCESS = ("_lock", "_seat", "_hosted", "_client", "_heard", "_versions", "_version")
_all: "weakref.WeakSet[NodeInferencer | _Seat]" = weakref.WeakSet()


def _forget_all_after_fork() -> None:
    for each in list(_all):
        each._forget_after_fork()


os.register_at_fork(after_in_child=_forget_all_after_fork)


class NodeInferencer:
    """Looks like the model; all copies of it in the processes of one machine ask one `Inferencer` there.

    It can be pickled, and sent to as many processes and machines as there are, as a cluster's workers are. Whichever
    copy of a machine asks first starts the inferencer, in a worker process of its own; the others are its clients.
    One set of parameters answers all, so trainings that were sent the same object are kept apart: each value of the
    variable `AI_TRAINING` has an inferencer of its own. Workers of a `Datagen` have one of each loader's, those of a
    search one each. Nothing is to be started or stopped by hand: the inferencer ends with the process whose copy
    started it, and then the next copy that asks starts another, with the newest parameters that it was given. Requests
    that a death interrupts are sent again, as the model's answer depends on nothing else.

    It may be used by several threads, and forked: the child's is one more copy.

    A machine is what shares its folder for temporary files; where the variable `AI_NODE` is set, as in workers on a Ray
    cluster, each value of it counts as a machine.

    Args:
        model: copied to each machine; what it is at the time of pickling, which takes along what `update_params` was
            given.
        device: where it runs there.
        batch_size: as of `Inferencer`.
        start_timeout_s: as of `Inferencer`; who waits for another's start waits as long.
        **options: other options of `Inferencer`, apart from `restart`: a worker that dies is always started again.

    Raises:
        TypeError: `model` is no module, `device` names none, or there is no such option. What another option may be is
            told where it first runs.
        ValueError: `batch_size` is no number of rows, `start_timeout_s` no time to wait.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> with NodeInferencer(model) as asked:
    ...     same = torch.equal(asked(torch.ones(1, 3)), model(torch.ones(1, 3)))
    ...     asked.update_params(model.state_dict(), version=7)
    ...     answer = asked(torch.ones(1, 3))
    ...     same, asked.version
    (True, 7)
    """

    def __init__(
        self,
        model: nn.Module,
        device: str = "cpu",
        batch_size: int | str = 64,
        *,
        start_timeout_s: float = 600.0,
        **options: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        if "restart" in options:
            raise TypeError("restart is no option here: a worker that dies is always started again")
        check_device(device)
        rows_at_most(batch_size)
        check_seconds(start_timeout_s=start_timeout_s, none=False, endless=False)
        inspect.signature(Inferencer).bind(model, **options)  # an option that there is none of is told here and now
        self._given: dict[str, Any] = {
            "model": model,
            "device": device,
            "batch_size": batch_size,
            "start_timeout_s": start_timeout_s,
            **options,
        }
        self._key = secrets.token_hex(16)
        self._newest: tuple[int, Mapping[str, Any]] | None = None
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._seat: _Seat | None = None
        self._hosted: Inferencer | None = None
        self._client: InferencerClient | None = None
        self._heard: InferencerClient | None = None  # the last that has brought a reply
        self._versions: _Versions | None = None
        self._version = 0
        _all.add(self)

    def _forget_after_fork(self) -> None:
        self._begin()  # the seat and the inferencer are the parent's

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __call__(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Returns what the model returns for these arguments; see `InferencerClient.__call__`.

        Raises:
            WorkerDiedError: one inferencer after the other died over this request.
            TimeoutError: the worker hangs, or was not started again in time.
            InferError: the inferencer could not be started.
        """
        for _ in range(_MAX_DEATHS):
            client = self._joined()
            try:
                reply = client(*args, **kwargs)
            except WorkerDiedError as error:
                died = error
                self._leave(client)
            else:
                self._heard = client
                return reply
        raise WorkerDiedError(f"{_MAX_DEATHS} inferencers in a row died over one request, the last: {died}") from died

    def update_params(self, state_dict: Mapping[str, Tensor], version: int) -> None:
        """Takes parameters: every copy is to be given them, and the one that runs the inferencer hands them to it.

        Args:
            state_dict: as of `Inferencer.update_params`; a copy is kept, for the inferencer that may have to be started
                here. Where modules' extra states are left out, those given before hold there too.
            version: how the caller counts them, by numbers of 64 bits.

        Raises:
            TypeError: they are no dict, or `version` is no whole number.
            ValueError: `version` has more bits; or they do not fit the model (told where the inferencer runs). The old
                ones still serve.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict of tensors by name, not {type(state_dict).__name__}")
        number = whole(version)
        if number is None:
            raise TypeError(f"version must be a whole number, not {version!r}")
        if not -(1 << 63) <= number < 1 << 63:
            raise ValueError(f"version must be a number of 64 bits, one of them its sign, not {told(number)}")
        state: dict[str, Any] = {
            name: x.detach().to("cpu", copy=True) if isinstance(x, Tensor) else copy.deepcopy(x)
            for name, x in state_dict.items()
        }
        with self._lock:
            if self._hosted is not None and self._versions is not None:
                self._versions.pass_on(self._hosted, state, number)
            if self._newest is not None and not extra_state(state):
                state = state | extra_state(self._newest[1])
            self._newest = number, state

    @property
    def version(self) -> int:
        """What `update_params` was told of the newest parameters that have answered this copy; 0 before any reply.

        Where an inferencer has ended, it is that of the one that answers now.
        """
        with self._lock:
            if self._client is not None and self._heard is self._client and self._versions is not None:
                self._version = self._versions[self._client.version]
            return self._version

    @property
    def hosts(self) -> bool:
        """Whether this very copy has started the machine's inferencer."""
        return self._hosted is not None

    def close(self) -> None:
        """Hangs up; ends the inferencer if it runs here. Who asks again begins anew."""
        with self._lock:
            if self._client is not None:
                self._leave(self._client)
            hosted, self._hosted = self._hosted, None
            if hosted is not None:
                hosted.close()
            if self._seat is not None:
                self._seat.leave()
                self._seat = None

    def __enter__(self) -> "NodeInferencer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _joined(self) -> InferencerClient:
        """Returns a client of the machine's inferencer, which is started here where nobody else has."""
        with self._lock:
            deadline = time.monotonic() + self._given["start_timeout_s"]
            while self._client is None:
                if self._hosted is not None:  # its worker has died, and is started again
                    self._client = self._hosted.create_client()
                elif (seat := _Seat.taken(self._key)) is not None:
                    self._host(seat)
                elif (address := _Seat.address(self._key)) is not None:
                    self._ask(address)
                if self._client is None:
                    if time.monotonic() > deadline:
                        raise InferError(
                            "the inferencer of this machine, which another process starts, was not ready after "
                            f"{self._given['start_timeout_s']:g} s"
                        )
                    time.sleep(_LOOK_S)
            return self._client

    def _host(self, seat: "_Seat") -> None:
        try:
            hosted = Inferencer(restart=True, **self._given)
            try:
                versions = _Versions.new(hosted.client.address)
                if self._newest is not None:
                    version, state = self._newest
                    versions.pass_on(hosted, state, version)
                client = hosted.create_client()
            except BaseException:
                hosted.close()
                raise
        except BaseException:
            seat.leave()
            raise
        self._seat, self._hosted, self._versions, self._client = seat, hosted, versions, client
        seat.tell(hosted.client.address)

    def _ask(self, address: str) -> None:
        """Becomes a client of the inferencer there, if it is."""
        client = InferencerClient(address)
        try:
            client.ping(self._given["start_timeout_s"])
            self._versions = _Versions(address)
        except (WorkerDiedError, OSError):  # it ended just now, and whoever notices first follows
            client.close()
            return
        self._client = client

    def _leave(self, client: InferencerClient) -> None:
        with self._lock:
            if self._client is client:  # of several threads the first
                self._version = self.version
                self._client = None
                client.close()


class _Seat:
    """The right to run a machine's inferencer: a locked file, in which its address stands once it is ready.

    Args:
        path: of the file.
        descriptor: of the file, with the lock, which ends with the process at the latest.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        self.leave = weakref.finalize(self, _left, path, descriptor)
        """Gives the seat back; so does the end of this object."""
        _all.add(self)

    def _forget_after_fork(self) -> None:
        if self.leave.detach() is not None:
            os.close(self.descriptor)  # else the lock would last as long as this child

    @staticmethod
    def _path(key: str) -> Path:
        place = json.dumps([key, os.environ.get("AI_NODE", ""), os.environ.get("AI_TRAINING", "")])
        name = hashlib.sha256(place.encode()).hexdigest()[:24]
        return seat_path(name)

    @classmethod
    def taken(cls, key: str) -> "_Seat | None":
        """Returns the seat, now this process's own; None: another has it.

        Raises:
            InferError: the folder takes no such file.
        """
        path = cls._path(key)
        try:
            descriptor = locked(path, os.O_CREAT)
        except OSError as error:
            raise InferError(
                f"who runs the inferencer of a machine locks a file in the folder for temporary files, {path.parent}, "
                f"which failed: {error}"
            ) from error
        if descriptor is None:
            return None
        os.ftruncate(descriptor, 0)
        sweep()
        return cls(path, descriptor)

    @classmethod
    def address(cls, key: str) -> str | None:
        """Returns where the inferencer of this machine is, once it is ready."""
        try:
            descriptor = os.open(cls._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        with open(descriptor, encoding="utf-8") as file:
            mine = os.fstat(descriptor).st_uid == os.getuid()
            text = file.read()
        return text.rstrip("\n") if mine and text.endswith("\n") else None

    def tell(self, address: str) -> None:
        """Says that the inferencer is ready."""
        os.pwrite(self.descriptor, f"{address}\n".encode(), 0)


def _left(path: Path, descriptor: int) -> None:
    path.unlink(missing_ok=True)
    os.close(descriptor)


class _Versions:
    """The caller's number of each of an inferencer's versions: a file beside it, which its owner writes.

    Args:
        address: of the inferencer.
    """

    def __init__(self, address: str) -> None:
        self._path = Path(address) / VERSIONS_FILE
        self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)  # readable also when removed
        weakref.finalize(self, os.close, self._file)
        self._known = (-1, 0)
        self._passed_on = 0

    @classmethod
    def new(cls, address: str) -> "_Versions":
        """Returns those of a new inferencer; the number of what it has before any update is 0."""
        (Path(address) / VERSIONS_FILE).write_bytes(_NUMBER.pack(0))
        return cls(address)

    def pass_on(self, hosted: Inferencer, state_dict: Mapping[str, Any], version: int) -> None:
        """Hands parameters to the inferencer, and notes their number before any reply can be made with them."""
        with self._path.open("r+b") as file:
            file.seek(_NUMBER.size * (self._passed_on + 1))  # where one that was refused stands, if any
            file.write(_NUMBER.pack(version))
        self._passed_on = hosted.update_params(state_dict)

    def __getitem__(self, internal: int) -> int:
        if self._known[0] != internal:
            found = os.pread(self._file, _NUMBER.size, _NUMBER.size * internal)
            self._known = internal, _NUMBER.unpack(found)[0]
        return self._known[1]
