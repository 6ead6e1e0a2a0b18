"""Runs of ``tokens`` events, joined into fewer that say the same. Pure.

Only neighbours of one answer and one kind (the prompt's echo or not) can be joined: a joined event
has the number of its last part, so nothing may lie between the parts that it does not say.
"""

from collections.abc import Iterable

from common.events import Tokens

# A joined event is no larger than about this. Clients refuse frames that are too large (httpx2:
# 1 MB), and JSON needs up to six bytes for a character of one.
MAX_SIZE = 128 * 1024
_EVENT_SIZE = 64  # what an event takes by itself
_ID_SIZE = 8
_LOGPROB_SIZE = 48  # JSON of a number with its keys


def rough_size(tokens: Tokens) -> int:
    """Return about how many bytes the event takes as JSON."""
    num_logprobs = sum(1 + len(entry.top) for entry in tokens.logprobs)
    numbers = _ID_SIZE * len(tokens.ids) + _LOGPROB_SIZE * num_logprobs
    return _EVENT_SIZE + numbers + len(tokens.text)


class Run:
    """Neighbouring events that can be one."""

    def __init__(self, first: Tokens) -> None:
        self._parts = [first]
        self._size = rough_size(first)

    def add(self, tokens: Tokens) -> bool:
        """Take the next event; False where it needs a run of its own."""
        first = self._parts[0]
        size = rough_size(tokens)
        is_same = (tokens.choice, tokens.echo) == (first.choice, first.echo)
        if not is_same or self._size + size > MAX_SIZE:
            return False
        self._parts.append(tokens)
        self._size += size
        return True

    def joined(self) -> Tokens:
        """Return the event that says what its parts say; a lone part is returned as it is."""
        first = self._parts[0]
        if len(self._parts) == 1:
            return first
        return Tokens(
            first.index,
            tuple(token_id for part in self._parts for token_id in part.ids),
            "".join(part.text for part in self._parts),
            first.choice,
            tuple(entry for part in self._parts for entry in part.logprobs),
            first.echo,
        )


def joined(events: Iterable[Tokens]) -> list[Tokens]:
    """Return the events with neighbours joined where that is possible."""
    runs: list[Run] = []
    for tokens in events:
        if not runs or not runs[-1].add(tokens):
            runs.append(Run(tokens))
    return [run.joined() for run in runs]
