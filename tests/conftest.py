"""One torch thread for every test process, and the devices that numerical tests run on."""

import os
from contextlib import AbstractContextManager, contextmanager, nullcontext

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; fresh processes of the tests inherit it

import pytest


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Each test runs on the CPU, and on 'cuda': the GPU, or where there is none one that is pretended."""
    import torch

    from tests.pretended_cuda import PretendedCuda

    if request.param == "cpu":
        yield "cpu"
    elif torch.cuda.is_available():
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield "cuda"
    else:
        with PretendedCuda():
            yield "cuda"


@pytest.fixture
def no_sync(device):
    """`with no_sync():` whatever makes the CPU wait for the device is an error."""
    import torch

    from tests.pretended_cuda import PretendedCuda

    @contextmanager
    def refused():
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
