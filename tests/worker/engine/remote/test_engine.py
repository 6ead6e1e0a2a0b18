"""The remote engine against a real server on loopback that behaves well, badly and worse."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from common.emitted import Emitted
from common.errors import EngineFailed, StartupFailed
from common.events import Alternative, ChoiceEnd, TokenLogprob
from common.jobs import FinishReason, JobSpec, Message, Sampling
from tests.support.waiting import within
from tests.worker.engine.recorder import Recorder
from tests.worker.engine.remote.upstream_server import (
    DONE,
    GOOD,
    MODEL,
    ROLE,
    Behaviour,
    Exchange,
    Hang,
    UpstreamServer,
    chat,
    completion,
    cuts_after,
    lists_models,
    replies,
    streams,
)
from worker.engine.options import EngineOptions
from worker.engine.protocol import (
    UNRESUMABLE,
    Delta,
    EngineInfo,
    Finished,
    Output,
    Prefilled,
    Refused,
    Request,
)
from worker.engine.remote.engine import RemoteEngine
from worker.engine.remote.exchange import Patience

pytestmark = pytest.mark.anyio

KEY = "sk-secret"
QUESTION = (Message("user", "Which river?"),)
HASTY = Patience(tries=4, first_s=0.001, longest_s=0.001, load_s=0.05)

_numbers = count()

Upstream = Callable[..., UpstreamServer]
EngineOf = Callable[..., Awaitable[RemoteEngine]]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """Makes servers with a script; started by ``engine_of``."""
    servers: list[UpstreamServer] = []

    def make(*behaviours: Behaviour, models: Behaviour | None = None) -> UpstreamServer:
        servers.append(UpstreamServer(list(behaviours), models or lists_models(MODEL)))
        return servers[-1]

    yield make
    for server in servers:
        await server.stop()


@pytest.fixture
async def engine_of() -> AsyncIterator[EngineOf]:
    """Makes engines on a server."""
    engines: list[RemoteEngine] = []

    async def make(
        server: UpstreamServer, *, patience: Patience = HASTY, capacity: int = 4, path: str = ""
    ) -> RemoteEngine:
        await server.start()
        options = EngineOptions(
            MODEL, Path(), capacity, upstream=server.url + path, upstream_key=KEY
        )
        engines.append(RemoteEngine(options, patience))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.close()


def job(**fields: Any) -> Request:
    """Return a request: a conversation, unless a prompt is given."""
    emitted = fields.pop("emitted", None)
    fields = {"max_tokens": 8} | fields
    if "prompt" not in fields and "append" not in fields:
        fields = {"messages": QUESTION} | fields
    spec = JobSpec(MODEL, **fields)
    return Request(f"j{next(_numbers)}:1", spec, emitted or (Emitted(),) * spec.n)


async def refused(engine: RemoteEngine, **fields: Any) -> Refused:
    """Submit a job and return why it is refused."""
    recorder = Recorder()
    engine.submit(job(**fields), recorder)
    return await recorder.refused()


async def answered(engine: RemoteEngine, **fields: Any) -> tuple[Recorder, Finished]:
    """Submit a job and return its answer."""
    recorder = Recorder()
    engine.submit(job(**fields), recorder)
    return recorder, await recorder.ended()


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
    "first",
    [
        replies(429, "slow down", Retry_After="0.01"),
        replies(503),
        cuts_after(),
        cuts_after(ROLE),
        streams(ROLE),
        streams(DONE),
    ],
)
async def test_before_the_first_text_it_is_sent_again(
    first: Behaviour, upstream: Upstream, engine_of: EngineOf
) -> None:
    """A busy or broken upstream is asked again, and the reader sees one whole answer."""
    server = upstream(first, first, streams(*GOOD))
    recorder, _ = await answered(await engine_of(server))
    assert recorder.text == "The Rhine"
    assert len(server.asked) == 3


async def test_in_the_end_it_gives_up(upstream: Upstream, engine_of: EngineOf) -> None:
    """The number of tries is bounded, and the last reason is told, without the key."""
    server = upstream(replies(500, json.dumps({"error": {"message": f"dead\n {KEY}"}})))
    refusal = await refused(await engine_of(server))
    assert refusal == Refused(
        "upstream-error", "The upstream failed 4 times: it answered 500: dead …."
    )
    assert len(server.asked) == HASTY.tries


def test_retry_after_is_honoured_and_bounded() -> None:
    """The pause is what the upstream asks for, where that is longer; never an hour."""
    patience = Patience(first_s=1, longest_s=8)
    assert 0.5 <= patience.pause_s(1, 0) <= 1
    assert 4 <= patience.pause_s(40, 0) <= 8
    assert patience.pause_s(1, 30) == 30
    assert patience.pause_s(1, 3600) == patience.longest_retry_after_s


@pytest.mark.parametrize(
    ("behaviour", "type_"),
    [
        (cuts_after(chat("The ")), "upstream-cut"),
        (streams(chat("The ")), "upstream-cut"),
        (streams(chat("The "), DONE), "upstream-cut"),
        (streams(chat("The "), "{no json"), "upstream-error"),
        (streams(chat("The "), {"error": {"message": "out of memory"}}), "upstream-error"),
        (streams(chat("The ", finish_reason="abort"), DONE), "upstream-error"),
        (streams(chat("The ", finish_reason="content_filter"), DONE), "upstream-refused"),
        (streams(chat("The ", index=1)), "upstream-error"),
        (replies(200, "{}", Content_Type="application/json"), "upstream-error"),
        (replies(307, Location="http://127.0.0.1:1/"), "upstream-error"),
        (replies(401, '{"detail": "no"}'), "upstream-refused"),
    ],
)
async def test_no_answer_is_cut_silently(
    behaviour: Behaviour, type_: str, upstream: Upstream, engine_of: EngineOf
) -> None:
    """What is not whole is refused and not sent again; the next job is served."""
    server = upstream(behaviour, streams(*GOOD))
    engine = await engine_of(server)
    assert (await refused(engine)).type == type_
    recorder, _ = await answered(engine)
    assert recorder.text == "The Rhine"
    assert len(server.asked) == 2


async def test_a_refusal_is_one_bounded_line(upstream: Upstream, engine_of: EngineOf) -> None:
    """Whatever the upstream's error page is, the client gets a line of it."""
    server = upstream(replies(400, "<html>\n" * 1000))
    refusal = await refused(await engine_of(server))
    assert refusal.type == "upstream-refused"
    assert refusal.detail.startswith("The upstream refused the job (400): <html> <html>")
    assert len(refusal.detail) < 400


