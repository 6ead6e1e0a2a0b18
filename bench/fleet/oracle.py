"""What must hold of every job, whatever was done to the fleet: counted, not asserted. Pure."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from bench.fleet.clients import Seen
from common.events import Completed, Ended, Event, Tokens, is_terminal

Log = Sequence[tuple[int, Event]]
"""A job's events with their numbers, as Redis has them."""


class Verdict(msgspec.Struct, frozen=True):
    """What became of one accepted job.

    ``lost`` are tokens of the job that its follower did not see, or that the log lacks;
    ``repeated`` are those that it saw again, or that the log has again. ``problems`` says
    everything that is wrong, these two too, and is empty where nothing is.
    """

    job_id: str
    ended: bool
    lost: int
    repeated: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Told:
    """Tokens as somebody was told them."""

    text: str
    counts: Counter[tuple[int, int]]  # by (position, ID)


def judge(job_id: str, log: Log, seen: Sequence[Seen], expected: str | None) -> Verdict:
    """Compare a job's log with what its follower saw, and its text with the undisturbed one.

    ``expected`` is None where the text is not known: the job was cancelled.
    """
    logged = [event for _, event in log]
    told, kept = _told(each.event for each in seen), _told(logged)
    lost, repeated = _lost(told, kept, _num_tokens(logged)), _repeated(told, kept)
    ended = _ends(logged) and bool(seen) and seen[-1].event == logged[-1]
    problems = [
        *([] if ended else [f"no end: the log has {_outline(logged)}"]),
        *([f"{lost} tokens lost"] if lost else []),
        *([f"{repeated} tokens repeated"] if repeated else []),
        *_numbering(log),
        *_order(seen),
        *([] if told == kept else ["the follower saw another answer than the log has"]),
        *_ending(logged, told.text, expected),
    ]
    return Verdict(job_id, ended, lost, repeated, tuple(problems))


def _told(events: Iterable[Event]) -> _Told:
    text, counts = "", Counter[tuple[int, int]]()
    for event in events:
        if isinstance(event, Tokens):
            text += event.text
            counts.update((event.index + place, id_) for place, id_ in enumerate(event.ids))
    return _Told(text, counts)


def _num_tokens(logged: Sequence[Event]) -> int:
    """Return how many tokens the end says that there are."""
    end = logged[-1] if logged else None
    return end.usage.completion_tokens if isinstance(end, Ended) else 0


def _lost(told: _Told, kept: _Told, num_tokens: int) -> int:
    positions = {position for position, _ in kept.counts} | set(range(num_tokens))
    in_both = {position for position, _ in told.counts.keys() & kept.counts.keys()}
    return len(positions - in_both)


def _repeated(told: _Told, kept: _Told) -> int:
    return sum(count - 1 for count in (told.counts | kept.counts).values())


def _ends(logged: Sequence[Event]) -> bool:
    """Tell whether there is exactly one terminal event, the last."""
    ends = [place for place, event in enumerate(logged) if is_terminal(event)]
    return ends == [len(logged) - 1]


def _outline(logged: Sequence[Event]) -> str:
    """Return the kinds of the events in order, a run of one kind as one."""
    return " ".join(kind for kind, _ in itertools.groupby(event.kind for event in logged))


def _numbering(log: Log) -> list[str]:
    is_whole = [n for n, _ in log] == list(range(len(log)))
    position = 0
    for _, event in log:
        if isinstance(event, Tokens):
            is_whole &= event.index == position
            position += len(event.ids)
    return [] if is_whole else ["numbers or token positions of the log are not contiguous"]


def _order(seen: Sequence[Seen]) -> list[str]:
    numbers = [each.n for each in seen]
    return [] if numbers == sorted(set(numbers)) else ["event numbers went back"]


def _ending(logged: Sequence[Event], text: str, expected: str | None) -> list[str]:
    if expected is None:
        return []
    end = logged[-1] if logged else None
    if isinstance(end, Ended) and not isinstance(end, Completed):
        return [f"it ended as {end.kind}: {end.error}"]
    return [] if text == expected else ["the text is not that of the undisturbed answer"]
