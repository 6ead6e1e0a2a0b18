"""One answer in the making: what its token IDs say, and when it ends."""

from collections.abc import Sequence

from common.emitted import Emitted
from common.errors import HeadraceError
from common.events import TokenLogprob
from common.jobs import FinishReason, JobSpec
from worker.engine.protocol import Delta, Finished
from worker.engine.text import Step, TextStream


class TakeoverMismatch(HeadraceError):
    """The logged IDs do not decode to the logged text: another tokeniser made them."""


class Answer:
    """Counts and decodes the tokens of one answer, including those of earlier attempts.

    ``end`` is set by the token that ends the answer; what comes after it is dropped. Fed with the
    same IDs, in whatever portions, it gives the same text and the same end.

    The first ``min_tokens`` tokens end nothing: the sampler does not choose an end there, and a
    stop string that they complete is text. An EOS under ``ignore_eos`` is a token like any other.
    """

    def __init__(
        self,
        spec: JobSpec,
        step: Step,
        eos_ids: frozenset[int],
        emitted: Emitted,
        choice: int = 0,
    ) -> None:
        # Its number among the job's answers.
        self.choice = choice
        self._min_tokens = spec.min_tokens
        self._max_tokens = spec.max_tokens
        self._eos_ids = frozenset() if spec.ignore_eos else eos_ids
        self._stop_ids = frozenset(spec.stop_token_ids)
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

    def take(self, ids: Sequence[int] = (), logprobs: Sequence[TokenLogprob] = ()) -> Delta:
        """Take the next IDs; return those that belong to the answer and the text now certain.

        ``logprobs`` has an entry per ID, where they were asked for.
        """
        taken: list[int] = []
        text, self._unsent = self._unsent, ""
        for token_id in ids:
            if self.end is not None:
                break
            taken.append(token_id)
            text += self._push(token_id)
        kept = tuple(logprobs[: len(taken)])
        return Delta(tuple(taken), self._without_sent(text), self.choice, kept)

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
        may_end = self.num_ids >= self._min_tokens
        self.num_ids += 1
        is_eos = may_end and token_id in self._eos_ids
        is_stop = may_end and token_id in self._stop_ids
        # Not every tokeniser marks its EOS as special, so its text is never asked for.
        is_silent = is_eos or is_stop
        text = "" if is_silent else self._stream.push(token_id, may_stop=may_end)
        self.end = self._end_after(is_eos=is_eos, is_stop=is_stop)
        return text if self.end is None else text + self._stream.flush()

    def _end_after(self, *, is_eos: bool, is_stop: bool) -> Finished | None:
        if is_eos or is_stop:
            return Finished(FinishReason.STOP, is_eos=is_eos)
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
