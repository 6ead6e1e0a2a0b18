"""The meter forgets what is older than its window."""

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
