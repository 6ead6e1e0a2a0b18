"""What a local engine refuses, and says why."""

from pathlib import Path

import pytest

from common.emitted import Emitted
from common.jobs import JobSpec, Message, Sampling
from tests.worker.engine.local.engines import (
    BLOCK_BYTES,
    PROMPTS,
    Reference,
    loaded,
    make_spec,
    submit,
)
from tests.worker.engine.local.tiny import CONTEXT_LEN, save_tiny_model
from tests.worker.engine.recorder import FRESH, LENGTH
from worker.engine.local.engine import LocalEngine

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("generic_path")]


@pytest.mark.parametrize(
    ("spec", "emitted", "type_", "words"),
    [
        (make_spec(""), FRESH, "prompt-empty", "no tokens"),
        (make_spec("🌊" * 300), FRESH, "prompt-too-long", "shorten the prompt"),
        (make_spec("x" * 9, max_tokens=250), FRESH, "prompt-too-long", "9 prompt tokens"),
        (make_spec(max_tokens=CONTEXT_LEN), FRESH, "prompt-too-long", "alone"),
        (make_spec(), Emitted((5, 6), "never"), "takeover-mismatch", "logged"),
        (make_spec(), Emitted((99_999,), ""), "takeover-mismatch", "Another model"),
        (make_spec(stop_token_ids=(5000,)), FRESH, "token-unknown", "no token 5000"),
        (
            make_spec(sampling=Sampling(logit_bias={5000: 1.0})),
            FRESH,
            "token-unknown",
            "no token 5000",
        ),
        (
            make_spec(None, messages=(Message("villain", "ha"),)),
            FRESH,
            "messages-refused",
            "no villains",
        ),
    ],
)
async def test_what_cannot_be_done_is_refused(
    engine: LocalEngine, spec: JobSpec, emitted: Emitted, type_: str, words: str
) -> None:
    """A bad request gets its refusal with a reason, the good one beside it its answer."""
    good = submit(engine, make_spec(), "j:good")
    refused = await submit(engine, spec, "j:bad", emitted).refused()
    assert refused.type == type_
    assert words in refused.detail
    assert await good.ended() == LENGTH


async def test_a_stored_sequence_of_another_model_is_refused(engine: LocalEngine) -> None:
    """Its tokens may not exist here."""
    answer = submit(engine, make_spec(None, prompt_id="chat"), base=(1, 2, 5000))
    assert (await answer.refused()).type == "prompt-refused"


async def test_what_the_cache_cannot_hold_is_refused(tiny_model: Path) -> None:
    """It would wait for ever; what just fits is done."""
    async with loaded(tiny_model, kv_bytes=3 * BLOCK_BYTES, step_tokens=16) as engine:
        refused = await submit(engine, make_spec("x" * 9, 40), "j:1").refused()
        assert refused.type == "prompt-too-long"
        assert "KV cache of 48 tokens" in refused.detail
        assert (
            await submit(engine, make_spec("x" * 9, 39, ignore_eos=True), "j:2").ended() == LENGTH
        )


async def test_a_request_that_is_there_already_is_refused(
    engine: LocalEngine, reference: Reference
) -> None:
    """The first one goes on unharmed."""
    first = submit(engine, make_spec())
    second = submit(engine, make_spec(PROMPTS[1]))
    assert (await second.refused()).type == "duplicate-request"
    assert await first.ended() == LENGTH
    assert first.ids == reference.complete(PROMPTS[0], 24)


async def test_messages_without_a_template_are_refused(tmp_path: Path) -> None:
    """A model that only completes text says so, also of messages that are added."""
    save_tiny_model(tmp_path / "base", chat_template=None)
    messages = (Message("user", "hi"),)
    async with loaded(tmp_path / "base") as engine:
        fresh = submit(engine, make_spec(None, messages=messages), "j:1")
        assert (await fresh.refused()).type == "no-chat-template"
        added = submit(engine, make_spec(None, append=messages, prompt_id="c"), "j:2", base=(5,))
        assert (await added.refused()).type == "no-chat-template"
