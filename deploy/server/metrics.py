"""GET /metrics, for Prometheus. The values of a label are few, whatever clients request."""

from __future__ import annotations

import time
from typing import Any, Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
STAGES = ('decode', 'queue', 'network', 'whole')


class Metrics:
    """In a registry of their own, so that one process can have two servers."""

    def __init__(self, *, max_batch: int) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter(
            'classifier_requests', 'Requests by route and status', ['route', 'status'], registry=own
        )
        self.refused = Counter(
            'classifier_refused', 'Requests and connections refused', ['reason'], registry=own
        )
        self.images = Counter('classifier_images', 'Images that a network has run', registry=own)
        powers = [float(2**power) for power in range(max_batch.bit_length())]
        self.batch = Histogram(
            'classifier_batch_images',
            'Images a batch',
            buckets=[power for power in powers if power < max_batch] + [max_batch],
            registry=own,
        )
        self._seconds = Histogram(
            'classifier_seconds',
            'Seconds: decoding a picture, waiting in the queue, the batch in the network, and a '
            'request of /classify or infer as a whole, its upload included',
            ['stage'],
            buckets=SECONDS,
            registry=own,
        )
        self.seconds = {stage: self._seconds.labels(stage) for stage in STAGES}

    def add_gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """One that is read at each GET /metrics."""
        Gauge(name, help, registry=self._registry).set_function(read)

    def count_batch(self, images: int, seconds: float) -> None:
        self.images.inc(images)
        self.batch.observe(images)
        self.seconds['network'].observe(seconds)

    def count_request(self, start: float, **stages: float) -> None:
        """An answered one. start: of time.perf_counter(); stages: their seconds"""
        for stage, seconds in {**stages, 'whole': time.perf_counter() - start}.items():
            self.seconds[stage].observe(seconds)

    def count_refusal(self, reason: str) -> None:
        self.refused.labels(reason).inc()

    def statistics(self) -> dict[str, Any]:
        """The part of Triton's statistics that is counted here, in nanoseconds."""

        def total(stage: str) -> dict[str, int]:
            count, seconds = (
                self._registry.get_sample_value(f'classifier_seconds_{what}', {'stage': stage}) or 0
                for what in ('count', 'sum')
            )
            return {'count': int(count), 'ns': int(1e9 * seconds)}

        images = self._registry.get_sample_value('classifier_images_total') or 0
        stages = {'success': 'whole', 'queue': 'queue', 'compute_infer': 'network'}
        return {
            'inference_count': int(images),
            'execution_count': total('network')['count'],
            'inference_stats': {name: total(stage) for name, stage in stages.items()},
        }

    def text(self) -> bytes:
        return generate_latest(self._registry)
