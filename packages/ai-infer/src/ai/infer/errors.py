"""What can go wrong between a client and its worker.

InferError
├── WorkerDiedError        the process that held the model is gone; the request may be sent again
├── RequestError           the model, or the request's own form, failed this one request
│   └── InPartsError       it asked for the whole of a reply that the model makes in parts
└── RequestCancelledError  the request was cancelled before its reply was fetched
"""


class InferError(RuntimeError):
    """Any failure that an inferencer or its client reports, timeouts apart (those are the built-in `TimeoutError`)."""


class WorkerDiedError(InferError):
    """The worker stopped or died, so that no reply can come."""


class RequestError(InferError):
    """One request failed in the worker; the message carries the worker's own traceback."""


class InPartsError(RequestError):
    """The model returns its reply in parts (`stream`, `astream`), and was asked for it whole."""


class RequestCancelledError(InferError):
    """The reply of a cancelled request was asked for."""
