"""The watchdog: what hangs, and what was only frozen."""

from worker.engine.local.watchdog import NUM_LOOKS, Watchdog


def test_the_same_step_at_every_look_hangs() -> None:
    """Not earlier, and with the first look it was not the same yet."""
    watchdog = Watchdog()
    assert [watchdog.look(5.0) for _ in range(NUM_LOOKS + 1)] == [False] * NUM_LOOKS + [True]


def test_steps_that_come_and_go_do_not_hang() -> None:
    """Whatever the time between them, as when the process was frozen."""
    watchdog = Watchdog()
    assert not any(watchdog.look(began) for began in range(1, 3600 * NUM_LOOKS, 3600))


def test_who_waits_does_not_hang() -> None:
    """And a step that is over begins no count for the next."""
    watchdog = Watchdog()
    assert not any(watchdog.look(0.0) for _ in range(5 * NUM_LOOKS))
    assert not any(watchdog.look(7.0) for _ in range(NUM_LOOKS))
    assert not watchdog.look(0.0)
    assert not any(watchdog.look(7.0) for _ in range(NUM_LOOKS))
