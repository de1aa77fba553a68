"""Numbers for Prometheus: counts and times, never a text, a name or an address."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from pipeline.chat.reply import Reply

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Meter:
    """What one application counts. With PROMETHEUS_MULTIPROC_DIR set, all workers' numbers are told together."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("gonggam_requests", "HTTP requests", ("method", "route", "status"), registry=own)
        self.seconds = Histogram(
            "gonggam_request_seconds", "time until the response was sent", ("route",), registry=own, buckets=SECONDS
        )
        self.replies = Counter("gonggam_replies", "replies by where they come from", ("source",), registry=own)
        self.tokens = Counter("gonggam_tokens", "tokens read and written", ("kind",), registry=own)
        self.first = Histogram("gonggam_first_piece_seconds", "wait for the first words", registry=own, buckets=SECONDS)
        self.cancelled = Counter("gonggam_cancelled", "replies whose reader went away", registry=own)
        self.refused = Counter("gonggam_refused", "requests refused because of too many", ("why",), registry=own)
        self.running = Gauge(
            "gonggam_replies_running", "replies being worked on", registry=own, multiprocess_mode="livesum"
        )
        self.waiting = Gauge(
            "gonggam_replies_waiting", "requests that wait for their turn", registry=own, multiprocess_mode="livesum"
        )

        kinds = ("prompt", "completion", "cached")
        self._tokens = [(f"{kind}_tokens", self.tokens.labels(kind)) for kind in kinds]

    def replied(self, reply: Reply) -> None:
        """Count one finished reply."""
        self.replies.labels(reply.source).inc()
        for kind, tokens in self._tokens:
            tokens.inc(getattr(reply.usage, kind))

    def text(self) -> bytes:
        """All numbers in Prometheus' text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)
