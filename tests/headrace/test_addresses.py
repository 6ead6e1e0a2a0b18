"""Ports and URLs."""

import socket

import pytest

from common.errors import StartupFailed
from headrace.addresses import (
    free_port,
    gateway_url,
    is_loopback,
    lacks_password,
    masked,
    require_free,
)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
        ("redis://:pa:ss@host/0", "redis://:***@host/0"),
        ("rediss://me:p@ss@host", "rediss://me:***@host"),
        ("redis://me@host", "redis://me@host"),
        ("unix:///a/b.sock", "unix:///a/b.sock"),
        ("unix:///a/b.sock?db=1&password=pa:ss", "unix:///a/b.sock?db=1&password=***"),
        ("redis://host:1/0?password=p@ss&db=1", "redis://host:1/0?password=***&db=1"),
        ("redis://:pass@host:1?Password=pass", "redis://:***@host:1?Password=***"),
        (
            "redis+sentinel://me:pass@a:1,b:2/mill?sentinel_password=pass",
            "redis+sentinel://me:***@a:1,b:2/mill?sentinel_password=***",
        ),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    """The rest of the URL stays readable."""
    assert masked(url) == shown
    assert lacks_password(shown) is (shown != url)
    assert not lacks_password(url)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("box.example", "http://box.example:1"),
    ],
)
def test_a_gateway_is_reached_where_it_listens(host: str, url: str) -> None:
    """An address that means "all" is no address to talk to."""
    assert gateway_url(host, 1) == url


@pytest.mark.parametrize(
    ("url", "loops"),
    [
        ("http://127.0.0.2:1", True),
        ("http://[::1]", True),
        ("http://localhost", True),
        ("http://10.0.0.1", False),
        ("http://box.example", False),
    ],
)
def test_loopback_is_known(url: str, loops: bool) -> None:
    """Proxies are for the world outside."""
    assert is_loopback(url) is loops


def test_a_taken_port_stops_the_start() -> None:
    """The line names the port and the way out."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartupFailed, match=f"port {port} of 127.0.0.1 is in use; .*--port"):
            require_free("127.0.0.1", port)
    require_free("127.0.0.1", free_port())
    with pytest.raises(OSError, match="assign"):
        free_port("192.0.2.1")
