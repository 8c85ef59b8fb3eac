"""A CUDA device that is only pretended, for machines without one.

Tensors on it say `device='cuda:0'` and hold real numbers, which the CPU computes. What a GPU refuses is refused:
tensors of two devices in one operation, a generator of the other device, `numpy()` of a tensor on the device. What
makes the CPU wait for a GPU is known, and is refused inside `no_sync`. Copies through page-locked memory are late, as
they are on a GPU: until somebody waits for the device, their target holds nothing of use, and their source must not be
written to. From the same seed it draws what the CPU draws, or with `own_draws` other numbers, as a GPU does.

A CUDA graph is a list of what was called, done again over the same memory. What one stream may still be at work on
another is refused (`tests/pretended_streams.py`). Threads that are started while it is there see it, too.

It stands for no measurement, and has no kernels of its own (fused ones, cuDNN).
"""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from tests.pretended_streams import Clock, Streams

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten

# What waits for a GPU whatever the arguments: a number or a size is read.
_WAITING = {
    "_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "equal", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave", "bincount", "is_nonzero", "allclose", "multinomial",
    "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq",
}  # fmt: skip
_TAKES_NUMBERS = {
    "fill_",
    "fill",
    "masked_fill_",
    "masked_fill",
    "index_put_",
    "index_put",
    "index_fill_",
    "index_fill",
}
_COPIES = {"copy_", "_foreach_copy_"}
_INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class SyncError(RuntimeError):
    """Something waited for the device where nothing may."""


