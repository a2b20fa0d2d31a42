"""Metrics: what the server counts, in one registry of its own, in Prometheus' names and units."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)  # from one token to eight long answers on two cores


class Metrics:
    """One server's numbers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        here = self.registry
        self.requests = Counter(
            "xinfluencer_requests", "HTTP requests answered, by path and status code.", ["path", "code"], registry=here
        )
        self.tokens = Counter(
            "xinfluencer_tokens", "Tokens read (prompt) and generated (completion).", ["kind"], registry=here
        )
        self.generation = Histogram(
            "xinfluencer_generation_seconds",
            "Time that the model worked on one request, waiting left out.",
            buckets=SECONDS,
            registry=here,
        )
        self.waiting = Gauge(
            "xinfluencer_requests_waiting", "Requests in the queue, the one being answered left out.", registry=here
        )
        self.release = Gauge(
            "xinfluencer_release_number", "The release that answers under an alias.", ["alias"], registry=here
        )
        self.swaps = Counter(
            "xinfluencer_release_swaps", "How often an alias began to answer with another version.", registry=here
        )
        self.refusals = Counter(
            "xinfluencer_adapter_refusals", "Versions that were announced or asked for and not loaded.", registry=here
        )
        self.unrecorded = Counter(
            "xinfluencer_records_failed", "Events that the log did not acknowledge in time.", registry=here
        )
        for kind in ("prompt", "completion"):
            self.tokens.labels(kind)
