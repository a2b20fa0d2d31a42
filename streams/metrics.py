"""Metrics: what the server counts, in Prometheus' names and units; and the files in which every process leaves its own.

Each process writes run/NAME.prom (node exporter's textfile convention), so no port is opened for it; the server also
answers /metrics, with its own numbers only. Names of generation are OpenTelemetry's (GenAI semantic conventions,
gen_ai.server.*, in development) as its rules translate them to Prometheus. Labels are names of the table, of a process
or of a release; never of a person or a post.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    write_to_textfile,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from streams import places
from streams.settings import Settings

disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the number of series, and nothing here asks for them

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)  # from one token to eight long answers on two cores
SERVER_FILE = "server.prom"
WRITE_S = 5.0  # between two writings of a file; Prometheus asks every 15 s or so
STALE_S = 30.0  # so old, a file about the machine is no use: it is looked at anew
# The boundaries that the conventions advise.
REQUEST_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(4**n for n in range(7))  # one request cannot hold more here
CHAT = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "xinfluencer"}
ASKED = (*CHAT, "gen_ai_request_model")


class Grown:
    """When a count last grew, as seen by whoever reads it; 0 before that.

    A counter's increase over a window misses what happens before the first reading of a life, and that is when a
    source finds its gap and a server its broken files. A time is not missed.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.at_s = 0.0

    def look(self, count: float, now_s: float) -> float:
        """Give the time (Unix seconds) of the look that first saw the present count."""
        if count > self.count:
            self.at_s = now_s
        self.count = count
        return self.at_s


def written(process: str, time_s: float) -> Metric:
    """Give the time when a process took its figures."""
    family = GaugeMetricFamily(
        "xinfluencer_written_timestamp_seconds", "When a process took its figures, Unix time.", labels=["process"]
    )
    family.add_metric([process], time_s)
    return family


class Metrics:
    """One server's numbers."""

    def __init__(self) -> None:
        self.registry = here = CollectorRegistry(auto_describe=False)
        here.register(self)
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
        self.duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Generative AI request duration: from its arrival to its last token, waiting included.",
            [*ASKED, "error_type"],
            buckets=REQUEST_SECONDS,
            registry=here,
        )
        self.first = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Time to the first words of a request with one answer, waiting included.",
            ASKED,
            buckets=FIRST_SECONDS,
            registry=here,
        )
        self.each = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time per token after the first, of a request with one answer.",
            ASKED,
            buckets=TOKEN_SECONDS,
            registry=here,
        )
        self.usage = Histogram(
            "gen_ai_client_token_usage",
            "Input and output tokens of one request.",
            [*ASKED, "gen_ai_token_type"],
            buckets=TOKENS,
            registry=here,
        )
        for kind in ("prompt", "completion"):
            self.tokens.labels(kind)
        self._refused = Grown()

    def text(self) -> bytes:
        """Render for /metrics, the process's own memory and time with it: a textfile must not hold those."""
        process = CollectorRegistry()
        ProcessCollector(registry=process)
        return generate_latest(self.registry) + generate_latest(process)

    def collect(self) -> Iterator[Metric]:
        """Give the time (prometheus_client's Collector)."""
        yield written("server", time.time())
        yield GaugeMetricFamily(
            "xinfluencer_adapter_refused_timestamp_seconds",
            "When a version was last not loaded, Unix time; 0 if never.",
            value=self._refused.look(self.refusals._value.get(), time.time()),
        )

    def write(self, run: Path) -> None:
        """Write run/server.prom; OSError if the disk is full."""
        run.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_to_textfile(str(run / SERVER_FILE), self.registry)

    def close(self, run: Path) -> None:
        """Take the file away: only a server that died leaves it."""
        (run / SERVER_FILE).unlink(missing_ok=True)


# ---- files ----------------------------------------------------------------------------------------------------------


class Merged:
    """The families of several processes as one (prometheus_client's Collector): a family may stand only once."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families: dict[str, Metric] = {}
        for family in families:
            known = self.families.setdefault(family.name, family)
            if known is not family:
                known.samples.extend(family.samples)

    def collect(self) -> Iterator[Metric]:
        """Give them by name."""
        for name in sorted(self.families):
            yield self.families[name]

    def values(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Give every sample by its name and labels."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }


def read(settings: Settings) -> Merged:
    """Read what every process wrote, and look now at what nobody has looked at for a while."""
    from streams.machine_metrics import FILE, Machine

    families: list[Metric] = []
    machine = places.run(settings) / FILE
    left_s = machine.stat().st_mtime if machine.exists() else None
    stale = left_s is None or time.time() - left_s > STALE_S
    if stale:
        families += Machine(settings, written_s=left_s).collect()
    for path in sorted(places.run(settings).glob("*.prom")):
        if stale and path == machine:
            continue
        try:
            families += text_string_to_metric_families(path.read_text())
        except (OSError, ValueError) as error:
            print(f"xinfluencer: {path} cannot be read: {error}", file=sys.stderr)
    return Merged(families)


def run_metrics(settings: Settings) -> None:
    """Print the metrics of all processes of this data folder, as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(read(settings))
    sys.stdout.write(generate_latest(registry).decode())
