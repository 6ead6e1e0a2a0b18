"""The stream of an OpenAI-compatible server, frame by frame: what it says of a job's answers. Pure.

Read leniently (servers leave out and add fields), ended strictly: an answer is whole when the
server gave a ``finish_reason`` for it, and only then.
"""

from collections.abc import Iterator

import msgspec

from common.errors import HeadraceError
from common.events import Alternative, ChoiceEnd, TokenLogprob
from common.jobs import FinishReason, JobSpec
from worker.engine.protocol import Delta, Finished, Prefilled

DONE = "[DONE]"
UNKNOWN_ID = -1
"""The token ID in the logprobs of a server that names tokens by their text only."""

_MESSAGE_LEN = 300
_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class UpstreamFault(HeadraceError):
    """The upstream will not, or did not, answer this request; asking again would not help."""

    def __init__(self, type_: str, detail: str) -> None:
        super().__init__(detail)
        self.type = type_


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Top(msgspec.Struct):
    token: str
    logprob: float


class _Token(_Top):
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct):
    """``content`` is the chat API's; the other three are lists side by side."""

    content: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Message | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    # vLLM's and SGLang's: what stopped the answer, null for the model's own end.
    stop_reason: int | str | msgspec.UnsetType | None = msgspec.UNSET


class _Frame(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_decoder = msgspec.json.Decoder(_Frame)


class AnswerReader:
    """The answers of one request to an upstream, from its frames."""

    def __init__(self, spec: JobSpec) -> None:
        self._n = spec.n
        self._has_stops = bool(any(spec.stop) or spec.stop_token_ids)
        self._ends: dict[int, ChoiceEnd] = {}
        self._completion_tokens: int | None = None  # as the upstream counts them
        # What the usage says of the prompt, once it has come.
        self.prefilled: Prefilled | None = None
        # Tokens that were heard of. Most servers send one in a frame.
        self.num_heard = 0

    @property
    def is_whole(self) -> bool:
        """Tell whether every answer has its end."""
        return len(self._ends) == self._n

    @property
    def end(self) -> Finished:
        """How the answers ended, once they are whole."""
        assert self.is_whole, "the answers have no end yet"
        first = self._ends[0]
        choices = tuple(self._ends[choice] for choice in range(self._n)) if self._n > 1 else ()
        tokens = self.num_heard if self._completion_tokens is None else self._completion_tokens
        return Finished(first.finish_reason, first.is_eos, choices, completion_tokens=tokens)

    def take(self, data: str) -> Iterator[Delta]:
        """Yield the text of a frame; raises ``UpstreamFault`` for an error or an unreadable one."""
        try:
            frame = _decoder.decode(data)
        except msgspec.DecodeError as error:
            raise UpstreamFault(
                "upstream-error", f"The upstream sent a frame that cannot be read: {error}."
            ) from error
        if bytes(frame.error) not in (b"null", b'""', b"{}", b"false"):
            raise UpstreamFault("upstream-error", f"The upstream says: {message_of(data)}")
        for choice in frame.choices or ():
            yield from self._take_choice(choice)
        if frame.usage is not None:
            self._take_usage(frame.usage)

    def _take_choice(self, choice: _Choice) -> Iterator[Delta]:
        if not 0 <= choice.index < self._n:
            raise UpstreamFault(
                "upstream-error", f"The upstream sent answer {choice.index} of {self._n}."
            )
        message = choice.delta or _Message()
        text = choice.text or message.content or message.refusal or ""
        logprobs = _logprobs_of(choice.logprobs) if choice.logprobs else ()
        if text or logprobs:
            self.num_heard += max(1, len(logprobs))
            yield Delta((), text, choice.index, logprobs)
        if choice.finish_reason:
            self._ends[choice.index] = self._end_of(choice, choice.finish_reason)

    def _end_of(self, choice: _Choice, said: str) -> ChoiceEnd:
        reason = _REASONS.get(said)
        if said == "content_filter":
            raise UpstreamFault("upstream-refused", "The upstream's filter ended the answer.")
        if reason is None:
            raise UpstreamFault(
                "upstream-error", f"The upstream ended the answer with {said[:40]!r}."
            )
        is_model = (
            not self._has_stops
            if choice.stop_reason is msgspec.UNSET
            else choice.stop_reason is None
        )
        return ChoiceEnd(choice.index, reason, is_eos=reason is FinishReason.STOP and is_model)

    def _take_usage(self, usage: _Usage) -> None:
        """Keep the counts; some servers send them with every frame, and the last ones count."""
        details = usage.prompt_tokens_details
        cached = details.cached_tokens if details else 0
        self._completion_tokens = usage.completion_tokens
        self.prefilled = Prefilled(usage.prompt_tokens, cached or 0, prefill_s=0.0)


def message_of(body: str) -> str:
    """Return what an error body says in one bounded line, whatever its shape."""
    try:
        said = msgspec.json.decode(body)
    except msgspec.DecodeError:
        said = body
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(name):
            said = said[name]
    line = " ".join(str(said).split())
    return line if len(line) <= _MESSAGE_LEN else line[: _MESSAGE_LEN - 1] + "…"


def _logprobs_of(found: _Logprobs) -> tuple[TokenLogprob, ...]:
    if found.content is not None:
        return tuple(
            TokenLogprob(
                UNKNOWN_ID,
                token.token,
                token.logprob,
                tuple(
                    Alternative(UNKNOWN_ID, top.token, top.logprob)
                    for top in token.top_logprobs or ()
                ),
            )
            for token in found.content
        )
    tokens, logprobs = found.tokens or (), found.token_logprobs or ()
    tops = found.top_logprobs or [None] * len(tokens)
    return tuple(
        TokenLogprob(UNKNOWN_ID, token, logprob, _alternatives(top))
        for token, logprob, top in zip(tokens, logprobs, tops, strict=False)
        if logprob is not None
    )


def _alternatives(top: dict[str, float] | None) -> tuple[Alternative, ...]:
    likely = sorted((top or {}).items(), key=lambda item: -item[1])
    return tuple(Alternative(UNKNOWN_ID, text, logprob) for text, logprob in likely)
