"""A worker that batches inference requests from many processes, and a server.

The path of a request, and the file that has each step::

    client      client.py          what a caller holds; from an event loop connection/async_session.py
       │        connection/        session: which replica · connection: a slot or the socket · handshake: how it began
       ▼
    transport   transport/         wire: tree → header and bytes · slots: shared memory · frames: the socket
       │
       ▼
    batcher     worker/loop        finds requests in the slots, or is handed those that came by socket (listener),
       │                           queues them by form (request_queue), takes what fits in a call
       │        worker/batch_call  gathers their rows, and shares the output out again, where rows/ allows it
       ▼
    engine      worker/engine      calls the model: device, precision, compiled or replayed
       │
       ▼
    reply       worker/reply_writer  writes into the slots, wakes the clients: connection/client_slots,
                                     connection/event_loop

`inferencer.py` is what the owner of a model holds; it starts and watches the workers by `launcher.py`. `http/` puts
clients behind a server.
"""

from ai.infer.client import InferencerClient
from ai.infer.errors import InferError, InPartsError, RequestCancelledError, RequestError, WorkerDiedError
from ai.infer.inferencer import Inferencer
from ai.infer.node_inferencer import NodeInferencer
from ai.infer.stats import Stats

__all__ = [
    "InPartsError",
    "InferError",
    "Inferencer",
    "InferencerClient",
    "NodeInferencer",
    "RequestCancelledError",
    "RequestError",
    "Stats",
    "WorkerDiedError",
]
