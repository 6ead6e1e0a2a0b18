"""The URL of Redis: one server, the primary that sentinels know, or a cluster; TCP, TLS or a file.

::

    redis://[user:password@]host[:port][/db]          rediss:// with TLS
    unix:///path/to/socket
    redis+sentinel://[user:password@]host[:port],.../service[/db]        rediss+sentinel://
    redis+cluster://[user:password@]host[:port],...                      rediss+cluster://

The hosts of the last two are where to ask first. What else may be said stands behind a ``?``:
``docs/redis.md`` has the list.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from common.errors import StartupFailed

Address = tuple[str, int]

SERVER_PORT = 6379
SENTINEL_PORT = 26379

_SCHEME = re.compile(r"(redis|rediss)(?:\+(sentinel|cluster))?|unix")
_LOGIN = ("username", "password")
_SENTINEL_LOGIN = ("sentinel_username", "sentinel_password")
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS = (*_FILES, "ssl_check_hostname", "ssl_cert_reqs")
_YES_OR_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class WrongUrl(StartupFailed):
    """The URL says nothing that can be connected to. The text never has a password."""


class Topology(StrEnum):
    """How many servers there are, and who knows which one to ask."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class Transport(StrEnum):
    """What lies between a client and a server."""

    TCP = "tcp"
    TLS = "tls"
    SOCKET = "socket"


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """What a URL says. ``options`` and ``sentinel_options`` are those of a redis-py connection.

    ``addresses`` are those of the servers or, with sentinels, of the sentinels. Where there is one
    server, the options say where.
    """

    topology: Topology
    transport: Transport
    addresses: tuple[Address, ...]
    service: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def places(self) -> str:
        """The addresses as text."""
        return ", ".join(f"{host}:{port}" for host, port in self.addresses)


def read_url(url: str) -> ServerUrl:
    """Return what the URL says; raises ``WrongUrl`` with one sentence."""
    scheme, _, rest = url.partition("://")
    if not _SCHEME.fullmatch(scheme):
        raise WrongUrl(
            "URL should begin with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
        )
    rest, _, query = rest.partition("?")
    place, slash, path = rest.partition("/")
    login, _, hosts = place.rpartition("@")
    kind, _, plus = scheme.partition("+")
    topology = Topology(plus or "single")
    parameters = _parameters(query, kind, topology)
    options = _login(login) | _chosen(parameters, _LOGIN)
    if kind == "unix":
        options |= {"path": unquote(slash + path), "db": _database(parameters.get("db", ""))}
        return ServerUrl(topology, Transport.SOCKET, (), options=options)
    service, database = _service(path) if topology is Topology.SENTINEL else ("", path)
    options["db"] = _database(parameters.get("db", database))
    if topology is Topology.CLUSTER and options["db"]:
        raise WrongUrl("a cluster has no databases: leave the number out")
    tls = _tls(parameters) if kind == "rediss" else {}
    addresses = _addresses(hosts, topology)
    if topology is Topology.SINGLE:
        options |= zip(("host", "port"), addresses[0], strict=True)
    return ServerUrl(
        topology=topology,
        transport=Transport.TLS if kind == "rediss" else Transport.TCP,
        addresses=addresses,
        service=service,
        options=options | tls,
        sentinel_options=_sentinel_login(parameters) | tls,
    )


def _parameters(query: str, kind: str, topology: Topology) -> dict[str, str]:
    allowed = {"db", *_LOGIN}
    allowed |= set(_TLS) if kind == "rediss" else set()
    allowed |= set(_SENTINEL_LOGIN) if topology is Topology.SENTINEL else set()
    found = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := found.keys() - allowed:
        if unknown <= set(_TLS):
            raise WrongUrl("parameters of TLS go with rediss:// only")
        # What stands there is not shown: it may be part of a password with a ? in it.
        raise WrongUrl(f"after the ? there may be {', '.join(sorted(allowed))}, and nothing else")
    return found


def _login(text: str) -> dict[str, Any]:
    name, _, password = text.partition(":")
    return {key: unquote(part) for key, part in zip(_LOGIN, (name, password), strict=True) if part}


def _sentinel_login(parameters: dict[str, str]) -> dict[str, Any]:
    found = _chosen(parameters, _SENTINEL_LOGIN)
    return {name.removeprefix("sentinel_"): text for name, text in found.items()}


def _chosen(parameters: dict[str, str], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: parameters[name] for name in names if parameters.get(name)}


def _addresses(hosts: str, topology: Topology) -> tuple[Address, ...]:
    found = tuple(_address(text, topology) for text in hosts.split(","))
    if topology is Topology.SINGLE and len(found) > 1:
        raise WrongUrl("several hosts need redis+sentinel:// or redis+cluster://")
    return found


def _address(text: str, topology: Topology) -> Address:
    try:
        place = urlsplit(f"//{text}")
        port = place.port
    except ValueError:
        raise WrongUrl("URL should have a valid port") from None
    if not place.hostname and topology is not Topology.SINGLE:
        raise WrongUrl("URL should name a host, and several with commas between them")
    usual = SENTINEL_PORT if topology is Topology.SENTINEL else SERVER_PORT
    return place.hostname or "localhost", port or usual


def _service(path: str) -> tuple[str, str]:
    service, _, database = path.partition("/")
    if not service:
        raise WrongUrl("URL should end with the name of the service: /mymaster")
    return unquote(service), database


def _database(text: str) -> int:
    if text and not text.isdecimal():
        raise WrongUrl("the database should be a number")
    return int(text or 0)


def _tls(parameters: dict[str, str]) -> dict[str, Any]:
    """Return the options of TLS. Unlike redis-py, the server's name is checked by default."""
    for name in _FILES:
        if name in parameters and not Path(parameters[name]).is_file():
            raise WrongUrl(f"{name} should name a file that can be read")
    if ("ssl_certfile" in parameters) != ("ssl_keyfile" in parameters):
        raise WrongUrl("ssl_certfile and ssl_keyfile go together")
    checks = parameters.get("ssl_cert_reqs", "required")
    if checks not in ("required", "none"):
        raise WrongUrl("ssl_cert_reqs should be required or none")
    named = parameters.get("ssl_check_hostname", "yes" if checks == "required" else "no").lower()
    if named not in _YES_OR_NO:
        raise WrongUrl("ssl_check_hostname should be yes or no")
    files = _chosen(parameters, _FILES)
    return {**files, "ssl_cert_reqs": checks, "ssl_check_hostname": _YES_OR_NO[named]}
