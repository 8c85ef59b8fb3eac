"""One torch thread for every test process, Ctrl-C wherever it runs, and the devices that numerical tests run on."""

import os
import signal
import warnings
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; fresh processes of the tests inherit it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

from tests import warm_python
from tests.chromium import browser as browser


def pytest_addoption(parser):
    parser.addoption(
        "--pretend-cuda", action="store_true", help="where there is no GPU, `any_device` is a pretended one"
    )


def pytest_generate_tests(metafunc):
    """`any_device` is the CPU, and 'cuda' where there is a GPU or one is to be pretended."""
    if "any_device" in metafunc.fixturenames:
        import torch

        both = torch.cuda.is_available() or metafunc.config.getoption("pretend_cuda")
        metafunc.parametrize("any_device", ["cpu", "cuda"] if both else ["cpu"], indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`-m cuda` selects what runs on the GPU, real or pretended; what takes longest begins first.

    Of two processes that run the tests one would else wait for the other's last page of the documentation.
    """
    items.sort(key=lambda item: "tests/umbrella/" not in item.nodeid or not item.get_closest_marker("slow"))
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if "cuda" in (params.get("device"), params.get("any_device")):
            item.add_marker("cuda")


@contextmanager
def _present(device, own_draws=False):
    """The device, be it the CPU, the GPU, or one that is pretended, with draws of its own or the CPU's."""
    import torch

    from tests.pretended_cuda import PretendedCuda

    if device == "cpu":
        yield
    elif torch.cuda.is_available():
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False), warnings.catch_warnings():
            # Said by torch where a thread of autograd is the first of its kind, and mended by torch there.
            warnings.filterwarnings("ignore", message="Attempting to run cuBLAS, but there was no current CUDA context")
            yield
    else:
        with PretendedCuda(own_draws):
            yield


@pytest.fixture
def data_workers_start_warm(monkeypatch):
    """Worker processes of loaders and generated data share their imports: for tests whose workers import torch."""
    warm_python.start_data_workers_warm(monkeypatch)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """The test runs on the CPU, and on 'cuda': the GPU, or where there is none one that is pretended."""
    with _present(request.param):
        yield request.param


@pytest.fixture
def any_device(request):
    """The test runs on the CPU, and on 'cuda' where there is a GPU or `--pretend-cuda` is given.

    It is for tests that are about numbers: what is about devices takes `device`, and runs on both everywhere.
    """
    with _present(request.param, own_draws=True):
        yield request.param


@pytest.fixture
def on_device(any_device):
    """`on_device(f)(x)` is `f(x)`, computed on `any_device` and brought back."""
    from tests.devices import computed_on

    return partial(computed_on, any_device)


@pytest.fixture
def no_sync(device):
    """`with no_sync():` whatever makes the CPU wait for the device is an error."""
    import torch

    from tests.pretended_cuda import PretendedCuda

    @contextmanager
    def refused():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def enter() -> AbstractContextManager[None]:
        if device == "cpu":
            return nullcontext()
        return refused() if PretendedCuda.active is None else PretendedCuda.active.no_sync()

    return enter
