"""The meter forgets what is older than its window."""

import threading
from itertools import count

from worker.engine.meter import WINDOW_S, Meter


def test_the_rate_is_over_the_window() -> None:
    """Tokens count for five seconds, and then no more."""
    now = 100.0
    meter = Meter(lambda: now)
    assert meter.rate() == 0
    for _ in range(50):
        now += 0.1
        meter.add(3)
    assert abs(meter.rate() - 30) < 2
    now += WINDOW_S + 1
    assert meter.rate() == 0


def test_it_can_be_asked_while_it_counts() -> None:
    """Race: the lease thread reads while the loop's thread adds slots and drops old ones."""
    ticks = count()
    meter = Meter(lambda: next(ticks) * 0.3)  # a slot per call, and an old one less
    failures: list[Exception] = []
    stopped = threading.Event()

    def ask() -> None:
        try:
            while not stopped.is_set():
                meter.rate()
        except (IndexError, RuntimeError) as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(100_000):
        meter.add(1)
    stopped.set()
    thread.join()
    assert failures == []
