"""Tells a step that hangs from a process that was frozen. Pure."""

NUM_LOOKS = 10


class Watchdog:
    """Counts how often it sees the same step; the time is no witness.

    Between two looks a process may have been stopped for an hour: then its step is an hour old and
    not at fault, and it gets as many looks as any other.
    (Ten freezes within one step are ten looks.)
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._looks = 0

    def look(self, began: float) -> bool:
        """Tell whether the step that began then hangs; 0: there is none."""
        is_same = began == self._began and began > 0
        self._looks = self._looks + 1 if is_same else 0
        self._began = began
        return self._looks >= NUM_LOOKS
