"""One answer in the making: what its token IDs say, and when it ends."""

from collections.abc import Iterable

from common.emitted import Emitted
from common.errors import HeadraceError
from common.jobs import FinishReason, JobSpec
from worker.engine.protocol import Delta, Finished
from worker.engine.text import Step, TextStream


class TakeoverMismatch(HeadraceError):
    """The logged IDs do not decode to the logged text: another tokeniser made them."""


class Answer:
    """Counts and decodes the tokens of one request, including those of earlier attempts.

    ``end`` is set by the token that ends the answer; what comes after it is dropped. Fed with the
    same IDs, in whatever portions, it gives the same text and the same end.
    """

    def __init__(
        self, spec: JobSpec, step: Step, eos_ids: frozenset[int], emitted: Emitted
    ) -> None:
        self._max_tokens = spec.max_tokens
        self._eos_ids = eos_ids
        self._stream = TextStream(step, spec.stop)
        # Generated tokens, those of earlier attempts included.
        self.num_ids = 0
        # How the answer ended; ``None`` while it goes on.
        self.end: Finished | None = None
        # Text of the earlier attempts' tokens that has not been sent.
        self._unsent = ""
        # Characters still to come out of the stream that have been sent already.
        self._already_sent_len = 0
        self._replay(emitted)

    def take(self, ids: Iterable[int] = ()) -> Delta:
        """Take the next IDs; return those that belong to the answer and the text now certain."""
        taken: list[int] = []
        text, self._unsent = self._unsent, ""
        for token_id in ids:
            if self.end is not None:
                break
            taken.append(token_id)
            text += self._push(token_id)
        return Delta(tuple(taken), self._without_sent(text))

    def _replay(self, emitted: Emitted) -> None:
        text = "".join([self._push(token_id) for token_id in emitted.ids if self.end is None])
        if self.end is None and self.num_ids >= self._max_tokens:
            self.end = Finished(FinishReason.LENGTH)
        if not (text + self._stream.held).startswith(emitted.text):
            msg = f"The {len(emitted.ids)} logged tokens do not decode to the logged text."
            raise TakeoverMismatch(msg)
        self._unsent = text[len(emitted.text) :]
        # An attempt that died between its last text and its end had released the held text too.
        self._already_sent_len = max(0, len(emitted.text) - len(text))

    def _push(self, token_id: int) -> str:
        self.num_ids += 1
        is_eos = token_id in self._eos_ids
        # Not every tokeniser marks its EOS as special, so its text is never asked for.
        text = "" if is_eos else self._stream.push(token_id)
        self.end = self._end_after(is_eos=is_eos)
        return text if self.end is None else text + self._stream.flush()

    def _end_after(self, *, is_eos: bool) -> Finished | None:
        if is_eos:
            return Finished(FinishReason.STOP, is_eos=True)
        if self._stream.stopped:
            return Finished(FinishReason.STOP)
        if self.num_ids >= self._max_tokens:
            return Finished(FinishReason.LENGTH)
        return None

    def _without_sent(self, text: str) -> str:
        if not self._already_sent_len:
            return text
        skipped_len = min(len(text), self._already_sent_len)
        self._already_sent_len -= skipped_len
        return text[skipped_len:]
