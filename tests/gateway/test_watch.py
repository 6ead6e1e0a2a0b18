"""A watched job: shared frames, cursors, wake-ups."""

import asyncio

import pytest

from common.errors import Problem
from common.events import Accepted, Event, Tokens, encode_event
from gateway.watch import Cursor, Signal, Subject, Watch
from tests.gateway.player import DONE
from tests.support.waiting import within


class Encoder:
    """A dialect that counts what it encodes."""

    def __init__(self) -> None:
        self.num_encoded = 0

    def __call__(self, job_id: str, n: int, event: Event) -> bytes:
        """Encode one event."""
        self.num_encoded += 1
        return f"{job_id} {n} {event.kind}".encode()


def make_watch(*events: Event) -> Watch:
    """Return a watch that knows these events."""
    watch = Watch(Subject("job", "acme", 0, "i"))
    for n, event in enumerate(events):
        watch.transcript.offer("i", n, encode_event(event))
    return watch


def attach(watch: Watch, position: int = 0) -> tuple[Cursor, list[int]]:
    """Return a cursor and the list that grows with its wake-ups."""
    wakes: list[int] = []
    cursor = Cursor(watch, position, lambda: wakes.append(len(watch.transcript)))
    watch.cursors.add(cursor)
    return cursor, wakes


ACCEPTED = Accepted("job", "tiny")
A, B = Tokens(0, (1,), "a"), Tokens(1, (2,), "b")


def test_cursors_at_one_place_share_their_frames() -> None:
    """A thousand subscribers cost one encoding per event and dialect."""
    watch = make_watch(ACCEPTED, A)
    encoder = Encoder()
    taken = [attach(watch)[0].take(encoder) for _ in range(1000)]
    assert taken == [[b"job 0 accepted", b"job 1 tokens"]] * 1000
    assert encoder.num_encoded == 2


def test_a_cursor_at_another_place_gets_its_own_frames() -> None:
    """Shared frames never reach a reader that has had a part of them."""
    watch = make_watch(ACCEPTED, A)
    encoder = Encoder()
    assert attach(watch)[0].take(encoder) == [b"job 0 accepted", b"job 1 tokens"]
    assert attach(watch, 1)[0].take(encoder) == [b"job 1 tokens"]


def test_each_dialect_has_its_own_frames() -> None:
    """One dialect's bytes are never sent on another's door."""
    watch = make_watch(ACCEPTED)

    def other(_job_id: str, _n: int, _event: Event) -> bytes:
        return b"other"

    assert attach(watch)[0].take(Encoder()) == [b"job 0 accepted"]
    assert attach(watch)[0].take(other) == [b"other"]


def test_frames_that_grow_are_encoded_again() -> None:
    """What was shared before an event came is not taken for the whole afterwards."""
    watch = make_watch(ACCEPTED)
    encoder = Encoder()
    attach(watch)[0].take(encoder)
    watch.transcript.offer("i", 1, encode_event(A))
    assert attach(watch)[0].take(encoder) == [b"job 0 accepted", b"job 1 tokens"]


def test_a_cursor_that_lags_gets_one_merged_frame() -> None:
    """Its cost is one frame, however much it missed; it is at the end afterwards."""
    watch = make_watch(ACCEPTED, A, B)
    cursor, _ = attach(watch, 1)
    assert cursor.take(Encoder()) == [b"job 2 tokens"]
    assert cursor.position == 3
    assert cursor.take(Encoder()) == []


def test_every_cursor_is_woken() -> None:
    """Nobody who listens misses a wake-up; who left hears nothing."""
    watch = make_watch(ACCEPTED)
    (stays, heard), (leaves, silence) = attach(watch), attach(watch)
    watch.cursors.discard(leaves)
    watch.notify()
    assert (heard, silence) == ([1], [])
    assert stays.has_news


def test_a_cursor_is_done_after_the_terminal_event() -> None:
    """Not when it is there, but when it was taken."""
    watch = make_watch(ACCEPTED, DONE)
    cursor, _ = attach(watch)
    before = cursor.is_done
    cursor.take(Encoder())
    assert (before, cursor.is_done, cursor.has_news) == (False, True, False)


def test_a_failure_comes_after_the_events() -> None:
    """A stream that breaks first delivers what it has."""
    watch = make_watch(ACCEPTED)
    cursor, wakes = attach(watch)
    watch.fail(Problem(502, "stream-unreadable", "Damaged."))
    assert wakes
    assert cursor.take(Encoder()) == [b"job 0 accepted"]
    assert cursor.has_news
    with pytest.raises(Problem, match="Damaged"):
        cursor.take(Encoder())


async def test_a_signal_set_before_the_wait_is_not_lost() -> None:
    """The classic lost wake-up does not happen."""
    signal = Signal()
    signal.set()
    async with within():
        await signal.wait()


async def test_a_signal_wakes_its_waiter_once() -> None:
    """Many sets are one wake-up, and the next wait waits."""
    signal = Signal()
    waiter = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    signal.set()
    signal.set()
    async with within():
        await waiter
    again = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    assert not again.done()
    signal.set()
    async with within():
        await again


async def test_a_waiter_that_was_cancelled_leaves_the_signal_usable() -> None:
    """The next waiter is woken."""
    signal = Signal()
    waiter = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    signal.set()
    async with within():
        await signal.wait()
