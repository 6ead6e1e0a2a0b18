"""The real tokeniser: jobs to IDs and IDs to text."""

from typing import Any

from tokenizers.decoders import DecodeStream

from common.jobs import JobSpec, Message
from worker.engine.text import Step


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

    All work is done by its Rust half. transformers' own methods set truncation and padding on it
    before every call, which two threads must not do.
    """

    def __init__(self, tokenizer: Any) -> None:
        # Renders chat templates.
        self._tokenizer = tokenizer
        # Encodes and decodes.
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()

    @property
    def has_chat_template(self) -> bool:
        """Tell whether messages can be encoded."""
        return bool(self._tokenizer.chat_template)

    def encode(self, spec: JobSpec) -> list[int]:
        """Return the IDs of the job's prompt.

        Raises ``jinja2.TemplateError`` for messages that the model's template does not accept.
        """
        if spec.messages is None:
            return self._encode(spec.prompt or "", add_special_tokens=True)
        # The template writes the special tokens itself.
        return self._encode(self._render(spec.messages), add_special_tokens=False)

    def step(self) -> Step:
        """Return an incremental decoder, which skips special tokens."""
        return _IncrementalDecoder(self._backend)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # ``encode`` would keep the interpreter's lock, for seconds where the prompt has megabytes.
        batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = batch[0].ids
        return ids

    def _render(self, messages: tuple[Message, ...]) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return str(
            self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )
