"""As much of an `Inferencer` as a `NodeInferencer` uses, whose model answers in the process that asks."""

import pickle
import shutil
import tempfile
from typing import ClassVar

import torch

from ai.infer import WorkerDiedError, node_inferencer
from ai.infer.transport.shared_weights import extra_state


def pretend(monkeypatch, folder):
    """Has every `NodeInferencer` start and ask these; what they write is in the folder."""
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(Pretended, "made", {})
    monkeypatch.setattr(node_inferencer, "Inferencer", Pretended)
    monkeypatch.setattr(node_inferencer, "InferencerClient", Client)


class Pretended:
    """Stands for an inferencer and for its clients: the model answers in this process."""

    made: ClassVar[dict] = {}

    def __init__(self, model, **options):
        with torch.inference_mode(False):  # the process of its own knows nothing of the asker's mode
            self.model, self.internal = pickle.loads(pickle.dumps(model)), 0
        self.address = tempfile.mkdtemp(dir=tempfile.gettempdir(), prefix="inferencer-")
        self.client = Client(self.address)
        self.made[self.address] = self

    def create_client(self):
        return Client(self.address)

    def update_params(self, state_dict):
        if {*state_dict, *extra_state(had := self.model.state_dict())} != had.keys():
            raise ValueError("state_dict must hold every entry of the model")
        self.model.load_state_dict(extra_state(had) | dict(state_dict))
        self.internal += 1
        return self.internal

    def close(self):
        shutil.rmtree(self.address)
        del self.made[self.address]


class Client:
    version = 0

    def __init__(self, address):
        self.address = address

    def ping(self, timeout):
        if self.address not in Pretended.made:
            raise WorkerDiedError("gone")

    def __call__(self, *x):
        self.ping(None)
        asked = Pretended.made[self.address]
        self.version = asked.internal
        with torch.inference_mode():
            return asked.model(*x)

    def close(self):
        pass
