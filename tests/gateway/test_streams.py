"""The clock of all open streams."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from gateway import streams as streams_module
from gateway.streams import Streams
from tests.support.waiting import eventually

PING_S = 0.05
TIMEOUT_S = 0.1


class Recorder:
    """A stream that writes down what it is told."""

    def __init__(self) -> None:
        self.sent_at = time.monotonic()
        self.sending_since = 0.0
        self.told: list[str] = []

    def ping(self) -> None:
        """Take a ping for a frame."""
        self.told.append("ping")
        self.sent_at = time.monotonic()

    def cut(self) -> None:
        """Stay stalled."""
        self.told.append("cut")

    def drain(self) -> None:
        """Note the drain."""
        self.told.append("drain")


@pytest.fixture
async def streams(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Streams]:
    """A clock that turns fast."""
    monkeypatch.setattr(streams_module, "TICK_S", 0.01)
    clock = Streams(PING_S, TIMEOUT_S)
    task = asyncio.create_task(clock.run())
    yield clock
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def told(stream: Recorder, enough: Callable[[list[str]], bool]) -> None:
    """Return when the stream was told enough."""

    async def is_enough() -> bool:
        return enough(stream.told)

    await eventually(is_enough)


async def test_silence_is_broken_by_pings(streams: Streams) -> None:
    """Again and again, and never faster than asked."""
    stream, began = Recorder(), time.monotonic()
    streams.add(stream)
    await told(stream, lambda told: len(told) == 3)
    assert time.monotonic() - began >= 3 * PING_S
    assert streams.num_stalled == 0


async def test_a_stalled_stream_is_cut_once(streams: Streams) -> None:
    """It gets no pings, counts once, and its neighbour lives on."""
    stalled, neighbour = Recorder(), Recorder()
    stalled.sending_since = time.monotonic()
    streams.add(stalled)
    streams.add(neighbour)
    await told(stalled, lambda told: "cut" in told)
    await told(neighbour, lambda told: len(told) >= 4)
    assert stalled.told == ["cut"]
    assert set(neighbour.told) == {"ping"}
    assert streams.num_stalled == 1


async def test_a_slow_but_moving_stream_is_left_alone(streams: Streams) -> None:
    """Each send has the whole time to itself."""
    stream = Recorder()
    streams.add(stream)
    for _ in range(4):
        stream.sending_since = time.monotonic()
        other = Recorder()
        streams.add(other)
        await told(other, lambda told: len(told) >= 1)
        streams.remove(other)
    assert stream.told == []


async def test_a_removed_stream_hears_nothing(streams: Streams) -> None:
    """Neither pings nor the drain."""
    gone, stays = Recorder(), Recorder()
    streams.add(gone)
    streams.add(stays)
    streams.remove(gone)
    await told(stays, lambda told: len(told) >= 2)
    streams.drain()
    assert gone.told == []
    assert len(streams) == 1


async def test_a_drain_reaches_every_stream(streams: Streams) -> None:
    """Those that are open, and those that are opened during it."""
    early, late = Recorder(), Recorder()
    streams.add(early)
    streams.drain()
    streams.add(late)
    assert (early.told, late.told) == (["drain"], ["drain"])
    assert streams.draining
