"""Cutting a connection: the reader must see that its stream is not whole."""

import asyncio

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from gateway.main import listen
from gateway.protocol import CuttableProtocol, connection_of
from tests.support.waiting import within


async def respond(how: str) -> bytes:
    """Return the bytes of a response that sends one chunk and ends in this way."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        assert connection
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        match how:
            case "end":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            case "close":
                connection.close()
            case "abort":
                connection.abort()
            case "write":
                connection.write(b"two")
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
        while (await receive())["type"] != "http.disconnect":
            pass

    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    config = uvicorn.Config(app, http=CuttableProtocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    try:
        async with within():
            return await reader.read()
    except ConnectionResetError:
        return b"reset"
    finally:
        writer.close()
        server.should_exit = server.force_exit = True
        await task


async def test_a_whole_response_ends_with_the_last_chunk() -> None:
    """The control: this is how a reader knows that nothing is missing."""
    assert (await respond("end")).endswith(b"3\r\none\r\n0\r\n\r\n")


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_cut_response_has_no_last_chunk(how: str) -> None:
    """What was sent may arrive, but never as a whole."""
    received = await respond(how)
    assert not received.endswith(b"0\r\n\r\n")
    assert how == "abort" or received.endswith(b"3\r\none\r\n")


async def test_a_direct_write_is_a_chunk() -> None:
    """What goes past ASGI is framed as what goes through it."""
    assert (await respond("write")).endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


def test_another_server_offers_no_connection() -> None:
    """An ASGI server without the extension still serves; it only cannot cut."""
    assert connection_of({"type": "http"}) is None
    assert connection_of({"type": "http", "extensions": {}}) is None
