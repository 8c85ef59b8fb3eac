import cloudpickle
import pytest
import torch

from ai.infer import Inferencer
from tests import warm_python
from tests.infer import infer_models
from tests.infer.infer_models import Versatile

cloudpickle.register_pickle_by_value(infer_models)  # workers know nothing of the tests


@pytest.fixture(scope="session", autouse=True)
def warm_workers():
    """Workers share their imports; those of scripts and of servers that the tests start are from fresh interpreters."""
    with pytest.MonkeyPatch.context() as patch:
        warm_python.start_inferencers_warm(patch)
        yield


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return Versatile().eval()


@pytest.fixture(scope="session")
def inferencer(model):
    with Inferencer(model, "cpu", 64) as shared:
        yield shared


@pytest.fixture(scope="session")
def rowwise(model):
    """An inferencer whose user says that rows are independent."""
    with Inferencer(model, "cpu", 64, share=True) as shared:
        yield shared


@pytest.fixture(params=["shm", "socket"])
def client(inferencer, request):
    with inferencer.create_client(transport=request.param, timeout_s=100) as each:
        yield each


@pytest.fixture
def gate(tmp_path):
    """A file that keeps the worker busy (`do="wait"`) until it is removed."""
    path = tmp_path / "gate"
    path.touch()
    yield path
    path.unlink(missing_ok=True)
