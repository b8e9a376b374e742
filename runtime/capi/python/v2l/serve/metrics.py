"""What the store counts, in the words of Prometheus."""

from __future__ import annotations

from typing import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .store import Store


class _Jobs(Collector):
    """Reads the store whenever it is asked, so that every process that shares the store says the same."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        counters = self._store.counters()
        jobs = GaugeMetricFamily("v2l_jobs", "Jobs that are kept, by status.", labels=["status"])
        for status, number in self._store.statuses().items():
            jobs.add_metric([status], number)
        yield jobs
        yield GaugeMetricFamily("v2l_queue_oldest_seconds", "How long the oldest waiting job has waited.", self._store.oldest())
        finished = CounterMetricFamily("v2l_jobs_finished", "Jobs by what became of them.", labels=["outcome"])
        for outcome, count in counters.get("jobs", {}).items():
            finished.add_metric([outcome], count)
        yield finished
        seconds = CounterMetricFamily("v2l_phase_seconds", "Seconds of finished jobs, by phase.", labels=["phase"])
        for phase, spent in counters.get("seconds", {}).items():
            seconds.add_metric([phase], spent)
        yield seconds
        for name, text in (
            ("swaps", "Jobs that changed the adapters."),
            ("workers_lost", "Jobs whose worker ended while it worked on them."),
            ("refused", "Requests that were refused because the queue was full."),
        ):
            yield CounterMetricFamily(f"v2l_{name}", text, sum(counters.get(name, {}).values()))


def rendered(store: Store) -> bytes:
    """The metrics of a store as text."""
    registry = CollectorRegistry()
    registry.register(_Jobs(store))
    return generate_latest(registry)
