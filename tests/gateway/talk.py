"""A WebSocket client that reads events and answers apart."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.gateway.followers import EventMessage, decode_message
from tests.gateway.running import RunningGateway
from tests.support.waiting import within

MISSING = "job_" + "0" * 32
SUBMIT = {"type": "submit", "job": {"prompt": "Once"}}


class Talk:
    """A socket to the gateway that reads events and answers apart."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.events: list[EventMessage] = []
        self.order: list[str] = []  # of all messages: their types

    async def ask(self, message: object) -> dict[str, Any]:
        """Send a message; return its answer, keeping the events that come before it."""
        await self.connection.send(json.dumps(message))
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """Return the next message that is no event."""
        while (message := await self._receive())["type"] == "event":
            pass
        return message

    async def event(self) -> EventMessage:
        """Return the next event; fails on anything else."""
        message = await self._receive()
        assert message["type"] == "event", message
        return self.events[-1]

    async def read_to_end(self, job_id: str) -> list[tuple[int, Any]]:
        """Read until the job's terminal event; return all events of the job so far."""
        while not any(seen.job == job_id and hasattr(seen.event, "usage") for seen in self.events):
            await self.event()
        return [(seen.n, seen.event) for seen in self.events if seen.job == job_id]

    async def _receive(self) -> dict[str, Any]:
        async with within():
            data = await self.connection.recv()
        message: dict[str, Any] = json.loads(data)
        self.order.append(message["type"])
        if message["type"] == "event":
            assert isinstance(data, str)
            self.events.append(decode_message(data))
        return message


@asynccontextmanager
async def talk_to(gateway: RunningGateway, token: str = "") -> AsyncIterator[Talk]:
    """Open a socket, with an API key where one is given."""
    url = f"ws{gateway.url.removeprefix('http')}/v1/ws"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with connect(url, proxy=None, max_size=None, additional_headers=headers) as connection:
        yield Talk(connection)


def check_refusal(answer: dict[str, Any], status: int, name: str, ref: str | None = "r") -> None:
    """Fail unless the answer refuses in these words."""
    assert answer["type"] == "error", answer
    assert answer.get("ref") == ref
    assert answer["error"]["type"] == f"urn:headrace:problem:{name}"
    assert answer["error"]["status"] == status
    assert answer["error"]["detail"]
