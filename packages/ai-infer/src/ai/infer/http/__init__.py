"""The server: Open Inference Protocol v2 and plain HTTP in front of inferencers; needs the extra `http`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ai.infer.http.models.model_sources import ModelSource
    from ai.infer.http.routes import App
    from ai.infer.inferencer import Inferencer


def app(models: "Mapping[str, Inferencer] | Sequence[str | ModelSource]", **options: Any) -> "App":
    """Returns an ASGI application that serves models: for any ASGI server, or to be mounted in another application.

    Args:
        models: inferencers by name, which stay their owner's; or sources, as `ai-infer serve` takes them, which are
            loaded when the server starts, or before the first request where it is mounted.
        **options: see `ai.infer.http.routes.App`.

    >>> import torch
    >>> from ai.infer import Inferencer
    >>> with Inferencer(torch.nn.Linear(3, 2)) as inferencer:
    ...     application = app({"line": inferencer}, timeout_s=5)
    """
    from ai.infer.http.routes import App

    return App(models, **options)
