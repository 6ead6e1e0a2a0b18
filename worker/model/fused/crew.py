"""How many threads a pass gets: all of them, or one while others want the processors. Pure.

Threads of a pass meet some four hundred times. When another process takes one of their processors,
they wait at every meeting until the system gives it back: on two cores a busy neighbour made a
decode step 50 times as long, while one thread alone loses nothing to it. So both numbers of threads
are measured as passes go by, and the faster one is used; the other is tried again now and then,
more rarely each time that it loses.
"""

_MIN_TRUST, _MAX_TRUST = 16, 512
# How much a new pass counts in the average.
_WEIGHT = 0.25
# A pass this much slower than usual is reason enough to try the other number at once.
_ALARM = 4.0


class Crew:
    """Chooses before each pass, and learns from what it took."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._chosen = most
        # What a pass takes with the chosen number, by the power of two of its tokens.
        self._usual_s: dict[int, float] = {}
        # Passes until the other number is tried, and how many there will be after that.
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
        size = num_tokens.bit_length()
        usual_s = self._usual_s.get(size, took_s)
        if self._is_trial:
            self._judge(is_better=took_s < usual_s)
        else:
            self._left = 0 if took_s > _ALARM * usual_s else self._left - 1
            self._usual_s[size] = usual_s + (took_s - usual_s) * _WEIGHT

    @property
    def _other(self) -> int:
        return 1 if self._chosen == self.most else self.most

    def _judge(self, *, is_better: bool) -> None:
        """Go by the trial; a number that wins again is trusted for longer."""
        if is_better:
            self._chosen, self._trust = self._other, _MIN_TRUST
            self._usual_s.clear()
        else:
            self._trust = min(2 * self._trust, _MAX_TRUST)
        self._left = self._trust
