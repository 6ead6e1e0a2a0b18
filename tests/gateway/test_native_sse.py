"""SSE frames, read back by a parser that is not ours."""

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Problem
from common.events import Accepted, Alternative, Event, Failed, TokenLogprob, Tokens
from common.jobs import FinishReason
from gateway.dialects import native_sse
from tests.gateway.player import DONE

HOSTILE = [
    "\r", "\n", "\r\n", "\n\n", "\0", "id: 99\n\n", "\ndata: forged\n\n", "event: completed\n",
    "\n: comment\n", "\u2028\u2029\x85\x0b\x0c\x1c", "\ufeff", " leading", "é\U0001f600", "",
]  # fmt: skip

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def parse(data: bytes) -> list[httpx2.ServerSentEvent]:
    """Return what a client of the WHATWG's rules makes of the bytes."""
    headers = {"Content-Type": "text/event-stream"}
    request = httpx2.Request("GET", "http://x")
    return list(
        httpx2.EventSource(httpx2.Response(200, headers=headers, content=data, request=request))
    )


@pytest.mark.fault(31)
@pytest.mark.parametrize("text", HOSTILE)
def test_no_token_forges_a_frame(text: str) -> None:
    """Line breaks, field names and NUL inside a token come back as that token."""
    event = Tokens(0, (1,), text)
    [found] = parse(native_sse.frame("job", 7, event))
    assert (found.id, found.event) == ("7", "tokens")
    assert _decoder.decode(found.data) == event


@pytest.mark.control(31)
def test_text_that_is_sent_as_it_is_would_forge_events() -> None:
    """The fault bites: without JSON around it a token ends its frame and begins another."""
    text = "\n\nevent: completed\ndata: forged\n\n"
    naive = f"id: 7\nevent: tokens\ndata: {text}\n\n".encode()
    assert [(item.event, item.data) for item in parse(naive)][-1] == ("completed", "forged")


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_frames_come_back_one_by_one(texts: list[str]) -> None:
    """A stream of frames is parsed into exactly the events that went in, in order."""
    events = [Tokens(n, (n,), text) for n, text in enumerate(texts)]
    frames = [native_sse.frame("job", n, event) for n, event in enumerate(events)]
    found = parse(b"".join(frames))
    assert [int(item.id) for item in found] == list(range(len(events)))
    assert [_decoder.decode(item.data) for item in found] == events


@pytest.mark.fault(31)
@given(st.text())
def test_a_frame_has_three_lines_and_a_blank_one(text: str) -> None:
    """No byte of a token is a line break to any parser, the lenient ones included."""
    frame = native_sse.frame("job", 1, Tokens(0, (1,), text))
    assert frame.count(b"\n") == 4
    assert b"\r" not in frame
    assert b"\0" not in frame


@pytest.mark.parametrize("event", [Accepted("job", "tiny"), DONE, Failed(FinishReason.ERROR)])
def test_the_event_field_is_the_kind(event: Event) -> None:
    """An ``EventSource`` can listen to one kind."""
    [found] = parse(native_sse.frame("job", 0, event))
    assert found.event == event.kind
    assert _decoder.decode(found.data) == event


def test_what_a_job_did_not_ask_for_is_not_there() -> None:
    """Most jobs have one answer and no logprobs: their events have no field for them."""
    plain = msgspec.json.decode(parse(native_sse.frame("job", 1, Tokens(0, (1,), "a")))[0].data)
    assert plain == {"kind": "tokens", "index": 0, "ids": [1], "text": "a"}
    entry = TokenLogprob(1, "a", -0.5, (Alternative(2, "b", -1.0),))
    rich = Tokens(0, (1,), "a", choice=1, logprobs=(entry,))
    assert msgspec.json.decode(parse(native_sse.frame("job", 1, rich))[0].data) == {
        **plain,
        "choice": 1,
        "logprobs": [
            {
                "id": 1,
                "text": "a",
                "logprob": -0.5,
                "top": [{"id": 2, "text": "b", "logprob": -1.0}],
            }
        ],
    }
    echo = Tokens(0, (), "Once", echo=True)
    assert msgspec.json.decode(parse(native_sse.frame("job", 1, echo))[0].data) == {
        **plain,
        "ids": [],
        "text": "Once",
        "echo": True,
    }


def test_the_opening_sets_the_retry_and_is_no_event() -> None:
    """It has no data, so no listener is called."""
    [found] = parse(native_sse.opening(1000))
    assert (found.retry, found.data) == (1000, "")


@pytest.mark.parametrize("comment", [native_sse.PING, native_sse.RECONNECT])
def test_comments_are_no_events(comment: bytes) -> None:
    """A ping between two frames changes neither."""
    before, after = (native_sse.frame("job", n, Tokens(n, (n,), "a")) for n in range(2))
    assert [item.id for item in parse(before + comment + after)] == ["0", "1"]


def test_a_broken_stream_says_why_without_a_number() -> None:
    """The problem moves no cursor: the last ID stays that of the last event."""
    frames = native_sse.frame("job", 3, Tokens(0, (1,), "a"))
    found = parse(frames + native_sse.broken(Problem(404, "job-not-found", "Line\nbreak.")))
    assert [item.event for item in found] == ["tokens", "problem"]
    assert found[1].id == "3"
    assert msgspec.json.decode(found[1].data)["detail"] == "Line\nbreak."
