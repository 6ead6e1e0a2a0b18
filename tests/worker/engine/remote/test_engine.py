"""The remote engine against a real server on loopback: what is asked, and what is answered."""

from typing import Any

import pytest

from common.emitted import Emitted
from common.events import Alternative, ChoiceEnd, TokenLogprob
from common.jobs import FinishReason, Sampling
from tests.worker.engine.remote.asking import KEY, EngineOf, Upstream, answered, refused
from tests.worker.engine.remote.upstream_server import DONE, GOOD, MODEL, chat, completion, streams
from worker.engine.protocol import UNRESUMABLE, Delta, Finished, Prefilled

pytestmark = pytest.mark.anyio


async def test_a_conversation_is_streamed(upstream: Upstream, engine_of: EngineOf) -> None:
    """Text comes as deltas without IDs, the counts of the upstream before the end."""
    server = upstream(streams(*GOOD))
    recorder, end = await answered(await engine_of(server))
    assert recorder.outputs[:2] == [Delta((), "The "), Delta((), "Rhine")]
    assert recorder.outputs[2] == Prefilled(9, cached_tokens=4, prefill_s=0.0)
    assert end == Finished(FinishReason.STOP, is_eos=True, completion_tokens=3)
    [asked] = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Which river?"}],
        "max_tokens": 8,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_prompt_is_continued_and_every_option_sent(
    upstream: Upstream, engine_of: EngineOf
) -> None:
    """Options go by the names that vLLM has for them; the prompt's echo is our own."""
    server = upstream(streams(completion(" flows", finish_reason="length"), DONE))
    sampling = Sampling(0.5, 0.9, 5, 7, 0.1, 1.1, 0.2, 0.3, {11: -100.0})
    recorder, end = await answered(
        await engine_of(server, path="/v1/"),
        prompt="It",
        sampling=sampling,
        stop=("x",),
        stop_token_ids=(3,),
        min_tokens=2,
        ignore_eos=True,
        logprobs=2,
        echo=True,
    )
    assert recorder.text == "It flows"
    assert recorder.outputs[0] == Delta((), "It", echo=True)
    assert end == Finished(FinishReason.LENGTH, completion_tokens=1)  # counted, for want of usage
    [asked] = server.asked
    assert asked.path == "/v1/completions"
    assert asked.body == {
        "model": MODEL,
        "prompt": "It",
        "max_tokens": 8,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "logit_bias": {"11": -100.0},
        "stop": ["x"],
        "stop_token_ids": [3],
        "min_tokens": 2,
        "ignore_eos": True,
        "logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_several_answers_end_one_by_one(upstream: Upstream, engine_of: EngineOf) -> None:
    """Each delta says whose it is; the end has all of them."""
    server = upstream(
        streams(
            chat("a"),
            chat("b", index=1),
            chat("", index=1, finish_reason="length"),
            chat("c", finish_reason="stop", stop_reason=None),
            DONE,
        )
    )
    recorder, end = await answered(await engine_of(server), n=2, stop=("x",))
    assert recorder.outputs[:3] == [Delta((), "a"), Delta((), "b", 1), Delta((), "c")]
    assert end.choices == (
        ChoiceEnd(0, FinishReason.STOP, is_eos=True),  # vLLM says that no stop string was it
        ChoiceEnd(1, FinishReason.LENGTH, is_eos=False),
    )
    assert server.asked[0].body["n"] == 2


async def test_a_stop_string_is_not_taken_for_the_models_end(
    upstream: Upstream, engine_of: EngineOf
) -> None:
    """Where a stop string was asked for and the server does not tell, the answer is open."""
    server = upstream(
        streams(*GOOD), streams(chat("a", finish_reason="stop", stop_reason="x"), DONE)
    )
    engine = await engine_of(server)
    for _ in range(2):
        _, end = await answered(engine, stop=("x",))
        assert (end.reason, end.is_eos) == (FinishReason.STOP, False)


async def test_logprobs_of_both_apis(upstream: Upstream, engine_of: EngineOf) -> None:
    """The chosen token comes with its rivals; token IDs are not known."""
    tops = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.0}]
    of_chat = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": tops}]}
    of_text = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.0, "a": -0.5}]}
    server = upstream(
        streams(chat("a", finish_reason="stop", logprobs=of_chat), DONE),
        streams(completion("a", finish_reason="stop", logprobs=of_text), DONE),
    )
    engine = await engine_of(server)
    said = TokenLogprob(-1, "a", -0.5, (Alternative(-1, "a", -0.5), Alternative(-1, "b", -1.0)))
    for fields in ({}, {"prompt": "It"}):
        recorder, _ = await answered(engine, logprobs=2, **fields)
        assert recorder.outputs[0] == Delta((), "a", logprobs=(said,))
    assert (server.asked[0].body["logprobs"], server.asked[0].body["top_logprobs"]) == (True, 2)


@pytest.mark.parametrize(
    ("fields", "type_"),
    [
        ({"append": "and then", "prompt_id": "p"}, "not-supported"),
        ({"echo": True}, "not-supported"),
        ({"emitted": (Emitted((), "The "),)}, "answer-lost"),
        ({"emitted": (Emitted((), "The "),), "allow_reset": True}, UNRESUMABLE),
        ({"emitted": (Emitted(), Emitted((1,))), "n": 2}, "answer-lost"),
    ],
)
async def test_what_no_upstream_can_do_is_refused_unasked(
    fields: dict[str, Any], type_: str, upstream: Upstream, engine_of: EngineOf
) -> None:
    """Stored prompts, the template's text, and the rest of somebody else's answer."""
    server = upstream(streams(*GOOD))
    assert (await refused(await engine_of(server), **fields)).type == type_
    assert server.asked == []


async def test_a_second_attempt_repeats_no_echo(upstream: Upstream, engine_of: EngineOf) -> None:
    """Where only the prompt was said before, the answer follows it."""
    server = upstream(streams(completion(" flows", finish_reason="stop"), DONE))
    engine = await engine_of(server)
    recorder, _ = await answered(engine, prompt="It", echo=True, emitted=(Emitted(echo="I"),))
    assert recorder.text == "t flows"
    foreign = await refused(engine, prompt="It", echo=True, emitted=(Emitted(echo="No"),))
    assert foreign.type == UNRESUMABLE
