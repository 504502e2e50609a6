"""The numbers of a process as Prometheus reads them."""

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from copyrisk import vitals
from copyrisk.vitals import METRICS, MetricKind, Vitals

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Exposition:
    """All metrics of one process, in a registry of their own."""

    def __init__(self, seen: Vitals) -> None:
        self._vitals = seen
        self._metrics = [metric for metric in METRICS.values() if not metric.roles or seen.role in metric.roles]
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def collect(self) -> Iterator[Metric]:
        """The families of this role's metrics, those without a value included."""
        for metric in self._metrics:
            yield self._histogram(metric) if metric.kind is MetricKind.HISTOGRAM else self._family(metric)

    def text(self) -> bytes:
        """The body of `/metrics`."""
        return generate_latest(self._registry)

    def _family(self, metric: vitals.Metric) -> Metric:
        is_counter = metric.kind is MetricKind.COUNTER
        made = (CounterMetricFamily if is_counter else GaugeMetricFamily)(
            metric.name, metric.meaning, labels=metric.labels
        )
        values = self._vitals.numbers(metric)
        if is_counter and not metric.labels:
            values.setdefault((), 0.0)
        for labels, value in sorted(values.items()):
            made.add_metric(labels, value)
        return made

    def _histogram(self, metric: vitals.Metric) -> Metric:
        made = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        values = self._vitals.spreads(metric)
        if not metric.labels:
            values.setdefault((), (0.0,) * (len(metric.bounds) + 2))
        bounds = [*(str(bound) for bound in metric.bounds), "+Inf"]
        for labels, (*counts, total) in sorted(values.items()):
            made.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        return made
