"""Which requests may enter a gateway without keys."""

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from common.keys import Keys
from common.settings import Settings
from gateway.origin import is_loopback_name
from tests.gateway.running import RunningGateway, running_gateway

pytestmark = pytest.mark.anyio

FOREIGN = {"Origin": "https://evil.example"}


@pytest.mark.parametrize(
    ("headers", "way_out"),
    [
        (FOREIGN, "HEADRACE_ALLOWED_ORIGINS"),
        ({"Origin": "null"}, "HEADRACE_ALLOWED_ORIGINS"),
        ({"Host": "evil.example"}, "ask 127.0.0.1"),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, "ask 127.0.0.1"),
    ],
)
async def test_a_foreign_page_stays_out(
    gateway: RunningGateway, headers: dict[str, str], way_out: str
) -> None:
    """Another site's page and another name of this address get 403, and what would help."""
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        response = await client.get("/healthz", headers=headers)
    assert response.status_code == 403
    assert response.json()["type"].endswith(":foreign-origin")
    assert way_out in response.json()["detail"]
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [{}, {"Host": "localhost:1"}, {"Host": "[::1]:1", "Origin": "http://[::1]:1"}],
)
async def test_everybody_else_enters(gateway: RunningGateway, headers: dict[str, str]) -> None:
    """No page at all, and every name of the loopback."""
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        response = await client.get("/healthz", headers=headers)
    assert response.status_code == 200


async def test_the_gateways_own_page_enters(gateway: RunningGateway) -> None:
    """A page that this gateway served may use it."""
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        response = await client.get("/healthz", headers={"Origin": gateway.url})
    assert response.status_code == 200


async def test_a_foreign_page_opens_no_socket(gateway: RunningGateway) -> None:
    """The handshake of another site's page is refused; the control without an origin is not."""
    url = gateway.url.replace("http", "ws") + "/v1/ws"
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, additional_headers=FOREIGN):
            pass
    assert refused.value.response.status_code == 403
    async with connect(url) as socket:
        await socket.ping()


async def test_an_allowed_page_enters(redis_url: str, keys: Keys) -> None:
    """Named origins may use the API, and a browser lets their pages read the answers."""
    settings = Settings.model_validate(
        {
            "redis": redis_url,
            "key_prefix": keys.prefix,
            "allowed_origins": "https://a.example, https://b.example/",
        }
    )
    async with (
        running_gateway(settings) as gateway,
        httpx2.AsyncClient(base_url=gateway.url) as client,
    ):
        answers = [
            await client.get("/healthz", headers={"Origin": origin})
            for origin in ("https://a.example", "https://b.example", "https://c.example")
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 403]
    readable = [answer.headers.get("access-control-allow-origin") for answer in answers]
    assert readable == ["https://a.example", "https://b.example", None]


@pytest.mark.parametrize("name", ["localhost", "app.localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_a_loopback_name_is_known(name: str) -> None:
    """These names never leave the machine."""
    assert is_loopback_name(name)


@pytest.mark.parametrize("name", ["", "0.0.0.0", "10.0.0.1", "localhost.evil.example", "::"])
def test_another_name_is_no_loopback(name: str) -> None:
    """These can be reached from elsewhere, or mean nothing."""
    assert not is_loopback_name(name)
