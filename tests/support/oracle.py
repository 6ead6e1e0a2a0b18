"""What must hold of every job, whatever died meanwhile. Shared by all tests of the whole stack."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from redis.asyncio import Redis

from common.events import (
    Accepted,
    Ended,
    Event,
    Reset,
    Retrying,
    Started,
    Tokens,
    decode_event,
    is_terminal,
)
from common.job_store import JobStore
from common.keys import Keys
from tests.support.leaks import find_keys, find_leaks
from tests.support.waiting import eventually

Seen = Sequence[tuple[int, Event]]
"""What a subscriber got: numbers and events, in the order of their arrival."""

UNDISTURBED = "accepted started tokens completed"
TAKEN_OVER = "accepted started tokens retrying started tokens completed"

_STAYS = re.compile(rb".*:(workers|sweeper|dead|clock:.+|bucket:.+)")


class Answer:
    """The text and the token IDs that a reader holds after some events, by answer; 0 first.

    The prompt's echo is held apart.
    """

    def __init__(self, said: Mapping[tuple[int, bool], tuple[str, tuple[int, ...]]] = {}) -> None:
        self._said = said

    @property
    def text(self) -> str:
        """The text of the first answer."""
        return self._said.get((0, False), ("", ()))[0]

    def then(self, event: Event) -> "Answer":
        """Return what the reader holds after one more event."""
        if isinstance(event, Reset):
            return Answer()
        if isinstance(event, Tokens):
            kind = (event.choice, event.echo)
            text, ids = self._said.get(kind, ("", ()))
            return Answer({**self._said, kind: (text + event.text, ids + event.ids)})
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answer) and self._said == other._said

    __hash__ = None  # type: ignore[assignment]


class Story:
    """The whole log of an ended job; making one checks it."""

    def __init__(self, job_id: str, log: Iterable[tuple[int, bytes]]) -> None:
        numbered = [(n, decode_event(payload)) for n, payload in log]
        self.job_id = job_id
        self.events = [event for _, event in numbered]
        self._answers: list[Answer] = []  # what a reader holds after event n
        answer = Answer()
        for event in self.events:
            answer = answer.then(event)
            self._answers.append(answer)
        assert [n for n, _ in numbered] == list(range(len(numbered))), "n has a gap or a repeat"
        self._check_order()
        self._check_tokens()

    @classmethod
    async def read(cls, store: JobStore, job_id: str) -> "Story":
        """Read the log of a job that has ended."""
        return cls(job_id, await store.log(job_id))

    @property
    def text(self) -> str:
        """The answer."""
        return self._answers[-1].text

    @property
    def end(self) -> Ended:
        """The terminal event."""
        end = self.events[-1]
        assert isinstance(end, Ended)
        return end

    @property
    def outline(self) -> str:
        """The kinds of the events in order, a run of ``tokens`` as one."""
        kinds = [event.kind for event in self.events]
        runs = [kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
        return " ".join(runs)

    @property
    def workers(self) -> list[str]:
        """The workers that started it, in order."""
        return [event.worker for event in self.events if isinstance(event, Started)]

    def check(self, seen: Seen, after: int = -1) -> None:
        """Check that a subscriber that began after event ``after`` saw this story: all of it, once.

        Several ``tokens`` events may have come as one; it carries the number of the last of them.
        """
        numbers = [n for n, _ in seen]
        assert numbers == sorted(set(numbers)), f"{self.job_id}: repeated or out of order"
        assert not numbers or numbers[0] > after, f"{self.job_id}: it had event {numbers[0]}"
        answer = self._answers[after] if after >= 0 else Answer()
        for n, event in seen:
            answer = answer.then(event)
            assert answer == self._answers[n], f"{self.job_id}: another answer after event {n}"
            assert isinstance(event, Tokens) or event == self.events[n]
        rest = range(after + 1, len(self.events))
        told = {n for n in rest if not isinstance(self.events[n], Tokens)}
        assert told <= set(numbers), f"{self.job_id}: events {told - set(numbers)} never came"

    def _check_order(self) -> None:
        assert isinstance(self.events[0], Accepted)
        ends = [n for n, event in enumerate(self.events) if is_terminal(event)]
        assert ends == [len(self.events) - 1], f"{self.job_id}: terminal events at {ends}"
        for event, following in zip(self.events, self.events[1:], strict=False):
            if isinstance(event, Retrying):
                assert isinstance(following, Started) or is_terminal(following)

    def _check_tokens(self) -> None:
        num_ids: Counter[int] = Counter()
        attempts = 0
        for event in self.events:
            if isinstance(event, Tokens):
                told = num_ids[event.choice]
                assert event.index == told, f"{self.job_id}: tokens repeated or left out"
                num_ids[event.choice] += len(event.ids)
            elif isinstance(event, Started):
                attempts += 1
                assert event.attempt == attempts
            elif isinstance(event, Reset):
                num_ids.clear()
        assert self.end.attempts == attempts
        assert self.end.usage.completion_tokens == num_ids.total()


async def check_at_rest(redis: Redis, keys: Keys) -> None:
    """Check that nothing waits or is held, and that every key is one that may stay."""

    async def unsettled() -> list[bytes]:
        found = await find_keys(redis, f"{keys.prefix}:{{m:")
        return [key for key in found if not _STAYS.fullmatch(key)]

    async def is_settled() -> bool:
        return not await unsettled()

    try:
        await eventually(is_settled)
    except AssertionError:
        raise AssertionError(f"still there at rest: {await unsettled()}") from None
    assert not await find_leaks(redis, keys.prefix)