async def test_a_whole_answer_survives_a_cut(upstream: Upstream, engine_of: EngineOf) -> None:
    """When every answer has its end, only the counts can be lost."""
    server = upstream(cuts_after(chat("The "), chat("end", finish_reason="stop")))
    recorder, end = await answered(await engine_of(server))
    assert (recorder.text, end.completion_tokens) == ("The end", 2)


async def test_cancel_closes_the_connection(upstream: Upstream, engine_of: EngineOf) -> None:
    """The upstream sees its client leave, and the slot is free for the next job."""
    hang = Hang(chat("The "))
    server = upstream(hang, streams(*GOOD))
    engine = await engine_of(server, capacity=1)
    recorder, request = Recorder(), job()
    engine.submit(request, recorder)
    waiting = Recorder()
    engine.submit(job(), waiting)
    async with within():
        await hang.is_asked.wait()
        while not recorder.text:
            recorder._progress.clear()
            await recorder._progress.wait()
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)
    engine.cancel(request.id)
    engine.cancel("unknown")
    assert await recorder.ended() == Finished(FinishReason.CANCELLED, completion_tokens=1)
    async with within():
        await hang.is_left.wait()
    assert (await waiting.ended()).reason is FinishReason.STOP
    assert (server.most_open, engine.stats().running, engine.stats().waiting) == (1, 0, 0)


