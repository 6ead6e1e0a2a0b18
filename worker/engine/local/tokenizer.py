"""The real tokeniser: jobs to IDs and IDs to text."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from tokenizers.decoders import DecodeStream

from common.jobs import JobSpec, Message
from worker.engine.text import Step

_ANSWER = "~answer~"  # stands for one: no template writes it itself


class _IncrementalDecoder:
    """A ``DecodeStream`` that survives what no text has.

    Where bytes are tokens, an invalid one changes how the valid ones before it decode, and the
    stream refuses to go on. It then starts anew, so what it says is a function of the IDs still.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)

    def __call__(self, token_id: int) -> str:
        try:
            return self._stream.step(self._backend, token_id) or ""
        except Exception:  # noqa: BLE001 - tokenizers raises nothing narrower
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._backend, token_id) or ""


class Tokenizer:
    """A fast tokeniser of transformers, safe to use from several threads at once.

    Its Rust half does all encoding and decoding. transformers' own methods set truncation and
    padding on it before every call, which two threads must not do.
    """

    def __init__(self, tokenizer: Any) -> None:
        # Renders chat templates.
        self._tokenizer = tokenizer
        # Encodes and decodes.
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        # One of them ends a turn.
        added = self._backend.get_added_tokens_decoder()
        self._special_ids = {token_id for token_id, token in added.items() if token.special}

    @property
    def has_chat_template(self) -> bool:
        """Tell whether messages can be encoded."""
        return bool(self._tokenizer.chat_template)

    def encode(self, spec: JobSpec, base: Sequence[int] = ()) -> list[int]:
        """Return the IDs of the job's prompt; ``base`` is the stored sequence that it builds on.

        Raises ``jinja2.TemplateError`` for messages that the model's template does not accept.
        """
        if spec.prompt is not None:
            return self._encode(spec.prompt, add_special_tokens=True)
        if spec.messages is not None:
            # The template writes the special tokens itself.
            return self._encode(self._render(spec.messages), add_special_tokens=False)
        if spec.append is None:
            return list(base)
        if isinstance(spec.append, str):
            return [*base, *self._encode(spec.append, add_special_tokens=False)]
        return [*base, *self._encode_turns(spec.append, base)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of these IDs, without that of special tokens."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def text_of(self, token_id: int) -> str:
        """Return what one token says by itself, also a special one."""
        return str(self._backend.decode([token_id], skip_special_tokens=False))

    def step(self) -> Step:
        """Return an incremental decoder, which skips special tokens."""
        return _IncrementalDecoder(self._backend)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # ``encode`` would keep the interpreter's lock, for seconds where the prompt has megabytes.
        batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = batch[0].ids
        return ids

    def _encode_turns(self, messages: tuple[Message, ...], base: Sequence[int]) -> list[int]:
        """Return what the template writes for these messages behind the answer that ends ``base``.

        It begins with what closes the answer, up to an end token that a model which ended by itself
        has made already. Of a line break behind that the model knows nothing.
        """
        closing, turns = self._render_turns(messages)
        ids = self._encode(closing + turns, add_special_tokens=False)
        # Where the closing has no special token, the next turn's first one may be the end token.
        most = len(self._encode(closing, add_special_tokens=False)) + 1
        ends = [number for number, id_ in enumerate(ids[:most]) if id_ in self._special_ids]
        has_ended = bool(ends and base) and base[-1] == ids[ends[0]]
        return ids[ends[0] + 1 :] if has_ended else ids

    def _render_turns(self, messages: tuple[Message, ...]) -> tuple[str, str]:
        """Return what the template writes to close an answer, and for these messages after it.

        Templates know whole conversations only (many begin one with a system message of their
        own), so the turns are rendered after a question and its answer, which are cut off again.
        """
        before = (Message("user", "?"), Message("assistant", _ANSWER))
        opening = self._render(before, add_generation_prompt=False)
        whole = self._render((*before, *messages))
        _, answer, closing = opening.partition(_ANSWER)
        if not answer or not whole.startswith(opening):
            raise TemplateError("it cannot add messages to a conversation; send all of them")
        return closing, whole[len(opening) :]

    def _render(self, messages: tuple[Message, ...], *, add_generation_prompt: bool = True) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return str(
            self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
