"""The engine's thread, with a model that counts."""

import queue
import threading
from collections.abc import Iterator

import pytest

from common.jobs import Sampling
from worker.engine.protocol import Prefilled, Refused
from worker.engine.sequence import Sequence
from worker.engine.thread import Cancel, EngineThread, Made, RequestFailed, Stop

EOS_ID = 7


class CountingRunner:
    """Sees one token per pass; the next token is the number of those that it has seen."""

    def __init__(self) -> None:
        self.passes: list[str] = []
        self.gate = threading.Semaphore(0)

    def start(self) -> None:
        """Nothing to prepare."""

    def advance(self, sequence: Sequence) -> int | None:
        """Wait for the gate, and count."""
        assert self.gate.acquire(timeout=10)
        self.passes.append(sequence.id)
        if sequence.ids[-1] == 3:
            raise RequestFailed("unlucky", "3 is unlucky.")
        sequence.seen_len += 1
        return None if sequence.is_prefilling else sequence.seen_len


class Harness:
    """A running thread, and what it delivers."""

    def __init__(self, capacity: int) -> None:
        self.runner = CountingRunner()
        self.delivered: queue.SimpleQueue[list[Made]] = queue.SimpleQueue()
        self.engine = EngineThread(self.runner, capacity, self.delivered.put)
        self._thread = threading.Thread(target=self.engine.run)

    def start(self) -> None:
        """Start after the first commands are given, so that one step sees them all."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, whatever it is waiting for."""
        self.engine.post(Stop())
        self.runner.gate.release(1000)
        if self._thread.ident is not None:
            self._thread.join(10)
        assert not self._thread.is_alive()

    def step(self, num_passes: int) -> list[Made]:
        """Let so many forward passes happen and return what the next step delivers."""
        self.runner.gate.release(num_passes)
        return self.delivered.get(timeout=10)


@pytest.fixture
def harness() -> Iterator[Harness]:
    """Two slots."""
    harness = Harness(capacity=2)
    yield harness
    harness.stop()


def _sequence(order: int, ids: list[int], max_tokens: int = 100) -> Sequence:
    return Sequence(
        id=f"s{order}",
        order=order,
        ids=ids,
        prompt_len=len(ids),
        max_tokens=max_tokens,
        eos_ids=frozenset({EOS_ID}),
        sampling=Sampling(),
    )


def test_one_step_delivers_all_its_tokens_at_once(harness: Harness) -> None:
    """A prompt of one token is prefilled and answered while the other decodes."""
    harness.engine.post(_sequence(0, [9]))
    harness.engine.post(_sequence(1, [9]))
    harness.start()
    assert harness.step(1) == [("s0", Prefilled(1, 0, 0.0)), ("s0", 1)]
    assert harness.step(2) == [("s1", Prefilled(1, 0, 0.0)), ("s1", 1), ("s0", 2)]
    assert harness.step(2) == [("s0", 3), ("s1", 2)]


def test_a_prompt_is_prefilled_before_its_first_token(harness: Harness) -> None:
    """Passes over the prompt deliver nothing but the word that they are done."""
    harness.engine.post(_sequence(0, [9, 9, 9]))
    harness.start()
    assert harness.step(3) == [("s0", Prefilled(3, 0, 0.0)), ("s0", 3)]


def test_ended_sequences_make_room(harness: Harness) -> None:
    """The length, the EOS and a failure end a sequence without a command."""
    harness.engine.post(_sequence(0, [9] * EOS_ID))
    harness.engine.post(_sequence(1, [9], max_tokens=1))
    harness.engine.post(_sequence(2, [3]))
    harness.start()
    made = [harness.step(EOS_ID) for _ in range(3)]
    assert [delivery[-1] for delivery in made] == [
        ("s0", EOS_ID),
        ("s1", 1),
        ("s2", Refused("unlucky", "3 is unlucky.")),
    ]
    assert harness.engine.num_running == 0


def test_cancel_is_obeyed_before_the_next_step(harness: Harness) -> None:
    """A cancelled sequence gets no further pass, and the one that waited gets its slot."""
    for order in range(3):
        harness.engine.post(_sequence(order, [9]))
    harness.start()
    harness.step(1)
    harness.engine.post(Cancel("s0"))
    harness.step(2)  # it may have begun before the command
    harness.runner.passes.clear()
    harness.step(2)
    harness.step(2)
    assert "s0" not in harness.runner.passes
    assert "s2" in harness.runner.passes