async def test_capacity_bounds_what_runs_upstream(upstream: Upstream, engine_of: EngineOf) -> None:
    """More jobs than slots wait, and are sent in order of arrival."""
    are_both_there = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        if server.num_open == 2:
            are_both_there.set()
        await are_both_there.wait()
        await streams(*GOOD)(exchange)

    server = upstream(wait)
    engine = await engine_of(server, capacity=2)
    recorders = [Recorder() for _ in range(6)]
    for seed, recorder in enumerate(recorders):
        engine.submit(job(sampling=Sampling(seed=seed)), recorder)
    for recorder in recorders:
        await recorder.ended()
    assert server.most_open == 2
    seeds = [asked.body["seed"] for asked in server.asked]
    assert [set(seeds[at : at + 2]) for at in (0, 4)] == [{0, 1}, {4, 5}]


async def test_after_close_nothing_is_delivered(upstream: Upstream, engine_of: EngineOf) -> None:
    """A job that this engine gave up is another one's to finish."""
    hang = Hang()
    engine = await engine_of(upstream(hang))
    recorder, request = Recorder(), job()
    engine.submit(request, recorder)
    async with within():
        await hang.is_asked.wait()
        engine.cancel(request.id)
        await engine.close()
        await hang.is_left.wait()
    assert recorder.outputs == []


async def test_a_broken_sink_fails_the_engine(upstream: Upstream, engine_of: EngineOf) -> None:
    """What a sink lost nobody may take for complete."""

    def broken(_output: Output) -> None:
        raise ValueError("broken")

    engine = await engine_of(upstream(streams(*GOOD)))
    engine.submit(job(), broken)
    async with within():
        with pytest.raises(EngineFailed, match="broken"):
            await engine.wait_failed()


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


async def test_one_request_is_taken_once(upstream: Upstream, engine_of: EngineOf) -> None:
    """The second of the same name is refused, the first goes on."""
    engine = await engine_of(upstream(streams(*GOOD)))
    first, second, request = Recorder(), Recorder(), job()
    engine.submit(request, first)
    engine.submit(request, second)
    assert (await second.refused()).type == "duplicate-request"
    await first.ended()


async def test_loading_asks_for_the_models(upstream: Upstream, engine_of: EngineOf) -> None:
    """A server that tells its context length is believed; one that lists nothing is accepted."""
    engine = await engine_of(upstream(models=lists_models("other", MODEL, max_model_len=2048)))
    steps: list[str] = []
    info = await engine.load(lambda step, _done: steps.append(step))
    assert info == EngineInfo(MODEL, "remote", "", 2048, 4)
    assert steps[0].startswith("asking 127.0.0.1:")
    silent = await engine_of(upstream(models=replies(200, '{"data": null}')))
    assert (await silent.load(lambda _step, _done: None)).context_len == 0
    assert await silent.probe(job()) == ""


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (replies(401, KEY), "refuses the key"),
        (replies(404), "base URL"),
        (replies(302, Location="http://127.0.0.1:1/"), "base URL"),
        (replies(200, "<html>"), "OpenAI-compatible"),
        (replies(503), "cannot be used: it answered 503"),
        (lists_models(*"abcdefg"), "--model can be a, b, c, d, e, …"),
    ],
)
async def test_a_wrong_upstream_stops_the_start(
    models: Behaviour, said: str, upstream: Upstream, engine_of: EngineOf
) -> None:
    """One line says what is wrong, and never the key."""
    engine = await engine_of(upstream(models=models))
    with pytest.raises(StartupFailed) as failed:
        await engine.load(lambda _step, _done: None)
    assert said in str(failed.value)
    assert KEY not in str(failed.value)
    assert "\n" not in str(failed.value)


async def test_an_upstream_that_starts_later_is_waited_for(
    upstream: Upstream, engine_of: EngineOf
) -> None:
    """A worker may be started before its upstream."""
    answers = iter([replies(503), cuts_after(), lists_models(MODEL)])

    async def models(exchange: Exchange) -> None:
        await next(answers)(exchange)

    patient = Patience(first_s=0.001, longest_s=0.001)
    engine = await engine_of(upstream(models=models), patience=patient)
    assert (await engine.load(lambda _step, _done: None)).device == "remote"
