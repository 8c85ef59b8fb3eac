"""A worker that batches inference requests from many processes, and a server."""

from ai.infer.client import InferencerClient
from ai.infer.errors import InferError, RequestCancelledError, RequestError, WorkerDiedError
from ai.infer.inferencer import Inferencer
from ai.infer.stats import Stats

__all__ = [
    "InferError",
    "Inferencer",
    "InferencerClient",
    "RequestCancelledError",
    "RequestError",
    "Stats",
    "WorkerDiedError",
]
