"""How many threads a pass gets: all of them, or one while others want the processors. Pure.

Threads of a pass meet some four hundred times. When another process takes one of their processors,
they wait at every meeting until the system gives it back: on two cores a busy neighbour made a
decode step 50 times as long, while one thread alone loses nothing to it. So both numbers of threads
are measured as passes go by, and the faster one is used; the other is tried again now and then,
more rarely each time that it loses.
"""

from dataclasses import dataclass

_MIN_TRUST, _MAX_TRUST = 16, 512
# How much a new pass counts in the average.
_WEIGHT = 0.25
# A pass this much slower than usual is reason enough to try the other number at once.
_ALARM = 4.0


@dataclass(slots=True)
class _Record:
    """What one number of threads has shown for passes of about one size."""

    pass_s: float = 0.0

    def add(self, took_s: float) -> None:
        self.pass_s += (took_s - self.pass_s) * (_WEIGHT if self.pass_s else 1.0)


class Crew:
    """Chooses before each pass, and learns from what it took."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._chosen = most
        # By number of threads and power of two of the tokens.
        self._records: dict[tuple[int, int], _Record] = {}
        # Passes until the other number is tried, and how long the next such time will be.
        self._left = self._trust = _MIN_TRUST
        self._is_trial = False

    def choose(self) -> int:
        """Return how many threads the next pass gets."""
        if self.most == 1:
            return 1
        self._is_trial = self._left <= 0
        return self._other if self._is_trial else self._chosen

    def learn(self, num_tokens: int, took_s: float) -> None:
        """Take note of a pass with as many threads as ``choose`` said."""
        if self.most == 1:
            return
        size = num_tokens.bit_length()
        used = self._other if self._is_trial else self._chosen
        record = self._records.setdefault((used, size), _Record())
        is_alarm = 0 < record.pass_s * _ALARM < took_s
        record.add(took_s)
        if self._is_trial:
            self._judge(size)
        else:
            self._left = 0 if is_alarm else self._left - 1

    @property
    def _other(self) -> int:
        return 1 if self._chosen == self.most else self.most

    def _judge(self, size: int) -> None:
        """Compare after a trial; a number that wins again is trusted for longer."""
        tried = self._records[self._other, size]
        usual = self._records.get((self._chosen, size))
        if usual is not None and tried.pass_s < usual.pass_s:
            self._chosen, self._trust = self._other, _MIN_TRUST
        else:
            self._trust = min(2 * self._trust, _MAX_TRUST)
        self._left = self._trust
