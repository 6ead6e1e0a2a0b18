"""From token IDs to text: never half a character, never a stop string or the start of one."""

import codecs
from collections.abc import Callable, Sequence

Step = Callable[[int], str]
"""An incremental decoder: takes the next token ID and returns the whole characters it completes."""


def byte_step() -> Step:
    """Return a decoder for tokens that are bytes; an ID above 255 is a special token: no text."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    return lambda token_id: decode(bytes((token_id,))) if token_id < 256 else ""


class TextStream:
    """The text of one answer, released as it becomes certain.

    The answer ends before the stop string whose last character comes first; of several that end
    at the same character the longest counts. This depends on the text alone, never on how the
    tokens cut it, so a stream that is fed the same IDs again is in the same state. An empty stop
    string matches nothing.
    """

    def __init__(self, step: Step, stop: Sequence[str] = ()) -> None:
        self._step = step
        self._stop = tuple(filter(None, stop))
        # Of the held text, no more than this can be the start of a stop string.
        self._reach = max(map(len, self._stop), default=1) - 1
        # Decoded text that may turn out to be the start of a stop string.
        self.held = ""
        # A stop string was found: the text is complete.
        self.stopped = False

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Take the next ID and return the text that became certain with it.

        Without ``may_stop``, a stop string that this token completes is text like any other.
        """
        if self.stopped:
            return ""
        text = self._step(token_id)
        if not self._stop or not text:
            return text
        held_len = len(self.held)
        text = self.held + text
        cut = self._find_stop(text, held_len) if may_stop else None
        self.stopped = cut is not None
        certain = self._certain_len(text) if cut is None else cut
        self.held = "" if self.stopped else text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """Return what was held back for a stop string that can no longer come.

        An incomplete character stays unsaid, and so does what its token has before it.
        """
        text, self.held = self.held, ""
        return text

    def _find_stop(self, text: str, held_len: int) -> int | None:
        # One that ends in the held text came too early to count, or it would have stopped there.
        found = [
            (at + len(stop), at)
            for stop in self._stop
            if (at := text.find(stop, max(0, held_len - len(stop) + 1))) >= 0
        ]
        return min(found)[1] if found else None

    def _certain_len(self, text: str) -> int:
        for start in range(max(0, len(text) - self._reach), len(text)):
            tail = text[start:]
            if any(stop.startswith(tail) for stop in self._stop):
                return start
        return len(text)
