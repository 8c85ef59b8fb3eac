"""What can go wrong between a client and its worker.

InferError
├── WorkerDiedError        the process that held the model is gone; the request may be sent again
├── RequestError           the model, or the request's own form, failed this one request
└── RequestCancelledError  the request was cancelled before its reply was fetched
"""


class InferError(RuntimeError):
    """Any failure that an inferencer or its client reports, timeouts apart (those are the built-in `TimeoutError`)."""


class WorkerDiedError(InferError):
    """The worker stopped or died, so that no reply can come."""


class RequestError(InferError):
    """One request failed in the worker; the message carries the worker's own traceback."""


class RequestCancelledError(InferError):
    """The reply of a cancelled request was asked for."""
