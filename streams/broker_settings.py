"""Broker settings: a folder -> the ports to use, the text of `server.properties`, and how Kafka writes its own log.

Sized for a laptop: one node that is broker and controller, few threads, small buffers. Names and defaults are those of
the Kafka 4.1 broker reference; what differs from its default says why. Paths are relative to the folder that the JVM
runs in, so no path of the user's needs escaping.
"""

import json
import os
import random
import socket
from pathlib import Path

HOST = "127.0.0.1"
NODE_ID = 1
# One record of 1 MiB plus its headers and the batch's frame; what is larger is refused at the edge, before the broker.
MESSAGE_BYTES_MAX = 1_114_112
# Below the range that Linux and macOS give to outgoing connections: inside it a client that reconnects while the broker
# is down can be given the broker's own port and connect to itself.
PORTS = range(20_000, 32_000)
PORT_TRIES_MAX = 200

JVM_FLAGS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    # After running out of memory a broker half works; ending it lets the supervisor start a whole one.
    "-XX:+ExitOnOutOfMemoryError",
    # No counters file under the system's temp folder, which a kill would leave behind.
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    "-Dlog4j2.configurationFile=log4j2.properties",
)


class NoFreePort(Exception):
    """Every port that was tried on 127.0.0.1 is taken."""


def server_properties(port: int, controller_port: int, data: str) -> str:
    """Return the broker's settings; `data` is the folder of the log, relative to the working folder."""
    return f"""\
process.roles=broker,controller
node.id={NODE_ID}
log.dirs={data}
listeners=BROKER://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}
advertised.listeners=BROKER://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers={HOST}:{controller_port}

# One copy of everything: there is one node. Few internal partitions: each is files to open at every start.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1

# Topics are declared, never guessed from a typing error, and nothing is deleted unless its topic says so.
auto.create.topics.enable=false
log.retention.ms=-1
log.retention.bytes=-1
message.max.bytes={MESSAGE_BYTES_MAX}
# A request that announces 100 MB is refused before it is read into a heap of 512 MB.
socket.request.max.bytes=16777216

# A group on one machine gains nothing from waiting for more members. A laptop may be off for weeks: commits outlive it.
group.initial.rebalance.delay.ms=0
offsets.retention.minutes=525600

# After kill -9 the controller refuses the new incarnation until the old one's session is over, and the broker asks
# again once per heartbeat: the defaults of 9 s and 2 s made a restart 12 s long. A pause of the JVM that is longer
# than the session fences the broker until its next heartbeat, which delays clients and loses nothing.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

# The controller writes and flushes an empty record this often; by default it keeps a disk awake twice a second.
metadata.max.idle.interval.ms=5000

# Only the active segment is read again after a kill, so its size bounds the recovery.
log.segment.bytes=134217728
log.index.size.max.bytes=1048576
num.recovery.threads.per.data.dir=2

num.network.threads=2
num.io.threads=4
background.threads=4
num.replica.fetchers=1
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=16777216
"""


LOG4J_PROPERTIES = """\
status=error
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName=broker.log
appender.file.filePattern=broker.log.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{yyyy-MM-dd'T'HH:mm:ss.SSSXXX} %p %c{1} %m%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=2
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
# Thousands of lines at every start that say nothing about a problem.
logger.config.name=org.apache.kafka.common.config
logger.config.level=warn
logger.kafkaconfig.name=kafka.server.KafkaConfig
logger.kafkaconfig.level=warn
logger.statechange.name=state.change.logger
logger.statechange.level=warn
"""


def keep_ports(kept_path: Path) -> tuple[int, int]:
    """Return the broker's and the controller's port: those in the file while they are free, else new ones, put there.

    Raises NoFreePort when no port is free.
    """
    kept = json.loads(kept_path.read_text(encoding="utf-8")) if kept_path.exists() else {}
    chosen: dict[str, int] = {}
    for name in ("port", "controller_port"):
        port = kept.get(name)
        chosen[name] = port if port and _is_free(port) else _free_port(set(chosen.values()))
    if chosen != kept:
        write_whole(kept_path, json.dumps(chosen, indent=2) + "\n")
    return chosen["port"], chosen["controller_port"]


def _free_port(taken: set[int]) -> int:
    for port in random.SystemRandom().choices(PORTS, k=PORT_TRIES_MAX):
        if port not in taken and _is_free(port):
            return port
    raise NoFreePort(f"No free port was found on {HOST} between {PORTS.start} and {PORTS.stop}.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the JVM does: connections of the broker before, still closing, do not make its port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader, also after a kill, finds the old text or the new one."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)
