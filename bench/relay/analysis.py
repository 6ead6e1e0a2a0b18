"""From arrivals to figures and to the verdict on gaps. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.relay.parsing import Arrival, Published

Log = Mapping[int, Published]
"""A job's events by number, as the bare subscriber saw them."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one subscriber got of one job."""

    log: Log
    arrivals: Sequence[Arrival]


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds of the events delivered in the window, sorted."""

    total: list[float]  # append → client; empty where the events carry no stamp
    floor: list[float]  # append → bare Redis subscriber, for the same deliveries
    added: list[float]  # bare Redis subscriber → client, event by event


@dataclass(frozen=True, slots=True)
class Window:
    """The measured time (ns)."""

    begin: int
    end: int

    def __contains__(self, at_ns: int) -> bool:
        return self.begin <= at_ns < self.end


def find_faults(subscriptions: Iterable[Subscription]) -> list[str]:
    """Return every gap, repeat and missing tail, of all subscribers; none is what must be."""
    return [fault for subscription in subscriptions for fault in _faults(subscription)]


def _faults(subscription: Subscription) -> Iterable[str]:
    n, position = -1, 0
    for arrival in subscription.arrivals:
        if arrival.n <= n:
            yield f"event {arrival.n} after {n}"
        if arrival.num_ids and arrival.position != position:
            yield f"token {arrival.position} after {position - 1}"
        n, position = arrival.n, position + arrival.num_ids
    if n != max(subscription.log, default=-1):
        yield f"ends with event {n} of {max(subscription.log, default=-1)}"


def count_delivered(subscriptions: Iterable[Subscription], window: Window) -> int:
    """Return the events that arrived in the window; a merged frame counts as those it merges."""
    return sum(
        arrival.n - before
        for subscription in subscriptions
        for before, arrival in _with_previous(subscription.arrivals)
        if arrival.at_ns in window
    )


def latencies(subscriptions: Iterable[Subscription], window: Window) -> Latencies:
    """Return how old the events were when they arrived."""
    found = Latencies([], [], [])
    for subscription in subscriptions:
        for before, arrival in _with_previous(subscription.arrivals):
            if arrival.at_ns in window:
                _add(found, subscription.log, range(before + 1, arrival.n + 1), arrival.at_ns)
    for values in (found.total, found.floor, found.added):
        values.sort()
    return found


def _add(found: Latencies, log: Log, numbers: Iterable[int], at_ns: int) -> None:
    for n in numbers:
        if (seen := log.get(n)) is None:
            continue
        found.added.append((at_ns - seen.at_ns) / 1e6)
        if seen.stamp_ns:
            found.total.append((at_ns - seen.stamp_ns) / 1e6)
            found.floor.append((seen.at_ns - seen.stamp_ns) / 1e6)


def _with_previous(arrivals: Sequence[Arrival]) -> Iterable[tuple[int, Arrival]]:
    n = -1
    for arrival in arrivals:
        yield n, arrival
        n = arrival.n


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """Return the value that ``percent`` of them do not exceed; None of nothing."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
