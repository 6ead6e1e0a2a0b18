"""The engine's thread, with an engine that makes steps when it is allowed to."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from tests.worker.engine.local.simulated import SimulatedEngine, make_sequence
from worker.engine.local import thread
from worker.engine.local.core import EngineCore
from worker.engine.local.made import Made, Token
from worker.engine.local.thread import Call, Cancel, EngineThread

DEADLINE_S = 10.0


class GatedCore:
    """Tells which sequences took part in a step."""

    def __init__(self) -> None:
        self.engine = SimulatedEngine(num_blocks=20, capacity=2, step_tokens=16)
        self.scheduler = self.engine.scheduler
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.started: list[int] = []

    def start(self) -> None:
        """Note the thread."""
        self.started.append(threading.get_ident())

    def step(self, meanwhile: Callable[[], object]) -> list[Made]:
        """Wait for the gate, and make a step."""
        meanwhile()
        self.entered.release()
        assert self.gate.acquire(timeout=DEADLINE_S)
        if any(sequence.ids[-1] == 99 for sequence in self.engine.running):
            raise TypeError("a bug of ours")
        parts = self.engine.step()
        return [(part.sequence.id, Token(part.end)) for part in parts if part.sequence.rank < 2]


class Harness:
    """A running thread, and what it delivers."""

    def __init__(self) -> None:
        self.core = GatedCore()
        self.delivered: queue.SimpleQueue[list[Made]] = queue.SimpleQueue()
        self.thread = EngineThread(cast("EngineCore", self.core), self.delivered.put)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Start after the first commands are given, so that one step sees them all."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, whatever it is waiting for."""
        self.thread.stop()
        self.core.gate.release(1000)
        if self._thread.ident is not None:
            self.join()

    def join(self) -> None:
        """Wait for the thread's end."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def step(self) -> list[str]:
        """Let a step happen and return whose parts it delivers."""
        self.enter()
        return self.leave()

    def enter(self) -> None:
        """Wait until the next step is under way."""
        assert self.core.entered.acquire(timeout=DEADLINE_S)

    def leave(self) -> list[str]:
        """Let the step that is under way end and return whose parts it delivers."""
        self.core.gate.release()
        return [sequence_id for sequence_id, _ in self.delivered.get(timeout=DEADLINE_S)]

    def call(self) -> tuple[int, bool]:
        """Return the thread that obeys a command, and whether that counts as being busy."""
        said: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()
        self.thread.post(
            Call(lambda: said.put((threading.get_ident(), self.thread.busy_since > 0)))
        )
        return said.get(timeout=DEADLINE_S)

    def until_waiting(self) -> None:
        """Return when the thread waits for commands."""
        deadline = time.monotonic() + DEADLINE_S
        while self.thread.busy_since > 0:
            assert time.monotonic() < deadline

    def _run(self) -> None:
        try:
            self.thread.run()
        except (TypeError, AssertionError) as error:
            self.error = error


@pytest.fixture
def harness() -> Iterator[Harness]:
    """Two slots."""
    harness = Harness()
    yield harness
    harness.stop()


def test_one_step_delivers_all_it_made_at_once(harness: Harness) -> None:
    """All commands that were given before it are obeyed."""
    harness.thread.post(make_sequence(0))
    harness.thread.post(make_sequence(1))
    harness.start()
    assert harness.step() == ["s0", "s1"]
    assert harness.step() == ["s0", "s1"]


def test_a_step_that_makes_nothing_delivers_nothing(harness: Harness) -> None:
    """Nobody is woken for a part of a prompt."""
    harness.thread.post(make_sequence(0, rank=2, max_tokens=2))
    harness.start()
    harness.core.gate.release(2)
    harness.call()
    harness.thread.post(make_sequence(1))
    assert harness.step() == ["s1"]


def test_what_was_made_is_delivered_when_nobody_is_left(harness: Harness) -> None:
    """One ends in the step in which the other one is cancelled: there will be no next step."""
    harness.thread.post(make_sequence(0, max_tokens=1))
    harness.thread.post(make_sequence(1, max_tokens=100))
    harness.start()
    harness.enter()
    harness.thread.cancel(["s1"])
    assert harness.leave() == ["s0", "s1"]


def test_what_was_made_outlives_a_step_that_fails_early(harness: Harness) -> None:
    """Before it has a batch it says nothing; the tokens of the step before are not its own."""
    step, steps = harness.core.step, list[int]()

    def fail_early(meanwhile: Callable[[], object]) -> list[Made]:
        steps.append(len(steps))
        return step(meanwhile if len(steps) != 2 else lambda: None)

    harness.core.step = fail_early  # type: ignore[method-assign]
    harness.thread.post(make_sequence(0, max_tokens=1))
    harness.thread.post(make_sequence(1, max_tokens=3))
    harness.start()
    harness.core.gate.release(3)
    delivered = [harness.delivered.get(timeout=DEADLINE_S) for _ in range(3)]
    assert [[name for name, _ in made] for made in delivered] == [["s0", "s1"], ["s1"], ["s1"]]


def test_ended_sequences_make_room(harness: Harness) -> None:
    """Who waited gets the slot in the next step."""
    for order in range(3):
        harness.thread.post(make_sequence(order, max_tokens=1 + order))
    harness.start()
    assert [harness.step() for _ in range(3)] == [["s0", "s1"], ["s1", "s2"], ["s2"]]


def test_cancel_is_obeyed_before_the_next_step(harness: Harness) -> None:
    """A cancelled sequence has no part in it, and the one that waited gets its slot."""
    for order in range(3):
        harness.thread.post(make_sequence(order))
    harness.start()
    harness.step()
    harness.enter()
    harness.thread.post(Cancel("unknown"))
    harness.thread.cancel(["s0"])
    assert harness.leave() == ["s0", "s1"]
    assert harness.step() == ["s1", "s2"]


def test_an_idle_thread_obeys_too(harness: Harness) -> None:
    """Functions are called on the engine's thread."""
    harness.start()
    ident, _ = harness.call()
    assert [ident] == harness.core.started