class DeviceTensor(Tensor):
    """A tensor on the pretended device; `elem` is the CPU's tensor over the same memory."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor, requires_grad: bool = False) -> "DeviceTensor":
        # What is below Python (autograd's engine, autocast) sees a tensor of the CPU.
        made = Tensor._make_subclass(cls, elem, requires_grad)
        made.elem = elem
        return made

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def get_device(self) -> int:
        return 0

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: "DeviceTensor") -> None:
        self.elem = value.elem
        Tensor.data.__set__(self, value)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        _read_by("repr")
        return f"DeviceTensor({self.elem})"

    def __format__(self, form: str) -> str:
        return self.item().__format__(form) if self.ndim == 0 else object.__format__(self, form)

    def __deepcopy__(self, memo: dict[int, Any]) -> "DeviceTensor":
        if id(self) not in memo:
            copied = _wrap(self.elem.detach().clone())
            if isinstance(self, torch.nn.Parameter):
                copied._is_param = True
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        _read_by("a pickle")
        return self.elem.detach().__reduce_ex__(protocol)  # in a file it lies on the CPU, as `map_location` has it

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Generator(torch.Generator):
    pretended = CPU

    @property
    def device(self) -> torch.device:
        return self.pretended


class _Thread(threading.local):
    inside = False  # an operation of torch on tensors of the device: what it makes is made there
    drawing = False  # a factory of the device
    stream: Any = None  # the current one, where it is not the default


class PretendedCuda:
    """`with PretendedCuda() as cuda:` there is one CUDA device; `with cuda.no_sync():` nothing waits."""

    active: "PretendedCuda | None" = None

    def __init__(self, own_draws: bool = False) -> None:
        self.own_draws = own_draws
        self.refuses_sync = False
        self.thread = _Thread()
        self.streams = Streams()
        self.pinned: dict[int, Any] = {}
        self.tape: list[Any] | None = None  # of the graph that is being captured
        self._late: list[tuple[int, int, Callable[[], None]]] = []  # what has not happened: in which stream, and where
        self._turn = threading.RLock()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "PretendedCuda":
        assert PretendedCuda.active is None
        PretendedCuda.active = self
        enter = self._stack.enter_context
        for place, name, value in self._replaced():
            enter(mock.patch.object(place, name, value, create=True))
        together = [Tensor, torch.nn.Parameter, DeviceTensor]
        enter(mock.patch.object(sys.modules["torch.optim.optimizer"], "_foreach_supported_types", together))
        swap = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # a moved parameter stays the same object
        self._stack.callback(torch.__future__.set_swap_module_params_on_conversion, swap)
        enter(self._seen())
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()
        PretendedCuda.active = None
        if error[0] is None:
            self.flush()

    @contextlib.contextmanager
    def _seen(self) -> Iterator[None]:
        """The device is there in this thread."""
        with _Dispatch(self), _Functions(self):
            yield

    @contextlib.contextmanager
    def no_sync(self, refuse: bool = True) -> Iterator[None]:
        before, self.refuses_sync = self.refuses_sync, refuse
        try:
            yield
        finally:
            self.refuses_sync = before

    def waits(self, why: str, clock: Clock | None = None) -> None:
        """Called by everything that makes the CPU wait for the current stream, or for what a clock of streams says."""
        if self.refuses_sync:
            raise SyncError(f"{why} waits for the device")
        if self.tape is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {why}")
        self.flush(self.streams.clock(self.stream) if clock is None else clock)

    @property
    def stream(self) -> int:
        """The number of this thread's current stream."""
        return 0 if self.thread.stream is None else int(self.thread.stream.number)

    def works(self, reads: Iterable[Tensor] = (), writes: Iterable[Tensor] = (), fresh: Iterable[Tensor] = ()) -> None:
        """Called with the memory that the current stream is asked to read, to write, and to fill for the first time."""
        if not self.streams.several:
            self.streams.tick(self.stream)
        else:
            self.streams.work(self.stream, *(filter(None, map(_address, part)) for part in (reads, writes, fresh)))

    def calls(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Called with an operation on tensors of the device."""
        if not self.streams.several:
            self.streams.tick(self.stream)
            return
        if getattr(func, "is_view", False):
            return
        named = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
        written = [one.name for one in func._schema.arguments if one.alias_info is not None and one.alias_info.is_write]
        writes = _held([named.get(name) for name in written])
        given, made = _held((args, kwargs)), _held(result)
        self.works(
            [x for address, x in given.items() if address not in writes],
            writes.values(),
            [x for address, x in made.items() if address not in given],
        )

    def flush(self, clock: Clock | None = None) -> None:
        """What was under way has happened: all of it, or what a clock of streams says."""
        clock = self.streams.everything() if clock is None else clock
        self.streams.wait_on_cpu(clock)
        with self._turn:
            due = [act for stream, place, act in self._late if place <= clock.get(stream, 0)]
            self._late = [late for late in self._late if late[1] > clock.get(late[0], 0)]
        for act in due:
            act()

    def has_happened(self, clock: Clock) -> bool:
        """Whether nothing that a clock of streams says is still under way."""
        return not any(place <= clock.get(stream, 0) for stream, place, _ in self._late)

    def happens_late(self, act: Callable[[], None]) -> None:
        """What the current stream is asked to do happens once somebody waits for it."""
        with self._turn:
            self._late.append((*self.streams.tick(self.stream), act))

    def is_pinned(self, tensor: Tensor) -> bool:
        if isinstance(tensor, DeviceTensor) or tensor.layout is not torch.strided:
            return False
        return tensor.untyped_storage().data_ptr() in self.pinned

    def pin(self, tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided:  # the memory of its parts, which nothing here follows
            return tensor
        self.pinned[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    def to_device(self, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        """Copies from the CPU's memory."""
        if not non_blocking:
            self.waits("a copy to the device without non_blocking=True")
        self.works(writes=[target])
        target.copy_(source)
        if non_blocking and self.is_pinned(source):
            seen = source.detach().clone()

            def check() -> None:
                if not torch.equal(seen, source) and not bool((seen != seen).any()):
                    raise RuntimeError("page-locked memory was written to while a copy to the device read it")

            self.happens_late(check)

    def to_cpu(self, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        """Copies to the CPU's memory."""
        self.works([source])
        if not (non_blocking and self.is_pinned(target)):
            self.waits("a copy to the CPU")
            target.copy_(source)
            return
        value = source.detach().clone().to(target.dtype)
        with torch.no_grad():
            target.fill_(float("nan") if target.dtype.is_floating_point else 0)
        self.happens_late(functools.partial(_arrive, target, value))

    def _replaced(self) -> list[tuple[Any, str, Any]]:
        real_group = torch._C._group_tensors_by_device_and_dtype

        def group(lists: Any, with_indices: bool = False) -> Any:
            found = real_group(lists, with_indices)
            return {(next(t for t in held[0][0] if t is not None).device, key[1]): held for key, held in found.items()}

        class Generator(_Generator, metaclass=_AnyGenerator):
            def __new__(cls, device: Any = "cpu") -> "Generator":
                made = super().__new__(cls)
                made.pretended = _checked(device)
                if made.pretended.type == "cuda":
                    made.pretended = CUDA
                return made

        class Event:
            def __init__(self, *_: Any, **__: Any) -> None:
                self.clock: Clock = {}  # of one that was never recorded nothing is waited for

            def record(self, stream: Any = None) -> None:
                self.clock = cuda.streams.clock(cuda.stream if stream is None else stream.number)

            def wait(self, stream: Any = None) -> None:
                cuda.streams.wait(cuda.stream if stream is None else stream.number, self.clock)

            def query(self) -> bool:
                return cuda.has_happened(self.clock)

            def synchronize(self) -> None:
                cuda.waits("an event's synchronize", self.clock)

        class Stream:
            device = CUDA

            def __init__(self, *_: Any, number: int | None = None, **__: Any) -> None:
                self.number = cuda.streams.open() if number is None else number
                self._before: list[Any] = []

            def record_event(self, event: Any = None) -> Any:
                event = event or Event()
                event.record(self)
                return event

            def wait_stream(self, other: Any) -> None:
                cuda.streams.wait(self.number, cuda.streams.clock(other.number))

            def wait_event(self, event: Any) -> None:
                event.wait(self)

            def synchronize(self) -> None:
                cuda.waits("a stream's synchronize", cuda.streams.clock(self.number))

            def __enter__(self) -> "Stream":
                self._before.append(cuda.thread.stream)
                cuda.thread.stream = self
                return self

            def __exit__(self, *_: Any) -> None:
                cuda.thread.stream = self._before.pop()

        class CUDAGraph:
            def __init__(self) -> None:
                self.tape: list[Any] = []

            def replay(self) -> None:
                for func, args, kwargs, result in self.tape:
                    again = func(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
                    for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                        if isinstance(old, DeviceTensor) and old.elem.data_ptr() != new.data_ptr():
                            old.elem.copy_(new)
                    cuda.calls(func, args, kwargs, result)

        @contextlib.contextmanager
        def graph(captured: CUDAGraph, *_: Any, **__: Any) -> Iterator[None]:
            cuda.streams.wait_on_cpu(cuda.streams.everything())  # as torch does before it captures
            cuda.tape = captured.tape
            try:
                yield
            finally:
                cuda.tape = None

        def synchronize(*_: Any) -> None:
            cuda.waits("torch.cuda.synchronize", cuda.streams.everything())

        real_start = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            run = thread.run

            def seeing() -> None:
                with cuda._seen():
                    run()

            thread.run = seeing  # type: ignore[method-assign]
            real_start(thread)

        cuda, default = self, Stream(number=0)
        answers = {
            "is_available": True, "device_count": 1, "current_device": 0, "is_bf16_supported": True,
            "_lazy_init": None, "set_device": None, "get_device_capability": (9, 0), "memory_allocated": 0,
            "max_memory_allocated": 0, "reset_peak_memory_stats": None, "default_stream": default,
            "get_device_name": "pretended", "empty_cache": None, "memory_reserved": 0, "utilization": 0,
            "get_device_properties": SimpleNamespace(
                name="pretended", total_memory=2**30, multi_processor_count=1, major=9, minor=0
            ),
        }  # fmt: skip
        replaced: list[tuple[Any, str, Any]] = [
            (torch.cuda, name, lambda *_, value=value, **__: value) for name, value in answers.items()
        ]
        for name in ("set_autocast_enabled", "is_autocast_enabled", "set_autocast_dtype", "get_autocast_dtype"):
            replaced.append((torch, name, functools.partial(_of_cpu, getattr(torch, name))))
        replaced += [
            (torch.backends.cudnn, "is_acceptable", lambda *_: False),
            (torch.accelerator, "current_accelerator", lambda *_, **__: None),
            (torch.cuda, "synchronize", synchronize),
            (torch.cuda, "current_stream", lambda *_: cuda.thread.stream or default),
            (threading.Thread, "start", start),
            (torch.cuda, "Stream", Stream),
            (torch.cuda, "CUDAGraph", CUDAGraph),
            (
                torch.cuda,
                "is_current_stream_capturing",
                lambda: cuda.tape is not None,
            ),  # asked by torch 2.6's optimisers
            (torch.cuda, "graph", graph),
            (torch.cuda, "device", lambda *_: contextlib.nullcontext()),
            (torch.cuda, "Event", Event),
            (torch.cuda, "stream", lambda given: given or contextlib.nullcontext()),
            (torch, "Generator", Generator),
            (torch._C, "_group_tensors_by_device_and_dtype", group),
        ]
        return replaced


class _AnyGenerator(type(torch.Generator)):
    def __instancecheck__(cls, instance: object) -> bool:
        return type.__instancecheck__(_Generator.__mro__[1], instance)


def _of_cpu(function: Callable[..., Any], device: str = "cuda", *rest: Any) -> Any:
    return function("cpu" if device == "cuda" else device, *rest)


def _arrive(target: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        target.copy_(value)


def _address(held: Tensor) -> int:
    """Of its memory; 0 where there is none, or more than one."""
    return held.untyped_storage().data_ptr() if held.layout is torch.strided else 0


def _held(values: Any) -> dict[int, Tensor]:
    """The memory of all tensors of the device, by its address."""
    return {_address(x.elem): x.elem for x in tree_leaves(values) if isinstance(x, DeviceTensor)}


def _made(cuda: PretendedCuda, result: Any) -> Any:
    """What a factory of the device has made."""
    result = tree_map(_wrap, result)
    cuda.works(fresh=_held(result).values())
    return result


def _wrap(value: Any) -> Any:
    return DeviceTensor(value) if isinstance(value, Tensor) and not isinstance(value, DeviceTensor) else value


def _read_by(who: str) -> None:
    if PretendedCuda.active is not None:
        PretendedCuda.active.waits(who)


def _checked(device: Any) -> torch.device:
    """The device, of which there is one of each kind."""
    found = torch.device(device)
    if found.type == "cuda" and (found.index or 0) > 0:
        raise RuntimeError("CUDA error: invalid device ordinal")
    return found


def _unwrap(value: Any) -> Any:
    return value.elem if isinstance(value, DeviceTensor) else value


def _name(func: Any) -> str:
    return func._schema.name.split("::")[1]


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation of which some tensor lies on the device."""
    cuda, name = PretendedCuda.active, _name(func)
    if name in _COPIES:
        return _copy(func, args, kwargs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    # A number that lies on the CPU is passed to a kernel by value, where the kernel works element by element.
    by_value = torch.Tag.pointwise in func.tags and not name.startswith("_foreach")
    apart = [
        x
        for x in tensors
        if not isinstance(x, DeviceTensor) and not (x.ndim == 0 and (by_value or name in _TAKES_NUMBERS))
    ]
    if name in _INDEXING:
        given = [x for x in args[1] if x is not None]
        here = [x for x in apart if not any(x is index for index in given)]
        filled = name not in ("index", "_unsafe_index") and args[2].numel() == 1
        if cuda is not None and not here:
            if any(not isinstance(index, DeviceTensor) for index in given):
                cuda.waits("an index that lies on the CPU")
            elif any(index.dtype in (torch.bool, torch.uint8) for index in given) and not filled:
                cuda.waits("an index of booleans")
        apart = here
    if apart:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func})"
        )
    if cuda is not None and name in _WAITING and not (name == "repeat_interleave" and kwargs.get("output_size")):
        cuda.waits(f"aten::{name}")
    _go_on_in_another_stream(func, kwargs)
    result = func(
        *tree_map(_unwrap, args), **{key: tree_map(_unwrap, x) for key, x in kwargs.items()} | _on_cpu(kwargs)
    )
    result = tree_map(_wrap, result)
    if cuda is not None:
        cuda.calls(func, args, kwargs, result)
    if cuda is not None and cuda.tape is not None:
        cuda.tape.append((func, args, kwargs | _on_cpu(kwargs), result))
    return return_and_correct_aliasing(func, args, kwargs, result)


def _go_on_in_another_stream(func: Any, kwargs: dict[str, Any]) -> None:
    """With `own_draws` a number is drawn and thrown away before each draw."""
    cuda = PretendedCuda.active
    if cuda is not None and cuda.own_draws and torch.Tag.nondeterministic_seeded in func.tags:
        aten.rand.generator([], generator=kwargs.get("generator"), device=CPU)


def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"device": CPU} if kwargs.get("device") is not None else {}


def _copy(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    cuda = PretendedCuda.active
    non_blocking = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    many = isinstance(args[0], list | tuple)
    for target, source in zip(args[0], args[1], strict=True) if many else [args[:2]]:
        ends = isinstance(source, DeviceTensor), isinstance(target, DeviceTensor)
        raw_target, raw_source = _unwrap(target), _unwrap(source)
        if cuda is None or ends[0] == ends[1]:
            if cuda is not None and ends[0]:
                cuda.works([raw_source], [raw_target])
            raw_target.copy_(raw_source)
        elif ends[1]:
            cuda.to_device(raw_source, raw_target, non_blocking)
        else:
            cuda.to_cpu(raw_source, raw_target, non_blocking)
    return None if many else args[0]


class _Dispatch(TorchDispatchMode):
    """Sees what torch makes by itself: factories below Python's surface."""

    def __init__(self, cuda: PretendedCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(isinstance(x, DeviceTensor) for x in tensors):
            return _run(func, args, kwargs)
        if device is not None and device.type == "cuda":
            _go_on_in_another_stream(func, kwargs)
            return _made(self.cuda, func(*args, **{**kwargs, "device": CPU}))
        if self.cuda.thread.drawing or (self.cuda.thread.inside and not tensors):
            _go_on_in_another_stream(func, kwargs)
        result = func(*args, **kwargs)
        return _made(self.cuda, result) if self.cuda.thread.inside and not tensors else result


class _Functions(TorchFunctionMode):
    """Sees what is called in Python: moves between devices, and factories with a device."""

    def __init__(self, cuda: PretendedCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        cuda = self.cuda
        if func is Tensor.backward:
            with self:
                return _backward(*args, **kwargs)
        special = _SPECIAL.get(func)
        if special is not None:
            return special(cuda, *args, **kwargs)
        name = getattr(func, "__name__", "")
        on_device = any(isinstance(x, DeviceTensor) for x in tree_leaves((args, kwargs)))
        if name in _READS_ARGUMENTS and any(isinstance(x, DeviceTensor) for x in tree_leaves((args, kwargs))):
            cuda.waits(f"a number given to torch.{name}")
        elif name == "new_tensor" and on_device and not isinstance(args[1], Tensor):
            cuda.waits("new_tensor of numbers")
        elif name == "tensor" and any(isinstance(x, DeviceTensor) for x in tree_leaves(args) if x is not args[0]):
            cuda.waits("a list of numbers of the device")
        pinned = bool(kwargs.pop("pin_memory", False)) if name in _FACTORIES else False
        device = kwargs.get("device")
        if name in _FACTORIES and device is not None:
            wanted = _checked(device)
            _check_generator(kwargs.get("generator"), wanted)
            kwargs["device"] = CPU if wanted.type == "cuda" else wanted
            if name in _MAKES_FROM_VALUES and on_device != (wanted.type == "cuda"):
                cuda.waits(f"torch.{name} across devices")
            args, kwargs = tree_map(_unwrap, (args, kwargs))
            before, cuda.thread.inside, cuda.thread.drawing = cuda.thread.inside, False, wanted.type == "cuda"
            try:
                made = func(*args, **kwargs)
            finally:
                cuda.thread.inside, cuda.thread.drawing = before, False
            if wanted.type != "cuda":
                return cuda.pin(made) if pinned else made
            if isinstance(made, DeviceTensor):
                return made
            return _made(cuda, made.detach()).requires_grad_(made.requires_grad)
        if "generator" in kwargs and kwargs["generator"] is not None:
            _check_generator(kwargs["generator"], CUDA if on_device else CPU)
        before, cuda.thread.inside = cuda.thread.inside, on_device
        try:
            made = func(*args, **kwargs)
        finally:
            cuda.thread.inside = before
        return cuda.pin(made) if pinned else made


_FACTORIES = {
    "zeros", "ones", "empty", "full", "arange", "linspace", "logspace", "eye", "rand", "randn", "randint", "randperm",
    "tensor", "as_tensor", "asarray", "empty_strided", "zeros_like", "ones_like", "empty_like", "full_like",
    "rand_like", "randn_like", "randint_like", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor",
    "tril_indices", "triu_indices", "normal", "hann_window", "scalar_tensor", "range", "new_empty_strided",
}  # fmt: skip
_READS_ARGUMENTS = {"full", "arange", "range", "linspace", "logspace", "randint"}
_MAKES_FROM_VALUES = {"tensor", "as_tensor", "asarray", "new_tensor"}


def _check_generator(generator: Any, device: torch.device) -> None:
    if generator is not None and generator.device.type != device.type:
        raise RuntimeError(f"Expected a '{device.type}' device type for generator but found '{generator.device.type}'")


def _backward(
    tensor: Tensor, gradient: Any = None, retain_graph: Any = None, create_graph: bool = False, inputs: Any = None
) -> None:
    if gradient is not None and gradient.device != tensor.device:
        raise RuntimeError(f"invalid gradient at index 0 - expected device {tensor.device} but got {gradient.device}")
    torch.autograd.backward(tensor, gradient, retain_graph, create_graph, inputs=inputs)


class _Move(torch.autograd.Function):
    """A move between the devices, through which gradients move back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to_cuda: bool, non_blocking: bool) -> Tensor:
        ctx.to_cuda = to_cuda
        cuda = PretendedCuda.active
        raw = _unwrap(x)
        target = torch.empty_like(raw)
        if to_cuda:
            cuda.works(fresh=[target])
            cuda.to_device(raw, target, non_blocking)
            return _wrap(target)
        if non_blocking:
            cuda.pin(target)  # torch takes page-locked memory for it
        cuda.to_cpu(raw, target, non_blocking)
        return target

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Move.apply(grad, not ctx.to_cuda, False), None, None


def _to(cuda: PretendedCuda, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    copy = kwargs.pop("copy", False)
    other = args[0] if args and isinstance(args[0], Tensor) else kwargs.pop("other", None)
    if other is not None:
        non_blocking = bool(args[1]) if len(args) > 1 else kwargs.get("non_blocking", False)
        device, dtype, memory_format = other.device, other.dtype, kwargs.get("memory_format")
    else:
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args[:3], **kwargs)
    changes: dict[str, Any] = {}
    if dtype is not None:
        changes["dtype"] = dtype
    if memory_format is not None:
        changes["memory_format"] = memory_format
    here = isinstance(x, DeviceTensor)
    if device is not None:
        device = _checked(device)
    if device is None or (device.type == "cuda") == here:
        before, cuda.thread.inside = cuda.thread.inside, here
        try:
            return x.to(copy=copy, **changes) if changes or copy else x
        finally:
            cuda.thread.inside = before
    moved = _Move.apply(x, device.type == "cuda", non_blocking)
    return moved.to(**changes) if changes else moved


def _to_cuda(cuda: PretendedCuda, x: Tensor, device: Any = None, non_blocking: bool = False, **_: Any) -> Tensor:
    return _to(
        cuda,
        x,
        CUDA if device is None else torch.device("cuda", torch.device(device).index or 0),
        non_blocking=non_blocking,
    )


def _to_cpu(cuda: PretendedCuda, x: Tensor, **_: Any) -> Tensor:
    return _to(cuda, x, CPU)


def _numpy(cuda: PretendedCuda, x: Tensor, *args: Any, force: bool = False, **_: Any) -> Any:
    if not isinstance(x, DeviceTensor):
        return x.numpy(force=force)
    if not force:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
    cuda.waits("numpy")
    return x.elem.detach().numpy(force=True)


def _array(cuda: PretendedCuda, x: Tensor, *args: Any, **_: Any) -> Any:
    return _numpy(cuda, x).astype(args[0]) if args and args[0] is not None else _numpy(cuda, x)


def _tolist(cuda: PretendedCuda, x: Tensor) -> Any:
    if isinstance(x, DeviceTensor):
        cuda.waits("tolist")
    return _unwrap(x).tolist()


def _one_hot(cuda: PretendedCuda, x: Tensor, num_classes: int = -1) -> Tensor:
    if isinstance(x, DeviceTensor) and num_classes < 0:
        cuda.waits("one_hot without num_classes")
    before, cuda.thread.inside = cuda.thread.inside, isinstance(x, DeviceTensor)
    try:
        with cuda.no_sync(False):  # only the CPU's kernel looks at the numbers
            return torch.nn.functional.one_hot(x, num_classes)
    finally:
        cuda.thread.inside = before


def _pin_memory(cuda: PretendedCuda, x: Tensor, *_: Any) -> Tensor:
    if isinstance(x, DeviceTensor):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    return x if cuda.is_pinned(x) else cuda.pin(x.clone())


def _is_pinned(cuda: PretendedCuda, x: Tensor, *_: Any) -> bool:
    return cuda.is_pinned(x)


_SPECIAL: dict[Any, Callable[..., Any]] = {
    Tensor.to: _to,
    Tensor.cuda: _to_cuda,
    Tensor.cpu: _to_cpu,
    Tensor.numpy: _numpy,
    Tensor.__array__: _array,
    Tensor.tolist: _tolist,
    Tensor.pin_memory: _pin_memory,
    Tensor.is_pinned: _is_pinned,
    Tensor.record_stream: lambda *_: None,
    torch.nn.functional.one_hot: _one_hot,
}
