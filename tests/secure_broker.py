"""Secure broker: the embedded broker as a cluster is run: TLS, SCRAM-SHA-512, nobody may do what no rule allows.

The certificates are made for the test: an authority of its own, and one certificate for 127.0.0.1. Clients come in by
SASL_SSL; the controller lets only the holder of the broker's certificate in.
"""

import asyncio
import datetime as dt
import ipaddress
import re
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from aiokafka.errors import KafkaError
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from streams import broker as embedded
from streams.access_rules import Rule
from streams.kafka import KafkaSettings, cluster_id

ADMIN = "admin"  # super user: the operator who writes the rules
READY_S_MAX = 60.0
SETTINGS = """
listener.security.protocol.map=BROKER:SASL_SSL,CONTROLLER:SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
listener.name.broker.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required \
username="{admin}" password="{password}";
listener.name.controller.ssl.client.auth=required
ssl.keystore.type=PEM
ssl.keystore.location=broker.pem
ssl.truststore.type=PEM
ssl.truststore.location=ca.pem
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=false
super.users=User:{admin};User:CN=broker
"""
ACCESS_LOG = """
appender.access.type=File
appender.access.name=access
appender.access.fileName=access.log
appender.access.layout.type=PatternLayout
appender.access.layout.pattern=%m%n
logger.access.name=kafka.authorizer.logger
logger.access.level=debug
logger.access.additivity=false
logger.access.appenderRef.access.ref=access
"""
ASKED = re.compile(
    r"Principal = User:(\S+) is (Allowed|Denied) operation = (\w+) .* on resource = (\w+):LITERAL:(\S+) for request"
)


def password_of(user: str) -> str:
    """Give a test user's password."""
    return f"{user}-secret"


class SecureBroker:
    """A broker whose users are known from the start and may do nothing until the admin says so."""

    def __init__(self, folder: Path, cache: Path, users: list[str]) -> None:
        self.folder = folder
        write_certificates(folder)
        more = SETTINGS.format(admin=ADMIN, password=password_of(ADMIN))
        known = {user: password_of(user) for user in (ADMIN, *users)}
        self.prepared = embedded.prepare(folder, cache, more=more, users=known)
        with open(folder / "log4j2.properties", "a") as log:
            log.write(ACCESS_LOG)
        self.process: subprocess.Popen[bytes] = embedded.start(self.prepared)
        deadline = time.monotonic() + READY_S_MAX
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self.prepared.log.read_text()[-3000:])
            time.sleep(0.1)

    def _ready(self) -> bool:
        host, _, port = self.prepared.bootstrap.partition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return asyncio.run(cluster_id(self.settings(ADMIN))) == self.prepared.cluster_id
        except (KafkaError, OSError):
            return False

    def settings(self, user: str, password: str | None = None) -> KafkaSettings:
        """Give a user's settings."""
        secret = password_of(user) if password is None else password
        return KafkaSettings(
            self.prepared.bootstrap, "SASL_SSL", "SCRAM-SHA-512", user, secret, str(self.folder / "ca.pem")
        )

    def asked(self, user: str) -> tuple[set[Rule], set[Rule]]:
        """Give what a user did and what was refused to it, by the broker's own record."""
        done: dict[str, set[Rule]] = {"Allowed": set(), "Denied": set()}
        for line in (self.folder / "access.log").read_text().splitlines():
            found = ASKED.match(line)
            if found is not None and found[1] == user:
                kind = {"TransactionalId": "transactional-id"}.get(found[4], found[4].lower())
                operation = found[3].title().replace("_", "").replace("Describeconfigs", "DescribeConfigs")
                done[found[2]].add(Rule(user, kind, found[5], operation))
        return done["Allowed"], done["Denied"]

    def admin(self, user: str = ADMIN) -> AdminClient:
        """Give an admin client of a user."""
        return AdminClient(
            {
                "bootstrap.servers": self.prepared.bootstrap,
                "security.protocol": "SASL_SSL",
                "sasl.mechanisms": "SCRAM-SHA-512",
                "sasl.username": user,
                "sasl.password": password_of(user),
                "ssl.ca.location": str(self.folder / "ca.pem"),
            }
        )

    def allow(self, rules: Iterable[Rule]) -> None:
        """Write rules."""
        admin = self.admin()  # a client without a name would be gone before it has the answer
        for future in admin.create_acls([binding(rule) for rule in rules]).values():
            future.result(20)

    def stop(self) -> None:
        embedded.stop(self.process)


def binding(rule: Rule) -> AclBinding:
    """Say a rule as an admin client does."""
    return AclBinding(
        ResourceType[rule.kind.replace("-", "_").upper()],
        rule.name,
        ResourcePatternType.PREFIXED if rule.prefixed else ResourcePatternType.LITERAL,
        f"User:{rule.user}",
        "*",
        AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", rule.operation).upper()],
        AclPermissionType.ALLOW,
    )


def env_of(kafka: KafkaSettings) -> dict[str, str]:
    """Render a user's settings for a child process."""
    found = {"": kafka.bootstrap, "_SECURITY_PROTOCOL": kafka.security_protocol}
    if kafka.sasl_username is not None and kafka.sasl_password is not None:
        found["_SASL_MECHANISM"] = kafka.sasl_mechanism
        found["_SASL_USERNAME"], found["_SASL_PASSWORD"] = kafka.sasl_username, kafka.sasl_password
    if kafka.ssl_cafile is not None:
        found["_SSL_CAFILE"] = kafka.ssl_cafile
    return {f"XINFLUENCER_KAFKA{name}": value for name, value in found.items()}


def write_certificates(folder: Path) -> None:
    """Write ca.pem and broker.pem (key and certificate of `CN=broker` for 127.0.0.1), good for a day."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, ca = _certificate("test authority", None)
    key, certificate = _certificate("broker", (authority, ca))
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "broker.pem").write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))


def _certificate(
    name: str, signer: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    signing_key, issuer = (key, subject) if signer is None else (signer[0], signer[1].subject)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
    )
    return key, builder.sign(signing_key, hashes.SHA256())
