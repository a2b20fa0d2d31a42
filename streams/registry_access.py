"""Registry access: settings and environment -> where the schema registry is, and what is sent to prove who asks.

Secrets come from the environment only, are in no message and no repr, and travel in clear to this machine only.
"""

import base64
import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from streams.settings import PREFIX, Settings, SettingsRefused

NAME = f"{PREFIX}SCHEMA_REGISTRY"
FORM = f"{NAME} must be http(s)://host:port, with at most a path behind it"
PORT_MAX = 65_535
SECRET_BYTES_MAX = 1 << 16
SAID_CHARS_MAX = 500  # of what a registry says, in a sentence of ours


@dataclass(frozen=True)
class Access:
    """A registry's address without a slash at its end, whether it is this machine, how its certificate is judged."""

    url: str
    here: bool
    tls: ssl.SSLContext | bool
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def clean(self, said: str) -> str:
        """Give what the registry said as one short line, without our own secrets should it repeat them."""
        for secret in self.secrets:
            said = said.replace(secret, "...")
        return " ".join("".join(c if c.isprintable() else " " for c in said).split())[:SAID_CHARS_MAX]


def access(settings: Settings, env: Mapping[str, str] | None = None) -> Access | None:
    """Read address, CA and credentials; None where no registry is set. SettingsRefused names the variable."""
    env = os.environ if env is None else env
    if not settings.schema_registry:
        return None
    try:
        url = httpx.URL(settings.schema_registry)
    except httpx.InvalidURL:
        raise SettingsRefused(FORM) from None
    if url.userinfo:
        raise SettingsRefused(
            f"{NAME} holds a user: it goes into {NAME}_USER, its password into {NAME}_PASSWORD[_FILE]"
        )
    bad_port = (url.port or 1) > PORT_MAX  # httpx takes any number
    if url.scheme not in ("http", "https") or not url.host or bad_port or url.query or url.fragment:
        raise SettingsRefused(FORM)
    here = _on_this_machine(url.host)
    value, secrets = _authorization(env)
    if value and url.scheme == "http" and not here:
        raise SettingsRefused(f"{NAME}: http would send the credentials in clear to {url.host}; use https")
    return Access(
        settings.schema_registry.rstrip("/"),
        here,
        _tls(settings.schema_registry_ca),
        {"Authorization": value} if value else {},
        secrets,
    )


def _authorization(env: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Give the header, empty without credentials, and all that must not be repeated."""
    token, password, user = _secret(env, "TOKEN"), _secret(env, "PASSWORD"), env.get(f"{NAME}_USER", "")
    if token and (user or password):
        raise SettingsRefused(f"set {NAME}_TOKEN, or {NAME}_USER and {NAME}_PASSWORD, not both")
    if bool(user) != bool(password):
        raise SettingsRefused(f"{NAME}_USER and {NAME}_PASSWORD (or _PASSWORD_FILE) are set together or not at all")
    if ":" in user or not (user + password + token).isprintable():
        raise SettingsRefused(
            f"{NAME}_USER, _PASSWORD or _TOKEN holds what none has: a control character, or a : in USER"
        )
    if token:
        if not token.isascii() or " " in token:
            raise SettingsRefused(f"{NAME}_TOKEN holds what no token has: look for quotes or spaces in it")
        return f"Bearer {token}", (token,)
    if not user:
        return "", ()
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()  # RFC 7617, in UTF-8
    return f"Basic {pair}", (password, pair)


def _secret(env: Mapping[str, str], name: str) -> str:
    given, file = env.get(f"{NAME}_{name}", ""), env.get(f"{NAME}_{name}_FILE", "")
    if given and file:
        raise SettingsRefused(f"set only one of {NAME}_{name} and {NAME}_{name}_FILE")
    if not file:
        return given
    try:
        with open(file, encoding="utf-8") as reader:
            found = reader.read(SECRET_BYTES_MAX).rstrip("\r\n")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise SettingsRefused(f"{NAME}_{name}_FILE cannot be read: {why}") from None
    if not found:
        raise SettingsRefused(f"{NAME}_{name}_FILE is empty")
    return found


def _tls(ca: Path | None) -> ssl.SSLContext | bool:
    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # an SSLError where the file holds no certificate
        raise SettingsRefused(f"{NAME}_CA cannot be used: {error.strerror or error}") from None


def _on_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
