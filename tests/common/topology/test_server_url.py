"""The URL of Redis: what it may say, and the one sentence about what it may not."""

from pathlib import Path

import pytest

from common.topology.server_url import ServerUrl, Topology, Transport, WrongUrl, read_url

LOGIN = {"username": "me", "password": "p@ss/?"}
SECRET = "me:p%40ss%2F%3F@"


def test_one_server() -> None:
    """Host, port and database, each with its usual value."""
    assert read_url("redis://").options == {"host": "localhost", "port": 6379, "db": 0}
    found = read_url(f"redis://{SECRET}box:1/2")
    assert (found.topology, found.transport) == (Topology.SINGLE, Transport.TCP)
    assert found.options == {"host": "box", "port": 1, "db": 2, **LOGIN}
    assert read_url("redis://[::1]:1/0").options["host"] == "::1"
    assert read_url("redis://h?password=p%40&db=3").options["password"] == "p@"


def test_a_socket() -> None:
    """Its path, and a login behind the question mark or before the path."""
    found = read_url("unix:///a%20b/v.sock?db=1&password=x")
    assert (found.transport, found.addresses) == (Transport.SOCKET, ())
    assert found.options == {"path": "/a b/v.sock", "db": 1, "password": "x"}
    assert read_url(f"unix://{SECRET}/v.sock").options == {"path": "/v.sock", "db": 0, **LOGIN}


def test_sentinels() -> None:
    """Several hosts, the service's name, and a login of their own."""
    found = read_url(f"redis+sentinel://{SECRET}a:1,b,[::1]:3/mill/4?sentinel_password=s")
    assert found == ServerUrl(
        Topology.SENTINEL,
        Transport.TCP,
        (("a", 1), ("b", 26379), ("::1", 3)),
        service="mill",
        options={"db": 4, **LOGIN},
        sentinel_options={"password": "s"},
    )


def test_a_cluster() -> None:
    """Several hosts and no database."""
    found = read_url(f"redis+cluster://{SECRET}a:1,b")
    assert (found.topology, found.addresses) == (Topology.CLUSTER, (("a", 1), ("b", 6379)))
    assert found.options == {"db": 0, **LOGIN}


@pytest.mark.parametrize("scheme", ["rediss", "rediss+sentinel", "rediss+cluster"])
def test_tls(scheme: str, tmp_path: Path) -> None:
    """The server's name is checked unless the URL says no; sentinels get the same files."""
    authority = tmp_path / "ca.pem"
    authority.touch()
    place = f"{scheme}://h/mill" if "sentinel" in scheme else f"{scheme}://h"
    found = read_url(f"{place}?ssl_ca_certs={authority}")
    assert found.transport is Transport.TLS
    tls = {
        "ssl_ca_certs": str(authority),
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
    }
    assert tls.items() <= found.options.items()
    assert tls.items() <= found.sentinel_options.items()
    unnamed = read_url(f"{place}?ssl_check_hostname=no").options
    assert (unnamed["ssl_check_hostname"], unnamed["ssl_cert_reqs"]) == (False, "required")
    unchecked = read_url(f"{place}?ssl_cert_reqs=none").options
    assert (unchecked["ssl_check_hostname"], unchecked["ssl_cert_reqs"]) == (False, "none")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", "begin with redis://"),
        ("http://h", "begin with redis://"),
        ("unix+sentinel:///x", "begin with redis://"),
        ("redis+ring://h", "begin with redis://"),
        ("redis://h:here", "valid port"),
        ("redis://h:70000", "valid port"),
        ("redis://h/one", "database should be a number"),
        ("redis://a,b", "several hosts need"),
        ("redis+sentinel://a,b", "end with the name"),
        ("redis+sentinel://a,/mill", "name a host"),
        ("redis+cluster://", "name a host"),
        ("redis+cluster://h/1", "no databases"),
        ("redis://h?ssl_ca_certs=/x", "go with rediss:// only"),
        ("redis://h?colour=red", "there may be db, password, username"),
        ("redis://h?sentinel_password=x", "there may be db, password, username"),
        ("rediss://h?ssl_ca_certs=/nowhere", "ssl_ca_certs should name a file"),
        ("rediss://h?ssl_cert_reqs=maybe", "required or none"),
        ("rediss://h?ssl_check_hostname=maybe", "yes or no"),
    ],
)
def test_what_cannot_be_connected_to_is_one_sentence(url: str, said: str) -> None:
    """It says what should stand there."""
    with pytest.raises(WrongUrl, match=said):
        read_url(url)


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    """One without the other would be left out silently."""
    with pytest.raises(WrongUrl, match="go together"):
        read_url(f"rediss://h?ssl_certfile={__file__}")


@pytest.mark.parametrize(
    "url", ["redis://:s3cret?x=1@h", "redis://:s3cret@h:x", "redis://:s3cret@a,b", "x://:s3cret@h"]
)
def test_no_password_is_shown(url: str) -> None:
    """Not in an error, whatever is wrong, and not in the value's own text."""
    with pytest.raises(WrongUrl) as refused:
        read_url(url)
    assert "s3cret" not in str(refused.value)
    assert "s3cret" not in repr(read_url("redis+sentinel://:s3cret@h/m?sentinel_password=s3cret"))