def test_a_call_that_nobody_wants_any_more_is_not_made(harness: Harness) -> None:
    """The next one is."""
    unwanted = Call(lambda: pytest.fail("it was made"))
    assert unwanted.called.cancel()
    harness.thread.post(unwanted)
    harness.start()
    harness.call()


def test_who_waits_for_a_call_hears_of_the_threads_end(harness: Harness) -> None:
    """Of one that fails its error, and of one behind it that it will not be made."""

    def fail() -> None:
        raise TypeError("a bug of ours")

    failing, behind = Call(fail), Call(lambda: None)
    harness.thread.post(failing)
    harness.thread.post(behind)
    harness.start()
    harness.join()
    assert isinstance(failing.called.exception(timeout=DEADLINE_S), TypeError)
    assert behind.called.cancelled()


def test_the_books_are_checked_when_it_has_been_idle(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once per idleness, and then it obeys as before."""
    monkeypatch.setattr(thread, "CHECK_AFTER_S", 0)  # one that goes on would flood the queue
    checked: queue.SimpleQueue[None] = queue.SimpleQueue()
    monkeypatch.setattr(harness.core.scheduler, "check", lambda: checked.put(None))
    harness.start()
    checked.get(timeout=DEADLINE_S)
    harness.until_waiting()
    harness.call()
    checked.get(timeout=DEADLINE_S)
    harness.until_waiting()
    harness.stop()
    assert checked.qsize() == 0


def test_books_that_do_not_add_up_end_it(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that nobody gives back would be missed later, by somebody else."""
    monkeypatch.setattr(thread, "CHECK_AFTER_S", 0.01)
    assert harness.core.engine.cache.manager.allocate() is not None
    harness.start()
    harness.join()
    assert isinstance(harness.error, AssertionError)


def test_a_step_that_hangs_shows(harness: Harness) -> None:
    """So does a command; who waits for commands does not hang."""
    assert harness.thread.busy_since == 0
    harness.thread.post(make_sequence(0))
    harness.start()
    harness.enter()
    assert harness.thread.busy_since > 0
    harness.thread.cancel(["s0"])
    harness.core.gate.release()
    _, is_busy = harness.call()
    assert is_busy
    harness.until_waiting()


def test_a_chore_that_hangs_shows(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is idle tidies up; that is work, and the watchdog looks at it."""
    begun, may_end = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        may_end.wait(DEADLINE_S)

    monkeypatch.setattr(harness.core.scheduler, "tidy", hang)
    harness.start()
    assert begun.wait(DEADLINE_S)
    assert harness.thread.busy_since > 0
    may_end.set()
    harness.until_waiting()


def test_stop_ends_it_before_the_next_step(harness: Harness) -> None:
    """Whoever runs gets no further step."""
    harness.thread.post(make_sequence(0))
    harness.start()
    harness.enter()
    harness.stop()
    assert harness.delivered.get(timeout=DEADLINE_S)
    assert harness.delivered.empty()


def test_a_bug_ends_it(harness: Harness) -> None:
    """The exception is its owner's."""
    harness.thread.post(make_sequence(0, [1, 2, 3]))
    harness.thread.post(make_sequence(1, [*range(14), 99]))
    harness.start()
    harness.core.gate.release(2)
    harness.join()
    assert isinstance(harness.error, TypeError)
