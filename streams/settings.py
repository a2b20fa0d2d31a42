"""Settings: environment variables -> one frozen value; every process of a deployment reads the same ones.

Each field is `XINFLUENCER_` and its name in capitals. Secrets come from the environment only, and Kafka's own live in
streams/kafka.py.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agents.batching import Limits
from agents.graph import Limits as GraphLimits
from streams.kafka import KafkaSettings
from streams.topology import Tuning

PREFIX = "XINFLUENCER_"
KEPT_FILE = "deployment.json"
KEPT = (
    "namespace",
    "partitions",
    "ages_ms",
    "margin_min",
    "graph_every_ms",
    "graph_half_life_ms",
    "batch_pairs_max",
    "batch_pairs_min",
    "batch_age_ms",
    "batch_chars_max",
)
"""What a log is made with: reading it with other values would not give what it holds."""


LISTS = ("ages_ms", "follow", "names")  # written with commas


class SettingsRefused(ValueError):
    """A setting cannot be used; the message names the variable."""


class Settings(BaseModel):
    """What can be set. Times are milliseconds of log time, paths are created when needed."""

    model_config = ConfigDict(frozen=True)

    data: Path = Field(Path("var"), description="all state of one machine: broker, snapshots, vault, models")
    cache: Path = Field(Path("~/.cache/xinfluencer"), description="downloads and the converted base model")
    policy: Path | None = Field(None, description="rights policy file; the built-in default otherwise")
    namespace: str = Field("", pattern=r"^[a-z0-9-]{0,40}$", description="prefix of every topic and group")
    partitions: int = Field(4, ge=1, le=1024, description="of each wide topic; frozen once the topics exist")
    replication: int = Field(1, ge=1, le=7, description="of each topic")
    ages_ms: tuple[int, ...] = Field(Tuning().ages_ms, description="closing ages of rewards, ascending")
    margin_min: float = Field(Tuning().margin_min, gt=0, le=2, description="smallest difference that makes a pair")
    graph_every_ms: int = Field(
        Tuning().measuring.every_ms, ge=1, description="log time between two measures of the graph"
    )
    graph_half_life_ms: int = Field(Tuning().measuring.half_life_ms, ge=1, description="after which an act counts half")
    batch_pairs_max: int = Field(Limits().pairs_max, ge=1, le=4096)
    batch_pairs_min: int = Field(Limits().pairs_min, ge=1, le=4096)
    batch_age_ms: int = Field(Limits().age_ms, ge=1)
    batch_chars_max: int = Field(Limits().chars_max, ge=1)
    snapshots: str = Field("", description="object store for snapshots (s3://bucket/folder); empty: the data folder")
    snapshot_s: float = Field(0.5, gt=0, description="shortest time between two snapshots of a partition")
    base: str = Field("smollm2", description="base model: smollm2, a folder, or a hub name")
    train_window: int = Field(256, ge=8, le=4096, description="newest pairs that a version learns from")
    threads: int = Field(2, ge=1, le=256, description="of torch; with the seed it decides an adapter's bits")
    seed: int = Field(7, ge=0, lt=2**53)
    host: str = Field("127.0.0.1", description="address that the server listens on")
    names: tuple[str, ...] = Field((), description="host names that the server answers to; empty: its own")
    port: int = Field(8642, ge=0, le=65535)
    follow: tuple[str, ...] = Field((), description="what `up` follows: x, x-compliance, bluesky, mastodon")
    accept_gaps: bool = Field(False, description="go on where a source no longer holds all since the cursor; told of")
    x_url: str = Field("https://api.x.com", description="X's API; its token is the secret XINFLUENCER_X_TOKEN[_FILE]")
    x_backfill_minutes: int = Field(0, ge=0, le=5, description="asked for after a cut, where X's plan allows it")
    x_recovery: bool = Field(False, description="X's plan (Enterprise) lets the past day be recovered")
    bluesky_url: str = Field("wss://jetstream2.us-east.bsky.network/subscribe", description="a Jetstream server")
    mastodon_url: str = Field("https://mastodon.social", description="server; XINFLUENCER_MASTODON_TOKEN[_FILE]")
    mastodon_stream: str = Field("public", description="public, public:local, hashtag:NAME, user, ...")
    encoder: str = Field("minilm", description="encoder of posts: minilm, a folder, or a hub name")
    clickhouse: str = Field("", description="http(s)://host:port/database of ClickHouse; empty: chDB here")
    schema_registry: str = Field("", description="Confluent-compatible registry of the topics' shapes; empty: none")
    schema_registry_ca: Path | None = Field(None, description="its CA's certificate; the system's otherwise")
    tick_s: float = Field(5.0, gt=0, description="seconds between two ticks of log time")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "Settings":
        """Read the environment, over what the data folder keeps; SettingsRefused names the variable of a bad value."""
        env = os.environ if env is None else env
        given: dict[str, object] = _kept(Path(env.get(f"{PREFIX}DATA", "var")).expanduser())
        for name in cls.model_fields:
            text = env.get(PREFIX + name.upper())
            if text is not None:
                given[name] = [part for part in text.split(",") if part] if name in LISTS else text
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise SettingsRefused(f"{PREFIX}{str(first['loc'][0]).upper()}: {first['msg']}") from None
        if list(settings.ages_ms) != sorted(set(settings.ages_ms)) or not settings.ages_ms:
            raise SettingsRefused(f"{PREFIX}AGES_MS: give one or more ages, ascending")
        return settings.model_copy(
            update={"data": settings.data.expanduser().absolute(), "cache": settings.cache.expanduser().absolute()}
        )

    def keep(self) -> None:
        """Write into the data folder what its log was made with, once: every later command on the folder reads it."""
        path = self.data / KEPT_FILE
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.model_dump(mode="json", include=set(KEPT)), indent=2) + "\n")
            temporary.replace(path)

    def to_env(self) -> dict[str, str]:
        """Render for a child process."""
        out = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is not None:
                out[PREFIX + name.upper()] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        return out

    @property
    def tuning(self) -> Tuning:
        """The agents' part."""
        return Tuning(
            ages_ms=self.ages_ms,
            margin_min=self.margin_min,
            measuring=GraphLimits(self.graph_every_ms, self.graph_half_life_ms),
            limits=Limits(self.batch_pairs_max, self.batch_pairs_min, self.batch_age_ms, self.batch_chars_max),
        )

    def physical(self, topic: str) -> str:
        """Name a topic of the table as the cluster knows it."""
        return f"{self.namespace}.{topic}" if self.namespace else topic

    def logical(self, topic: str) -> str:
        """Name a cluster's topic as the table knows it."""
        return topic.removeprefix(f"{self.namespace}.") if self.namespace else topic

    def group(self, name: str) -> str:
        """Name a consumer group."""
        return f"{self.namespace}.xinfluencer-{name}" if self.namespace else f"xinfluencer-{name}"

    def kafka(self, env: Mapping[str, str] | None = None) -> KafkaSettings:
        """Read the cluster's address and credentials."""
        return KafkaSettings.from_env(os.environ if env is None else env)


def _kept(data: Path) -> dict[str, object]:
    try:
        found = json.loads((data / KEPT_FILE).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise SettingsRefused(f"{data / KEPT_FILE} is not JSON any more: {error}") from None
    if not isinstance(found, dict):
        raise SettingsRefused(f"{data / KEPT_FILE} is no JSON object any more: bring it back from a backup")
    return {name: found[name] for name in KEPT if name in found}
