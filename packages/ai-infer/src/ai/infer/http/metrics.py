"""What Prometheus reads from `/metrics`."""

from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ai.infer.http.repository import Repository

if TYPE_CHECKING:
    from prometheus_client import Metric

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class _Durations:
    """How many requests took how long, in seconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)  # by bucket, the last for what is slower than all
        self.total_s = 0.0


class Metrics:
    """A server's counters, in a registry of its own.

    Requests are counted by the event loop alone, in plain numbers that become Prometheus's when it asks: the client
    library's own counters take a lock each, three a request.

    Args:
        repository: whose workers' counters are shown as well.
    """

    def __init__(self, repository: Repository) -> None:
        from prometheus_client import CollectorRegistry, Gauge

        self._repository = repository
        self._registry = CollectorRegistry()
        self._n_requests: dict[tuple[str, str, int], int] = {}
        self._durations: dict[tuple[str, str], _Durations] = {}
        self._registry.register(self)
        self._worker = {
            name: Gauge(f"ai_infer_worker_{name}", text, ["model", "version"], registry=self._registry)
            for name, text in (
                ("ready", "Whether a worker can answer"),
                ("queued", "Requests that wait"),
                ("rows_total", "Rows that went through the model"),
                ("batches_total", "Calls of the model"),
                ("busy_seconds_total", "Time in the model"),
            )
        }

    def count(self, model: str, version: str, code: int, seconds: float) -> None:
        """Counts one inference request; `model` must be one that exists, so that labels stay few."""
        key = (model, version, code)
        self._n_requests[key] = self._n_requests.get(key, 0) + 1
        durations = self._durations.get(key[:2])
        if durations is None:
            durations = self._durations[key[:2]] = _Durations()
        durations.counts[bisect_left(_BUCKETS, seconds)] += 1
        durations.total_s += seconds

    def collect(self) -> "Iterator[Metric]":
        """Yields what was counted, as Prometheus's client library wants it."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        labels = ["model", "version"]
        requests = CounterMetricFamily("ai_infer_requests", "Inference requests", labels=["code", *labels])
        for (model, version, code), n in list(self._n_requests.items()):
            requests.add_metric([str(code), model, version], n)
        yield requests
        seconds = HistogramMetricFamily("ai_infer_request_seconds", "Duration of a request", labels=labels)
        for key, durations in list(self._durations.items()):
            buckets, n = [], 0
            for bound, count in zip((*map(str, _BUCKETS), "+Inf"), list(durations.counts), strict=True):
                n += count
                buckets.append((bound, n))
            seconds.add_metric(list(key), buckets, durations.total_s)
        yield seconds

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
