"""Ctrl-C and SIGTERM."""

import asyncio
import os
import signal

import pytest

from headrace.signals import StopSignals

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_signal_cancels_and_the_next_forces(number: signal.Signals) -> None:
    """The task ends in its own order, unless people insist."""
    said: list[str] = []
    forced = asyncio.Event()

    async def work() -> bool:
        with StopSignals(lambda: said.append("stopping")) as stop:
            stop.force = forced.set
            try:
                os.kill(os.getpid(), number)
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                os.kill(os.getpid(), number)
                await forced.wait()
            return stop.received

    assert await asyncio.create_task(work())
    assert said == ["stopping"]


async def test_the_old_handlers_come_back() -> None:
    """Afterwards Ctrl-C is what it was."""
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert not stop.received
