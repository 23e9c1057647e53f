"""What `/metrics` shows, in a registry of the server's own."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """See the module's head."""

    def __init__(self):
        disable_created_metrics()  # a time for each figure, which nobody asked for
        self.registry = CollectorRegistry(auto_describe=True)
        make = {"registry": self.registry}
        self.requests = Counter(
            "vitrail_requests",
            "Requests answered, by status; those of /healthz, /readyz and /metrics are not counted",
            ["status"],
            **make,
        )
        self.seconds = Histogram(
            "vitrail_request_seconds",
            "From a request's head to its answer",
            buckets=_SECONDS,
            **make,
        )
        self.pictures = Counter("vitrail_pictures", "Pictures, by outcome", ["outcome"], **make)
        self.batches = Histogram("vitrail_batch_size", "Pictures a batch", buckets=_SIZES, **make)
        self.computing = Histogram(
            "vitrail_batch_seconds", "Of the arithmetic of a batch", buckets=_SECONDS, **make
        )
        self.queue = Gauge("vitrail_queue", "Pictures taken and not yet answered", **make)
        self.ready = Gauge("vitrail_workers_ready", "Workers that take pictures", **make)
        self.restarts = Gauge("vitrail_worker_restarts", "Workers that died", **make)
        self.held = Gauge("vitrail_body_bytes", "Of request bodies held in memory", **make)
        self.dropped = Gauge("vitrail_log_lines_dropped", "Nobody read the log", **make)

    def answered(self, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(str(status)).inc()
        self.seconds.observe(seconds)

    def computed(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self.batches.observe(size)
        self.computing.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
