"""How long streams were silent, and when they went on after a fault. Pure."""

import enum
import itertools
from collections.abc import Sequence

from bench.fleet.clients import Seen
from common.events import Started, Tokens, is_terminal


class Resumes(enum.StrEnum):
    """What shows that a stream goes on after a fault."""

    NEXT_WORKER = "a token, or the end, of a later attempt"
    NEXT_CONNECTION = "an event on a later connection of the follower"
    LONGEST_SILENCE = "the token, or the end, that ends the longest silence since the fault"


def longest_silence(seen: Sequence[Seen]) -> float:
    """Return the longest time (s) between two token events, 0 where there are none."""
    times = [each.at for each in seen if isinstance(each.event, Tokens)]
    return max((after - before for before, after in itertools.pairwise(times)), default=0)


def recovery(seen: Sequence[Seen], fault_at: float, resumes: Resumes) -> float | None:
    """Return the time (s) from the fault until the stream went on, None where it never did."""
    match resumes:
        case Resumes.NEXT_WORKER:
            at = _next_attempt(seen, fault_at)
        case Resumes.NEXT_CONNECTION:
            at = _next_connection(seen, fault_at)
        case Resumes.LONGEST_SILENCE:
            at = _end_of_silence(seen, fault_at)
    return None if at is None else at - fault_at


def _next_attempt(seen: Sequence[Seen], fault_at: float) -> float | None:
    has_started = False
    for each in seen:
        if each.at > fault_at:
            if has_started and _is_news(each):
                return each.at
            has_started |= isinstance(each.event, Started)
    return None


def _next_connection(seen: Sequence[Seen], fault_at: float) -> float | None:
    before = max((each.connection for each in seen if each.at <= fault_at), default=0)
    return next((each.at for each in seen if each.connection > before), None)


def _end_of_silence(seen: Sequence[Seen], fault_at: float) -> float | None:
    times = [each.at for each in seen if _is_news(each)]
    pairs = itertools.pairwise(times)
    ends = [(after - before, after) for before, after in pairs if after > fault_at]
    return max(ends)[1] if ends else None


def _is_news(each: Seen) -> bool:
    return isinstance(each.event, Tokens) or is_terminal(each.event)
