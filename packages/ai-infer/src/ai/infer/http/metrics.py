"""What Prometheus reads from `/metrics`."""

from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ai.infer.http.models.repository import Repository
from ai.infer.inferencer import Inferencer

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
        from prometheus_client import CollectorRegistry

        self._repository = repository
        self._registry = CollectorRegistry()
        self._n_requests: dict[tuple[str, str, int], int] = {}
        self._durations: dict[tuple[str, str], _Durations] = {}
        self._registry.register(self)

    def count(self, model: str, version: str, code: int, seconds: float) -> None:
        """Counts one inference request; `model` must be one that exists, so that labels stay few."""
        n_requests, codes, key = self._n_requests, (model, version, code), (model, version)
        n_requests[codes] = n_requests.get(codes, 0) + 1
        durations = self._durations.get(key)
        if durations is None:
            durations = self._durations[key] = _Durations()
        durations.counts[bisect_left(_BUCKETS, seconds)] += 1
        durations.total_s += seconds

    def count_refused(self, model: str, version: str, code: int) -> None:
        """Counts one that got no further than its head or body, which says nothing of how long a request takes."""
        key = (model, version, code)
        self._n_requests[key] = self._n_requests.get(key, 0) + 1

    def counts(self) -> dict[str, Any]:
        """Returns what was counted, as JSON can carry it to another process."""
        return {
            "requests": [[*key, n] for key, n in self._n_requests.items()],
            "durations": [[*key, each.counts, each.total_s] for key, each in self._durations.items()],
        }

    def add(self, counts: dict[str, Any]) -> None:
        """Adds what another process counted; see `counts`."""
        for model, version, code, n in counts["requests"]:
            key = (model, version, code)
            self._n_requests[key] = self._n_requests.get(key, 0) + n
        for model, version, buckets, total_s in counts["durations"]:
            durations = self._durations.setdefault((model, version), _Durations())
            durations.counts = [a + b for a, b in zip(durations.counts, buckets, strict=True)]
            durations.total_s += total_s

    def collect(self) -> "Iterator[Metric]":
        """Yields what was counted, as Prometheus's client library wants it; the workers are not asked but looked at."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        labels = ["model", "version"]
        requests = CounterMetricFamily("ai_infer_requests", "Inference requests", labels=["code", *labels])
        for (model, version, code), n in list(self._n_requests.items()):
            requests.add_metric([str(code), model, version], n)
        yield requests
        seconds = HistogramMetricFamily("ai_infer_request_duration_seconds", "Duration of a request", labels=labels)
        for key, durations in list(self._durations.items()):
            buckets, n = [], 0
            for bound, count in zip((*map(str, _BUCKETS), "+Inf"), list(durations.counts), strict=True):
                n += count
                buckets.append((bound, n))
            seconds.add_metric(list(key), buckets, durations.total_s)
        yield seconds
        ready = GaugeMetricFamily("ai_infer_worker_ready", "Whether a worker can answer", labels=labels)
        queued = GaugeMetricFamily("ai_infer_worker_queued_requests", "Requests that wait", labels=labels)
        rows = CounterMetricFamily("ai_infer_worker_rows", "Rows that went through the model", labels=labels)
        batches = CounterMetricFamily("ai_infer_worker_batches", "Calls of the model", labels=labels)
        errors = CounterMetricFamily("ai_infer_worker_errors", "Requests answered with an error", labels=labels)
        busy = CounterMetricFamily("ai_infer_worker_busy_seconds", "Time in the model", labels=labels)
        for served in self._repository.all():
            key = (served.source.name, served.source.version)
            ready.add_metric(key, float(served.ready))
            if isinstance(served.inferencer, Inferencer):
                stats = served.inferencer.vitals
                queued.add_metric(key, stats.queued)
                rows.add_metric(key, stats.rows)
                batches.add_metric(key, stats.batches)
                errors.add_metric(key, stats.errors)
                busy.add_metric(key, stats.busy_s)
        yield from (ready, queued, rows, batches, errors, busy)

    def write(self) -> bytes:
        """Returns the text that Prometheus reads."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
