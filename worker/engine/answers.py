"""The answers of one request together: the prompt's echo, every answer, and one end for all."""

from collections.abc import Callable, Sequence

from common.emitted import Emitted
from common.events import ChoiceEnd
from common.jobs import FinishReason, JobSpec
from worker.engine.answer import Answer, TakeoverMismatch
from worker.engine.protocol import Delta, Finished
from worker.engine.text import Step


def rest_of_echo(spec: JobSpec, prompt: str, emitted: Sequence[Emitted]) -> Delta | None:
    """Return the part of the prompt's text that is still to be sent, before any token.

    The prompt is sent once, as the first answer's, however many answers there are. Raises
    ``TakeoverMismatch`` where another text was sent.
    """
    if not spec.echo:
        return None
    sent = emitted[0].echo
    if not prompt.startswith(sent):
        raise TakeoverMismatch("The prompt is not the one that was sent.")
    return Delta((), prompt[len(sent) :], echo=True) if len(sent) < len(prompt) else None


class Answers:
    """One ``Answer`` per choice of a request, each fed and ended by itself.

    Raises ``TakeoverMismatch`` as ``Answer`` does. ``make_step`` is called once per answer.
    """

    def __init__(
        self,
        spec: JobSpec,
        make_step: Callable[[], Step],
        eos_ids: frozenset[int],
        emitted: Sequence[Emitted],
    ) -> None:
        assert len(emitted) == spec.n, "one entry per answer"
        self.all = tuple(
            Answer(spec, make_step(), eos_ids, said, choice) for choice, said in enumerate(emitted)
        )

    @property
    def unended(self) -> list[Answer]:
        """The answers that want more tokens."""
        return [answer for answer in self.all if answer.end is None]

    @property
    def end(self) -> Finished | None:
        """The end of the request, once the last answer has its own."""
        if self.unended:
            return None
        first = self.all[0].end
        assert first is not None
        return Finished(first.reason, first.is_eos, self._choices())

    def cancelled(self) -> Finished:
        """Return the end of a request that is cancelled: an answer that has its end keeps it."""
        return Finished(FinishReason.CANCELLED, choices=self._choices())

    def _choices(self) -> tuple[ChoiceEnd, ...]:
        if len(self.all) == 1:
            return ()
        ends = [answer.end or Finished(FinishReason.CANCELLED) for answer in self.all]
        return tuple(ChoiceEnd(n, end.reason, end.is_eos) for n, end in enumerate(ends))
