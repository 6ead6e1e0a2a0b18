"""Addresses: which ports are free, where a gateway is reached, what of a URL may be shown."""

import errno
import ipaddress
import random
import re
import socket
from urllib.parse import urlsplit

from common.errors import StartupFailed

DEFAULT_URL = "http://127.0.0.1:8700"

_SERVER_PORTS = (15_000, 32_000)
_MASK = "***"
_PASSWORD_FIELD = re.compile(r"([?&][^=&]*password=)[^&]*", re.IGNORECASE)
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound


def gateway_url(host: str, port: int) -> str:
    """Return where this machine reaches a gateway that listens there."""
    host = _ANY.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on at the moment; raises ``OSError`` for a wrong host.

    It is below those that systems give to outgoing connections: one of them could take it before
    the server does, or while a server that comes back is away.
    """
    while True:
        port = random.randint(*_SERVER_PORTS)  # noqa: S311 - no secret
        with socket.socket(_family(host)) as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port


def require_free(host: str, port: int) -> None:
    """Raise ``StartupFailed`` where nobody could listen on the port."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = "is in use" if taken else f"cannot be used ({error.strerror})"
            raise StartupFailed(
                f"port {port} of {host} {reason}; choose another with --port (0 = a free one)"
            ) from None


def is_loopback(url: str) -> bool:
    """Tell whether the URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def masked(url: str) -> str:
    """Return the URL without its passwords."""
    url = _PASSWORD_FIELD.sub(rf"\g<1>{_MASK}", url)
    user, at, rest = url.rpartition("@")
    scheme, separator, login = user.partition("://")
    name, colon, _ = login.partition(":")
    return f"{scheme}{separator}{name}{colon and f':{_MASK}'}{at}{rest}"


def lacks_password(url: str) -> bool:
    """Tell whether the URL is a masked one, with which nobody can log in."""
    return _MASK in url


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
