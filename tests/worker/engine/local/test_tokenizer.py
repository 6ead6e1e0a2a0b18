"""The tokeniser's incremental decoder against its decoding of the whole."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import TemplateError
from msgspec.structs import replace
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from common.jobs import JobSpec, Message
from tests.worker.engine.local.tiny import EOS, make_tokenizer
from worker.engine.local.tokenizer import Tokenizer
from worker.engine.text import TextStream

BACKEND = make_tokenizer()
TOKENIZER = Tokenizer(BACKEND)


def _spec(prompt: str) -> JobSpec:
    return JobSpec(model="tiny", max_tokens=1, prompt=prompt)


@given(st.text("the river é水🌊", max_size=40))
def test_text_survives_the_round_trip(text: str) -> None:
    """Encoded and decoded piece by piece, any text comes back whole."""
    stream = TextStream(TOKENIZER.step())
    pieces = [stream.push(token_id) for token_id in TOKENIZER.encode(_spec(text))]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


@given(st.lists(st.integers(0, len(BACKEND) - 1), max_size=30))
def test_any_ids_decode_to_the_start_of_the_whole(ids: list[int]) -> None:
    """Whatever a model makes, what is released is what the whole begins with."""
    step = TOKENIZER.step()
    released = "".join(map(step, ids))
    whole = str(BACKEND.decode(ids, skip_special_tokens=True))
    assert whole.startswith(released)
    assert released == whole or whole.endswith("\ufffd")


def _make_byte_fallback() -> Tokenizer:
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁", "river"]
    vocab = {word: token_id for token_id, word in enumerate(words)}
    backend = Backend(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))  # type: ignore[no-untyped-call]


BYTE_FALLBACK = _make_byte_fallback()


@given(st.lists(st.integers(0, 259), max_size=30))
@example([0x38, 257, 0x53, 0xF5, 0xA3, 257])  # refused by a bare DecodeStream
def test_bytes_that_are_no_text_stop_nothing(ids: list[int]) -> None:
    """Where bytes are tokens, any of them can be decoded, and again to the same."""
    once, again = BYTE_FALLBACK.step(), BYTE_FALLBACK.step()
    assert [once(token_id) for token_id in ids] == [again(token_id) for token_id in ids]
    assert "the" in once(257) + once(257)


def test_special_tokens_have_no_text() -> None:
    """They are skipped in the middle of a text too."""
    ids = TOKENIZER.encode(_spec(f"the{EOS}river"))
    assert "".join(map(TOKENIZER.step(), ids)) == "theriver"


def test_threads_encode_at_once(tmp_path: Path) -> None:
    """One tokeniser serves many threads, even if it was saved with truncation and padding."""
    backend = make_tokenizer()
    backend.backend_tokenizer.enable_truncation(3)
    backend.backend_tokenizer.enable_padding(length=50)
    backend.save_pretrained(tmp_path)
    tokenizer = Tokenizer(AutoTokenizer.from_pretrained(tmp_path))
    specs = [_spec("the river " * n) for n in range(1, 60)]
    with ThreadPoolExecutor(8) as pool:
        encoded = list(pool.map(tokenizer.encode, specs))
    assert encoded == [TOKENIZER.encode(spec) for spec in specs]


@pytest.mark.parametrize("content", ["hi", "水"])
def test_messages_are_rendered_with_the_assistants_turn(content: str) -> None:
    """The template's own special tokens are in the IDs once."""
    backend = make_tokenizer()
    backend.chat_template = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
    tokenizer = Tokenizer(backend)
    assert tokenizer.has_chat_template
    spec = JobSpec(model="tiny", max_tokens=1, messages=(Message("user", content),))
    assert tokenizer.encode(spec) == TOKENIZER.encode(_spec(f"<|user|>{content}"))
    assert not TOKENIZER.has_chat_template


def test_text_is_added_as_it_is() -> None:
    """Nothing is put between what is stored and what is added, and nothing added continues it."""
    spec = JobSpec(model="tiny", max_tokens=1, append=" the wheel", prompt_id="c")
    base = TOKENIZER.encode(_spec("the river"))
    assert TOKENIZER.encode(spec, base) == base + TOKENIZER.encode(_spec(" the wheel"))
    nothing = JobSpec(model="tiny", max_tokens=1, prompt_id="c")
    assert TOKENIZER.encode(nothing, tuple(base)) == base


_GREETING = "{% if messages[0].role != 'system' %}<|user|>be brief{% endif %}"
_TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
_OPENING = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


@pytest.mark.parametrize("end", ["<|end|>", "<|end|>\n", "\n\n", ""])
@pytest.mark.parametrize("has_ended", [True, False])
def test_messages_are_added_as_turns(end: str, has_ended: bool) -> None:
    """The tokens are those of the whole conversation, whether the answer had ended or was cut."""
    tokenizer = _with_turns(_TURNS.replace("<|end|>", end))
    question, answer, more = Message("user", "hm"), "the wheel", Message("user", "hi")
    asked = JobSpec(model="tiny", max_tokens=1, messages=(question,))
    made = EOS if has_ended and end.startswith(EOS) else ""
    base = [*tokenizer.encode(asked), *TOKENIZER.encode(_spec(answer + made))]
    whole = replace(asked, messages=(question, Message("assistant", answer), more))
    assert tokenizer.encode(_append(more), base) == tokenizer.encode(whole)


_LLAMA_2 = _TURNS.replace("<|end|>", " <|end|>")
_NOT_LAST = _TURNS.replace("<|end|>", "{% if not loop.last %}<|end|>{% endif %}")
_ROLE_ENDS = "{% for m in messages %}<|end|>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("turns", [_LLAMA_2, _NOT_LAST, _ROLE_ENDS])
def test_the_end_that_a_model_made_is_not_repeated(turns: str) -> None:
    """Wherever the template writes it: behind a space, only between turns, or as the next role."""
    base = TOKENIZER.encode(_spec(f"the wheel{EOS}"))
    ids = _with_turns(turns).encode(_append(Message("user", f"a{EOS}b")), base)
    assert TOKENIZER.text_of(ids[len(base) - 1]) == EOS
    assert TOKENIZER.text_of(ids[len(base)]) != EOS
    assert ids.count(base[-1]) == 2 + (turns == _LLAMA_2)


def _with_turns(turns: str) -> Tokenizer:
    backend = make_tokenizer()
    backend.chat_template = _GREETING + turns + _OPENING
    return Tokenizer(backend)


def _append(message: Message) -> JobSpec:
    return JobSpec(model="tiny", max_tokens=1, append=(message,), prompt_id="c")


def test_a_template_that_rewrites_the_past_cannot_add() -> None:
    """The client is told to send the whole conversation."""
    backend = make_tokenizer()
    backend.chat_template = "{{ messages | length }}" + _TURNS + _OPENING
    spec = JobSpec(model="tiny", max_tokens=1, append=(Message("user", "hi"),), prompt_id="c")
    with pytest.raises(TemplateError, match="send all"):
        Tokenizer(backend).encode(spec, [5])


def test_ids_decode_without_special_tokens_and_one_with() -> None:
    """A text hides what a single token shows."""
    ids = TOKENIZER.encode(_spec(f"the river{EOS}"))
    assert TOKENIZER.decode(ids) == "the river"
    assert TOKENIZER.text_of(ids[-1]) == EOS
    assert "".join(map(TOKENIZER.text_of, ids[:-1])) == "the river"
