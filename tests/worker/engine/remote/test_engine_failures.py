"""Upstreams that fail, cut and refuse: nothing of it is lost or taken for an answer."""

import json

import pytest

from common.errors import EngineFailed
from tests.support.waiting import within
from tests.worker.engine.remote.asking import HASTY, KEY, EngineOf, Upstream, answered, job, refused
from tests.worker.engine.remote.upstream_server import (
    DONE,
    GOOD,
    ROLE,
    Behaviour,
    chat,
    cuts_after,
    replies,
    streams,
)
from worker.engine.protocol import Output, Refused
from worker.engine.remote.exchange import Patience

pytestmark = pytest.mark.anyio


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
        "upstream-error",
        "The upstream failed 4 times: it answered 500: dead ….",
        completion_tokens=0,
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


async def test_what_came_before_a_cut_is_counted(upstream: Upstream, engine_of: EngineOf) -> None:
    """Its frames are all that is known of its tokens."""
    server = upstream(cuts_after(chat("The "), chat("Rhi")), replies(400, "{}"))
    engine = await engine_of(server)
    assert (await refused(engine)).completion_tokens == 2
    assert not (await refused(engine)).completion_tokens


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


async def test_a_broken_sink_fails_the_engine(upstream: Upstream, engine_of: EngineOf) -> None:
    """What a sink lost nobody may take for complete."""

    def broken(_output: Output) -> None:
        raise ValueError("broken")

    engine = await engine_of(upstream(streams(*GOOD)))
    engine.submit(job(), broken)
    async with within():
        with pytest.raises(EngineFailed, match="broken"):
            await engine.wait_failed()
