"""What an engine said of a job's answers and the log does not have yet. Pure."""

from collections.abc import Iterator, Sequence

from common.emitted import Emitted
from common.events import Tokens
from common.runs import MAX_SIZE, joined
from worker.engine.protocol import Delta

# A long prompt makes several events; those that are small enough are joined again.
_ECHO_LEN = MAX_SIZE // 2
_NUM_LOGPROBS = 64


class Pending:
    """Deltas on their way into the log. Every answer counts its tokens from its first attempt."""

    def __init__(self, emitted: Sequence[Emitted]) -> None:
        self._num_ids = [len(answer.ids) for answer in emitted]
        self._events: list[list[Tokens]] = [[] for _ in emitted]  # by answer
        # Every attempt scores the whole prompt; this many of its logprobs are in the log.
        self._num_known = emitted[0].num_echo_logprobs

    def __bool__(self) -> bool:
        return any(self._events)

    @property
    def num_ids(self) -> int:
        """The generated tokens of all answers, those that are in the log included."""
        return sum(self._num_ids)

    def take(self, delta: Delta) -> None:
        """Accept what the engine said next of an answer."""
        if delta.echo:
            self._events[delta.choice] += self._echo(delta)
        elif delta.ids or delta.text:
            index = self._num_ids[delta.choice]
            tokens = Tokens(index, delta.ids, delta.text, delta.choice, delta.logprobs)
            self._events[delta.choice].append(tokens)
            self._num_ids[delta.choice] += len(delta.ids)

    def _echo(self, delta: Delta) -> Iterator[Tokens]:
        for at in range(0, len(delta.text), _ECHO_LEN):
            text = delta.text[at : at + _ECHO_LEN]
            yield Tokens(0, (), text, delta.choice, echo=True)
        num_known = min(self._num_known, len(delta.logprobs))
        self._num_known -= num_known
        for at in range(num_known, len(delta.logprobs), _NUM_LOGPROBS):
            logprobs = delta.logprobs[at : at + _NUM_LOGPROBS]
            yield Tokens(0, (), "", delta.choice, logprobs, echo=True)

    def drain(self) -> list[Tokens]:
        """Return what is pending, in as few events as it fits, one answer after the other."""
        drained = [tokens for events in self._events for tokens in joined(events)]
        self._events = [[] for _ in self._events]
        return drained
