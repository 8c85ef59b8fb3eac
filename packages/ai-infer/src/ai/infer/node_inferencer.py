"""`NodeInferencer`: one `Inferencer` a machine, whichever of the processes there happens to run it."""

import fcntl
import hashlib
import inspect
import os
import secrets
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ai.infer.client import InferencerClient
from ai.infer.errors import InferError, WorkerDiedError
from ai.infer.inferencer import Inferencer
from ai.infer.transport.socket_folder import VERSIONS_FILE
from ai.infer.transport.trees import Tree

_MAX_DEATHS = 3  # a request that ends so many inferencers is not sent again
_LOOK_S = 0.05
_NUMBER = struct.Struct("<q")


class NodeInferencer:
    """Looks like the model; all copies of it in the processes of one machine ask one `Inferencer` there.

    It can be pickled, and sent to as many processes and machines as there are, as a cluster's workers are. Whichever
    copy of a machine asks first starts the inferencer, in a worker process of its own; the others are its clients.
    Each training needs one of its own, since one set of parameters answers all. Nothing is to be started or stopped by
    hand: the inferencer ends with the process whose copy started it, and then the next copy that asks starts another,
    with the newest parameters that it was given. Requests that a death interrupts are sent again, as the model's answer
    depends on nothing else.

    A machine is what shares its folder for temporary files; where the variable `AI_NODE` is set, as in workers on a Ray
    cluster, each value of it counts as a machine.

    Args:
        model: copied to each machine; what it is at the time of pickling.
        device: where it runs there.
        batch_size: as of `Inferencer`.
        start_timeout_s: as of `Inferencer`; who waits for another's start waits as long.
        **options: other options of `Inferencer`, apart from `restart`: a worker that dies is always started again.

    Raises:
        TypeError: `model` is no module, or there is no such option. What an option may be is told where it first runs.

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
        inspect.signature(Inferencer).bind(model, **options)  # an option that there is none of is told here and now
        self._given: dict[str, Any] = {
            "model": model,
            "device": device,
            "batch_size": batch_size,
            "start_timeout_s": start_timeout_s,
        }
        self._given |= {"start_timeout_s": start_timeout_s, **options}
        self._key = secrets.token_hex(16)
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._seat: _Seat | None = None
        self._hosted: Inferencer | None = None
        self._client: InferencerClient | None = None
        self._versions: _Versions | None = None
        self._newest: tuple[int, Mapping[str, Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"given": self._given, "key": self._key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._given, self._key = state["given"], state["key"]
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
                return client(*args, **kwargs)
            except WorkerDiedError as error:
                died = error
                self._leave(client)
        raise WorkerDiedError(f"{_MAX_DEATHS} inferencers in a row died over one request, the last: {died}") from died

    def update_params(self, state_dict: Mapping[str, Tensor], version: int) -> None:
        """Takes parameters: every copy is to be given them, and the one that runs the inferencer hands them to it.

        Args:
            state_dict: as of `Inferencer.update_params`; kept, for the inferencer that may have to be started here.
            version: how the caller counts them.

        Raises:
            ValueError: they do not fit the model (told where the inferencer runs).
        """
        with self._lock:
            self._newest = version, state_dict
            if self._hosted is not None and self._versions is not None:
                self._pass_on(self._hosted, self._versions)

    @property
    def version(self) -> int:
        """The newest version, as `update_params` was told it, that any reply to this copy was made with."""
        with self._lock:
            if self._client is None or self._versions is None:
                return 0
            return self._versions[self._client.version]

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
                versions = _Versions.new(hosted.client.address, 0 if self._newest is None else self._newest[0])
                if self._newest is not None:
                    self._pass_on(hosted, versions)
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
                self._client = None
                client.close()

    def _pass_on(self, hosted: Inferencer, versions: "_Versions") -> None:
        assert self._newest is not None
        version, state_dict = self._newest
        versions.append(version)  # before any reply can be made with it
        hosted.update_params(state_dict)


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

    @staticmethod
    def _path(key: str) -> Path:
        node = os.environ.get("AI_NODE", "")
        name = hashlib.sha256(f"{key} {node}".encode()).hexdigest()[:24]
        return Path(tempfile.gettempdir()) / f"ai-infer-node-{os.getuid()}-{name}"

    @classmethod
    def taken(cls, key: str) -> "_Seat | None":
        """Returns the seat, now this process's own; None: another has it."""
        path = cls._path(key)
        descriptor = _locked(path, os.O_CREAT)
        if descriptor is None:
            return None
        os.ftruncate(descriptor, 0)
        _sweep(path)
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


def _locked(path: Path, flags: int = 0) -> int | None:
    """Returns a file's descriptor with its lock; None: another has it, or it is not ours."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.fstat(descriptor)
        there = path.stat()  # not one that was removed between
        if held.st_uid == os.getuid() and (held.st_ino, held.st_dev) == (there.st_ino, there.st_dev):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _sweep(but: Path) -> None:
    """Removes what processes that are gone have left; who was about to lock such a file finds it removed."""
    for path in but.parent.glob(f"ai-infer-node-{os.getuid()}-*"):
        if path != but and (descriptor := _locked(path)) is not None:
            _left(path, descriptor)


class _Versions:
    """The caller's number of each of an inferencer's versions: a file beside it, to which its owner appends.

    Args:
        address: of the inferencer.
    """

    def __init__(self, address: str) -> None:
        self._path = Path(address) / VERSIONS_FILE
        self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)  # readable also when removed
        weakref.finalize(self, os.close, self._file)
        self._known = (-1, 0)

    @classmethod
    def new(cls, address: str, first: int) -> "_Versions":
        """Returns those of a new inferencer; `first` is the number of what it has before any update."""
        (Path(address) / VERSIONS_FILE).write_bytes(_NUMBER.pack(first))
        return cls(address)

    def append(self, version: int) -> None:
        """Notes the number of the next version."""
        with self._path.open("ab") as file:
            file.write(_NUMBER.pack(version))

    def __getitem__(self, internal: int) -> int:
        if self._known[0] != internal:
            found = os.pread(self._file, _NUMBER.size, _NUMBER.size * internal)
            self._known = internal, _NUMBER.unpack(found)[0]
        return self._known[1]
