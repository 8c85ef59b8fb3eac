"""What Prometheus reads from `/metrics`."""

from typing import TYPE_CHECKING

from ai.infer.http.repository import Repository

if TYPE_CHECKING:
    pass

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """A server's counters, in a registry of its own.

    Args:
        repository: whose workers' counters are shown as well.
    """

    def __init__(self, repository: Repository) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._repository = repository
        self._registry = CollectorRegistry()
        labels = ["model", "version"]
        self._requests = Counter("ai_infer_requests", "Inference requests", [*labels, "code"], registry=self._registry)
        self._seconds = Histogram(
            "ai_infer_request_seconds", "Duration of a request", labels, registry=self._registry, buckets=_BUCKETS
        )
        self._worker = {
            name: Gauge(f"ai_infer_worker_{name}", text, labels, registry=self._registry)
            for name, text in (
                ("ready", "Whether a worker can answer"),
                ("queued", "Requests that wait"),
                ("rows_total", "Rows that went through the model"),
                ("batches_total", "Calls of the model"),
                ("busy_seconds_total", "Time in the model"),
            )
        }
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._histograms: dict[tuple[str, str], Histogram] = {}

    def count(self, model: str, version: str, code: int, seconds: float) -> None:
        """Counts one inference request; `model` must be one that exists, so that labels stay few."""
        counter = self._counters.get((model, version, code))
        if counter is None:
            counter = self._counters[model, version, code] = self._requests.labels(model, version, str(code))
            self._histograms[model, version] = self._seconds.labels(model, version)
        counter.inc()
        self._histograms[model, version].observe(seconds)

    def write(self) -> bytes:
        """Returns the text that Prometheus reads; asks each worker for its counters, so not for the event loop."""
        from prometheus_client import generate_latest

        for model in self._repository.all():
            labels = (model.source.name, model.source.version)
            self._worker["ready"].labels(*labels).set(model.ready)
            try:
                stats = model.inferencer.stats() if model.inferencer is not None else None
            except (RuntimeError, TimeoutError):  # it is dying just now
                stats = None
            if stats is not None:
                self._worker["queued"].labels(*labels).set(stats.queued)
                self._worker["rows_total"].labels(*labels).set(stats.rows)
                self._worker["batches_total"].labels(*labels).set(stats.batches)
                self._worker["busy_seconds_total"].labels(*labels).set(stats.busy_s)
        return generate_latest(self._registry)
